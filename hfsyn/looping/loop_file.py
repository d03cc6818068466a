"""Loop files: what is drawn, trained and measured in each round, and by which policy a round is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from builders.errors import DataError
from builders.yaml import is_yaml_name, load_file
from hfsyn.recipes.factor_file import listed
from hfsyn.recipes.loading import Count, Int, Part, Seed, Text, checked, refuse_other_kind

LOOP = "loop.yaml"
"""The loop file in a loop's folder, with what it pins."""


class Measured(Part):
    """A set of real images that classifiers are measured on."""

    dataset: Text
    """As `hfsyn evaluate` takes it."""
    split: Text | None = None
    """null is `validation`, else `test`, else the only one; `train[held 10%]` is a part that no training sees."""
    limit: Count | None = None
    """At most that many images of each class."""


class Stop(Part):
    """When a loop ends before its last round."""

    images: Count | None = None
    """Images of a policy in all: no round begins that would exceed them."""
    hours: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Of work, that of the control included: no round begins for which there is no time left. What was made until then
    is what it would be without this limit.
    """
    without_gain: Annotated[Int, Field(ge=1, le=1000)] | None = None
    """Rounds: the loop ends if the gain on `steer` over that many has a 95 % interval that is not above zero."""


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
    policy: Annotated[tuple[Text, ...], Field(min_length=1, strict=False), BeforeValidator(listed)] = ("audit",)
    """uniform, hard-classes, uncertain, not-learned-early, audit, or `path/to/file.py:function` of your own; several
    share the first round and the control.
    """
    reader: Text | None = None
    """Who reads back whether the images of an audit show what they should, as for `hfsyn audit`; null is the captioner
    of the recipe.
    """
    images: Count = 300
    """Of a round."""
    rounds: Annotated[Count, Field(le=1000)] = 3
    """After the first one, in which images are of all kinds alike. It can be raised later."""
    candidates: Annotated[Int, Field(ge=2, le=64)] = 4
    """Drawn for each image that `uncertain` keeps."""
    strength: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of images that begin from others, as in `not-learned-early`: the share of the steps that is done."""
    steer: Measured
    """What a policy may know: never the test."""
    test: Measured
    """What is reported."""
    weights: Literal["new", "last"] = "new"
    """Whether a training begins from new weights or from those of the last round."""
    stop: Stop = Stop()
    """When it ends before the last round. It can be changed later."""
    seed: Seed = 0
    """Of designs, images and trainings."""


FREE = ("rounds", "stop")
"""What may change while a loop is there: no round depends on it."""


def load_loop(file: str) -> LoopFile:
    """The loop of a YAML file. Raises HfsynError, naming the key, if it is not one."""
    fields = load_file(file, "loop", "`hfsyn loop --example` prints one.")
    refuse_other_kind(fields, file, "loop file")
    return checked(LoopFile, fields, file)


def is_loop_file(file: str) -> bool:
    """Whether a file is written as a loop file, whatever may be wrong in it."""
    try:
        fields = load_file(file, "file", "") if is_yaml_name(file) and Path(file).is_file() else {}
    except DataError:
        return False
    return "steer" in fields and "source" not in fields


def is_loop(folder: str | Path) -> bool:
    """Whether a folder is that of a loop."""
    return (Path(folder).expanduser() / LOOP).is_file()
