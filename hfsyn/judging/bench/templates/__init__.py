"""The page's template; data only."""
