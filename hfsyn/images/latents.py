"""From latents to grey levels: decoded in small batches, rounded on the device, and copied without a wait."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MICRO_BATCH = 16
"""Latents of 512 px images decoded at once, of larger ones fewer. Time is linear in the batch, memory too; 512 px x 256
channels x 32 images are 2^31 values, where kernels that count with 32 bits end.
"""
_PIXELS = 64 * 64  # height times width of the latents of a 512 px image


@dataclass(frozen=True, slots=True)
class Levels:
    """Images as 8-bit levels, and what shows that one is broken."""

    pixels: npt.NDArray[np.uint8]  # batch x height x width x 3, RGB
    finite: npt.NDArray[np.bool_]  # whether all values of an image were finite
    span: npt.NDArray[np.int16]  # the largest difference of two levels within one channel of an image, 0 to 255


def draws_noise(vae: Any) -> bool:
    """Whether an autoencoder's decoder may draw noise. Those that take generators and never use them are not given any:
    torch could not compile them.
    """
    quiet = ("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny")
    return type(vae).__name__ not in quiet and "generator" in inspect.signature(vae.decode).parameters


def at_once(latents: Any) -> int:
    """How many of these latents are decoded at once, about equally many each time; see `MICRO_BATCH`."""
    most = max(1, min(MICRO_BATCH, MICRO_BATCH * _PIXELS // (latents.shape[-2] * latents.shape[-1])))
    parts = -(-latents.shape[0] // most)
    return -(-int(latents.shape[0]) // parts)


def fetch(images: Any, wanted: int, *, signed: bool) -> Callable[[], Levels]:
    """Begin to copy the first `wanted` images (tensor, batch x 3 x height x width; `signed` if of -1 to 1 rather than
    0 to 1) to the CPU; what is returned waits for the end of it and gives the levels.

    It can be called in another thread, while this one gives the device more to do. A GPU rounds the images itself (a
    quarter of the bytes to copy) and copies them into pinned memory; what a CPU has drawn is rounded when it is waited
    for.
    """
    import torch

    images = images[:wanted]
    if images.device.type != "cuda":

        def round_here() -> Levels:
            with torch.inference_mode():
                return Levels(*(part.numpy() for part in _rounded(images, signed=signed)))

        return round_here
    rounded = _rounded(images, signed=signed)
    here = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in rounded]
    for target, x in zip(here, rounded, strict=True):
        target.copy_(x, non_blocking=True)
    # On the stream of these tensors: otherwise it is recorded on the thread's current device, which may be another GPU.
    # Waiting must not take a core from the encoders.
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(rounded[0].device))

    def wait() -> Levels:
        event.synchronize()
        return Levels(*(part.numpy() for part in here))

    return wait


def _rounded(images: Any, *, signed: bool) -> tuple[Any, Any, Any]:
    """Levels (batch x height x width x 3), finiteness and span of images, on their device."""
    import torch

    # Rounding keeps the order, so that the extremes give the span; those of an image with a NaN are NaN.
    low, high = images.amin((2, 3)), images.amax((2, 3))
    finite = (low.isfinite() & high.isfinite()).all(1)
    low, high = (_to_levels(x, signed=signed) for x in (low, high))
    span = (high - low).amax(1).to(torch.int16)
    if images.device.type == "cpu":
        return _by_image(images, signed=signed), finite, span
    levels = _to_levels(images, signed=signed)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous(), finite, span


def _by_image(images: Any, *, signed: bool) -> Any:
    """Levels of images on a CPU, in a fifth of the time: each step finds the image in the cache, no memory is new."""
    import torch

    count, channels, height, width = images.shape
    levels = torch.empty((count, height, width, channels), dtype=torch.uint8)
    scratch = torch.empty_like(images[0])
    for image, interleaved in zip(images, levels.numpy(), strict=True):
        rounded = _to_levels(image, signed=signed, out=scratch).numpy()
        for channel in range(channels):
            interleaved[..., channel] = rounded[channel]
    return levels


def _to_levels(x: Any, *, signed: bool, out: Any = None) -> Any:
    """Values as levels of 0 to 255 in float32, NaN as 0; otherwise rounded to the bit as diffusers does. `out` may be
    overwritten.
    """
    import torch

    x = torch.mul(x, 0.5, out=out).add_(0.5).clamp_(0, 1) if signed else torch.clamp(x, 0, 1, out=out)
    return x.float().nan_to_num_(0.0).mul_(255).round_()
