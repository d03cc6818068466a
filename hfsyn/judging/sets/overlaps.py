"""Images that two sets have in common: whoever tests on what was trained on measures what was learnt by heart."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from hfsyn.judging.sets.image_set import ImageSet, open_images, spread

_LOOKED_AT = 32


def shared_images(a: ImageSet, b: ImageSet) -> set[int]:
    """The numbers in `b` of the images that are in `a` too, under the same id and class and with the same bytes.

    Ids are compared without their split, and where they are the same a few of the images are: of two sets without names
    the ids are row numbers, and mean nothing. Only where those few differ among themselves are all of them read. What
    was encoded anew is another image.
    """
    there: dict[tuple[str, str], list[int]] = {}  # of the test, which is the smaller one
    for number, key in enumerate(_keys(b)):
        there.setdefault(key, []).append(number)
    pairs = [(first, second) for first, key in enumerate(_keys(a)) for second in there.get(key, ())]
    tried = [_same(a, b, *pairs[place]) for place in spread(len(pairs), _LOOKED_AT)]
    if not any(tried):
        return set()
    return {second for first, second in pairs if all(tried) or _same(a, b, first, second)}


def shared_with_training(folder: Path, images: ImageSet) -> int | None:
    """How many images of a set the classifier in a training's folder was trained on; None where that is not known.

    It is known where the set is one of the training's, as it was then.
    """
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        limit, sets = found["config"]["data"]["limit_per_class"], found["training"]["sets"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    shared: set[int] | None = None
    for made in sets:
        if made.get("fingerprint") == images.fingerprint:
            return len(images)
        if (made["reference"], made["split"]) == (images.reference, images.split) and not made.get("streaming"):
            opened = open_images(images.reference, images.split, limit=limit)
            if opened.fingerprint == made["fingerprint"]:  # else it has changed since
                shared = (shared or set()) | shared_images(opened, images)
    return None if shared is None else len(shared)


def tell_overlap(shared: int | None, images: ImageSet) -> None:
    """Say on stderr that a test is none, or only in part."""
    if shared:
        what = "All" if shared == len(images) else f"{shared} of the"
        print(
            f"Warning: {what} {len(images)} images of {images.reference} ({images.split}) were trained on: "
            "on these the numbers say what was learnt by heart.",
            file=sys.stderr,
        )


def _same(a: ImageSet, b: ImageSet, first: int, second: int) -> bool:
    return a.images[first] == b.images[second]


def _keys(images: ImageSet) -> Iterator[tuple[str, str]]:
    """Id without the split, and class, of each image."""
    prefix = f"{images.split}/"
    for name, wnid in zip(images.ids, images.wnids, strict=True):
        yield name.removeprefix(prefix), wnid
