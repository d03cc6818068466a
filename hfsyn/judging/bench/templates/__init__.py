"""The report page's template, in which its tables are laid out, and the example of a matrix."""
