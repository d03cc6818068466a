"""What the Hub takes at most: files, folders, bytes, and what goes into one commit."""

from __future__ import annotations

MOST_FILES = 100_000
"""In a repository; the Hub's recommendation."""
MOST_ENTRIES = 10_000
"""In a folder; a hard limit of the Hub."""
LARGEST_FILE = 20 * 10**9
"""Bytes; the Hub's recommendation (50 GB is its hard limit)."""
LARGEST_SHARD = 500 * 2**20
"""Bytes; what the Hub's own tools write at most, and its Dataset Viewer reads well."""
FILES_A_COMMIT = 1000
"""The most that the Hub's own client puts into one commit (the Hub takes 25,000, within a minute)."""


def commits_for(files: int) -> int:
    """How many commits so many files take, the card not counted; more than one are made in a pull request."""
    return -(-(files + 1) // FILES_A_COMMIT)
