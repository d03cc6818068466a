"""The recipes that come with hfsyn, one YAML file each."""
