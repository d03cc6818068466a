"""The class of each image in a flat folder: from a list near it, or from the images' own names.

    val/images/ and val/val_annotations.txt                   Tiny ImageNet
    val/ and LOC_val_solution.csv                             ImageNet as Kaggle gives it
    val/ and imagenet_2012_validation_synset_labels.txt       a wnid for each validation image, in order
    val/ and ILSVRC2012_validation_ground_truth.txt           the devkit's numbers, with map_clsloc.txt or meta.mat
    n01440764_10026.JPEG, ILSVRC2012_val_00000293_n01440764.JPEG      the name contains it

The devkit's numbers are ILSVRC's own, 1 for the kit fox: they are not the positions of the sorted wnids.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.errors import DataError
from builders.file_names import as_path, shown
from builders.sources.folder_contents import IMAGES, Part, contents, named
from builders.sources.labels import file_wnid, is_wnid

ANNOTATIONS = "val_annotations.txt"
_KAGGLE = "LOC_val_solution.csv"
_IN_ORDER = "imagenet_2012_validation_synset_labels.txt"
_NUMBERS = "ILSVRC2012_validation_ground_truth.txt"
_SYNSETS = ("map_clsloc.txt", "ILSVRC2012_mapping.txt")
_META = "meta.mat"
_DEVKIT = ("", "ILSVRC2012_devkit_t12/data", "devkit/data", "devkit", "data")
_CLASSES = 1000
_ORIGINAL = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)


_Listed = tuple[Mapping[str, Sequence[str]], str, Mapping[str, int]]
"""Label -> file names as the system has them; where the labels come from; reason -> number of things left out."""


def labelled_images(split: Path, place: Path, top: Path) -> Part | None:
    """The images directly in a folder of a split, by label; None if there are no labels.

    Lists are looked for beside the images and in the folders above, up to `top`. Raises DataError for a list that
    cannot be read, has no labels, or names none of the images.
    """
    images = contents(place).images if place.is_dir() else []
    found = _labelled(images, place, top) if images else None
    if found is None:
        return None
    names, source, left_out = found
    return Part(split, {label: [place] for label in names}, f"by {source}", names, left_out)


def _labelled(images: Sequence[str], folder: Path, top: Path) -> _Listed | None:
    near = [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]
    if folder.name == IMAGES and (file := folder.parent / ANNOTATIONS).is_file():
        return _listed(_annotations(file), images, file)
    for place in near:
        if (file := place / _KAGGLE).is_file():
            return _listed(_kaggle(file), images, file)
    devkits = [place / inner for place in near for inner in _DEVKIT]
    for file in (place / name for name in (_IN_ORDER, _NUMBERS) for place in devkits):
        if file.is_file():
            labels = _lines(file) if file.name == _IN_ORDER else _of_numbers(file, devkits)
            originals = ((name, found) for name in images if (found := _ORIGINAL.fullmatch(name)))
            known = ((name, int(found[1])) for name, found in originals)  # there may be fewer images than labels
            return _listed([(name, labels[n - 1]) for name, n in known if 0 < n <= len(labels)], images, file)
    # Else by the wnids in the images' own names, if most have one.
    by_wnid: dict[str, list[str]] = {}
    for name in images:
        if wnid := file_wnid(name):
            by_wnid.setdefault(wnid, []).append(name)
    silent = len(images) - sum(map(len, by_wnid.values()))
    if 2 * silent >= len(images):
        return None
    return by_wnid, "the images' names", {"image whose name says no class": silent} if silent else {}


def _listed(rows: Iterable[tuple[str, str]], images: Sequence[str], file: Path) -> _Listed:
    """The rows whose image exists; the others are counted."""
    there, absent, labels = set(images), [], dict[str, set[str]]()
    counts: Counter[str] = Counter()
    for text, label in rows:
        name = text if text in there else as_path(text)
        if name in there:
            counts[name] += 1
            labels.setdefault(name, set()).add(label)
        else:
            absent.append(text)
    if not labels:
        raise DataError(
            f"{shown(file)} names none of the images beside it"
            f"{f', such as {shown(min(images))}' if absent else ': it lists nothing'}.",
            "Expected a line per image: its file name, then its wnid.",
        )
    found: dict[str, list[str]] = {}
    for name in sorted(labels):
        if len(labels[name]) == 1:
            found.setdefault(min(labels[name]), []).append(name)
    unlisted = sorted(there - labels.keys())
    doubtful = [name for name in labels if len(labels[name]) > 1]
    again = [name for name in labels if counts[name] > 1 and len(labels[name]) == 1]
    left = [
        (f"row of {file.name} whose image is not there", absent, len(absent)),
        (f"image that {file.name} does not list", unlisted, len(unlisted)),
        (f"image with two classes in {file.name}", doubtful, len(doubtful)),
        (f"row of {file.name} for an image that it lists before", again, sum(counts[name] - 1 for name in again)),
    ]
    return found, shown(file.name), {named(what, names): count for what, names, count in left if count}


def _annotations(file: Path) -> Iterator[tuple[str, str]]:
    """File name and wnid of each line; the boxes are ignored."""
    for number, line in enumerate(_lines(file), start=1):
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise DataError(
                f"Line {number} of {shown(file)} is '{shown(line[:60])}'.", "Expected: file name, tab, wnid, ..."
            )
        yield fields[0], fields[1]


def _kaggle(file: Path) -> Iterator[tuple[str, str]]:
    """``ImageId,PredictionString``, of which the first word is the wnid."""
    for line in _lines(file)[1:]:
        image, _, said = (part.strip().strip('"') for part in line.partition(","))
        if not image or not said.strip():
            raise DataError(
                f"{shown(file)} has no class in the line '{shown(line[:60])}'.",
                "Expected the columns ImageId and PredictionString.",
            )
        yield f"{image}.JPEG", said.split()[0]


def _of_numbers(file: Path, devkits: Sequence[Path]) -> list[str]:
    wnids = _synsets(devkits)
    if wnids is None:
        raise DataError(
            f"{shown(file)} numbers the classes from 1 to 1000 in ILSVRC's own order, and no file here maps these "
            "numbers to wnids.",
            f"Put the devkit's {_SYNSETS[0]} beside it (or its {_META}, with scipy installed); or use {_KAGGLE}; or "
            "sort the images into folders named by wnid.",
        )
    numbers = _lines(file)
    if wrong := next((line for line in numbers if not line.isdecimal() or not 1 <= int(line) <= _CLASSES), None):
        raise DataError(f"{shown(file)} has a line '{shown(wrong[:40])}'.", "Expected numbers from 1 to 1000.")
    return [wnids[int(line)] for line in numbers]


def _synsets(places: Sequence[Path]) -> dict[int, str] | None:
    """ILSVRC's number of a class -> its wnid, None where no file has them."""
    files = [place / name for place in places for name in _SYNSETS] + [place / _META for place in places]
    file = next(filter(Path.is_file, files), None)
    if file is None:
        return None
    found = {}
    if file.name == _META:
        try:
            from scipy.io import loadmat  # type: ignore[import-untyped]  # not a dependency of ours
        except ImportError:
            return None
        synsets: Any = loadmat(file, squeeze_me=True)["synsets"]
        found = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    else:
        for words in map(str.split, _lines(file)):
            wnid = next(filter(is_wnid, words), None)
            number = next((int(word) for word in words if word.isdecimal()), None)
            if wnid is not None and number is not None:
                found[number] = wnid
    known = {number: wnid for number, wnid in found.items() if 1 <= number <= _CLASSES}
    if len(known) != _CLASSES or len(set(known.values())) != _CLASSES:
        raise DataError(
            f"{shown(file)} does not number a thousand classes from 1 to 1000.", "Copy it from the devkit again."
        )
    return known


def _lines(file: Path) -> list[str]:
    """The non-empty lines of a list. Raises DataError for a file that is not text."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"{shown(file)} cannot be read: {said}.", "Save it as UTF-8, or move it away.") from None
    return [line for line in text.split("\n") if line.strip()]
