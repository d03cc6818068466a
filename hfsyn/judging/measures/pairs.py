"""A sheet of copies: the pairs of images that are most alike, side by side, with their ids and likeness."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from builders.images.decoding import ImageRejected
from hfsyn.judging.sets.image_set import ImageSet
from hfsyn.runs.sheets import Row, Tile, contact_sheet

MOST = 40
"""Pairs on a sheet."""
_WIDE = 16  # letters on a line below an image
_KINDS = (
    ("against_real", "synthetic", "real", "copy of a real image"),
    ("against_evaluation", "synthetic", "evaluation", "copy of a test image"),
    ("against_tuned_on", "synthetic", "tuned_on", "copy of a tuning image"),
    ("within", "synthetic", "synthetic", "twice in the set"),
    ("within_real", "real", "real", "twice in the real set"),
)
"""Kinds of pairs in a result's ``duplicates``, the sets of both images, and what they are."""


def pairs_sheet(found: Mapping[str, Any], opened: Mapping[str, ImageSet]) -> Image.Image:
    """The first `MOST` pairs of a comparison of sets, those with other sets first: a row for each, as an RGB image.

    Args:
        found: the result, whose ``duplicates`` name the pairs by their ids.
        opened: the sets that were compared, by their names in the result.
    """
    pairs = list(_pairs(found["duplicates"]))
    images = {name: {identity: number for number, identity in enumerate(one.ids)} for name, one in opened.items()}

    def tile(name: str, identity: str) -> Tile:
        text = " ".join([f"{name}:", *textwrap.wrap(identity, _WIDE)])
        try:
            return Tile(opened[name].picture(images[name][identity]), text)
        except ImageRejected:  # its file has changed since
            return Tile(Image.new("RGB", (8, 8), "grey"), text)

    rows = [
        Row(f"{what}, likeness {likeness:.2f}", [[tile(ours, first)], [tile(theirs, second)]])
        for ours, theirs, what, first, second, likeness in pairs[:MOST]
    ]
    shown = f"{len(rows)} of {len(pairs)}" if len(rows) < len(pairs) else f"{len(rows)}"
    title = f"Most alike pairs: {shown}\nfrom a likeness of {found['duplicates']['threshold']:g}; 1 is the same picture"
    return contact_sheet(title if rows else "No two images are copies of each other.", ["image", "beside it"], rows)


def _pairs(duplicates: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str, float]]:
    for kind, ours, theirs, what in _KINDS:
        for first, second, likeness in duplicates.get(kind, {}).get("pairs", ()):
            yield ours, theirs, what, first, second, likeness
