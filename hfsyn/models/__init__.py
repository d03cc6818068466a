"""Models: found, pinned and loaded; and the small trained ones that caption and draw the drawn variants.

`captioner` is a BLIP and `generator` a Stable Diffusion pipeline, each a folder that the ordinary `from_pretrained`
reads (half-precision weights: load them with `dtype=torch.float32` on a CPU). The README.md of each folder says how it
was trained, and how good it is.
"""
