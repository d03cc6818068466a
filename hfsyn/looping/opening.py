"""A loop file with all that it names opened and checked, before anything is spent: for `loop` and for `plan` alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from builders.errors import plural, quoted
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.audit.audit import axes_of, reader_of
from hfsyn.judging.audit.prompts import Axes
from hfsyn.judging.sets.image_set import TRAIN, ImageSet, open_images
from hfsyn.judging.sets.references import parse_dataset
from hfsyn.judging.sets.shared import check_classes, same_classes, shared_images
from hfsyn.looping.loop_file import LoopFile, Measured
from hfsyn.looping.planning import tried
from hfsyn.looping.policies import POLICIES, UNIFORM, Policy, asks_of, policy_of
from hfsyn.recipes.factor_file import load_factors
from hfsyn.recipes.recipe import GeneratePart, Recipe, load_recipe
from hfsyn.recipes.training_recipe import DataPart, TrainConfig, config_difference, load_train_config


@dataclass(frozen=True)
class Order:
    """What a loop will do."""

    file: LoopFile
    recipe: Recipe
    training: TrainConfig
    axes: Axes
    sets: Mapping[str, ImageSet]
    """Those that steer and test, and those that are started from, by what they are."""
    policies: Mapping[str, Policy]
    """By the names of their folders; the control is the last one."""
    plans: Mapping[str, list[dict[str, Any]]]
    """What each planned when it was tried."""
    pins: Mapping[str, str]
    """What pins the policies, the recipe and the sets: hashes of their contents."""
    remarks: Sequence[str]
    """What is left out, or is not as one would expect."""


def ordered(file: LoopFile) -> Order:
    """Check what is asked for. Raises HfsynError if that cannot be done."""
    factors, recipe = load_factors(file.factors), load_recipe(file.recipe)
    axes, remarks = axes_of(factors, recipe, get_variant(recipe.source.variant).classes)
    axes.allowed()
    policies, pins, plans = _policies(file, axes)
    _check_numbers(file, recipe, axes, policies)
    training = _training(file)
    sets = _sets(file, axes)
    if missing := [info.name for info in axes.classes if info.wnid not in sets["steer"].classes]:
        told = f"{plural(len(missing), 'class')} of which steer has no image: {quoted(missing)}"
        remarks.append(f"{told}; hard-classes takes their error to be the mean of the others'")
    pins |= {name: images.fingerprint for name, images in sets.items()} | _contents(recipe, training, axes)
    return Order(file, recipe, training, axes, sets, policies, plans, pins, remarks)


def _check_numbers(file: LoopFile, recipe: Recipe, axes: Axes, policies: Mapping[str, Policy]) -> None:
    """Refuse numbers with which a round would fail, and an audit that nobody reads."""
    asked = frozenset[str]().union(*map(asks_of, policies.values()))
    if file.stop.images is not None and file.stop.images < file.images:
        said = f"stop.images is {file.stop.images}, less than the first round of {file.images}."
        raise HfsynError(said, "Raise it, or lower images.")
    if not file.start and file.images < axes.sizes[0]:
        said = f"images is {file.images}, and there are {axes.sizes[0]} classes: a classifier would not know them all."
        raise HfsynError(said, f"Raise it to {axes.sizes[0]} or more, or `start` from images of all classes.")
    if "audit" in asked:
        reader_of(file.reader, recipe)
        if file.images // 2 < (least := max(axes.sizes)):
            name = axes.names[axes.sizes.index(least)]
            said = f"images is {file.images}, half of them for audits: not each {name} of {least} would have one."
            raise HfsynError(said, f"Raise it to {2 * least} or more.")
    if "losses" in asked:
        GeneratePart.model_validate({**recipe.generate.model_dump(), "init": "source", "strength": file.strength})


def _training(file: LoopFile) -> TrainConfig:
    """The training recipe. Raises HfsynError if it says what is trained on, which the rounds do."""
    training = load_train_config(file.train, (), {"data.train": ["shapes"]})
    if others := config_difference(training, training.model_copy(update={"data": DataPart(train=training.data.train)})):
        key, value, _ = others[0]
        said = f"The training recipe says {key}={value}, and a loop says itself what is trained on."
        raise HfsynError(said, f"Leave {key} out of `train`.")
    return training


def _open_apart(file: LoopFile) -> dict[str, ImageSet]:
    """The sets that steer and test, and those that are started from, by what they are. Raises HfsynError if images are
    in two of them: a policy would know the test, or a classifier have learnt what measures it.
    """
    for one in file.start:
        if (weight := parse_dataset(one).weight) != 1:
            said = f"start names {one!r}, whose weight is {weight:g}: a loop shows each image as often as any other."
            raise HfsynError(said, "Leave the weight out.")
    found = {"steer": open_measured(file.steer), "test": open_measured(file.test)}
    found |= {f"start {one}": open_images(one, default=TRAIN) for one in file.start}
    for one, other in combinations(found, 2):
        if one in ("steer", "test") and (count := len(shared_images(found[other], found[one]))):
            said = f"{one} and {other} share {plural(count, 'image')}."
            raise HfsynError(said, f"Give `{one}` others: test[held 50%] and test[kept 50%] are halves of a split.")
    return found


def _policies(file: LoopFile, axes: Axes) -> tuple[dict[str, Policy], dict[str, str], dict[str, list[dict[str, Any]]]]:
    """The policies by the names of their folders, what pins them, and what each planned when it was tried."""
    levels = dict(zip(axes.names, axes.levels, strict=True))
    found: dict[str, Policy] = {}
    pins, plans = {}, {}
    for label in file.policy if UNIFORM in file.policy else (*file.policy, UNIFORM):
        policy, pin = policy_of(label)
        name = label if pin == label else label.rpartition(":")[2]
        if pin != label and name in POLICIES:
            raise HfsynError(f"{name} is the name of a policy of hfsyn's own.", f"Rename the function of {label}.")
        if name in found:
            raise HfsynError(f"Two policies are called {name}.", "Rename one of the functions.")
        plans[name] = tried(label, levels, file.images, file.candidates, file.rounds)
        found[name], pins[f"policy {name}"] = policy, pin
    if UNIFORM not in file.policy:
        del pins[f"policy {UNIFORM}"]
    return {**{name: one for name, one in found.items() if name != UNIFORM}, UNIFORM: POLICIES[UNIFORM]}, pins, plans


def _sets(file: LoopFile, axes: Axes) -> dict[str, ImageSet]:
    """All sets that a loop file names; see `Order.sets`."""
    found, names = _open_apart(file), {info.wnid: info.name for info in axes.classes}
    for one in ("steer", "test"):
        check_classes(names, found[one], f"the recipe {file.recipe}")
    if file.start:
        starts = [(name, images.names) for name, images in found.items() if name not in ("steer", "test")]
        same_classes([*starts, (f"the recipe {file.recipe}", names)])
    return found


def _contents(recipe: Recipe, training: TrainConfig, axes: Axes) -> dict[str, str]:
    parts = {"recipe": recipe, "train": training, "factors": axes.factors}
    return {name: hashlib.sha256(part.model_dump_json().encode()).hexdigest() for name, part in parts.items()}


def open_measured(on: Measured) -> ImageSet:
    """The images of a set that classifiers are measured on."""
    return open_images(on.dataset, on.split, limit=on.limit)
