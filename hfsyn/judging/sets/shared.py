"""What sets and classifiers share: classes, by id and, for ids of a class map, by name; and images, by their bytes.

A WordNet id means one class everywhere. An id from a class map means what its author meant, and two authors may choose
the same one: then the names must agree too, up to capitals and underscores.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from builders.errors import quoted
from builders.sources.rows import is_wnid, spelling
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.image_set import ImageSet, open_images
from hfsyn.judging.sets.references import parse_dataset
from hfsyn.progress import Progress

_MANY = 20_000  # images whose reading takes seconds


def same_names(named: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Refuse an id that is not WordNet's and has two names; each set is given as what to call it, and id -> name."""
    first: dict[str, tuple[str, str]] = {}
    for whose, names in named:
        for identity, name in names.items():
            other, known = first.setdefault(identity, (whose, name))
            if spelling(known) != spelling(name) and not is_wnid(identity):
                raise HfsynError(
                    f"The class {identity} is '{known}' in {other} and '{name}' in {whose}.",
                    "An id must mean one class in all sets: give one of them another id in its class map, or the same "
                    "name if they mean the same.",
                )


def same_classes(named: Sequence[tuple[str, Mapping[str, str]]]) -> tuple[str, ...]:
    """The classes of the first set, sorted; each set is given as what to call it, and id -> name. The others may have
    fewer of them, as images of what a classifier lacks do.

    Raises HfsynError if they have others, with the list, or as `same_names`.
    """
    (whose, names), *others = named
    for other, theirs in others:
        if more := theirs.keys() - names.keys():
            lacks = names.keys() - theirs.keys()
            parts = [f"only {one} has {quoted(sorted(has))}" for one, has in ((whose, lacks), (other, more)) if has]
            said = f"{whose} and {other} differ in {len(more) + len(lacks)} classes: {'; '.join(parts)}."
            raise HfsynError(said, "The set that is named first must have the classes of all others, by wnid.")
    same_names(named)
    if len(names) < 2:
        raise HfsynError(f"{whose} has {len(names)} class.", "A classifier needs two or more.")
    return tuple(sorted(names))


def testable(classes: Mapping[str, str], images: ImageSet, whose: str) -> ImageSet:
    """The part of a test set whose classes are among `classes`, id -> name of a classifier's outputs.

    A network of ten classes is tested on the images of those ten in ImageNet-R, and the facts of the part say of how
    many. Raises HfsynError if they share no class, or only one, among which no answer can be wrong; or as `same_names`.
    """
    shared = set(images.classes) & classes.keys()
    if not shared:
        check_classes(classes, images, whose)
    if len(shared) == 1:
        (wnid,) = shared
        one, count = f"{wnid} {images.names.get(wnid, '')}".strip(), len(images.classes)
        some = "the only class" if count == 1 else f"the only one of the {count} classes"
        said = f"{one} is {some} of {images.reference} that {whose} has: among one class no answer is wrong."
        raise HfsynError(said, "Test on a set with two or more of its classes.")
    same_names([(whose, classes), (images.reference, {w: name for w, name in images.names.items() if w in shared})])
    if len(shared) == len(images.classes):
        return images
    part = images.only([number for number, wnid in enumerate(images.wnids) if wnid in shared])
    return replace(part, part_of=(len(images.classes), len(images)))


def check_classes(classes: Mapping[str, str], images: ImageSet, whose: str) -> list[int]:
    """The positions of a set's classes in `classes`, id -> name in the order of a classifier's outputs.

    Raises HfsynError if the set has classes that are not among them, with the list, or as `same_names`.
    """
    there = set(images.classes)
    if unknown := sorted(there - classes.keys()):
        raise HfsynError(
            f"{len(unknown)} of the {len(there)} classes of {images.reference} are not among the {len(classes)} of "
            f"{whose}: {quoted(f'{wnid} {images.names.get(wnid, str())}'.strip() for wnid in unknown)}.",
            "Test on a set whose classes it was trained on, or train on this set's.",
        )
    same_names([(whose, classes), (images.reference, images.names)])
    return [column for column, wnid in enumerate(classes) if wnid in there]


def shared_images(a: ImageSet, b: ImageSet) -> set[int]:
    """The numbers in `b` of the images that are also in `a`, whatever their files are called, by their bytes.

    Images of equal length are compared by SHA-256; those of other lengths are not read. Of two drawn sets the ids are
    compared, which decide a drawing. An image that was encoded again counts as another one.
    """
    if a.drawn and b.drawn:
        there = set(_drawings(a))
        return {number for number, drawing in enumerate(_drawings(b)) if drawing in there}
    lengths = [found.images.lengths(range(len(found))) for found in (a, b)]
    read = [range(len(found)) for found in (a, b)] if None in lengths else _of_equal_length(*lengths)  # type: ignore[arg-type]
    mine: dict[bytes, list[int]] = defaultdict(list)  # `b` is the test set, the smaller one
    for number in _told(read[1]):
        if data := b.images[number]:
            mine[sha256(data).digest()].append(number)
    found: set[int] = set()
    for number in _told(read[0]) if mine else ():
        found.update(mine.get(sha256(a.images[number]).digest(), ()))
    return found


def _told(numbers: Sequence[int]) -> Iterator[int]:
    """The numbers, with progress where reading them takes long."""
    if len(numbers) < _MANY:
        yield from numbers
        return
    with Progress("compare with the test set", len(numbers)) as progress:
        for number in numbers:
            yield number
            progress.add(1)


def _of_equal_length(a: Sequence[int], b: Sequence[int]) -> list[list[int]]:
    """The numbers of the images of `a`, and of `b`, of whose length there is one in the other."""
    first, second = set(a), set(b)
    return [[n for n, length in enumerate(a) if length in second], [n for n, length in enumerate(b) if length in first]]


def _drawings(images: ImageSet) -> Iterator[tuple[str | None, str]]:
    """World and id of each drawing."""
    return ((images.variant, name) for name in images.ids)


def shared_with_training(folder: Path, images: ImageSet) -> int | None:
    """How many images of a set the classifier in a training's folder was trained on; None if that was not checked.

    It is known if a training set is this very set, or if all are on this machine and unchanged since; none is
    downloaded for it.
    """
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        data, sets = found["config"]["data"], found["training"]["sets"]
        limits = data.get("limits") or [data["limit_per_class"]] * len(sets)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    shared, checked = set[int](), True
    for made, limit in zip(sets, limits, strict=False):
        if made.get("fingerprint") == images.fingerprint:
            return len(images)
        opened = None if made.get("streaming") else _here(made, limit)
        if opened is None:
            checked = False
        else:
            shared |= shared_images(opened, images)
    return len(shared) if checked or shared else None


def _here(made: Mapping[str, Any], limit: int | None) -> ImageSet | None:
    """A training set as its facts name it, if it is on this machine and unchanged."""
    try:
        found = parse_dataset(made["reference"])
        if found.kind == "hub" or (found.kind == "variant" and not get_variant(found.place).drawn):
            return None
        opened = open_images(found, made["split"], limit=limit)
    except HfsynError:
        return None
    return opened if opened.fingerprint == made["fingerprint"] else None


def tell_part(images: ImageSet) -> None:
    """Say on stderr that a test is on a part of a set."""
    if images.part_of is not None:
        classes, count = images.part_of
        shared = f"the {len(images.classes)} of {classes} classes that the classifier has"
        of = f"{images.reference} ({images.split})"
        print(f"Of {of} {shared} are tested: {len(images)} of {count} images.", file=sys.stderr)


def tell_overlap(shared: int | None, images: ImageSet) -> None:
    """Warn on stderr if a test set contains training images."""
    if shared:
        what = "All" if shared == len(images) else f"{shared} of the"
        print(
            f"Warning: {what} {len(images)} images of {images.reference} ({images.split}) were trained on: "
            "on these the numbers measure memorization.",
            file=sys.stderr,
        )
