"""A first tiny picture: whether a model draws at all, with the samples' own noise, and uses all of its recipe."""

import functools
import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from builders.errors import brief
from hfsyn.errors import HfsynError
from hfsyn.images.latents import at_once, draws_noise
from hfsyn.images.tuning import is_out_of_memory
from hfsyn.recipes.recipe import GeneratePart

PROMPT = "a photo of a dog"
_STEPS = 2  # a scheduler draws noise between two steps, not after the last
_LATENTS = 8  # latents a side: what the coarsest level of a UNet or the patches of a transformer need at least
_ALIKE = 8.0
"""Mean grey levels by which an image may change with its place in a batch; noise of another seed makes it dozens."""
_BROKEN = {"nan", "flat"}


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is drawn of a trial."""

    recipe: GeneratePart
    negative: str | None
    size: Mapping[str, int]  # width and height in pixels; empty is the pipeline's own
    seeds: Sequence[int] = (1, 2)


Draw = Callable[[Sketch], tuple[Any, list[str | None]]]
"""Gives the images (tensor, batch x 3 x height x width, on the CPU, of a range of 255) and what is wrong with each."""


def try_out(pipe: Any, sketch: Sketch, draw: Draw) -> None:
    """Draw a sketch twice, small and in few steps; if that fails, at the recipe's own size. Then see whether the
    pipeline uses guidance, negative prompt and the length of prompts.

    Raises HfsynError if the model cannot draw, draws nothing, draws noise that is not the samples' own, or ignores a
    field that the recipe sets.
    """
    import torch

    small, first, problems = _first(pipe, sketch, draw)
    if _BROKEN.issuperset(problems):
        raise _draws_nothing(sketch.recipe, problems[0])
    if small.size != sketch.size:
        _check_size(pipe, sketch, draw)
    torch.rand(1)  # so that what draws from torch's own generator cannot give the same again
    for _ in range(2):  # another thread may have drawn meanwhile, but hardly twice
        with watched(pipe) as drawing:
            again, _ = draw(replace(small, seeds=small.seeds[::-1]))
        if not drawing:
            break
    if drawing or (again.flip(0) - first).abs().mean().item() > _ALIKE:
        culprit = drawing[0] if drawing else type(pipe).__name__
        instead = "scheduler, such as dpm++" if culprit.startswith("scheduler") else "model"
        raise HfsynError(
            f"{sketch.recipe.model} could not make an image again: its {culprit} draws noise that does not come from "
            "the samples' own seeds.",
            f"Name another generate.{instead}.",
        )
    for field, other in _variations(small).items():
        if torch.equal(draw(other)[0], first):
            raise _idle(sketch, field, type(pipe).__name__)


def _idle(sketch: Sketch, field: str, pipeline: str) -> HfsynError:
    """The error of a field that a model ignores."""
    value = sketch.negative if field == "prompt.negative" else getattr(sketch.recipe, field.partition(".")[2])
    instead = {"generate.guidance_scale": "1"}.get(field, "null")
    said = f"{field} is {value!r} and decides nothing: {sketch.recipe.model}, a {pipeline}, draws the same without it."
    return HfsynError(said, f"Leave it out: --set {field}={instead}")


def size_refused(model: str, error: Exception) -> HfsynError:
    """The error of a size that a pipeline refuses."""
    said = f"{model} refuses the recipe: {brief(error)}"
    return HfsynError(said, "Change generate.width, generate.height or generate.steps.")


def _first(pipe: Any, sketch: Sketch, draw: Draw) -> tuple[Sketch, Any, list[str | None]]:
    """The smallest sketch that succeeds, and what it gives; that of the recipe's own size, where none does."""
    recipe, tiny = sketch.recipe, _tiny(pipe, sketch)
    few = recipe.model_copy(update={"steps": min(recipe.steps, _steps(recipe))})
    tries = [replace(tiny, recipe=few), replace(sketch, recipe=few), replace(tiny, recipe=recipe)]
    failure: Exception | None = None
    found: tuple[Sketch, Any, list[str | None]] | None = None
    for one in [one for i, one in enumerate(tries) if one not in tries[:i]]:
        try:
            found = one, *draw(one)
        except Exception as error:  # of any kind: the parts of a model do not fit together
            if is_out_of_memory(error) and failure is not None:
                break
            failure = error
            continue
        # A picture of few latents may come out as one colour; one of the model's own size does not.
        if not _BROKEN.issuperset(found[2]):
            break
    if found is not None:
        return found
    assert failure is not None
    if isinstance(failure, HfsynError):
        raise failure
    raise HfsynError(
        f"{recipe.model} cannot draw: {type(failure).__name__}: {brief(failure)}",
        "Its parts do not fit together, or it is not made to draw from text alone: name another generate.model. "
        "It may also refuse generate.width, generate.height or generate.steps.",
    ) from failure


class _ReachedError(Exception):
    """The network was reached."""


def _check_size(pipe: Any, sketch: Sketch, draw: Draw) -> None:
    """Refuse a size that the pipeline refuses, by its call as far as the first step, which is not computed."""
    network = _network(pipe)
    if network is None:
        return

    def reached(*args: Any, **options: Any) -> Any:
        raise _ReachedError

    network.forward = reached
    try:
        draw(sketch)
    except _ReachedError:
        pass
    except Exception as error:
        if not is_out_of_memory(error):  # a batch that is too large is halved when it is drawn
            raise size_refused(sketch.recipe.model, error) from error
    finally:
        del network.forward


def _network(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)


def _steps(recipe: GeneratePart) -> int:
    """The fewest that leave `_STEPS` of them if an image to start from skips a share, and skip at least one."""
    if recipe.init == "none":
        return _STEPS
    skipped = 1.0 if recipe.strength == 1 else 1 / (1 - recipe.strength)
    return math.ceil(max(_STEPS / recipe.strength, skipped)) + 1


def _tiny(pipe: Any, sketch: Sketch) -> Sketch:
    """The sketch at `_LATENTS` a side, where that is less than the pipeline's own size."""
    has_vae = getattr(pipe, "vae", None) is not None
    factor = getattr(pipe, "vae_scale_factor", 8) if has_vae else 1
    side = _LATENTS * (factor if has_vae else 8)
    own = getattr(getattr(_network(pipe), "config", None), "sample_size", None)
    if isinstance(own, int):
        if not sketch.size and own * factor <= side:
            return sketch
        side = min(side, own * factor)
    return replace(sketch, size={name: min(side, sketch.size.get(name, side)) for name in ("width", "height")})


def _variations(sketch: Sketch) -> dict[str, Sketch]:
    """The same sketch except for one field that a pipeline is given, by that field."""

    def changed(**update: Any) -> Sketch:
        return replace(sketch, recipe=sketch.recipe.model_copy(update=update))

    found = {}
    if sketch.recipe.guidance_scale > 1:
        found["generate.guidance_scale"] = changed(guidance_scale=4 * sketch.recipe.guidance_scale)
    if sketch.negative is not None:
        found["prompt.negative"] = replace(sketch, negative=None)
    if sketch.recipe.max_sequence_length is not None:
        found["generate.max_sequence_length"] = changed(max_sequence_length=None)
    return found


def _draws_nothing(recipe: GeneratePart, problem: str | None) -> HfsynError:
    if problem == "nan":
        return HfsynError(
            f"{recipe.model} draws nothing but NaN values in {recipe.dtype}.",
            "The checkpoint is damaged: name another."
            if recipe.dtype == "float32"
            else "Set generate.dtype to float32; if that gives NaN values too, the checkpoint is damaged.",
        )
    said = f"{recipe.model} draws images of one colour alone: a part of it, such as the decoder, is damaged."
    return HfsynError(said, "Name another generate.model.")


class OwnNoise:
    """Gives the samples' generators to the schedulers and the autoencoder of a pipeline, which also decodes in
    micro-batches.

    Many pipelines pass their generators to the first latents only. A scheduler or an autoencoder that draws too would
    use torch's global generator, and no image could be made again.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._generators: Sequence[Any] = ()
        self._changed: list[tuple[Any, str]] = []

    def attach(self) -> None:
        """Change the parts."""
        for part in self._pipe.components.values():
            if hasattr(part, "step") and hasattr(part, "set_timesteps"):
                self._change(part, "step", self._given(part.step))
        if (vae := getattr(self._pipe, "vae", None)) is not None:
            self._change(vae, "decode", self._in_parts(vae.decode, takes=draws_noise(vae)))

    def detach(self) -> None:
        """Undo that, so that the parts can be compiled."""
        while self._changed:
            delattr(*self._changed.pop())

    def _change(self, part: Any, method: str, call: Callable[..., Any]) -> None:
        setattr(part, method, call)
        self._changed.append((part, method))

    @contextmanager
    def of(self, generators: Sequence[Any]) -> Iterator[None]:
        """Draw a batch with these generators."""
        vae = getattr(self._pipe, "vae", None)
        before = getattr(vae, "dtype", None)
        self._generators = generators
        try:
            yield
        finally:
            self._generators = ()
            # SDXL's is made float32 to decode; where memory runs out then, the next, smaller batch begins as this one.
            if vae is not None and getattr(vae, "dtype", None) != before:
                vae.to(dtype=before)

    def _given(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A scheduler's step with the generators, where its pipeline passes none."""
        if "generator" not in inspect.signature(step).parameters:
            return step

        @functools.wraps(step)
        def with_generators(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            if not args and kwargs.get("generator") is None:
                kwargs["generator"] = self._for(sample.shape[0])
            return step(model_output, timestep, sample, *args, **kwargs)

        return with_generators

    def _for(self, rows: int) -> list[Any] | None:
        return list(self._generators) if len(self._generators) == rows else None

    def _in_parts(self, whole: Callable[..., Any], *, takes: bool) -> Callable[..., Any]:
        @functools.wraps(whole)
        def decode_some(latents: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            rows, size = latents.shape[0], at_once(latents)
            if not takes:
                kwargs.pop("generator", None)  # never used, and each one would be compiled for again
            own = self._for(rows) if takes and not args else None
            if rows <= size or kwargs.get("return_dict", True):
                return whole(latents, *args, **kwargs | ({} if own is None else {"generator": own}))
            found, start = [], 0
            for some in latents.split(size):
                if own is not None:
                    kwargs["generator"] = own[start : start + some.shape[0]]
                found.append(whole(some, *args, **kwargs)[0])
                start += some.shape[0]
            return (torch.cat(found),)

        return decode_some


def global_states() -> list[bytes]:
    """The states of the global random generators: torch's on each device, NumPy's and Python's."""
    import torch

    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states.append(torch.mps.get_rng_state())
    _, keys, *rest = np.random.get_state()  # watched, not used
    others = [np.asarray(keys).tobytes(), repr(rest).encode(), repr(random.getstate()).encode()]
    return [state.numpy().tobytes() for state in states] + others


@contextmanager
def watched(pipe: Any) -> Iterator[list[str]]:
    """A list that names the parts of a pipeline that draw from a global generator, as ``scheduler (DDPMScheduler)``."""
    found: list[str] = []
    changed: list[tuple[Any, str, bool, Any]] = []
    before = global_states()

    def spied(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def spy(*args: Any, **kwargs: Any) -> Any:
            state, known = global_states(), len(found)
            try:
                return call(*args, **kwargs)
            finally:
                if len(found) == known and global_states() != state:
                    found.append(name)

        return spy

    for name, part in pipe.components.items():
        for method in ("step", "forward", "decode", "encode"):
            call = getattr(part, method, None)
            is_tokenizer = hasattr(part, "convert_ids_to_tokens")
            if callable(call) and (method != "step" or hasattr(part, "set_timesteps")) and not is_tokenizer:
                changed.append((part, method, method in vars(part), call))
                setattr(part, method, spied(f"{name} ({type(part).__name__})", call))
    try:
        yield found
    finally:
        for part, method, own, call in reversed(changed):
            if own:
                setattr(part, method, call)
            else:
                delattr(part, method)
        if not found and global_states() != before:
            found.append(type(pipe).__name__)
