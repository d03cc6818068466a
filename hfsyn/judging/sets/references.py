"""How a dataset is named where a classifier is trained or tested: one grammar for real and synthetic images.

    [VARIANT=]PLACE[@REVISION][#CONFIG][:WEIGHT]

    imagenette                              a variant (`hfsyn variants ls`), from the Hub
    shapes:0.5                              a drawn variant, at half the weight of the others
    runs/imagenette-cip                     a run folder
    tiny-imagenet=../tiny-imagenet-200      a variant whose images are in a local folder or Parquet file
    flowers.yaml=photos/                    a folder with classes of your own, described by a class map
    photographs/                            a folder with class folders named by wnid, or Parquet files
    user/imagenette-cip@v1.0.0              a dataset on the Hub at a version (a tag, a branch or a commit)
    user/imagenette-cip@v1.0.0#basic        one of its configurations; works for Parquet files in a folder, too
    imagenette=user/my-imagenette@main      a dataset on the Hub whose labels are a variant's class names

A Hub name and a relative folder look alike: a path that exists wins; ``hf://datasets/user/name`` always means the Hub.
WEIGHT is for training on several sets: their shares of the images are proportional to the weights.

A split may be a part of one: ``train[held 10%]``, and all but that, ``train[kept 90%]``. Which images are held is
decided by the hash of their ids (`hfsyn.rules`), and of what was made from a real image by the id of that one: nothing
that is held is in what is kept, nor is an image that was made from it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Literal

from builders.errors import did_you_mean, near_path
from builders.variants import VARIANTS, usual_split
from builders.variants.class_maps import find_variant, read_variant
from builders.yaml import is_yaml_name
from hfsyn.errors import HfsynError
from hfsyn.hub.repo import REPO_ID
from hfsyn.rules import share_of

GRAMMAR = "A dataset is [VARIANT=]PLACE[@REVISION][#CONFIG][:WEIGHT], PLACE a variant, a folder or USER/NAME."

_WEIGHT = re.compile(r":(?P<weight>[0-9]*\.?[0-9]+(?:e-?[0-9]+)?)$")
_URL = "hf://datasets/"
_PART = re.compile(r"(?P<split>[^\[\]]*)\[(?P<which>held|kept) (?P<percent>[0-9]{1,2}(?:\.[0-9]+)?)%\]")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference to a dataset."""

    kind: Literal["variant", "local", "hub"]
    place: str  # a variant's name, a local path or a Hub id
    variant: str | None = None  # the variant whose classes the labels are, if stated
    revision: str | None = None
    config: str | None = None
    weight: float = 1.0

    def __str__(self) -> str:
        """As it is written, without the weight."""
        stated = f"{self.variant}=" if self.variant and self.kind != "variant" else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{stated}{self.place}{revision}{f'#{self.config}' if self.config else ''}"


def parse_dataset(text: str) -> Reference:
    """Parse a reference; the module's docstring has the grammar. The only I/O is to check whether paths exist.

    Raises HfsynError for an unknown variant (with the nearest one), a path that does not exist, or a weight that is not
    above 0.
    """
    rest, weight = text.strip(), 1.0
    if not rest:
        raise HfsynError("An empty text names no dataset.", GRAMMAR)
    if is_yaml_name(rest):
        return _of_class_map(rest)
    if Path(rest).expanduser().exists():  # a folder's name may contain any of the grammar's characters
        return Reference("local", rest)
    if found := _WEIGHT.search(rest):
        rest, weight = rest[: found.start()], float(found["weight"])
        if not 0 < weight < float("inf"):
            raise HfsynError(f"The weight of {rest!r} is {weight:g}.", "It must be above 0; leave the set out instead.")
        # Without its weight it is what it is: a class map, or a folder whose name has a "=".
        if is_yaml_name(rest) or (rest not in VARIANTS and Path(rest).expanduser().exists()):
            return replace(parse_dataset(rest), weight=weight)
    stated, sign, place = rest.partition("=")
    variant = find_variant(stated).name if sign else None
    return replace(_placed(place if sign else rest, variant, text), weight=weight)


def _of_class_map(file: str) -> Reference:
    variant, path = read_variant(file)
    if path is not None:
        return Reference("local", path, variant.name)
    if variant.hub is None:
        raise HfsynError(f"{file} does not say where its images are.", f"Name the folder: {file}=FOLDER")
    return Reference("variant", variant.name, variant.name)


def parse_hub_id(text: str) -> str | None:
    """``USER/NAME`` from a repository's name or address, None if it is neither."""
    repo = text.removeprefix(_URL)
    return repo if REPO_ID.fullmatch(repo) else None


def _placed(rest: str, variant: str | None, text: str) -> Reference:
    """The reference without weight and stated variant; `text` is the whole of it, for messages."""
    if Path(rest).expanduser().exists() and rest not in VARIANTS:
        return Reference("local", rest, variant)
    address, hash_sign, config = rest.partition("#")
    place, at, revision = address.partition("@")
    if (hash_sign and not config) or (at and not revision) or not place:
        raise HfsynError(f"{text!r} names no dataset.", GRAMMAR)
    if place in VARIANTS:
        if variant not in (None, place) or config:
            raise HfsynError(f"{text!r}: {place!r} is a variant and takes only @REVISION.", GRAMMAR)
        if revision and VARIANTS[place].drawn:
            said = f"{text!r}: the variant {place!r} is drawn and has no revisions."
            raise HfsynError(said, f"Leave the revision out: {place}")
        return Reference("variant", place, place, revision or None)
    if Path(place).expanduser().exists():
        if revision:
            raise HfsynError(f"{text!r}: {place} is a local folder, which has no @REVISION.", GRAMMAR)
        return Reference("local", place, variant, None, config)
    looks_local = place.startswith((".", "/", "~")) or (place.endswith(".parquet") and not place.startswith(_URL))
    if not looks_local and (repo := parse_hub_id(place)):
        return Reference("hub", repo, variant, revision or None, config or None)
    if "/" in place or looks_local:
        near = near_path(place)
        raise HfsynError(f"There is no dataset {text!r}: {place} is neither a folder nor a file here.{near}", GRAMMAR)
    said = f"There is no folder and no variant {place!r}.{did_you_mean(place, VARIANTS) or near_path(place)}"
    raise HfsynError(said, f"{GRAMMAR} Variants: {', '.join(VARIANTS)}.")


def pick_split(there: Sequence[str], split: str | None, default: Sequence[str], where: str) -> str:
    """The split that is meant: `split`, else the first of `default` that exists, else the only one, else an error."""
    if split and "[" in split:  # `open_images` has taken the part off
        said = f"{where} is read as a stream, of which there is no part {split}."
        raise HfsynError(said, "Leave --streaming out, or name a whole split.")
    names = [split] if split else default
    ways = [name for name in names if name in there]  # an exact name goes before a synonym
    ways += [name for wanted in names for name in there if usual_split(name) == usual_split(wanted)]
    ways += there if split is None and len(there) == 1 else []
    if not ways:
        said = f"{where} has no split {' or '.join(map(repr, names))}."
        raise HfsynError(
            said, f"It has: {', '.join(there) or 'none'}. Name one: --eval-split, or --set data.train_split="
        )
    return ways[0]


def without_weight(text: str) -> str:
    """A dataset's name without its weight; it need not be there."""
    return _WEIGHT.sub("", text.strip())


def held_out(split: str, share: float) -> str:
    """The part of a split that is held out; see the module."""
    return f"{split}[held {100 * share:g}%]"


def kept(split: str, share: float) -> str:
    """What is left of a split if a share is held out."""
    return f"{split}[kept {100 - 100 * share:g}%]"


def part_of(split: str | None) -> tuple[str | None, str, Callable[[str], bool] | None]:
    """A split without its part, the part as it is written, and whether an image of an id is in it; None if all are.

    Raises HfsynError if there are brackets that say something else.
    """
    if split is None or not ({"[", "]"} & set(split)):
        return split, "", None
    found = _PART.fullmatch(split)
    percent = Decimal(found["percent"]) if found else Decimal(0)
    if found is None or not percent:
        raise HfsynError(f"{split!r} is not a split.", "A part of one is train[held 10%] or train[kept 90%].")
    held = percent if found["which"] == "held" else 100 - percent
    limit = float(held) / 100
    base, is_held = found["split"], found["which"] == "held"
    return base or None, split[len(base) :], lambda name: (share_of(name) < limit) == is_held
