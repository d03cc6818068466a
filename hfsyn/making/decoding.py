"""From latents to grey levels: decoded in small batches, rounded on the device, copied without a wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

MICRO_BATCH = 16
"""Latents decoded at once. Time is linear in the batch, memory too; 512 px x 256 channels x 32 images are 2^31 values,
where kernels that count with 32 bits end.
"""

Levels = tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]
"""Images as batch x height x width x 3, and for each whether all of its numbers were finite."""


def decode(pipe: Any, latents: Any) -> tuple[Any, Any]:
    """Latents of Stable Diffusion or SDXL as 8-bit levels on the device, and whether each image was finite.

    Args:
        pipe: whose autoencoder decodes.
        latents: batch x channels x height x width.

    Returns:
        uint8 batch x height x width x 3, RGB; bool, one for each image.
    """
    import torch

    vae = pipe.vae
    # SDXL's own autoencoder overflows in half precision, and says so.
    upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if type(pipe).__name__ != "StableDiffusionXLPipeline":
        upcast = False
    if upcast:
        vae.to(dtype=torch.float32)
        latents = latents.to(next(iter(vae.post_quant_conv.parameters())).dtype)
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (torch.tensor(x).view(1, -1, 1, 1).to(latents.device, latents.dtype) for x in (mean, std))
        latents = latents * std / vae.config.scaling_factor + mean
    else:
        latents = latents / vae.config.scaling_factor
    found = []
    for some in latents.split(MICRO_BATCH):
        found.append(to_levels(vae.decode(some, return_dict=False)[0] * 0.5 + 0.5))
    if upcast:
        vae.to(dtype=torch.float16)
    return torch.cat([levels for levels, _ in found]), torch.cat([finite for _, finite in found])


def split_decoding(pipe: Any) -> None:
    """Make a pipeline's own call decode in micro-batches too."""
    import torch

    whole = pipe.vae.decode

    def decode_some(latents: Any, *args: Any, **kwargs: Any) -> Any:
        if latents.shape[0] <= MICRO_BATCH or kwargs.get("return_dict", True):
            return whole(latents, *args, **kwargs)
        return (torch.cat([whole(some, *args, **kwargs)[0] for some in latents.split(MICRO_BATCH)]),)

    pipe.vae.decode = decode_some


def to_levels(images: Any) -> tuple[Any, Any]:
    """Images of 0 to 1, batch x 3 x height x width, as levels rounded as diffusers does; and which were finite."""
    import torch

    finite = images.isfinite().flatten(1).all(1)
    # On the device: a quarter of the bytes to copy, and no float arithmetic on the CPU.
    levels = images.clamp(0, 1).float().nan_to_num(0.0).mul(255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous(), finite


def fetch(levels: Any, finite: Any) -> Callable[[], Levels]:
    """Start the copy to the CPU; what is returned waits for its end and gives the arrays.

    It may be called in another thread, while this one gives the device more to do.
    """
    import torch

    if levels.device.type != "cuda":
        return lambda: (levels.cpu().numpy(), finite.cpu().numpy())
    here = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in (levels, finite)]
    for target, x in zip(here, (levels, finite), strict=True):
        target.copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def wait() -> Levels:
        event.synchronize()
        return here[0].numpy(), here[1].numpy()

    return wait
