"""How a dataset is named where a classifier is trained or tested: one grammar for real and synthetic images alike.

    [VARIANT=]PLACE[@REVISION][#CONFIG][:WEIGHT]

    imagenette                              a variant (`hfsyn variants ls`), from the Hub
    shapes:0.5                              a drawn variant, at half the weight of the others
    runs/imagenette-cip                     a run folder
    tiny-imagenet=../tiny-imagenet-200      a variant whose images are in a local folder or Parquet file
    flowers.yaml=photos/                    a folder with classes of one's own, which a class map describes
    photographs/                            a folder with class folders named by wnid, or Parquet files
    user/imagenette-cip@v1.0.0              a dataset on the Hub at a version (a tag, a branch or a commit)
    user/imagenette-cip@v1.0.0#basic        one configuration of it; of Parquet files in a folder, too
    imagenette=user/my-imagenette@main      a dataset on the Hub whose labels are a variant's class names

A name on the Hub and a relative folder look alike: what is there on the disk wins; ``hf://datasets/user/name`` always
means the Hub. WEIGHT is for training on several sets: their shares of the images are in proportion to the weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from builders.errors import did_you_mean
from builders.variants import VARIANTS, usual_split
from builders.variants.class_maps import find_variant, read_variant
from builders.yaml import is_yaml_name
from hfsyn.errors import HfsynError

Kind = Literal["variant", "local", "hub"]
GRAMMAR = "A dataset is [VARIANT=]PLACE[@REVISION][#CONFIG][:WEIGHT], PLACE a variant, a folder or USER/NAME."

_WEIGHT = re.compile(r":(?P<weight>[0-9]*\.?[0-9]+(?:e-?[0-9]+)?)$")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_URL = "hf://datasets/"


@dataclass(frozen=True, slots=True)
class Reference:
    """A dataset as the user named it, taken apart."""

    kind: Kind
    place: str
    """A variant's name, a local path or a Hub id."""
    variant: str | None = None
    """The variant whose classes the labels are, where it was stated."""
    revision: str | None = None
    config: str | None = None
    weight: float = 1.0

    def __str__(self) -> str:
        """As it is written, without the weight."""
        stated = f"{self.variant}=" if self.variant and self.kind != "variant" else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{stated}{self.place}{revision}{f'#{self.config}' if self.config else ''}"


def parse_dataset(text: str) -> Reference:
    """Take a reference apart; see the module's docstring for the grammar. Only looks whether a path exists.

    Raises:
        HfsynError: an unknown variant (with the nearest one), a path that is not there, a weight that is not above 0.
    """
    rest, weight = text.strip(), 1.0
    if not rest:
        raise HfsynError("An empty text names no dataset.", GRAMMAR)
    if is_yaml_name(rest):
        return _own(rest)
    if Path(rest).expanduser().exists():  # a folder may have any of the signs in its name
        return Reference("local", rest)
    if found := _WEIGHT.search(rest):
        rest, weight = rest[: found.start()], float(found["weight"])
        if not 0 < weight < float("inf"):
            raise HfsynError(f"The weight of {rest!r} is {weight:g}.", "It must be above 0; leave the set out instead.")
    stated, sign, place = rest.partition("=")
    variant = find_variant(stated).name if sign else None
    reference = _placed(place if sign else rest, variant, text)
    return replace(reference, weight=weight)


def _own(file: str) -> Reference:
    """The images that a class map names itself."""
    variant, path = read_variant(file)
    if path is not None:
        return Reference("local", path, variant.name)
    if variant.hub is None:
        raise HfsynError(f"{file} says no place of its images.", f"Say it: {file}=FOLDER")
    return Reference("variant", variant.name, variant.name)


def parse_hub_id(text: str) -> str | None:
    """``USER/NAME`` of a repository's name or address, None where it is none."""
    repo = text.removeprefix(_URL)
    return repo if _REPO.fullmatch(repo) else None


def _placed(rest: str, variant: str | None, text: str) -> Reference:
    if Path(rest).expanduser().exists() and rest not in VARIANTS:
        return Reference("local", rest, variant)
    address, hash_sign, config = rest.partition("#")
    place, at, revision = address.partition("@")
    if (hash_sign and not config) or (at and not revision) or not place:
        raise HfsynError(f"{text!r} names no dataset.", GRAMMAR)
    if place in VARIANTS and not place.startswith(_URL):
        if variant not in (None, place) or config:
            raise HfsynError(f"{text!r}: {place!r} is a variant and takes only @REVISION.", GRAMMAR)
        if revision and VARIANTS[place].drawn:
            raise HfsynError(f"{text!r}: the variant {place!r} is drawn and has no revisions.", f"Say {place}.")
        return Reference("variant", place, place, revision or None)
    if Path(place).expanduser().exists():
        if revision:
            raise HfsynError(f"{text!r}: {place} is a local folder, which has no @REVISION.", GRAMMAR)
        return Reference("local", place, variant, None, config)
    url = place.startswith(_URL)
    repo = place.removeprefix(_URL)
    if _REPO.fullmatch(repo) and (url or not _looks_local(place)):
        return Reference("hub", repo, variant, revision or None, config or None)
    raise _unknown(place, text)


def _looks_local(place: str) -> bool:
    return place.startswith((".", "/", "~")) or place.endswith(".parquet")


def _unknown(place: str, text: str) -> HfsynError:
    if "/" in place or _looks_local(place):
        return HfsynError(f"There is no dataset {text!r}: {place} is neither a folder nor a file here.", GRAMMAR)
    return HfsynError(
        f"There is no dataset {place!r}.{did_you_mean(place, VARIANTS)}", f"{GRAMMAR} Variants: {', '.join(VARIANTS)}."
    )


def pick_split(there: Sequence[str], split: str | None, default: Sequence[str], where: str) -> str:
    """The split that is meant.

    Raises:
        HfsynError: it is not there, or none was named and several are there.
    """
    names = [split] if split else default
    ways = [name for name in names if name in there]  # its own name goes before what means the same
    ways += [name for wanted in names for name in there if usual_split(name) == usual_split(wanted)]
    picked = next(iter(ways), there[0] if split is None and len(there) == 1 else None)
    if picked is None:
        raise HfsynError(
            f"{where} has no split {' or '.join(repr(n) for n in ([split] if split else default))}.",
            f"It has: {', '.join(there) or 'none'}. Name one with --train-split or --eval-split.",
        )
    return picked
