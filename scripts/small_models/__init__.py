"""How the small captioner and the small generator in `hfsyn/models` are trained, one module a stage."""
