"""Loop files: what is drawn, trained and measured in each round, and by which policy a round is planned."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from builders.yaml import load_file
from hfsyn.recipes.loading import Count, Part, Seed, Text, checked, refuse_other_kind


class Measured(Part):
    """A set of real images that classifiers are measured on."""

    dataset: Text
    """As `hfsyn evaluate` takes it."""
    split: Text | None = None
    """null is `validation`, else `test`, else the only one; `train[held 10%]` is a part that no training sees."""
    limit: Count | None = None
    """At most that many images of each class."""


class LoopFile(Part):
    """What a loop does."""

    recipe: Text
    """Who draws: a recipe."""
    factors: Text
    """What can be drawn: a factor file, whose classes and levels a policy chooses from."""
    train: Any = "shapes"
    """The training recipe: its name, its file, or its fields."""
    start: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Further sets that every classifier is trained on, the first one too."""
    policy: Text = "audit"
    """uniform, hard-classes, audit, or `path/to/file.py:function` of your own."""
    images: Count = 300
    """Of a round."""
    rounds: Annotated[Count, Field(le=1000)] = 3
    """After the first one, in which images are of all kinds alike."""
    steer: Measured
    """What a policy may know: never the test."""
    test: Measured
    """What is reported."""
    weights: Literal["new", "last"] = "new"
    """Whether a training begins from new weights or from those of the last round."""
    seed: Seed = 0
    """Of designs, images and trainings."""


def load_loop(file: str) -> LoopFile:
    """The loop of a YAML file. Raises HfsynError, naming the key, if it is not one."""
    fields = load_file(file, "loop file", "`hfsyn loop --example` prints one.")
    refuse_other_kind(fields, file, "loop file")
    return checked(LoopFile, fields, file)
