"""One tiny picture before anything is spent: whether a model draws at all, the same each time, and heeds its recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.images.noise import watched
from hfsyn.models.batch_sizes import is_out_of_memory
from hfsyn.recipes.recipe import GeneratePart

PROMPT = "a photo of a dog"
_SEEDS = (1, 2)
_STEPS = 2
"""A scheduler draws between two steps, not behind the last."""
_LATENTS = 8
"""Latents a side: what the coarsest level of a UNet or the patches of a transformer need at least."""
_ALIKE = 8.0
"""Mean grey levels by which an image may change with its place in a batch; noise of another seed makes it dozens."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is drawn of a trial."""

    recipe: GeneratePart
    negative: str | None
    size: Mapping[str, int]
    """Width and height in pixels; empty is the pipeline's own."""
    seeds: Sequence[int] = _SEEDS


Draw = Callable[[Sketch], tuple[Any, list[str | None]]]
"""Gives the images (tensor, batch x 3 x height x width, on the CPU, of a range of 255) and what is wrong with each."""


def try_out(pipe: Any, sketch: Sketch, draw: Draw, *, vary: bool) -> None:
    """Draw a sketch small and in few steps, two times; where that fails, at the recipe's own size.

    Args:
        pipe: the pipeline.
        sketch: of the recipe.
        draw: draws it.
        vary: see whether the pipeline's own call heeds guidance, negative prompt and the length of prompts.

    Raises:
        HfsynError: the model cannot draw, draws nothing, draws noise that is not the samples' own, or takes no notice
            of a field that the recipe sets.
    """
    small, first, problems = _first(pipe, sketch, draw)
    if all(problem in ("nan", "flat") for problem in problems):
        raise _draws_nothing(sketch.recipe, problems[0])
    if small.size != sketch.size:
        _check_size(pipe, sketch, draw)
    import torch

    torch.rand(1)  # so that what draws from torch's own generator cannot give the same again
    for _ in range(2):  # another thread may have drawn meanwhile, but hardly two times
        with watched(pipe) as drawing:
            again, _ = draw(replace(small, seeds=small.seeds[::-1]))
        if not drawing:
            break
    changed = (again.flip(0) - first).abs().mean().item()
    if drawing or changed > _ALIKE:
        culprit = drawing[0] if drawing else type(pipe).__name__
        instead = "scheduler, such as dpm++" if culprit.startswith("scheduler") else "model"
        raise HfsynError(
            f"{sketch.recipe.model} could not make an image again: its {culprit} draws noise that does not come from "
            "the samples' own seeds.",
            f"Name another generate.{instead}.",
        )
    for field, other in _variations(small).items() if vary else ():
        if torch.equal(draw(other)[0], first):
            raise idle(sketch, field, type(pipe).__name__)


@contextmanager
def unchecked(pipe: Any) -> Iterator[None]:
    """Without the safety checker, which may flag so small a picture, and paints black what it flags."""
    checker = getattr(pipe, "safety_checker", None)
    if checker is None:
        yield
        return
    pipe.safety_checker = None
    try:
        yield
    finally:
        pipe.safety_checker = checker


def idle(sketch: Sketch, field: str, pipeline: str) -> HfsynError:
    """The refusal of a field that a model takes no notice of."""
    value = sketch.negative if field == "prompt.negative" else getattr(sketch.recipe, field.partition(".")[2])
    instead = {"generate.guidance_scale": "1"}.get(field, "null")
    return HfsynError(
        f"{field} is {value!r} and decides nothing: {sketch.recipe.model}, a {pipeline}, draws the same without it.",
        f"Leave it out: --set {field}={instead}",
    )


def _first(pipe: Any, sketch: Sketch, draw: Draw) -> tuple[Sketch, Any, list[str | None]]:
    """The smallest sketch that succeeds, and what it gives; that of the recipe's own size, where none does."""
    recipe = sketch.recipe
    tiny = _tiny(pipe, sketch)
    few = recipe.model_copy(update={"steps": min(recipe.steps, _steps(recipe))})
    tries = [replace(tiny, recipe=few), replace(sketch, recipe=few), replace(tiny, recipe=recipe)]
    failure: Exception | None = None
    found: tuple[Sketch, Any, list[str | None]] | None = None
    for one in [one for i, one in enumerate(tries) if one not in tries[:i]]:
        try:
            images, problems = draw(one)
        except Exception as error:  # of whatever kind: the parts of a model do not fit together
            if is_out_of_memory(error) and failure is not None:
                break
            failure = error
            continue
        found = one, images, problems
        # A picture of few latents may come out as one colour; one of the model's own size does not.
        if any(problem not in ("nan", "flat") for problem in problems):
            break
    if found is not None:
        return found
    assert failure is not None
    if isinstance(failure, HfsynError):
        raise failure
    reason = " ".join(str(failure).split())[:200]
    raise HfsynError(
        f"{recipe.model} cannot draw: {type(failure).__name__}: {reason}",
        "Its parts do not fit together, or it is not made to draw from text alone: name another generate.model. "
        "It may also refuse generate.width, generate.height or generate.steps.",
    ) from failure


class _EnoughError(Exception):
    """The network was reached."""


def _check_size(pipe: Any, sketch: Sketch, draw: Draw) -> None:
    """Refuse a size that the pipeline refuses, by its call as far as the first step, which is not computed."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None:
        return

    def reached(*args: Any, **options: Any) -> Any:
        raise _EnoughError

    network.forward = reached
    try:
        draw(sketch)
    except _EnoughError:
        pass
    except Exception as error:
        if is_out_of_memory(error):
            return  # that of a batch is found out, and halved, when it is drawn
        raise HfsynError(
            f"{sketch.recipe.model} refuses the recipe: {' '.join(str(error).split())[:200]}",
            "Change generate.width, generate.height or generate.steps.",
        ) from error
    finally:
        del network.forward


def _steps(recipe: GeneratePart) -> int:
    """As few as do `_STEPS` of them where a share is spared, and spare one."""
    if recipe.init == "none":
        return _STEPS
    spared = 1.0 if recipe.strength == 1 else 1 / (1 - recipe.strength)
    return math.ceil(max(_STEPS / recipe.strength, spared)) + 1


def _tiny(pipe: Any, sketch: Sketch) -> Sketch:
    """The sketch at `_LATENTS` a side, where that is less than the pipeline's own size."""
    has_vae = getattr(pipe, "vae", None) is not None
    factor = getattr(pipe, "vae_scale_factor", 8) if has_vae else 1
    side = _LATENTS * (factor if has_vae else 8)
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    own = getattr(getattr(network, "config", None), "sample_size", None)
    if isinstance(own, int):
        if not sketch.size and own * factor <= side:
            return sketch
        side = min(side, own * factor)
    return replace(sketch, size={name: min(side, sketch.size.get(name, side)) for name in ("width", "height")})


def _variations(sketch: Sketch) -> dict[str, Sketch]:
    """The same sketch but for one field that a pipeline's own call is given, by that field."""
    recipe, found = sketch.recipe, {}
    if recipe.guidance_scale > 1:
        other = recipe.model_copy(update={"guidance_scale": 4 * recipe.guidance_scale})
        found["generate.guidance_scale"] = replace(sketch, recipe=other)
    if sketch.negative is not None:
        found["prompt.negative"] = replace(sketch, negative=None)
    if recipe.max_sequence_length is not None:
        other = recipe.model_copy(update={"max_sequence_length": None})
        found["generate.max_sequence_length"] = replace(sketch, recipe=other)
    return found


def _draws_nothing(recipe: GeneratePart, problem: str | None) -> HfsynError:
    if problem == "nan":
        return HfsynError(
            f"{recipe.model} draws nothing but NaN values in {recipe.dtype}.",
            "The checkpoint is damaged: name another."
            if recipe.dtype == "float32"
            else "Set generate.dtype to float32; if that gives NaN values too, the checkpoint is damaged.",
        )
    return HfsynError(
        f"{recipe.model} draws images of one colour alone: a part of it, such as the decoder, is damaged.",
        "Name another generate.model.",
    )
