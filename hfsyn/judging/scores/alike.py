"""Copies and the most alike pictures as a judge: of other images of the set, of its source, or of any other set."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from builders.errors import plural
from builders.images.decoding import ImageRejected
from hfsyn.errors import HfsynError
from hfsyn.judging.scores.pictures import Row, picture_of
from hfsyn.judging.sets.copies import COPY, copies_between, thumbnail
from hfsyn.judging.sets.image_set import ImageSet
from hfsyn.progress import teller
from hfsyn.runs.scores import ID, Judge, Scored

COLUMNS = {"copy": "truth", "likeness": "number", "nearest": "text"}
"""Whether it is a copy; how alike the most alike picture is, -1 to 1; and its id. Within a set the first one of some
copies, in the order of the set, is none.
"""


def copies_within_judge(name: str, scored: Scored, *, quiet: bool = True) -> Judge:
    """A judge that compares each image with all others of its set; their small pictures are read first, 3 KB each."""
    ids: list[str] = []
    small: list[np.ndarray] = []
    for number, shard in enumerate(scored.starts):
        for row in scored.rows(shard, [ID, "image"]):
            try:
                small.append(thumbnail(picture_of(row)))
                ids.append(row[ID])
            except ImageRejected:
                continue
        if number % 100 == 99:
            teller(quiet)(f"{name}: {plural(len(ids), 'small picture')} read")
    return _judge(name, "the set itself", ids, small, itself=True)


def copies_of_judge(name: str, images: ImageSet) -> Judge:
    """A judge that compares each image with all of another set."""
    ids, small = [], []
    for number, image_id in enumerate(images.ids):
        try:
            small.append(thumbnail(images.picture(number)))
            ids.append(str(image_id))
        except ImageRejected:
            continue
    return _judge(name, images.reference, ids, small, itself=False)


def _judge(name: str, against: str, ids: Sequence[str], small: Sequence[np.ndarray], *, itself: bool) -> Judge:
    if not ids:
        raise HfsynError(f"No image of {against} can be opened.", "Look at its files.")
    others = np.stack(small)
    place = {image_id: number for number, image_id in enumerate(ids)}
    facts = {"kind": "copies", "against": against, "pictures": hashlib.sha256(others.tobytes()).hexdigest()}

    def of(rows: Sequence[Row]) -> Iterator[Row | str]:
        found: dict[int, np.ndarray] = {}
        reasons: dict[int, str] = {}
        for number, row in enumerate(rows):
            try:
                found[number] = thumbnail(picture_of(row))
            except ImageRejected as problem:
                reasons[number] = problem.reason
        numbers = list(found)
        nearest: dict[int, tuple[float, int]] = {}
        copied: set[int] = set()
        pairs = copies_between(np.stack(list(found.values())), others, least=-1.0) if found else None
        for (mine, other), likeness in zip(pairs.pairs, pairs.likeness, strict=True) if pairs else ():
            number = numbers[mine]
            own = place.get(rows[number][ID]) if itself else None
            if other == own:
                continue
            nearest.setdefault(number, (likeness, other))  # the most alike pairs come first
            if likeness >= COPY and (own is None or other < own):
                copied.add(number)
        for number in range(len(rows)):
            if number in reasons:
                yield reasons[number]
                continue
            best, which = nearest.get(number, (None, None))
            yield {"copy": number in copied, "likeness": best, "nearest": None if which is None else ids[which]}

    return Judge(name, COLUMNS, facts, of)
