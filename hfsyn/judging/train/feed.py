"""Where the batches of a training come from: what every such source can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hfsyn.errors import HfsynError
from hfsyn.judging.sets.batches import Transform
from hfsyn.judging.sets.image_set import ImageSet
from hfsyn.recipes.training_recipe import TrainConfig


@dataclass(frozen=True)
class Slice:
    """Which batches a process wants."""

    first: int
    """First step; the ones before it are done."""
    steps: int
    """One past the last step."""
    parts: int
    """Batches of a step in each process."""
    rank: int
    world: int
    workers: int
    """Processes that decode, beside this one."""
    pin: bool = False
    """Whether batches are put where a GPU can fetch them by itself."""


class Feed(Protocol):
    """Where a training's batches come from: sets on the disk, or streams."""

    classes: tuple[str, ...]
    """The wnid of each label, sorted."""
    names: Mapping[str, str]
    budget: int
    """Images of an epoch."""
    unread: dict[str, str]
    """The images that this process was to show and could not read, so far, with the reasons."""

    @property
    def fingerprints(self) -> list[str]:
        """What identifies the sets, for a checkpoint."""
        ...

    def facts(self) -> list[dict[str, Any]]:
        """What a result says of each set."""
        ...

    def overlap(self, test: ImageSet) -> int | None:
        """How many images of a set are trained on; None where that cannot be told."""
        ...

    def batches(self, transform: Transform, wanted: Slice) -> Iterator[tuple[Any, Any]]:
        """This process's batches ``(tensors, labels)`` on the CPU, in order; `transform` makes the tensors."""
        ...

    def state(self) -> dict[str, Any]:
        """What this process must know beside the step to go on from here."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        ...


def need_budget(config: TrainConfig, sizes: Sequence[int] | None) -> int:
    """Images of an epoch.

    Raises:
        HfsynError: they are not said and cannot be told from one set's size.
    """
    if config.data.budget is not None:
        return config.data.budget
    if sizes is None:
        raise HfsynError("A stream has no known size.", "Say how many images an epoch shows: --budget N")
    if len(sizes) > 1:
        raise HfsynError(
            f"{len(sizes)} training sets and no budget: how many images does an epoch show?",
            f"Say it, so that trainings can be compared: --budget {sum(sizes)} is as many as they hold.",
        )
    return sizes[0]
