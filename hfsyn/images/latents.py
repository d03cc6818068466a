"""From noise to latents to grey levels: the denoising loop of Stable Diffusion and SDXL written out, and decoding.

The loop does to the bit what the pipelines of diffusers do, except that the schedule stays on the CPU, so that the
device need not be waited for at every step, and that guidance can be limited to some of the steps. Latents are decoded
in small batches, rounded on the device, and copied without a wait.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hfsyn.recipes.recipe import GeneratePart

MICRO_BATCH = 16
"""Latents of 512 px images decoded at once, of larger ones fewer. Time is linear in the batch, memory too; 512 px x 256
channels x 32 images are 2^31 values, where kernels that count with 32 bits end.
"""
_PIXELS = 64 * 64  # height times width of the latents of a 512 px image


def is_guided(pipe: Any, recipe: GeneratePart) -> bool:
    """Whether there is classifier-free guidance: not if the scale is at most 1, or is an input of the network."""
    network = getattr(pipe, "unet", None)
    distilled = network is not None and getattr(network.config, "time_cond_proj_dim", None) is not None
    return recipe.guidance_scale > 1 and not distilled


def guided_steps(pipe: Any, recipe: GeneratePart) -> int:
    """How many steps of a recipe's schedule have guidance, where there is any."""
    pipe.scheduler.set_timesteps(recipe.steps)
    whole = len(pipe.scheduler.timesteps)
    skipped = int(recipe.steps - recipe.steps * recipe.strength) if recipe.init == "source" else 0
    return sum(_is_steered(recipe, at, whole) for at in range(skipped, whole))


def _is_steered(recipe: GeneratePart, at: int, whole: int) -> bool:
    return recipe.guidance_start * whole <= at < recipe.guidance_stop * whole


def denoise(
    pipe: Any,
    recipe: GeneratePart,
    size: Mapping[str, int],
    given: Mapping[str, Any],
    generators: Sequence[Any],
    *,
    start: tuple[Any, Any] | None = None,
) -> Any:
    """The latents of a batch, batch x channels x height/8 x width/8.

    `pipe` is a `StableDiffusionPipeline` or `StableDiffusionXLPipeline` on its device; `size` the width and height in
    pixels, empty for the pipeline's own; `given` the embeddings, batch x tokens x channels, by the pipeline's names;
    `generators` one CPU `torch.Generator` per sample; `start` the image-to-image pipeline of the same parts and the
    images to start from (RGB of the size), None for noise.

    Raises ValueError if the size does not fit the pipeline.
    """
    import torch

    # The schedule, and the latents that it begins with.
    unet, scheduler = pipe.unet, pipe.scheduler
    height, width = _extent(pipe, size)
    scheduler.set_timesteps(recipe.steps)
    whole = len(scheduler.timesteps)
    timesteps, latents = _beginning(pipe, recipe, (height, width), given["prompt_embeds"], generators, start)
    rows, on_device = latents.shape[0], timesteps.to(latents.device)
    step_options = _step_options(scheduler, generators)
    # The conditions; with guidance those to steer away from, and then those to steer towards.
    guided = "negative_prompt_embeds" in given
    embeddings, added = conditions_of(pipe, given, height, width, guided=guided)
    if added and start is None and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    scale = scale_embedding(pipe, recipe, latents)
    for i, t in enumerate(timesteps):
        # The place in the whole schedule, of which an image to start from skips the first steps.
        at = i + whole - len(timesteps)
        steer = guided and _is_steered(recipe, at, whole)
        # The noise that the network sees, for both halves of the conditions if it is steered.
        fed = scheduler.scale_model_input(torch.cat([latents] * 2) if steer else latents, t)
        half = slice(None) if steer or not guided else slice(rows, None)
        noise = unet(
            fed,
            on_device[i],
            encoder_hidden_states=embeddings[half],
            timestep_cond=scale,
            cross_attention_kwargs=None,  # said, as the pipelines do: a compiled network is one with and one without
            added_cond_kwargs={name: value[half] for name, value in added.items()} or None,
            return_dict=False,
        )[0]
        if steer:
            away, towards = noise.chunk(2)
            noise = away + recipe.guidance_scale * (towards - away)
        # One step of the schedule.
        latents = scheduler.step(noise, t, latents, **step_options, return_dict=False)[0]
    return latents


def _extent(pipe: Any, size: Mapping[str, int]) -> tuple[int, int]:
    own = pipe.unet.config.sample_size
    own_height, own_width = (own, own) if isinstance(own, int) else own
    height = size.get("height", own_height * pipe.vae_scale_factor)
    width = size.get("width", own_width * pipe.vae_scale_factor)
    if height % 8 or width % 8:
        raise ValueError(f"`height` and `width` have to be divisible by 8 but are {height} and {width}.")
    return height, width


def _beginning(
    pipe: Any,
    recipe: GeneratePart,
    extent: tuple[int, int],
    embeddings: Any,
    generators: Sequence[Any],
    start: tuple[Any, Any] | None,
) -> tuple[Any, Any]:
    """Timesteps, and the latents before the first of them."""
    rows, dtype, device = embeddings.shape[0], embeddings.dtype, embeddings.device
    if start is None:
        channels = pipe.unet.config.in_channels
        latents = pipe.prepare_latents(rows, channels, *extent, dtype, device, list(generators), None)
        return pipe.scheduler.timesteps, latents
    image_pipe, images = start
    timesteps, _ = image_pipe.get_timesteps(recipe.steps, recipe.strength, device)
    pixels = image_pipe.image_processor.preprocess(list(images), height=extent[0], width=extent[1])
    first = timesteps[:1].repeat(rows)
    return timesteps, image_pipe.prepare_latents(pixels, first, rows, 1, dtype, device, list(generators))


def conditions_of(
    pipe: Any, given: Mapping[str, Any], height: int, width: int, *, guided: bool
) -> tuple[Any, dict[str, Any]]:
    """The embeddings; and for SDXL the pooled ones, and the size as that of the original image, uncropped."""
    import torch

    def both(name: str) -> Any:
        return torch.cat([given[f"negative_{name}"], given[name]]) if guided else given[name]

    if "pooled_prompt_embeds" not in given:
        return both("prompt_embeds"), {}
    own, second = given["pooled_prompt_embeds"].shape[-1], pipe.text_encoder_2
    times = pipe._get_add_time_ids(
        (height, width),
        (0, 0),
        (height, width),
        dtype=given["prompt_embeds"].dtype,
        text_encoder_projection_dim=own if second is None else int(second.config.projection_dim),
    )
    pooled = both("pooled_prompt_embeds")
    added = {"text_embeds": pooled, "time_ids": times.to(pooled.device).repeat(pooled.shape[0], 1)}
    return both("prompt_embeds"), added


def scale_embedding(pipe: Any, recipe: GeneratePart, latents: Any) -> Any:
    """The guidance scale as an input, for the networks that were distilled to take it; else None."""
    import torch

    channels = pipe.unet.config.time_cond_proj_dim
    if channels is None:
        return None
    scale = torch.tensor(recipe.guidance_scale - 1).repeat(latents.shape[0])
    found = pipe.get_guidance_scale_embedding(scale, embedding_dim=channels)
    return found.to(device=latents.device, dtype=latents.dtype)


def _step_options(scheduler: Any, generators: Sequence[Any]) -> dict[str, Any]:
    """Eta, and the samples' own generators, for the schedulers that take them."""
    known = inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"eta": 0.0} if "eta" in known else {}
    return options | ({"generator": list(generators)} if "generator" in known else {})


@dataclass(frozen=True, slots=True)
class Levels:
    """Images as 8-bit levels, and what shows that one is broken."""

    pixels: npt.NDArray[np.uint8]  # batch x height x width x 3, RGB
    finite: npt.NDArray[np.bool_]  # whether all values of an image were finite
    span: npt.NDArray[np.int16]  # the largest difference of two levels within one channel of an image, 0 to 255


def decode(pipe: Any, latents: Any, generators: Sequence[Any]) -> list[Any]:
    """Latents (batch x channels x height/8 x width/8) of Stable Diffusion or SDXL as images of -1 to 1 on the device:
    tensors of micro-batch x 3 x height x width. A decoder that draws noise gets each sample's generator.
    """
    import torch

    vae = pipe.vae
    # SDXL's own autoencoder overflows in half precision, and says so. The network that draws is asked for its dtype: an
    # autoencoder that a lack of memory left half upcast would give another answer.
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
        if upcast:  # also if memory ran out: the next, smaller batch begins as this one did
            vae.to(dtype=torch.float16)


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


def fetch(images: Sequence[Any], wanted: int, *, signed: bool) -> Callable[[], Levels]:
    """Begin to copy the first `wanted` images (tensors of some x 3 x height x width, `signed` if of -1 to 1 rather than
    0 to 1) to the CPU; what is returned waits for the end of it and gives the levels.

    It can be called in another thread, while this one gives the device more to do. A GPU rounds the images itself (a
    quarter of the bytes to copy) and copies them into pinned memory; what a CPU has drawn is rounded when it is waited
    for.
    """
    import torch

    def rounded_all() -> list[Any]:
        parts = zip(*(_rounded(some, signed=signed) for some in images), strict=True)
        return [(part[0] if len(part) == 1 else torch.cat(part))[:wanted] for part in parts]

    if images[0].device.type != "cuda":

        def round_here() -> Levels:
            with torch.inference_mode():
                return Levels(*(part.numpy() for part in rounded_all()))

        return round_here
    rounded = rounded_all()
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
