"""Run folders in object storage."""
