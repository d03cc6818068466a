"""Published sets: which configurations of a repository are ours, and their versions, read back safely."""
