"""The run folder: its layout, the columns of its tables, and how its files are checked and read."""
