"""Noise within a pipeline's own call: each part that draws some is given the generators of the batch's samples.

Many pipelines pass their generators to the first latents alone. A scheduler or an autoencoder that draws too would then
take what torch's global generator happens to give, and no image could be made again.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from hfsyn.images.decoding import at_once, draws_noise


class OwnNoise:
    """Gives the generators to the schedulers and the autoencoder of a pipeline, which also decodes in micro-batches.

    Args:
        pipe: whose parts are changed.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._generators: Sequence[Any] | None = None
        self._changed: list[tuple[Any, str]] = []

    def attach(self) -> None:
        """Begin."""
        for part in self._pipe.components.values():
            if hasattr(part, "step") and hasattr(part, "set_timesteps"):
                self._change(part, "step", self._given(part.step))
        if (vae := getattr(self._pipe, "vae", None)) is not None:
            self._change(vae, "decode", self._in_parts(vae.decode, takes=draws_noise(vae)))

    def detach(self) -> None:
        """End, so that the parts can be compiled."""
        while self._changed:
            delattr(*self._changed.pop())

    def _change(self, part: Any, method: str, call: Callable[..., Any]) -> None:
        setattr(part, method, call)
        self._changed.append((part, method))

    @contextmanager
    def of(self, generators: Sequence[Any]) -> Iterator[None]:
        """The generators of the batch that is drawn now."""
        self._generators = generators
        try:
            yield
        finally:
            self._generators = None

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
        found = self._generators
        return list(found) if found is not None and len(found) == rows else None

    def _in_parts(self, whole: Callable[..., Any], *, takes: bool) -> Callable[..., Any]:
        @functools.wraps(whole)
        def decode_some(latents: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            rows, size = latents.shape[0], at_once(latents)
            own = self._for(rows) if takes and not args else None
            if rows <= size or kwargs.get("return_dict", True):
                return whole(latents, *args, **{**kwargs, **({} if own is None else {"generator": own})})
            found, start = [], 0
            for some in latents.split(size):
                if own is not None:
                    kwargs["generator"] = own[start : start + some.shape[0]]
                found.append(whole(some, *args, **kwargs)[0])
                start += some.shape[0]
            return (torch.cat(found),)

        return decode_some


def global_states() -> list[bytes]:
    """The states of all random generators that no sample owns: torch's on each device, NumPy's and Python's."""
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
    """The parts of a pipeline that draw from a global generator meanwhile, as ``scheduler (DDPMScheduler)``."""
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
            if callable(call) and (method != "step" or hasattr(part, "set_timesteps")) and not _is_tokenizer(part):
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


def _is_tokenizer(part: Any) -> bool:
    return hasattr(part, "convert_ids_to_tokens")
