"""From prompts to stored images: embeddings, latents, pixels, bytes."""
