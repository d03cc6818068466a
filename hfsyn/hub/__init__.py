"""The Hub as hfsyn writes to it: one repository, what a token may do, versions as tags."""
