"""A matrix: which arms, networks, seeds and budgets are trained, and what each of them is tested on; a YAML file.

Every combination is a cell: one training and its tests. Fields that the small example does not show:

    mix: {dataset: imagenette, shares: [0, 0.5]}      # share of real images: several make a mixing curve
    compare: [[cip, basic], [cip, real]]              # the pairs of arms that the verdict is about
    tests:                                            # the other direction, of some arms only:
      images of cip: {dataset: "runs/imagenette-cip-{seed}", split: train, arms: [real]}
    select_on: {dataset: imagenette, share: 0.1}      # of several lrs or recipes, each arm's best one there is reported

`hfsyn bench --example paper` shows the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from builders.yaml import load_file
from hfsyn.errors import HfsynError
from hfsyn.judging.bench.parts import Arm, Fidelity, Keep, Membership, Mix, Name, Numbers, Real, SelectOn, Test
from hfsyn.judging.sets.image_set import TRAIN
from hfsyn.judging.sets.kept import RANDOM
from hfsyn.judging.sets.references import held_out, kept, parse_dataset
from hfsyn.recipes.loading import Count, Part, Seed, Text, checked, fields_of, refuse_other_kind
from hfsyn.recipes.training_recipe import TrainConfig, load_train_config, training_fields

EXAMPLES = {
    name: resources.files("hfsyn.judging.bench.templates").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    for name in ("small", "captions", "exchange", "paper", "generators")
}
"""The matrices that `hfsyn bench --example` prints."""
SETTING = ("variant", "model", "budget", "limit", "share", "real", "synthetic", "lr", "recipe", "keep")
"""The axes in which arms must agree to be compared."""
CHOSEN = ("lr", "recipe")
"""The axes of which `select_on` chooses a value for each arm."""
CHOOSING = "select_on"
"""The name of the test on which it chooses."""
CELLS = "cells"
"""The folder of all cells, within the matrix's."""
MOST_CELLS = 100_000
_Rate = Annotated[float, Field(gt=0, le=1e4)]


class Matrix(Part):
    """The whole table."""

    name: Name
    config: Any = Field(default_factory=dict)
    """The training recipe that all cells share; the axes below win over it."""
    variants: Annotated[tuple[Text | None, ...], Field(min_length=1, strict=False)] = (None,)
    """What {variant} stands for in names of datasets and of training recipes; each is a table of its own."""
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    """Kinds of training sets."""
    models: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)]
    """Networks of timm; left out where all training recipes name the same one, it is that."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, strict=False)] = (0, 1, 2)
    """Seeds; arms are compared seed by seed."""
    budgets: Annotated[tuple[Count | None, ...], Field(min_length=1, strict=False)] = (None,)
    """Images an epoch shows; null is the size of the set."""
    limits: Annotated[tuple[Count | None, ...], Field(min_length=1, strict=False)] = (None,)
    """At most that many different images per class; null takes all."""
    mix: Mix | None = None
    """Images mixed into every arm; null mixes nothing."""
    keep: Keep | None = None
    """Each arm becomes two, which keep the same share of their images: the best by a score, or any at random."""
    real: Real | None = None
    """With `synthetic`: every number of real images is trained on together with every number of an arm's."""
    synthetic: Numbers | None = None
    """Images per class of an arm, beside those of `real`; 0 leaves them out."""
    lrs: Annotated[tuple[_Rate | None, ...], Field(min_length=1, strict=False)] = (None,)
    """Peak learning rates; null is the training recipe's."""
    recipes: Annotated[tuple[Text | None, ...], Field(min_length=1, strict=False)] = (None,)
    """Training recipes, by name or file; null is `config`."""
    tests: Annotated[dict[Name, Test], Field(min_length=1)]
    """Evaluation sets; the first one is the headline."""
    baselines: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Networks with published weights that are tested, too, such as resnet50.a1_in1k: rows of the table."""
    means: dict[Name, Annotated[tuple[Name, ...], Field(min_length=2, strict=False)]] = Field(default_factory=dict)
    """Means of some of the tests, as tests of their own: {V2: [V2 matched, V2 threshold, V2 top]}."""
    membership: dict[Name, Membership] = Field(default_factory=dict)
    """Attacks on each classifier, as columns of the table."""
    fidelity: dict[Name, Fidelity] = Field(default_factory=dict)
    """Comparisons of each arm's set with the real one, as columns of the table."""
    select_on: SelectOn | None = None
    """Where there are several lrs or recipes: the images on which each arm's best one is chosen; null reports all."""
    compare: Annotated[tuple[Annotated[tuple[Name, Name], Field(strict=False)], ...], Field(strict=False)] | None = None
    """Pairs of arms that the verdict is about, the most important first; null is the last arm with every other."""

    @field_validator("config")
    @classmethod
    def _a_training_recipe(cls, value: Any) -> Any:
        if not isinstance(value, dict) and not (isinstance(value, str) and value):
            raise ValueError("expected a training recipe's name, its file, or its fields")
        return value

    @model_validator(mode="before")
    @classmethod
    def _two_arms_of_each(cls, fields: Any) -> Any:
        """With the axis `keep`, an arm becomes one that keeps images at random, and one that keeps the best."""
        keep, arms = (fields.get("keep"), fields.get("arms")) if isinstance(fields, dict) else (None, None)
        by = keep.get("by") if isinstance(keep, dict) else None
        if not isinstance(by, str) or not isinstance(arms, dict):
            return fields
        found: dict[Any, Any] = {}
        for name, arm in arms.items():
            if not isinstance(arm, dict) or arm.get("order") is not None:  # of a matrix that was read before
                found[name] = arm
                continue
            found |= {f"{name} {how}": {**arm, "order": o} for o, how in ((RANDOM, "at random"), (by, f"by {by}"))}
        return {**fields, "arms": found}

    @model_validator(mode="before")
    @classmethod
    def _network_of_its_recipes(cls, fields: Any) -> Any:
        """Fill in `models`: results and reports must not need the training recipes' files again."""
        if not isinstance(fields, dict) or fields.get("models") is not None:
            return fields
        recipes, variants = fields.get("recipes") or [fields.get("config")], fields.get("variants") or [None]
        if not isinstance(recipes, list) or not isinstance(variants, list):
            return fields
        named = [_network(place(r, 0, v) if isinstance(r, str) else r) for r in recipes for v in variants]
        if None in named:
            return fields
        if len(set(named)) > 1:
            said = f"The matrix has no models, and its recipes name several: {', '.join(map(str, named))}."
            raise HfsynError(said, f"Say which each of them trains: models: [{named[0]}]")
        return {**fields, "models": named[:1]}

    @model_validator(mode="after")
    def _arms_exist(self) -> Matrix:
        for kind in ("tests", "membership", "fidelity"):
            for name, asked in getattr(self, kind).items():
                self._check_arms(f"{kind}.{name}.arms", asked.arms or ())
                if unknown := sorted(set(asked.variants or ()) - set(self.variants)):
                    said = f"{kind}.{name}.variants names what is not a variant of the matrix: {', '.join(unknown)}."
                    raise HfsynError(said, f"There are: {', '.join(map(str, self.variants))}.")
        for pair in self.compare or ():
            self._check_arms("compare", pair)
            if len(set(pair)) == 1:
                raise HfsynError(f"compare has a pair of one arm, {pair[0]!r}.", "Name two arms, as [ARM, OTHER].")
        return self

    @model_validator(mode="after")
    def _columns_have_names_of_their_own(self) -> Matrix:
        named = [*self.tests, *self.means, *self.membership, *self.fidelity]
        if twice := next((name for name in named if named.count(name) > 1 or name == CHOOSING), None):
            said = "is taken: it is the test that chooses" if twice == CHOOSING else "stands twice"
            raise HfsynError(f"The column {twice!r} {said}.", "Give each test, mean and other column another name.")
        for name, parts in self.means.items():
            if unknown := [part for part in parts if part not in self.tests]:
                said = f"means.{name} names what is not a test: {', '.join(unknown)[:200]}."
                raise HfsynError(said, f"There are: {', '.join(self.tests)}.")
        if self.variants == (None,) and "{variant}" in self.model_dump_json():
            raise HfsynError("The matrix says {variant} and has no variants.", "Name them: variants: [imagenette]")
        return self

    @model_validator(mode="after")
    def _axes_fit(self) -> Matrix:
        if (self.real is None) != (self.synthetic is None):
            one, other = ("real", "synthetic") if self.synthetic is None else ("synthetic", "real")
            hint = "real: {dataset: NAME, numbers: [0, 10]}; synthetic: [0, 10, 20]"
            raise HfsynError(f"The matrix has the axis {one} and no {other}.", f"Give both: {hint}")
        if self.real is not None and (self.mix is not None or self.limits != (None,)):
            raise HfsynError("The axes real and synthetic say how many images there are.", "Leave mix and limits out.")
        if self.real is not None and None in self.budgets:
            raise HfsynError(
                "The matrix has the axes real and synthetic, and budgets is null for some cells.",
                "Say how many images an epoch shows, so that all cells train for as long: budgets: [600]",
            )
        if self.recipes != (None,) and self.config:
            raise HfsynError("The matrix has both config and recipes.", "Name all training recipes in recipes.")
        return self

    def _check_arms(self, field: str, names: Sequence[str]) -> None:
        if missing := sorted(set(names) - set(self.arms)):
            raise HfsynError(
                f"{field} names what is not an arm: {', '.join(missing)[:200]}.", f"There are: {', '.join(self.arms)}."
            )

    @model_validator(mode="after")
    def _cells_have_folders_of_their_own(self) -> Matrix:
        """Names of folders keep fewer characters than names of arms and networks, and fewer digits than shares."""
        axes = (self.arms, *_axes(self))
        if (count := math.prod(map(len, axes))) > MOST_CELLS:
            raise HfsynError(f"The matrix has {count:,} cells.", f"At most {MOST_CELLS:,}: leave values out.")
        taken: dict[str, Cell] = {}
        for cell in cells(self):
            other = taken.setdefault(str(cell.folder).casefold(), cell)  # some file systems ignore case
            if other is not cell:
                mine, theirs = asdict(cell), asdict(other)
                differing = [f"{key} {theirs[key]!r} and {mine[key]!r}" for key in mine if mine[key] != theirs[key]]
                said = " with ".join(differing) or "a value that stands twice in an axis"
                raise HfsynError(
                    f"Two cells of the matrix would lie in one folder, {cell.folder}: {said}.",
                    "Give them names that differ in letters or digits, and each value once.",
                )
        return self

    @property
    def all_shares(self) -> tuple[float, ...]:
        """The shares of mixed images: 0 if there are none."""
        return self.mix.shares if self.mix else (0.0,)


def _network(recipe: Any) -> str | None:
    """The network that a training recipe names (its fields, its name or its file); None if it names none."""
    fields = training_fields(recipe)[0] if isinstance(recipe, str) and recipe else recipe
    model = fields.get("model") if isinstance(fields, dict) else None
    name = model.get("name") if isinstance(model, dict) else None
    return name if isinstance(name, str) else None


@dataclass(frozen=True)
class Cell:
    """One training and its tests."""

    arm: str
    model: str
    budget: int | None
    limit: int | None
    share: float
    seed: int
    real: int | None = None
    synthetic: int | None = None
    lr: float | None = None
    recipe: str | None = None
    variant: str | None = None
    keep: float | None = None

    @property
    def folder(self) -> Path:
        """Its path, relative to the matrix's folder."""
        parts = [
            f"images-{self.budget}" if self.budget else "",
            f"limit-{self.limit}" if self.limit else "",
            f"mixed-{self.share:g}" if self.share else "",
            "" if self.real is None else f"real-{self.real}_synthetic-{self.synthetic}",
            f"lr-{self.lr:g}" if self.lr else "",
            f"recipe-{safe_name(Path(self.recipe).stem)}" if self.recipe else "",
            f"kept-{self.keep:g}" if self.keep else "",
        ]
        setting = "_".join(filter(None, parts)) or "all"
        above = [safe_name(Path(self.variant).stem)] if self.variant else []
        return Path(CELLS, *above, safe_name(self.arm), safe_name(self.model), setting, f"seed-{self.seed}")

    def facts(self) -> dict[str, Any]:
        """The values of the usual axes, and of the others that the matrix has."""
        rare = ("real", "synthetic", "lr", "recipe", "variant", "keep")
        return {name: value for name, value in asdict(self).items() if name not in rare or value is not None}

    @property
    def setting(self) -> tuple[Any, ...]:
        """What arms must have in common to be compared: the values of `SETTING`."""
        return tuple(getattr(self, name) for name in SETTING)


def safe_name(name: str) -> str:
    """A name as a file may have it."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _axes(matrix: Matrix) -> tuple[Sequence[Any], ...]:
    """All but the arms: the axes of `SETTING`, and the seeds."""
    real = matrix.real.numbers if matrix.real else (None,)
    some = (matrix.models, matrix.budgets, matrix.limits, matrix.all_shares, real, matrix.synthetic or (None,))
    keep = matrix.keep.shares if matrix.keep else (None,)
    return (matrix.variants, *some, matrix.lrs, matrix.recipes, keep, matrix.seeds)


def cells(matrix: Matrix) -> Iterator[Cell]:
    """Every cell, seeds last, so that an interrupted bench has whole arms of its first settings.

    Without synthetic images all arms are alike: the first one stands for them. No cell has no images at all.
    """
    first = next(iter(matrix.arms))
    for variant, model, budget, limit, share, real, synthetic, lr, recipe, keep, seed in itertools.product(
        *_axes(matrix)
    ):
        named = None if recipe is None else place(recipe, seed, variant)
        for arm in matrix.arms:
            if synthetic == 0 and (not real or arm != first):
                continue
            yield Cell(arm, model, budget, limit, share, seed, real, synthetic, lr, named, variant, keep)


def cell_tests(matrix: Matrix, cell: Cell) -> dict[str, tuple[str, str | None]]:
    """The cell's tests by name: dataset and split of each; with that on which recipes are chosen, if there is one."""
    found = {
        name: (place(test.dataset, cell.seed, cell.variant), test.split)
        for name, test in matrix.tests.items()
        if test.of(cell.arm, cell.variant)
    }
    if (choice := matrix.select_on) is not None:
        split = choice.split if choice.share is None else held_out(choice.split or TRAIN[0], choice.share)
        found[CHOOSING] = (place(choice.dataset, cell.seed, cell.variant), split)
    return found


def train_split(matrix: Matrix, arm: str) -> str | None:
    """The split that an arm is trained on: without what is held out for choosing."""
    split, choice = matrix.arms[arm].split, matrix.select_on
    return split if choice is None or choice.share is None else kept(split or "", choice.share)


def cell_config(matrix: Matrix, cell: Cell) -> TrainConfig:
    """The training recipe of a cell. It tests nothing itself: the tests are the bench's."""
    arm = matrix.arms[cell.arm]
    train = [place(text, cell.seed, cell.variant) for text in arm.train]
    limits = None
    if cell.real is not None and matrix.real is not None:
        train, limits = _numbered(train, place(matrix.real.dataset, cell.seed, cell.variant), cell)
    if cell.share and matrix.mix is not None:
        try:
            train = _mixed(train, place(matrix.mix.dataset, cell.seed, cell.variant), cell.share)
        except HfsynError as error:
            raise HfsynError(f"arms.{cell.arm}.train or mix.dataset: {error.message}", error.hint, error.code) from None
    values = {
        "data.train": train,
        "data.train_split": train_split(matrix, cell.arm),
        "data.budget": cell.budget,
        "data.limit_per_class": cell.limit,
        "data.limits": limits,
        "model.name": cell.model,
        "seed": cell.seed,
        **({} if cell.lr is None else {"optimise.lr": cell.lr}),
        **({} if cell.keep is None else {"data.keep": f"{arm.order}:{cell.keep:g}"}),
    }
    fields: Any = matrix.config if cell.recipe is None else cell.recipe
    if isinstance(fields, dict):
        data = fields.get("data") or {}
        fields = {**fields, "data": {**data, "train": train} if isinstance(data, dict) else data}
    try:
        config = load_train_config(fields, values=values)
    except HfsynError as error:
        raise HfsynError(f"The matrix's config: {error.message}", error.hint, error.code) from None
    return config.model_copy(update={"test": config.test.model_copy(update={"dataset": None, "every_epochs": 0})})


def place(text: str, seed: int, variant: str | None = None) -> str:
    """A name with the seed and the variant put in."""
    return text.replace("{seed}", str(seed)).replace("{variant}", variant or "{variant}")


def _mixed(train: Sequence[str], other: str, share: float) -> list[str]:
    """The arm's sets with `share` of the weight given to another one."""
    found = [parse_dataset(text) for text in train]
    total = sum(reference.weight for reference in found)
    arms = [f"{reference}:{reference.weight / total * (1 - share):g}" for reference in found]
    return [*arms, f"{parse_dataset(other)}:{share:g}"]


def _numbered(train: Sequence[str], real: str, cell: Cell) -> tuple[list[str], list[int]]:
    """The sets of a cell with numbers of real and synthetic images, weighted by these; and the numbers."""
    found = [parse_dataset(text) for text in train]
    total = sum(reference.weight for reference in found)
    wanted = [(parse_dataset(real), cell.real or 0)]
    wanted += [(one, round((cell.synthetic or 0) * one.weight / total)) for one in found]
    kept = [(f"{reference}:{number}", number) for reference, number in wanted if number]
    return [text for text, _ in kept], [number for _, number in kept]


def load_matrix(matrix: str | Path | Mapping[str, Any] | Matrix) -> Matrix:
    """Load and check a matrix.

    Raises:
        HfsynError: no such file, not YAML, an unknown key (with the nearest one), a value outside its range.
    """
    if isinstance(matrix, Matrix):
        return matrix
    if isinstance(matrix, Mapping):
        return checked(Matrix, fields_of(matrix, "matrix"), "the matrix")
    fields = load_file(matrix, "matrix", "It is a YAML file; `hfsyn bench --example` prints one.")
    refuse_other_kind(fields, str(matrix), "matrix")
    return checked(Matrix, fields, str(matrix))
