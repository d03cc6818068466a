"""The models whose memory is stated, and how they are run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One model, and what it may take."""

    name: str
    dtype: str
    batch_size: int
    steps: int
    """Of an image; few, because memory does not depend on them. 0 for a captioner."""
    allowed_gb: float
    """GPU memory that the README states, in 10^9 bytes."""


CASES = (
    Case("stable-diffusion", "bfloat16", 16, 4, 16),
    Case("blip", "bfloat16", 32, 0, 6),
    Case("sdxl", "bfloat16", 8, 4, 32),
    Case("blip2", "float16", 32, 0, 16),
)
"""In the order of what they tell."""
