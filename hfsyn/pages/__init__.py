"""Pages that open from a file, and tables for notebooks."""
