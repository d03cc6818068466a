"""Judges by name: one grammar, ``[NAME=]JUDGE``, for classifiers, questions, copies, safety and functions."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.judging.scores.classifiers import classifier_judge
from hfsyn.runs.scores import Judge, Scored

GRAMMAR = "A judge is [NAME=]MODEL, a classifier of `hfsyn evaluate`."


@dataclass(frozen=True)
class Spec:
    """A parsed ``[NAME=]KIND:ARGUMENT``."""

    name: str
    kind: str
    argument: str


def parse_judge(text: str) -> Spec:
    """Parse the word of a judge. Raises HfsynError if it names none."""
    stated, sign, rest = text.strip().partition("=")
    if not sign or not re.fullmatch(r"\w+", stated):
        stated, rest = "", text.strip()
    if not rest:
        raise HfsynError(f"{text!r} names no judge.", GRAMMAR)
    return Spec(stated or _slug(rest), "classifier", rest)


def _slug(text: str) -> str:
    """A name from a model's: its last part, in letters, digits and underscores."""
    last = text.rstrip("/").rpartition("/")[2].partition("@")[0]
    found = re.sub(r"\W+", "_", last.removesuffix(".onnx"), flags=re.ASCII).strip("_").lower()
    return found if re.match(r"[a-z_]", found) else f"judge_{found}"


@dataclass(frozen=True)
class Place:
    """What is known of the set when a judge is opened."""

    scored: Scored
    classes: Mapping[str, str]
    device: str
    token: str | bool | None = None


def open_judge(spec: Spec, place: Place) -> Judge:
    """Open a judge for a set. Raises HfsynError as the kind of judge does."""
    return _KINDS[spec.kind](spec, place)


def _classifier(spec: Spec, place: Place) -> Judge:
    return classifier_judge(spec.name, spec.argument, place.classes, place.scored.side.label, place.device)


_KINDS: dict[str, Callable[[Spec, Any], Judge]] = {"classifier": _classifier}
