"""Policies: pure functions that plan a round from what is known of the last one.

A policy takes what is `Known`, the number of images, and a ``random.Random`` that is seeded by the round. It returns
parts, mappings with these keys:

images      how many; the parts of a plan add up to a round
levels      factor (``class`` too) -> levels, any of which an image may show; what is not named is as even as it can be
candidates  how many are drawn for each image that is kept, with
by          the score whose largest value is kept, of `SCORES`; with a minus before it, the smallest
begin       ids of `Known.images`: the images begin from these, turn by turn (img2img), and are of the same class

What costs something to know, a policy asks for: ``mine.asks = {"audit"}``, see `ASKS`. To add a policy, write its
function and add it to `POLICIES`; one of the user's own is ``path/to/file.py:function``. What it plans is checked by
`hfsyn.looping.planning`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from builders.errors import did_you_mean
from hfsyn.errors import HfsynError
from hfsyn.judging.scores.classifiers import COLUMNS
from hfsyn.recipes.strategies import check_place, content_of, loaded_function

ASKS = {"audit": "findings", "losses": "images"}
"""What a policy may ask for -> the field of `Known` that has it. An audit takes half of the images of a round."""
UNIFORM = "uniform"
"""The control, which always runs beside."""
SCORES = tuple(name for name, kind in COLUMNS.items() if kind == "number")
_NOT_EARLY = 0.35
"""The share of the images that is not learned early: TADA (arXiv 2505.21574) augments 30 to 40 %."""


@dataclass(frozen=True)
class Known:
    """What a policy knows."""

    round: int
    """Which one is planned, from 1 on."""
    levels: Mapping[str, Sequence[str]]
    """Factor -> its levels; ``class`` -> the classes' names."""
    right: Mapping[str, tuple[int, int]]
    """Class -> how many of the real images that steer the last classifier had right, and of how many; of none if none
    shows it."""
    findings: Sequence[Mapping[str, Any]] = ()
    """For a policy that asks for an ``audit``, of the last classifier: see `hfsyn.audit`."""
    images: Sequence[Mapping[str, Any]] = ()
    """For a policy that asks for ``losses``: what the last classifier was trained on and does not begin from another
    image, each with its ``id``, ``class``, ``round`` (None if it is of `start`), ``early_loss``, ``margin`` and
    ``forgotten`` (see `hfsyn.judging.train.recording`).
    """
    candidates: int = 4
    """Of the loop file."""


Policy = Callable[[Known, int, random.Random], Sequence[Mapping[str, Any]]]


def uniform(known: Known, images: int, rng: random.Random) -> Sequence[Mapping[str, Any]]:
    """All kinds alike: the control."""
    return [{"images": images, "levels": {}}]


def hard_classes(known: Known, images: int, rng: random.Random) -> Sequence[Mapping[str, Any]]:
    """Images of each class in proportion to its error on real images."""
    # One wrong answer more than there was, so that a class without any still gets images.
    errors = {name: (n - hits + 1) / (n + 2) for name, (hits, n) in known.right.items() if n}
    others = fmean(errors.values())  # of a class that was not measured
    numbers = zip(
        known.levels["class"], shared([errors.get(c, others) for c in known.levels["class"]], images), strict=True
    )
    return [{"images": number, "levels": {"class": [name]}} for name, number in numbers]


def uncertain(known: Known, images: int, rng: random.Random) -> Sequence[Mapping[str, Any]]:
    """All kinds alike, but of several candidates for each prompt the one that the last classifier is least sure of."""
    return [{"images": images, "levels": {}, "candidates": known.candidates, "by": "entropy"}]


def not_learned_early(known: Known, images: int, rng: random.Random) -> Sequence[Mapping[str, Any]]:
    """Images that begin from those whose loss stayed high in the first fifth of the last training."""
    hardest = sorted(known.images, key=lambda one: (-one["early_loss"], one["id"]))
    count = max(1, round(_NOT_EARLY * len(hardest)))
    return [{"images": images, "levels": {}, "begin": [one["id"] for one in hardest[:count]]}]


def audit(known: Known, images: int, rng: random.Random) -> Sequence[Mapping[str, Any]]:
    """Images of what an audit has found, in proportion to what it costs; of all kinds if it has found nothing."""
    if not known.findings:
        return uniform(known, images, rng)
    numbers = shared([one["cost"] for one in known.findings], images)
    return [{"images": n, "levels": one["levels"]} for n, one in zip(numbers, known.findings, strict=True)]


audit.asks = {"audit"}  # type: ignore[attr-defined]
not_learned_early.asks = {"losses"}  # type: ignore[attr-defined]
POLICIES: dict[str, Policy] = {
    "uniform": uniform,
    "hard-classes": hard_classes,
    "uncertain": uncertain,
    "not-learned-early": not_learned_early,
    "audit": audit,
}
FORM = "A policy is a function (known, images, rng) -> [{images: N, levels: {class: [...]}}, ...]."


def shared(weights: Sequence[float], images: int) -> list[int]:
    """Whole numbers that add up to `images`, in proportion to weights (largest remainders)."""
    total = sum(weights)
    exact = [images * weight / total for weight in weights]
    numbers = [int(one) for one in exact]
    order = sorted(range(len(exact)), key=lambda k: (numbers[k] - exact[k], k))
    for k in order[: images - sum(numbers)]:
        numbers[k] += 1
    return numbers


def policy_of(name: str) -> tuple[Policy, str]:
    """A policy by its name, and what pins it: its name, or the content of the user's file.

    Raises HfsynError if there is none, or it asks for what there is not.
    """
    if name in POLICIES:
        return POLICIES[name], name
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        said = f"Unknown policy {name[:80]!r}.{did_you_mean(name, POLICIES)}"
        raise HfsynError(said, f"Policies: {', '.join(POLICIES)}; or a function of yours: path/to/file.py:function.")
    file = Path(path).expanduser().resolve()
    check_place(file, f"The policy {name!r}", "policy: path/to/file.py:function")
    sha256 = content_of(f"{file}:{function}")
    found = loaded_function(file, function, sha256, 3, FORM)
    if unknown := sorted(str(one) for one in asks_of(found) if one not in ASKS):
        said = f"The policy {name} asks for {unknown[0][:60]!r}.{did_you_mean(unknown[0], ASKS)}"
        raise HfsynError(said, f"It can ask for: {', '.join(ASKS)}.")
    return found, sha256


def asks_of(policy: Policy) -> frozenset[str]:
    """What a policy asks for."""
    asks = getattr(policy, "asks", ())
    return frozenset([asks] if isinstance(asks, str) else asks)
