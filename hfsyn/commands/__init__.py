"""The commands in groups; `hfsyn.cli` puts them together."""
