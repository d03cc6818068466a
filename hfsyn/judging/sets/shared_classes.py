"""Where sets and classifiers meet: their classes are the same by id, and by name where somebody made up the id.

A WordNet id means one class everywhere. A word of a class map means what its author meant, and two authors may use one
word: there the names must agree too, up to capitals and underscores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builders.sources.labels import is_wnid, spelling
from builders.wording import quoted
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.image_set import ImageSet


def same_names(named: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Compare the names of the ids that several sets share; each is how to call it, and id -> name.

    Raises:
        HfsynError: an id that WordNet does not know has two names.
    """
    first: dict[str, tuple[str, str]] = {}
    for whose, names in named:
        for identity, name in names.items():
            other, known = first.setdefault(identity, (whose, name))
            if spelling(known) != spelling(name) and not is_wnid(identity):
                raise HfsynError(
                    f"The class {identity} is '{known}' in {other} and '{name}' in {whose}.",
                    "An id must mean one class in all sets: give one of them another id in its class map, or the same "
                    "name where they mean the same.",
                )


def same_classes(named: Sequence[tuple[str, Mapping[str, str]]]) -> tuple[str, ...]:
    """The classes that all sets have, sorted; each set is how to call it, and id -> name.

    Raises:
        HfsynError: they differ, with the list; or as `same_names`.
    """
    (whose, names), *others = named
    for other, theirs in others:
        if differing := names.keys() ^ theirs.keys():
            here, there = sorted(names.keys() - theirs.keys()), sorted(theirs.keys() - names.keys())
            parts = [f"only {whose} has {quoted(here)}"] if here else []
            parts += [f"only {other} has {quoted(there)}"] if there else []
            raise HfsynError(
                f"{whose} and {other} differ in {len(differing)} classes: {'; '.join(parts)}.",
                "Sets that are mixed must have the same classes, by wnid.",
            )
    same_names(named)
    if len(names) < 2:
        raise HfsynError(f"{whose} has {len(names)} class.", "A classifier needs two or more.")
    return tuple(sorted(names))


def check_classes(classes: Mapping[str, str], images: ImageSet, whose: str) -> list[int]:
    """The places of a set's classes among `classes`, id -> name in the order of a classifier's outputs.

    Raises:
        HfsynError: the set has classes that are not among them, with the list; or as `same_names`.
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
