"""How many images the device draws at once: the recipe's number, what the user says, or as many as fit.

The last bits of an image depend on it, so a shard's sidecar records it (`Sidecar.grid`).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from hfsyn.errors import HfsynError

T = TypeVar("T")

CANDIDATES = (1, 2, 4, 8, 16, 24, 48)
"""Sizes that are tried, ascending. Beyond 8 rows a batch no longer saves memory traffic, only launches; and from 64
rows on (32 images with guidance) diffusers leaves the channels-last format in the middle of the UNet.
"""
_MOST_ROWS = 63
_HEADROOM = 0.85
"""Share of the device's memory that may be used: fragmentation and other processes take the rest."""
_NO_MEMORY = (
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "can't allocate memory",
    "unable to find an engine",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
)
"""What cuBLAS, cuDNN and the CPU's allocator say when there is too little memory."""
_SMALLER = "Use a smaller model or size, a dtype of 16 bits, or another --device."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device, or of the machine, is too small."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def release_memory() -> None:
    """Free what a failed attempt holds."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


class BatchSize:
    """The present batch size of a stage; halved when memory runs out, and never raised again."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, work: Callable[[int], T], *, settle: Callable[[], None] = lambda: None) -> tuple[T, int] | None:
        """The result of `work(size)`, and the size; None where it was too large and is smaller now.

        Before the size is halved, `settle` waits for what else holds memory. Raises HfsynError where there is too
        little for a batch of one.
        """
        size = self.size
        try:
            return work(size), size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())[:160]
        # Outside the except clause: its traceback holds the tensors of the attempt.
        settle()
        release_memory()
        if size == 1:
            raise HfsynError(f"There is too little memory for one image at a time ({said}).", _SMALLER)
        self.size = max(1, size // 2)
        print(
            f"hfsyn: too little memory for batches of {size}; going on with {self.size} ({said})",
            file=sys.stderr,
            flush=True,
        )
        return None


def largest_batch(draw: Callable[[int], None], *, guided: bool, used: Callable[[], float]) -> int:
    """The largest of `CANDIDATES` that a device draws within its memory; raises HfsynError where not even one fits.

    Args:
        draw: draws a batch of a size and waits for it.
        guided: whether each image is two rows for the network.
        used: the largest share of the device's memory that the last `draw` used, 0 to 1.
    """
    fitting = 0
    for size in CANDIDATES:
        if fitting and size * (2 if guided else 1) > _MOST_ROWS:
            break
        try:
            draw(size)
            share = used()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            share = 2.0
        release_memory()
        if share > (_HEADROOM if fitting else 1):
            break
        fitting = size
    if not fitting:
        raise HfsynError("There is too little memory for one image at a time.", _SMALLER)
    return fitting


def choose(asked: str | int | None, recipe_size: int, device: str, generator: Any, *, guided: bool) -> int:
    """The batch size to begin with: `asked`, or the recipe's; ``auto`` fills the memory of a CUDA device.

    Args:
        asked: a number, ``auto`` or None.
        recipe_size: of the recipe.
        device: a torch device; ``auto`` is the recipe's size on others than CUDA.
        generator: an `ImageGenerator`.
        guided: see `largest_batch`.
    """
    if asked not in (None, "auto"):
        return int(asked)
    if asked is None or not device.startswith("cuda"):
        return recipe_size
    import torch
    from PIL import Image

    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)  # also what CUDA itself takes

    def draw(size: int) -> None:
        torch.cuda.reset_peak_memory_stats(device)
        images = {"images": [generator.fit(Image.new("RGB", (64, 64)))] * size} if generator.starts_from_images else {}
        generator.start(["a photo"] * size, list(range(size)), size, **images)()

    return largest_batch(draw, guided=guided, used=lambda: (torch.cuda.max_memory_reserved(device) + others) / total)
