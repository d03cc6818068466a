"""How a synthetic dataset is made: recipe, captions, plan, images, shards, manifest."""
