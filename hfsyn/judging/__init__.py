"""How classifiers are trained and tested on real and synthetic sets, and how the results are shown."""
