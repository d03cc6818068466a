"""Policies: pure functions that plan a round from what is known of the last one.

A policy takes what is `Known`, the number of images, and a ``random.Random`` that is seeded by the round. It returns
parts, each a number of ``images`` and the ``levels`` that they have: factor (``class`` too) -> levels, any of which an
image may show; what is not named is as even as it can be. To add one, write its function and add it to `POLICIES`; a
policy of the user's own is ``path/to/file.py:function``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.errors import brief, did_you_mean, quoted
from hfsyn.errors import HfsynError
from hfsyn.recipes.strategies import check_place, content_of, loaded_function


@dataclass(frozen=True)
class Known:
    """What a policy knows."""

    round: int
    """Which one is planned, from 1 on."""
    levels: Mapping[str, Sequence[str]]
    """Factor -> its levels; ``class`` -> the classes' names."""
    right: Mapping[str, tuple[int, int]]
    """Class -> how many of the real images that steer the last classifier had right, and of how many."""
    findings: Sequence[Mapping[str, Any]] = ()
    """Of an audit of the last classifier, for a policy that asks for one: see `hfsyn.audit`."""


Policy = Callable[[Known, int, random.Random], Sequence[Mapping[str, Any]]]


def uniform(known: Known, images: int, rng: random.Random) -> Sequence[Mapping[str, Any]]:
    """All kinds alike: the control."""
    return [{"images": images, "levels": {}}]


def hard_classes(known: Known, images: int, rng: random.Random) -> Sequence[Mapping[str, Any]]:
    """Images of each class in proportion to its error on real images."""
    # One wrong answer more than there was, so that a class without any still gets images.
    errors = [(n - hits + 1) / (n + 2) for hits, n in (known.right[name] for name in known.levels["class"])]
    numbers = zip(known.levels["class"], shared(errors, images), strict=True)
    return [{"images": number, "levels": {"class": [name]}} for name, number in numbers]


def audit(known: Known, images: int, rng: random.Random) -> Sequence[Mapping[str, Any]]:
    """Images of what an audit has found, in proportion to what it costs; of all kinds if it has found nothing."""
    if not known.findings:
        return uniform(known, images, rng)
    numbers = shared([one["cost"] for one in known.findings], images)
    return [{"images": n, "levels": one["levels"]} for n, one in zip(numbers, known.findings, strict=True)]


POLICIES: dict[str, Policy] = {"uniform": uniform, "hard-classes": hard_classes, "audit": audit}
AUDITS = frozenset({"audit"})
"""Policies that ask for an audit of the last classifier, for which half of a round's images are of all kinds."""
_FORM = "A policy is a function (known, images, rng) -> [{images: N, levels: {class: [...]}}, ...]."


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

    Raises HfsynError if there is none.
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
    return loaded_function(file, function, sha256, 3, _FORM), sha256


def planned(policy: Policy, label: str, known: Known, images: int, seed: int) -> list[dict[str, Any]]:
    """The parts that a policy plans, checked.

    Raises HfsynError if it fails, is not pure, plans another number of images, or names what there is not.
    """
    once, again = (_asked(policy, label, known, images, seed) for _ in range(2))
    if once != again:
        raise HfsynError(f"The policy {label} is not pure: it planned {brief(once, 100)}, then {brief(again, 100)}.")
    for part in once:
        for name, levels in part["levels"].items():
            there = known.levels.get(name)
            if there is None:
                said = f"The policy {label} names the factor {name!r}.{did_you_mean(str(name), known.levels)}"
                raise HfsynError(said, f"There are: {', '.join(known.levels)}.")
            if not levels or (unknown := [level for level in levels if level not in there]):
                what = f"the level {unknown[0]!r}" if levels else "no level"
                raise HfsynError(f"The policy {label} names {what} of {name}.", f"Its levels: {quoted(there)}.")
    if (total := sum(part["images"] for part in once)) != images:
        raise HfsynError(f"The policy {label} plans {total} images, and a round has {images}.", _FORM)
    return [part for part in once if part["images"]]


def _asked(policy: Policy, label: str, known: Known, images: int, seed: int) -> list[dict[str, Any]]:
    try:
        plan = policy(known, images, random.Random(seed))
        parts = [{"images": part["images"], "levels": {k: list(v) for k, v in part["levels"].items()}} for part in plan]
        if any(type(part["images"]) is not int or part["images"] < 0 for part in parts):
            raise TypeError("images is not a whole number of 0 or more")
    except HfsynError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function raises, but not Ctrl-C
        said = f"The policy {label} fails: {type(error).__name__}: {brief(error)}"
        raise HfsynError(said, _FORM) from None
    return parts
