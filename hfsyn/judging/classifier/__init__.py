"""A classifier: the network and its classes, how its images are prepared, and accelerate."""
