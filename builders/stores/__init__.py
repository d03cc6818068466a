"""Run folders in object storage: their local copies, and the requests that are made of a store."""
