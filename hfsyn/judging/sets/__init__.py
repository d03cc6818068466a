"""From the name of a dataset to opened sets, and from those to batches."""
