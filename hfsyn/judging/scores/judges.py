"""Judges by name: one grammar, ``[NAME=]JUDGE``, for classifiers, questions, copies, safety and functions."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from builders.variants import get_variant
from hfsyn.checks.diff import recipe_of
from hfsyn.errors import HfsynError
from hfsyn.judging.scores.alike import copies_of_judge, copies_within_judge
from hfsyn.judging.scores.classifiers import classifier_judge
from hfsyn.judging.scores.crossfit import crossfit_judge
from hfsyn.judging.scores.factors import factors_judge
from hfsyn.judging.scores.functions import function_judge
from hfsyn.judging.scores.questions import question_judge
from hfsyn.judging.scores.recorded import recorded_judge
from hfsyn.judging.scores.safety import safety_judge
from hfsyn.judging.sets.image_set import open_images
from hfsyn.runs.scores import Judge, Scored

GRAMMAR = (
    "A judge is [NAME=]JUDGE: a classifier of `hfsyn evaluate`, file.py:FUNCTION, crossfit:DIR, copies[:DATASET], "
    "record:TRAINING, factors:AUDIT, vlm:CAPTIONER, or safety:MODEL."
)
_KIND = re.compile(r"(copies|vlm|safety|crossfit|record|factors)(?::(.*))?$")


@dataclass(frozen=True)
class Spec:
    """A parsed ``[NAME=]JUDGE``."""

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
    if found := _KIND.match(rest):
        kind, argument = found[1], found[2] or ""
        if not argument and kind != "copies":
            raise HfsynError(f"{text!r} does not say which {kind}.", f"{kind}:MODEL. {GRAMMAR}")
        return Spec(
            stated or "_".join(filter(None, (kind, _slug(argument) if kind == "copies" else ""))), kind, argument
        )
    if ".py:" in rest:
        return Spec(stated or rest.rpartition(":")[2], "function", rest)
    return Spec(stated or _slug(rest), "classifier", rest)


def _slug(text: str) -> str:
    """A name from a model's or a set's: its last part, in letters, digits and underscores."""
    last = text.rstrip("/").rpartition("/")[2].partition("@")[0].rpartition(":")[2]
    found = re.sub(r"\W+", "_", last, flags=re.ASCII).strip("_").lower()
    return found if not found or re.match(r"[a-z_]", found) else f"judge_{found}"


@dataclass(frozen=True)
class Place:
    """What is known of the set when a judge is opened."""

    scored: Scored
    classes: Mapping[str, str]
    device: str
    reference: str
    """By which `hfsyn train` takes the set."""


def open_judge(spec: Spec, place: Place) -> Judge:
    """Open a judge for a set. Raises HfsynError as the kind of judge does."""
    return _KINDS[spec.kind](spec, place)


def _classifier(spec: Spec, place: Place) -> Judge:
    return classifier_judge(spec.name, spec.argument, place.classes, place.scored.side.label, place.device)


def _copies(spec: Spec, place: Place) -> Judge:
    if not spec.argument:
        return copies_within_judge(spec.name, place.scored)
    if spec.argument != "source":
        return copies_of_judge(spec.name, open_images(spec.argument))
    part = recipe_of(place.scored.side).source
    where = f"{part.variant}={part.path}" if part.path else part.variant
    at = f"@{part.revision}" if part.revision and not part.path and not get_variant(part.variant).drawn else ""
    return copies_of_judge(spec.name, open_images(f"{where}{at}", part.split))


def _question(spec: Spec, place: Place) -> Judge:
    known = get_variant(recipe_of(place.scored.side).source.variant).by_wnid
    return question_judge(spec.name, spec.argument, {wnid: known[wnid] for wnid in place.classes}, place.device)


def _crossfit(spec: Spec, place: Place) -> Judge:
    return crossfit_judge(spec.name, spec.argument, place.reference, place.classes, place.device)


def _record(spec: Spec, place: Place) -> Judge:
    return recorded_judge(spec.name, spec.argument, place.reference)


def _factors(spec: Spec, place: Place) -> Judge:
    known = get_variant(recipe_of(place.scored.side).source.variant).by_wnid
    return factors_judge(spec.name, spec.argument, known, place.device)


def _function(spec: Spec, place: Place) -> Judge:
    first = next((rows[0] for name in place.scored.starts if (rows := place.scored.rows(name))), None)
    if first is None:
        raise HfsynError(f"{place.scored.side.label} has no row.", "Score another set.")
    return function_judge(spec.name, spec.argument, first)


def _safety(spec: Spec, place: Place) -> Judge:
    return safety_judge(spec.name, spec.argument, place.device)


_KINDS: dict[str, Callable[[Spec, Place], Judge]] = {
    "classifier": _classifier,
    "copies": _copies,
    "crossfit": _crossfit,
    "factors": _factors,
    "function": _function,
    "record": _record,
    "safety": _safety,
    "vlm": _question,
}
