"""Comparisons: the matrix, its cells, summaries, and the page."""
