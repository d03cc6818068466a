"""A part of a training set, class by class: the images with the largest scores, or as many at random."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from pathlib import Path

from builders.published import open_reference
from builders.runs import layout
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.image_set import ImageSet
from hfsyn.judging.sets.references import Reference
from hfsyn.runs.scores import ID, Scored, scores_beside
from hfsyn.runs.selection_rule import check_number

RANDOM = "random"


def kept_part(opened: ImageSet, found: Reference, keep: str | None, seed: int) -> ImageSet:
    """The part of a set that ``COLUMN:SHARE`` means (``-COLUMN:SHARE`` takes the smallest scores, ``random:SHARE`` any
    images), of each class the same share, rounded up; all of it where it is None.

    At random an image's place follows from the seed and its id. Raises HfsynError if the set has no scores, or no such
    column of numbers.
    """
    if keep is None:
        return opened
    column, _, share = keep.rpartition(":")
    if column == RANDOM:
        order = {name: _chance(seed, name) for name in opened.ids}
    else:
        values = _values(found, column.removeprefix("-"))
        sign = 1 if column.startswith("-") else -1
        order = {name: math.inf if (v := values.get(name)) is None else sign * v for name in opened.ids}
    of_class: dict[str, list[int]] = defaultdict(list)
    for number, wnid in enumerate(opened.wnids):
        of_class[wnid].append(number)
    numbers: list[int] = []
    for some in of_class.values():
        some.sort(key=lambda number: (order[opened.ids[number]], _chance(seed, opened.ids[number])))
        numbers += some[: math.ceil(float(share) * len(some) - 1e-9)]
    return opened.only(sorted(numbers))


def _chance(seed: int, name: str) -> float:
    text = f"hfsyn-keep-v1\n{seed}\n{name}\n"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _values(found: Reference, column: str) -> dict[str, float | None]:
    """Sample id -> score, of a run folder or a published set."""
    where, again = str(found), f"Score it: hfsyn score {found.place} --judge JUDGE"
    if found.kind == "variant" or (found.kind == "local" and not layout.is_run_folder(Path(found.place).expanduser())):
        raise HfsynError(f"data.keep needs scores, and {where} is not a set that hfsyn made.", "Leave data.keep out.")
    place = found.place if found.kind == "local" else f"{found.place}{f'@{found.revision}' if found.revision else ''}"
    known, table = scores_beside(Scored(open_reference(place, found.config), Path()))
    if known is None or table is None:
        raise HfsynError(f"{where} has no scores.", again)
    check_number(column, table, "data.keep=COLUMN:SHARE")
    return dict(zip(table[ID].to_pylist(), table[column].to_pylist(), strict=True))
