"""Recipes: one loader for all that people write in YAML, the parts of a recipe, strategies, and what is shipped."""
