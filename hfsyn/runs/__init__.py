"""A run: prepared, planned, its shards claimed and written, its status, its end."""
