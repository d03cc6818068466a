"""Classifier-free guidance: whether there is any; and in Stable Diffusion and SDXL only in some of the steps."""

from collections.abc import Sequence
from typing import Any

from hfsyn.recipes.recipe import GeneratePart


def is_stable_diffusion(pipe: Any) -> bool:
    """Whether a pipeline is that of Stable Diffusion 1, 2 or XL, from noise or from an image."""
    return type(pipe).__name__.replace("Img2Img", "") in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def is_guided(pipe: Any, recipe: GeneratePart) -> bool:
    """Whether there is classifier-free guidance: not if the scale is at most 1, or is an input of the network."""
    network = getattr(pipe, "unet", None)
    distilled = network is not None and getattr(network.config, "time_cond_proj_dim", None) is not None
    return recipe.guidance_scale > 1 and not distilled


def is_limited(recipe: GeneratePart) -> bool:
    """Whether a recipe limits the guidance to some of the steps."""
    return (recipe.guidance_start, recipe.guidance_stop) != (0, 1)


def guided_steps(pipe: Any, recipe: GeneratePart) -> list[bool]:
    """For each call of the network whether a recipe's limits give it guidance."""
    return calls_within(pipe, recipe, recipe.guidance_start, recipe.guidance_stop)


def calls_within(pipe: Any, recipe: GeneratePart, start: float, stop: float) -> list[bool]:
    """For each call of the network whether it lies between two shares of the steps; schedules of some schedulers have
    more calls than steps. `pipe` is the pipeline that is called: an image to start from skips the first ones.
    """
    pipe.scheduler.set_timesteps(recipe.steps)
    whole = drawn = len(pipe.scheduler.timesteps)
    if recipe.init == "source":
        drawn = len(pipe.get_timesteps(recipe.steps, recipe.strength, "cpu")[0])
    return [start * whole <= at < stop * whole for at in range(whole - drawn, whole)]


def limited_options(pipe: Any, recipe: GeneratePart, prompts: Sequence[str], negative: str | None) -> dict[str, Any]:
    """What a pipeline of Stable Diffusion or SDXL on its device is called with instead of prompts and a scale, so that
    only the recipe's part of the steps has guidance.

    Pipelines decide on guidance once, by the scale: it is changed between two steps, together with the conditions,
    which are those to steer away from in front of those to steer towards where there is guidance.
    """
    import torch

    steered, rows = guided_steps(pipe, recipe), len(prompts)
    encoded = pipe.encode_prompt(
        prompt=list(prompts),
        device=pipe.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=None if negative is None else [negative] * rows,
    )
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    given = dict(zip(names, encoded, strict=False))
    away, conditions = {"prompt_embeds": given["negative_prompt_embeds"]}, ["prompt_embeds"]
    if len(encoded) == len(names):
        away["add_text_embeds"] = given["negative_pooled_prompt_embeds"]
        conditions += ["add_text_embeds", "add_time_ids"]  # the sizes are the same for both halves

    def at_step_end(pipe: Any, at: int, timestep: Any, now: dict[str, Any]) -> dict[str, Any]:
        if at + 1 == len(steered) or steered[at + 1] == steered[at]:
            return {}
        pipe._guidance_scale = recipe.guidance_scale if steered[at + 1] else 1.0
        if steered[at + 1]:
            return {name: torch.cat([away.get(name, value), value]) for name, value in now.items()}
        return {name: value[rows:] for name, value in now.items()}

    return given | {
        "guidance_scale": recipe.guidance_scale if steered[0] else 1.0,
        "callback_on_step_end": at_step_end,
        "callback_on_step_end_tensor_inputs": conditions,
    }
