"""The Hub as hfsyn writes to it: one repository, what a token can do, versions as tags."""
