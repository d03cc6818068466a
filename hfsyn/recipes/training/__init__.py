"""The training recipes that hfsyn ships, as YAML."""
