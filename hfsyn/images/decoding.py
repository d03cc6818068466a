"""From latents to grey levels: decoded in small batches, rounded on the device, copied without a wait."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MICRO_BATCH = 16
"""Latents of 512 px images decoded at once, of larger ones fewer. Time is linear in the batch, memory too; 512 px x 256
channels x 32 images are 2^31 values, where kernels that count with 32 bits end.
"""
_PIXELS = 64 * 64
"""Height times width of the latents of a 512 px image."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Images as 8-bit levels, and what tells a broken one."""

    pixels: npt.NDArray[np.uint8]
    """Batch x height x width x 3, RGB."""
    finite: npt.NDArray[np.bool_]
    """Whether all numbers of an image were finite."""
    span: npt.NDArray[np.int16]
    """The largest difference of two levels within one channel of an image, 0 to 255."""


def decode(pipe: Any, latents: Any, generators: Sequence[Any]) -> list[Any]:
    """Latents of Stable Diffusion or SDXL as images of -1 to 1 on the device, in micro-batches.

    Args:
        pipe: whose autoencoder decodes.
        latents: batch x channels x height/8 x width/8.
        generators: of each sample, for a decoder that draws noise.

    Returns:
        tensors of micro-batch x 3 x height x width.
    """
    import torch

    vae = pipe.vae
    # SDXL's own autoencoder overflows in half precision, and says so. Asked of the network that draws: an autoencoder
    # that a lack of memory left half upcast would give another answer.
    is_xl = type(pipe).__name__.startswith("StableDiffusionXL")
    upcast = is_xl and pipe.unet.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    try:
        if upcast:
            vae.to(dtype=torch.float32)
            latents = latents.to(next(iter(vae.post_quant_conv.parameters())).dtype)
        mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
        if is_xl and mean is not None and std is not None:
            mean, std = (torch.tensor(x).view(1, -1, 1, 1).to(latents.device, latents.dtype) for x in (mean, std))
            latents = latents * std / vae.config.scaling_factor + mean
        else:
            latents = latents / vae.config.scaling_factor
        draws = draws_noise(vae)
        size, found = at_once(latents), []
        for start in range(0, latents.shape[0], size):
            own = {"generator": list(generators[start : start + size])} if draws else {}
            found.append(vae.decode(latents[start : start + size], return_dict=False, **own)[0])
        return found
    finally:
        if upcast:  # also where memory ran out: the next, smaller batch begins as this one did
            vae.to(dtype=torch.float16)


def draws_noise(vae: Any) -> bool:
    """Whether an autoencoder's decoder may draw noise. Those that take generators and never use them are not given any:
    torch could not compile them.
    """
    quiet = ("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny")
    return type(vae).__name__ not in quiet and "generator" in inspect.signature(vae.decode).parameters


def at_once(latents: Any) -> int:
    """How many of these latents are decoded at once: as many as have `MICRO_BATCH` times the pixels of a 512 px image,
    and equally many each time, as far as that goes.
    """
    most = max(1, min(MICRO_BATCH, MICRO_BATCH * _PIXELS // (latents.shape[-2] * latents.shape[-1])))
    parts = -(-latents.shape[0] // most)
    return -(-int(latents.shape[0]) // parts)


def fetch(images: Sequence[Any], wanted: int, *, signed: bool) -> Callable[[], Levels]:
    """Start the way of images to the CPU; what is returned waits for its end and gives the levels.

    It may be called in another thread, while this one gives the device more to do. A GPU rounds the images itself (a
    quarter of the bytes to copy) and copies them into pinned memory; what a CPU has drawn is rounded when it is waited
    for, image by image, so that each stays in the cache.

    Args:
        images: tensors of some x 3 x height x width.
        wanted: how many images to take, from the first on.
        signed: whether they are of -1 to 1 rather than of 0 to 1.
    """
    import torch

    if images[0].device.type != "cuda":
        return lambda: _drawn_by_the_cpu([image for some in images for image in some][:wanted], signed=signed)
    rounded = [torch.cat(parts)[:wanted] for parts in zip(*(_rounded(x, signed=signed) for x in images), strict=True)]
    here = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in rounded]
    for target, x in zip(here, rounded, strict=True):
        target.copy_(x, non_blocking=True)
    # On the stream of these tensors: otherwise it is recorded on the thread's current device, which may be another GPU.
    # Waiting must not take a core from the encoders.
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(rounded[0].device))

    def wait() -> Levels:
        event.synchronize()
        pixels, finite, span = (part.numpy() for part in here)
        return Levels(pixels, finite, span)

    return wait


def _rounded(images: Any, *, signed: bool) -> tuple[Any, Any, Any]:
    """Levels (batch x height x width x 3), finiteness and span of images, on their device.

    Rounding keeps the order, so that the span of the levels is that of the extremes; the extremes of what holds a NaN
    are NaN.
    """
    import torch

    low, high = images.amin((2, 3)), images.amax((2, 3))
    finite = (low.isfinite() & high.isfinite()).all(1)
    low, high, levels = (_to_levels(x, signed=signed, mend=True) for x in (low, high, images))
    span = (high - low).amax(1).to(torch.int16)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous(), finite, span


def _drawn_by_the_cpu(images: Sequence[Any], *, signed: bool) -> Levels:
    """As `_rounded`, for images of 3 x height x width in the CPU's memory."""
    import torch

    height, width = images[0].shape[1:]
    found = Levels(
        np.empty((len(images), height, width, 3), np.uint8),
        np.empty(len(images), np.bool_),
        np.empty(len(images), np.int16),
    )
    with torch.inference_mode():
        for i, image in enumerate(images):
            low, high = image.amin((1, 2)), image.amax((1, 2))
            found.finite[i] = finite = bool((low.isfinite() & high.isfinite()).all())
            # To mend takes longer than all the rest, and on a CPU it costs nothing to ask whether it must be.
            low, high, levels = (_to_levels(x, signed=signed, mend=not finite) for x in (low, high, image))
            found.span[i] = int((high - low).max())
            for channel in range(3):
                found.pixels[i, :, :, channel] = levels[channel].numpy()
    return found


def _to_levels(x: Any, *, signed: bool, mend: bool) -> Any:
    """Values as levels of 0 to 255 in float32; to the bit as diffusers rounds. `mend` makes 0 of NaN."""
    x = x.mul(0.5).add_(0.5).clamp_(0, 1) if signed else x.clamp(0, 1)
    x = x.float()
    return (x.nan_to_num_(0.0) if mend else x).mul_(255).round_()
