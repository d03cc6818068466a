"""Training: the loop, its parts, its folders and checkpoints, and the model's card."""
