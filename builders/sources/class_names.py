"""The classes of a new class map, from what its source calls them: ids, names, and what was done to make these.

A class is ImageNet's where the label is its wnid or, if all labels are such, its name. Other wnids are looked up in the
lists that lie in the folder (words.txt, LOC_synset_mapping.txt); one that no list knows has no name, and the class map
asks for it. Underscores become blanks, and numbers in front are left out where every label has one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.errors import DataError
from builders.file_names import as_path, shown
from builders.sources.labels import class_keys, is_wnid, spelling
from builders.variants import get_variant
from builders.variants.class_maps import class_id
from builders.wording import quoted

_LISTS = ("words.txt", "LOC_synset_mapping.txt", "map_clsloc.txt")
_NUMBERED = re.compile(r"\d+[\s._-]+(?=.*[^\W\d_])")
_WNID_FIRST = re.compile(r"(n\d{8})[\s._-]+(?=.*[^\W\d_])")


def name_classes(labels: Sequence[str], folder: Path | None, source: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The fields of the class of each label, in order, and remarks for whoever made them.

    ``name`` is None for a wnid that nothing names, and for a label that is not text. `folder` is where lists of names
    may lie. Raises DataError for two labels that a class map could not tell apart.
    """
    thousand = get_variant("imagenet-1k")
    keys = class_keys(thousand.classes)
    known = [keys.get(spelling(label)) for label in labels]
    # By name either all of them are ImageNet's, or none is: "crane" among a builder's tools is no bird.
    if None not in known and len(set(known)) == len(labels):
        rows = [
            _row(str(wnid), thousand.by_wnid[str(wnid)].name, label) for wnid, label in zip(known, labels, strict=True)
        ]
        return rows, []
    plain, numbered = _plain_names(labels)
    wnids = {label: found for label in labels if (found := _wnid_of(label))}
    words = _names_in(folder, set(wnids.values()) - thousand.by_wnid.keys()) if folder is not None else {}
    rows = []
    for label in labels:
        wnid = wnids.get(label)
        if wnid is None:
            rows.append(_row(class_id(plain[label]), plain[label] if as_path(label) == label else None, label))
        elif wnid in thousand.by_wnid:
            rows.append(_row(wnid, thousand.by_wnid[wnid].name, label))
        else:
            rows.append(_row(wnid, words.get(wnid) or _after_wnid(label), label))
    _check_alike(labels, rows, source)
    return rows, _remarks(rows, plain, numbered, len(words))


def _row(identity: str, name: str | None, label: str) -> dict[str, Any]:
    return {"id": identity, "name": name, **({} if label in (identity, name) else {"label": label})}


def _wnid_of(label: str) -> str | None:
    """The wnid that a label is, or begins with, as Stanford's dogs do: n02085620-Chihuahua."""
    found = _WNID_FIRST.match(label)
    return label if is_wnid(label) else found[1] if found else None


def _after_wnid(label: str) -> str | None:
    found = _WNID_FIRST.match(label)
    return _blanks(label[found.end() :]) if found else None


def _blanks(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).replace("_", " ").split())


def _plain_names(labels: Sequence[str]) -> tuple[dict[str, str], bool]:
    """Label -> how people would say it, and whether numbers in front were left out."""
    found = {label: _blanks(label) or label for label in labels}
    cut = {label: _blanks(_NUMBERED.sub("", label, count=1)) for label in labels if _NUMBERED.match(label)}
    apart = len({spelling(name) for name in cut.values()}) == len(labels) > 1
    return (cut, True) if apart else (found, False)


def _names_in(folder: Path, wnids: set[str]) -> dict[str, str]:
    """Names of wnids by the lists in a folder: a wnid, then blanks or a tab, then its words with commas between."""
    found: dict[str, str] = {}
    for file in (place / name for name in _LISTS for place in (folder, folder.parent) if wnids):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        for line in lines:
            wnid, _, words = line.strip().replace("\t", " ").partition(" ")
            if wnid in wnids and (first := _blanks(re.sub(r"^\d+\s", "", words).partition(",")[0])):
                found.setdefault(wnid, first)
    return found


def _remarks(rows: Sequence[Mapping[str, Any]], plain: Mapping[str, str], numbered: bool, looked_up: int) -> list[str]:
    nameless = [row["id"] for row in rows if row["name"] is None]
    changed = [f"{label} -> {name}" for label, name in plain.items() if label != name and not _wnid_of(label)]
    numbers = [label for label in plain if label.isdecimal()]
    found = []
    if changed:
        how = "without the numbers in front and " if numbered else ""
        found.append(f"Names are written {how}with blanks for underscores: {quoted(changed, 3)}.")
    if looked_up:
        found.append(f"Names of WordNet ids that were found in the lists beside the folders: {looked_up}.")
    if nameless:
        found.append(
            "Classes without a name, since their folders are called by WordNet ids outside of ImageNet-1k, or not in "
            f"UTF-8: {quoted(nameless, 3)}. Write it where the class map says null. WordNet's words.txt, put into the "
            "folder of the images, gives the names of ids."
        )
    if numbers:
        found.append(f"Classes that are called by numbers, which prompts would say: {quoted(numbers, 3)}.")
    return found


def _check_alike(labels: Sequence[str], classes: Sequence[Mapping[str, Any]], source: str) -> None:
    """Refuse two labels that a class map could not tell apart, by what the source calls them."""
    seen: dict[str, str] = {}
    for label, row in zip(labels, classes, strict=True):
        for word in (label, row["id"], row["name"]):
            other = seen.setdefault(spelling(word or label), label)
            if other != label:
                raise DataError(
                    f"Two classes of {shown(source)} are called alike: '{shown(other)}' and '{shown(label)}'.",
                    "Neither capitals nor underscores tell classes apart. Rename one of them, or put their images "
                    "together.",
                )
