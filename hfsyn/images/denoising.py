"""From noise to latents: the denoising loop of Stable Diffusion and SDXL, written out.

To the bit what the pipelines of diffusers do, but that the schedule stays on the CPU, so that the device need not be
waited for at every step, and that guidance can be limited to some of the steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from hfsyn.recipes.recipe import GeneratePart


def is_guided(pipe: Any, recipe: GeneratePart) -> bool:
    """Whether there is classifier-free guidance: not where the scale is at most 1, or is an input of the network."""
    network = getattr(pipe, "unet", None)
    distilled = network is not None and getattr(network.config, "time_cond_proj_dim", None) is not None
    return recipe.guidance_scale > 1 and not distilled


def guided_steps(pipe: Any, recipe: GeneratePart) -> int:
    """How many steps of a recipe's schedule have guidance, where there is any."""
    pipe.scheduler.set_timesteps(recipe.steps)
    whole = len(pipe.scheduler.timesteps)
    spared = int(recipe.steps - recipe.steps * recipe.strength) if recipe.init == "source" else 0
    return sum(_is_steered(recipe, at, whole) for at in range(spared, whole))


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
    """The latents of a batch.

    Args:
        pipe: a `StableDiffusionPipeline` or `StableDiffusionXLPipeline` on its device.
        recipe: steps and guidance.
        size: width and height in pixels; empty is the pipeline's own.
        given: embeddings, batch x tokens x channels, by the pipeline's names.
        generators: one CPU `torch.Generator` a sample.
        start: the image-to-image pipeline of the same parts, and the images that it is to start from (RGB of the size);
            None starts from noise.

    Returns:
        batch x channels x height/8 x width/8.

    Raises:
        ValueError: the size does not fit the pipeline.
    """
    import torch

    unet, scheduler = pipe.unet, pipe.scheduler
    embeddings = given["prompt_embeds"]
    rows, device = embeddings.shape[0], embeddings.device
    height, width = _extent(pipe, size)
    guided = "negative_prompt_embeds" in given
    scheduler.set_timesteps(recipe.steps)
    whole, timesteps = len(scheduler.timesteps), scheduler.timesteps
    if start is None:
        latents = pipe.prepare_latents(
            rows, unet.config.in_channels, height, width, embeddings.dtype, device, list(generators), None
        )
    else:
        image_pipe, images = start
        timesteps, _ = image_pipe.get_timesteps(recipe.steps, recipe.strength, device)
        latents = image_pipe.prepare_latents(
            image_pipe.image_processor.preprocess(list(images), height=height, width=width),
            timesteps[:1].repeat(rows),
            rows,
            1,
            embeddings.dtype,
            device,
            list(generators),
        )
    on_device = timesteps.to(device)
    more = _step_options(scheduler, generators)
    both = {"encoder_hidden_states": embeddings}
    if guided:
        both["encoder_hidden_states"] = torch.cat([given["negative_prompt_embeds"], embeddings])
    added = None
    if "pooled_prompt_embeds" in given:
        added = _added(pipe, given, height, width, guided=guided)
        if hasattr(scheduler, "set_begin_index") and start is None:
            scheduler.set_begin_index(0)
    condition = None
    if unet.config.time_cond_proj_dim is not None:
        scale = torch.tensor(recipe.guidance_scale - 1).repeat(rows)
        condition = pipe.get_guidance_scale_embedding(scale, embedding_dim=unet.config.time_cond_proj_dim).to(
            device=device, dtype=latents.dtype
        )
    for i, t in enumerate(timesteps):
        at = i + whole - len(timesteps)  # of the schedule, the steps that an image to start from spares included
        steer = guided and _is_steered(recipe, at, whole)
        fed = scheduler.scale_model_input(torch.cat([latents] * 2) if steer else latents, t)
        half = slice(None) if steer or not guided else slice(rows, None)
        noise = unet(
            fed,
            on_device[i],
            encoder_hidden_states=both["encoder_hidden_states"][half],
            timestep_cond=condition,
            added_cond_kwargs=None if added is None else {name: value[half] for name, value in added.items()},
            return_dict=False,
        )[0]
        if steer:
            away, towards = noise.chunk(2)
            noise = away + recipe.guidance_scale * (towards - away)
        latents = scheduler.step(noise, t, latents, **more, return_dict=False)[0]
    return latents


def _extent(pipe: Any, size: Mapping[str, int]) -> tuple[int, int]:
    """Height and width in pixels."""
    own = pipe.unet.config.sample_size
    own_height, own_width = (own, own) if isinstance(own, int) else own
    height = size.get("height", own_height * pipe.vae_scale_factor)
    width = size.get("width", own_width * pipe.vae_scale_factor)
    if height % 8 or width % 8:
        raise ValueError(f"`height` and `width` have to be divisible by 8 but are {height} and {width}.")
    return height, width


def _step_options(scheduler: Any, generators: Sequence[Any]) -> dict[str, Any]:
    """Eta, and the samples' own generators, for the schedulers that take them."""
    known = inspect.signature(scheduler.step).parameters
    more: dict[str, Any] = {"eta": 0.0} if "eta" in known else {}
    return more | ({"generator": list(generators)} if "generator" in known else {})


def _added(pipe: Any, given: Mapping[str, Any], height: int, width: int, *, guided: bool) -> dict[str, Any]:
    """SDXL's other conditions: the pooled embeddings, and the size as that of the original image, uncropped."""
    import torch

    pooled = given["pooled_prompt_embeds"]
    width_of_pooled = (
        pooled.shape[-1] if pipe.text_encoder_2 is None else int(pipe.text_encoder_2.config.projection_dim)
    )
    times = pipe._get_add_time_ids(
        (height, width),
        (0, 0),
        (height, width),
        dtype=given["prompt_embeds"].dtype,
        text_encoder_projection_dim=width_of_pooled,
    )
    if guided:
        pooled = torch.cat([given["negative_pooled_prompt_embeds"], pooled])
    return {"text_embeds": pooled, "time_ids": times.to(pooled.device).repeat(pooled.shape[0], 1)}
