"""The small trained models that ship with hfsyn: what the drawn variants are captioned and generated with.

`captioner` is a BLIP and `generator` a Stable Diffusion pipeline, each a folder that the ordinary `from_pretrained`
reads (half-precision weights: load them with `dtype=torch.float32` on a CPU). The README.md of each folder says how it
was trained, and how good it is.
"""

from pathlib import Path
from typing import Literal


def path(kind: Literal["captioner", "generator"]) -> Path:
    """The folder of one of the two models."""
    return Path(__file__).parent / kind
