"""The page's template and the example of a matrix; data only."""
