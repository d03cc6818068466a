"""What sets and classifiers share: classes, by id and, for ids of a class map, by name; and images, by their bytes.

A WordNet id means one class everywhere. An id from a class map means what its author meant, and two authors may choose
the same one: then the names must agree too, up to capitals and underscores.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from builders.errors import quoted
from builders.sources.rows import is_wnid, spelling
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.image_set import ImageSet, open_images, spread

_SAMPLED = 32  # pairs of images that are compared first


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
    """The classes that all sets have, sorted; each set is given as what to call it, and id -> name.

    Raises HfsynError if they differ, with the list, or as `same_names`.
    """
    (whose, names), *others = named
    for other, theirs in others:
        if differing := names.keys() ^ theirs.keys():
            only = ((whose, names.keys() - theirs.keys()), (other, theirs.keys() - names.keys()))
            parts = [f"only {one} has {quoted(sorted(has))}" for one, has in only if has]
            said = f"{whose} and {other} differ in {len(differing)} classes: {'; '.join(parts)}."
            raise HfsynError(said, "Sets that are mixed must have the same classes, by wnid.")
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
    """The numbers in `b` of the images that are also in `a`, with the same id, class and bytes.

    Ids are compared without their split. Ids of sets without file names are mere row numbers, so a sample of the
    matching pairs is compared by bytes; only if these differ among themselves are all pairs compared. A re-encoded
    image counts as another one.
    """
    there: dict[tuple[str, str], list[int]] = defaultdict(list)  # `b` is the test set, the smaller one
    for number, key in enumerate(_keys(b)):
        there[key].append(number)
    pairs = [(first, second) for first, key in enumerate(_keys(a)) for second in there.get(key, ())]

    def same(first: int, second: int) -> bool:
        return a.images[first] == b.images[second]

    tried = [same(*pairs[place]) for place in spread(len(pairs), _SAMPLED)]
    if not any(tried):
        return set()
    return {second for first, second in pairs if all(tried) or same(first, second)}


def _keys(images: ImageSet) -> Iterator[tuple[str, str]]:
    """Id without the split, and class, of each image."""
    prefix = f"{images.split}/"
    return ((name.removeprefix(prefix), wnid) for name, wnid in zip(images.ids, images.wnids, strict=True))


def shared_with_training(folder: Path, images: ImageSet) -> int | None:
    """How many images of a set the classifier in a training's folder was trained on; None if that is not known.

    It is known if a training set is this very set, or can still be opened and is unchanged since.
    """
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        data, sets = found["config"]["data"], found["training"]["sets"]
        limits = data.get("limits") or [data["limit_per_class"]] * len(sets)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    shared: set[int] | None = None
    for made, limit in zip(sets, limits, strict=False):
        if made.get("fingerprint") == images.fingerprint:
            return len(images)
        if (made["reference"], made["split"]) == (images.reference, images.split) and not made.get("streaming"):
            opened = open_images(images.reference, images.split, limit=limit)
            if opened.fingerprint == made["fingerprint"]:
                shared = (shared or set()) | shared_images(opened, images)
    return None if shared is None else len(shared)


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
