"""The card of a published dataset: facts, then blocks, then text."""
