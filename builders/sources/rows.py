"""What a source gives: entries of its index, rows with the bytes of an image, and the wnid that a label means."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from builders.errors import DataError, quoted
from builders.variants import ClassInfo, Variant

_RENUMBERED = 10
"""This many folders "0", "1", "2" and so on without a gap are a dataset of their own rather than a few to try."""
_FILE_WNID = re.compile(r"(?:^|_)(n\d{8})(?=_|\.)")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One image of a source, before it is read."""

    source_id: str  # `{wnid}/{file name}`: unique in a split, the same in every layout that keeps file names
    wnid: str
    location: str  # the file, relative to the root of the source, with forward slashes
    row: int  # row of that file, from 0; 0 if the file is the image


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One image of a source: the stored bytes, not decoded."""

    source_id: str
    wnid: str
    image: bytes  # the encoded file; empty if it cannot be read. It may not be a valid image
    path: str  # the image's file name
    problem: str = ""  # why `image` is empty, in words; the same for the same fault

    def columns(self, info: ClassInfo) -> dict[str, Any]:
        """The values of `builders.runs.rows.source_features`, given the class."""
        # Bytes alone: with a path, `datasets` would look for a file of that name in the current folder.
        row = {"image": self.image, "label": info.index, "wnid": self.wnid, "class_name": info.name}
        return {**row, "source_id": self.source_id}


class Source(Protocol):
    """A split of a variant, wherever it is."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes that occur, as the variant has them (same index), in the variant's order."""
        ...

    @property
    def layout(self) -> str:
        """What was found, in one line."""
        ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """Reason in words -> number of files, folders or rows that are not in the index."""
        ...

    def index(self) -> Iterator[IndexEntry]:
        """The images in a fixed order, without reading any; with a limit, the first of each class."""
        ...

    def read(self, entries: Sequence[IndexEntry]) -> Iterator[SourceRow]:
        """One row for each entry, in order; a bad image does not raise.

        Raises DataError (exit code 4) if the source itself is gone or has changed since it was indexed.
        """
        ...


def refuse(variant: Variant, unmatched: Iterable[object], where: str) -> DataError:
    """The error for labels that are not classes of the variant."""
    items = list(unmatched)
    message = f"{len(items)} of the labels in {where} are not classes of '{variant.name}': {quoted(items)}."
    if all(_is_number(item) for item in items):
        known = f"go from 0 to {len(variant.classes) - 1}" if variant.numbered_folders else "mean no class here"
        return DataError(message, f"Numbers {known}, since datasets differ in how they number. Rename them to wnids.")
    if variant.label_ids:
        return DataError(
            message,
            "A class map knows a label by `label`, `id` or `name`: add a line for each that is missing, or remove "
            "these images.",
        )
    return DataError(
        message,
        "A label is matched by wnid, or by a class name or WordNet lemma that only one class of the variant has. "
        "Rename the labels to wnids, remove these classes, or choose another variant (hfsyn variants ls).",
    )


def spelling(text: str) -> str:
    """A text normalized for comparison of labels: case, underscores, white space and Unicode composition."""
    return " ".join(unicodedata.normalize("NFC", text).replace("_", " ").casefold().split())


def class_keys(classes: Sequence[ClassInfo]) -> Mapping[str, str]:
    """Each text, as normalized by `spelling`, that means exactly one class -> its wnid.

    A class is known by its wnid, its name, its lemmas, and its lemmas joined by commas. A text that two classes share
    ("crane") means neither of them, unless it is the name of one.
    """
    found: dict[str, str | None] = {}
    for info in classes:
        for lemma in {spelling(text) for text in (*info.lemmas, ", ".join(info.lemmas))}:
            found[lemma] = info.wnid if lemma not in found else None
    for info in classes:  # names and wnids are unique, so they win over lemmas
        found[spelling(info.name)] = info.wnid
        found[info.wnid] = info.wnid
    return {key: wnid for key, wnid in found.items() if wnid is not None}


def label_map(variant: Variant, labels: Iterable[str | None]) -> dict[str | None, str | None]:
    """The wnid of each label, None if it matches no class or several.

    Labels of a class map come first. Decimal digits mean a class only if the variant's own folders are numbered,
    and then by their value: ImageNetV2's "10" is not its third class, though it is sorted so.
    """
    keys = class_keys(variant.classes)
    given = {unicodedata.normalize("NFC", label): wnid for label, wnid in variant.label_ids.items()}

    def meant(label: str) -> str | None:
        if (composed := unicodedata.normalize("NFC", label)) in given:
            return given[composed]
        if variant.numbered_folders and _is_number(label):
            number = int(label)
            return variant.classes[number].wnid if number < len(variant.classes) else None
        return keys.get(spelling(label))

    return {label: None if label is None else meant(label) for label in labels}


def check_numbers(variant: Variant, folders: Iterable[str], where: str) -> None:
    """Raise DataError for numbered folders that are some classes of a numbered variant, renumbered from 0.

    Two hundred folders "0" to "199" are hardly the first two hundred of the thousand classes.
    """
    names = list(folders)
    count = len(names)
    if not (variant.numbered_folders and _RENUMBERED <= count < len(variant.classes) and all(map(_is_number, names))):
        return
    if {int(name) for name in names} == set(range(count)):
        raise DataError(
            f"The {count} folders of {where} are numbered from 0 to {count - 1}, and '{variant.name}' has "
            f"{len(variant.classes)} classes: it is unknown which of them these are.",
            "Rename the folders to wnids, or give the whole set.",
        )


def _is_number(label: object) -> bool:
    return isinstance(label, str) and label.isascii() and label.isdecimal()


def hub_labels(variant: Variant, names: Sequence[str]) -> tuple[str, ...] | None:
    """The wnid of each label number, if `names` are the label names of the variant's Hub repository; else None.

    Where the variant records the names, they must be equal. They are never used as names: those of frgfm/imagewoof are
    in another order than its labels, and 18 of zh-plus/tiny-imagenet's wnids are wrong. Where they are not recorded,
    nearly all of them must match their classes, since another order would break most.
    """
    wnids = variant.hub_label_wnids
    if variant.hub_label_names is not None:
        return wnids if tuple(names) == variant.hub_label_names else None
    if len(names) != len(wnids) or not names:
        return None
    keys = class_keys(variant.classes)
    known = [keys.get(spelling(name)) for name in names]
    wrong = sum(found not in (None, wnid) for found, wnid in zip(known, wnids, strict=True))
    return wnids if wrong == 0 and known.count(None) <= 0.1 * len(names) else None


def check_names(variant: Variant, names: Sequence[str]) -> tuple[str, ...]:
    """As `hub_labels`; raises DataError if the names are not those of the variant's own Hub repository."""
    wnids = hub_labels(variant, names)
    if wnids is None:
        raise DataError(
            f"The labels of {variant.hub.repo_id if variant.hub else variant.name} are named otherwise than when "
            f"'{variant.name}' was added to the table: {quoted(names)}.",
            "Use the revision that the variant was checked against, or read a local copy with class folders.",
        )
    return wnids


def is_wnid(text: str) -> bool:
    """Whether a text has the form of a WordNet id."""
    return re.fullmatch(r"n\d{8}", text) is not None


def file_wnid(path: str) -> str | None:
    """The wnid in an ImageNet file name such as n01440764_10026.JPEG or ILSVRC2012_val_00000293_n01440764.JPEG."""
    found = set(_FILE_WNID.findall(path.rsplit("/", 1)[-1]))
    return found.pop() if len(found) == 1 else None
