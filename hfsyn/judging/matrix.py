"""A matrix: which arms, networks, seeds and budgets are trained, and what each of them is tested on; a YAML file.

    name: captions-or-names
    config: cifar-like                 # a training recipe: shipped, a file, or its fields
    arms:
      real:  {train: [imagenette]}
      basic: {train: ["runs/imagenette-basic-{seed}"]}   # {seed} is the classifier's seed: a set of its own for each
      cip:   {train: ["runs/imagenette-cip-{seed}"]}
    models: [resnet50]
    seeds: [0, 1, 2]
    budgets: [9469]                    # images an epoch; null is the size of the set
    limits: [null]                     # different images a class: several make a scaling curve
    mix: {dataset: imagenette, shares: [0, 0.5]}         # share of real images: several make a mixing curve
    tests:
      real: {dataset: imagenette}
      images of cip: {dataset: "runs/imagenette-cip-{seed}", split: train, arms: [real]}   # the other direction

Every combination is a cell: one training and its tests.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hfsyn.errors import HfsynError
from hfsyn.judging.references import parse_dataset
from hfsyn.judging.train_config import DataPart, TrainConfig, load_train_config

EXAMPLE = """\
# hfsyn bench matrix.yaml --out out/bench; then hfsyn report out/bench. It takes less than half a minute on one core.
name: plain-or-in-context
config:                                  # a training recipe: a shipped one's name, a file, or its fields
  model: {image_size: 32, options: {output_stride: 8}, channels_last: false}
  optimise: {epochs: 6, batch_size: 20, optimizer: adamw, lr: 0.004, warmup_epochs: 1}
arms:                                    # kinds of training sets; a run folder is written as here: runs/cip-{seed}
  plain: {train: [shapes]}
  context: {train: [shapes-context]}
models: [test_resnet]                    # networks of timm
seeds: [0, 1]                            # arms are compared seed by seed; three or more for a narrow interval
limits: [20]                             # different images a class; several make a scaling curve
budgets: [null]                          # images an epoch; null is the size of the set
tests:                                   # the first one is the headline
  drawings: {dataset: shapes, split: test}
"""
"""A small matrix of drawn variants, which `hfsyn bench --example` prints."""
CELLS = "cells"
"""The folder of all cells in a matrix's folder."""
Name = Annotated[str, Field(pattern=r"^[\w][\w .,+-]{0,60}$")]
Positive = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """A frozen part of a matrix that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Arm(Part):
    """One kind of training set."""

    train: Annotated[tuple[str, ...], Field(min_length=1)]
    """Datasets, each `[VARIANT=]PLACE[@REVISION][#CONFIG][:WEIGHT]`; {seed} stands for the seed."""
    split: str | None = None
    """Split to train on; null is `train`, or the only one."""


class Mix(Part):
    """Images that are mixed into every arm."""

    dataset: str
    """Usually the real set."""
    shares: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)]
    """Share of these images in an epoch, 0 up to but not 1; each value is a point of the mixing curve."""


class Test(Part):
    """One evaluation set."""

    dataset: str
    """One dataset, written as for training; {seed} stands for the seed."""
    split: str | None = None
    """Split to test on; null is `validation`, else `test`, else the only one."""
    arms: tuple[str, ...] | None = None
    """Only the classifiers of these arms are tested on it; null is all."""


class Matrix(Part):
    """The whole table; see the module's docstring."""

    name: Name
    config: str | dict[str, Any] = {}
    """The training recipe that all cells share; the axes below win over it."""
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    """Kinds of training sets."""
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """Networks of timm."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds; arms are compared seed by seed."""
    budgets: Annotated[tuple[Positive | None, ...], Field(min_length=1)] = (None,)
    """Images an epoch shows; null is the size of the set."""
    limits: Annotated[tuple[Positive | None, ...], Field(min_length=1)] = (None,)
    """At most so many different images a class; null takes all."""
    mix: Mix | None = None
    """Images mixed into every arm; null mixes nothing."""
    tests: Annotated[dict[Name, Test], Field(min_length=1)]
    """Evaluation sets; the first one is the headline."""

    @model_validator(mode="after")
    def _arms_exist(self) -> Matrix:
        for name, test in self.tests.items():
            if missing := sorted(set(test.arms or ()) - set(self.arms)):
                raise HfsynError(f"Test {name!r} names no arm of the matrix: {', '.join(missing)}.", _listed(self.arms))
        return self

    @model_validator(mode="after")
    def _cells_have_folders_of_their_own(self) -> Matrix:
        """A folder's name keeps fewer signs than an arm's or a network's, and fewer digits than a share."""
        taken: dict[Path, Cell] = {}
        for cell in cells(self):
            # Some file systems do not tell capitals from small letters.
            other = taken.setdefault(Path(str(cell.folder).casefold()), cell)
            if other is not cell:
                differing = [
                    f"{key} {getattr(other, key)!r} and {getattr(cell, key)!r}"
                    for key in asdict(cell)
                    if getattr(other, key) != getattr(cell, key)
                ]
                said = " with ".join(differing) if differing else "a value that stands twice in an axis"
                raise HfsynError(
                    f"Two cells of the matrix would lie in one folder, {cell.folder}: {said}.",
                    "Give them names that differ in letters or digits, and each value once.",
                )
        return self


@dataclass(frozen=True)
class Cell:
    """One training and its tests."""

    arm: str
    model: str
    budget: int | None
    limit: int | None
    share: float
    seed: int

    @property
    def folder(self) -> Path:
        """Where it lies, relative to the matrix's folder."""
        parts = [
            f"images-{self.budget}" if self.budget else "",
            f"limit-{self.limit}" if self.limit else "",
            f"mixed-{self.share:g}" if self.share else "",
        ]
        setting = "_".join(part for part in parts if part) or "all"
        return Path(CELLS) / _safe(self.arm) / _safe(self.model) / setting / f"seed-{self.seed}"

    @property
    def setting(self) -> tuple[str, int | None, int | None, float]:
        """What arms must have in common to be compared."""
        return self.model, self.budget, self.limit, self.share


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def cells(matrix: Matrix) -> Iterator[Cell]:
    """Every cell, seeds last, so that an interrupted bench has whole arms of its first settings."""
    shares = matrix.mix.shares if matrix.mix else (0.0,)
    axes = itertools.product(matrix.models, matrix.budgets, matrix.limits, shares, matrix.seeds, matrix.arms)
    for model, budget, limit, share, seed, arm in axes:
        yield Cell(arm, model, budget, limit, share, seed)


def cell_tests(matrix: Matrix, cell: Cell) -> dict[str, tuple[str, str | None]]:
    """The cell's tests by name: dataset and split of each."""
    return {
        name: (place(test.dataset, cell.seed), test.split)
        for name, test in matrix.tests.items()
        if test.arms is None or cell.arm in test.arms
    }


def cell_config(matrix: Matrix, cell: Cell) -> TrainConfig:
    """The training recipe of a cell. It tests nothing itself: the tests are the bench's."""
    arm = matrix.arms[cell.arm]
    train = [place(text, cell.seed) for text in arm.train]
    if cell.share and matrix.mix is not None:
        train = _mixed(train, place(matrix.mix.dataset, cell.seed), cell.share)
    values = {
        "data.train": train,
        "data.train_split": arm.split,
        "data.budget": cell.budget,
        "data.limit_per_class": cell.limit,
        "model.name": cell.model,
        "seed": cell.seed,
    }
    fields: Any = matrix.config
    if isinstance(fields, dict):
        data = fields.get("data") or {}
        if not isinstance(data, dict):
            raise HfsynError(f"config.data is {data!r}.", _listed(DataPart.model_fields))
        fields = {**fields, "data": {**data, "train": train}}
    config = load_train_config(fields, values=values)
    return config.model_copy(update={"test": config.test.model_copy(update={"dataset": None, "every_epochs": 0})})


def place(text: str, seed: int) -> str:
    """A dataset's name with the seed put in."""
    return text.replace("{seed}", str(seed))


def _mixed(train: Sequence[str], other: str, share: float) -> list[str]:
    """The arm's sets with `share` of the weight given to another one."""
    found = [parse_dataset(text) for text in train]
    total = sum(reference.weight for reference in found)
    arms = [f"{reference}:{reference.weight / total * (1 - share):g}" for reference in found]
    return [*arms, f"{parse_dataset(other)}:{share:g}"]


def load_matrix(matrix: str | Path | Mapping[str, Any] | Matrix) -> Matrix:
    """Load and check a matrix.

    Raises:
        HfsynError: no such file, not YAML, an unknown key (with the nearest one), a value outside its range.
    """
    if isinstance(matrix, Matrix):
        return matrix
    where = "the matrix"
    if isinstance(matrix, Mapping):
        fields: Any = dict(matrix)
    else:
        where = str(matrix)
        path = Path(where).expanduser()
        if not path.is_file():
            raise HfsynError(f"There is no matrix {where}.", "It is a YAML file; `hfsyn bench --help` shows one.")
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise HfsynError(
                f"{where} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}.",
                "Save it as UTF-8 text.",
            ) from None
        except OSError as error:
            raise HfsynError(f"{where} cannot be read: {error.strerror}.", "Allow reading it.") from None
        except yaml.YAMLError as error:
            raise HfsynError(
                f"{where} is not YAML: {' '.join(str(error).split())}", "Mend the line it names."
            ) from None
    if not isinstance(fields, dict):
        raise HfsynError(f"{where} holds no matrix.", _listed(Matrix.model_fields))
    try:
        return Matrix.model_validate(fields)
    except ValidationError as error:
        raise HfsynError(*_explain(error, where)) from None


def dump_matrix(matrix: Matrix) -> str:
    """The matrix as YAML with every field written out."""
    return yaml.safe_dump(matrix.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _listed(names: Any) -> str:
    return f"Allowed here: {', '.join(names)}."


def _explain(error: ValidationError, where: str) -> tuple[str, str]:
    fault = error.errors()[0]
    loc = [str(part) for part in fault["loc"] if part != "[key]"]
    key = ".".join(loc)
    inner: dict[str, type[Part]] = {"arms": Arm, "tests": Test, "mix": Mix}
    owner = inner.get(loc[0], Matrix) if len(loc) > 1 else Matrix
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(loc[-1], owner.model_fields, n=1)
        guess = f" Did you mean {'.'.join([*loc[:-1], near[0]])!r}?" if near else ""
        return f"Unknown key {key!r} in {where}.{guess}", _listed(owner.model_fields)
    if fault["type"] == "missing":
        return f"Key {key!r} is missing in {where}.", _listed(owner.model_fields)
    known = [part for part in loc if part in owner.model_fields]
    meaning = owner.model_fields[known[-1]].description if known else None
    problem = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key} is {fault['input']!r}: {problem}.", " ".join((meaning or _listed(owner.model_fields)).split())
