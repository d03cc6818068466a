"""Tuning: LoRA weights, or a whole network, from captioned real images."""
