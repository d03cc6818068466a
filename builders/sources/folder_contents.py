"""What lies in one folder: images, folders, archives, and by its ending whatever else."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builders.errors import DataError
from builders.file_names import as_text, below, is_litter, shown
from builders.images.formats import HEAD, IMAGE_SUFFIXES, looks_like_image

IMAGES = "images"
"""The folder in a class folder, or beside a list of labels, that holds the images: Tiny ImageNet's way."""

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".rar", ".7z", ".gz", ".bz2", ".xz")
_OTHER = """
    txt md rst json jsonl xml csv tsv yaml yml html log pdf py ipynb mat npy npz pt pth pkl h5 safetensors parquet arrow
    lmdb mdb db caption tags cls mp4 avi mov mkv webm mp3 wav
"""
_OTHERS = frozenset("." + ending for ending in _OTHER.split())
"""Endings of what is not an image: a million captions may lie beside the images, and are not opened to see it."""


@dataclass
class Contents:
    """What one folder holds, litter left out; names are as the system has them, in no order."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """Reason in words -> number of files that are no images."""


def contents(folder: Path) -> Contents:
    """Everything in a folder. Raises DataError for a folder that cannot be listed."""
    found = Contents()
    for kind, name in _items(folder):
        if kind == "image":
            found.images.append(name)
        elif kind == "folder":
            found.folders.append(name)
        elif kind == "archive":
            found.archives.append(name)
        else:
            found.others[kind] += 1
    return found


def has_images(folder: Path) -> bool:
    """Whether a folder is there and has an image in itself; it is listed up to the first."""
    return folder.is_dir() and any(kind == "image" for kind, _ in _items(folder))


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return sorted(name for kind, name in _items(folder, deep=False) if kind == "folder")


def images_below(folder: Path) -> dict[Path, int]:
    """How many images lie in a folder and in each folder in it that has some; links to folders are not followed."""
    found = {}
    for inner, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        if count := len(contents(Path(inner)).images):
            found[Path(inner)] = count
    return found


def leads_back(path: Path) -> bool:
    """Whether a path is a link to a folder that it lies in."""
    return path.is_symlink() and Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(path))


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The folders in `folder` that have images, in themselves or in their images/: label -> where the images are.

    A label is the folder's name in Unicode's composed form: systems differ in how they write an ö, and mean the same.
    """
    found: dict[str, list[Path]] = {}
    for name in subfolders(folder):
        if places := [place for place in (folder / name, folder / name / IMAGES) if has_images(place)]:
            found.setdefault(as_text(unicodedata.normalize("NFC", name)), []).extend(places)
    real: dict[str, str] = {}
    for label, places in found.items():
        for place in places:
            other = real.setdefault(os.path.realpath(place), label)
            if other != label:
                raise DataError(
                    f"The class folders '{shown(other)}' and '{shown(label)}' in '{shown(folder)}' are one folder.",
                    "An image has one class: take one of the links away.",
                )
    return found


def named(what: str, names: Sequence[str], most: int = 3) -> str:
    """A reason with the names that it is about: "archive not unpacked (a.tar, b.tar and 4 more)".

    Reasons are published: of a path on somebody's machine, which a list may hold, the last name is all that is said.
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what} ({', '.join(shown(below(name))[:80] for name in sorted(names)[:most])}{more})"


def _items(folder: Path, *, deep: bool = True) -> Iterator[tuple[str, str]]:
    """Kind and name of each item: "image", "folder", "archive", or why it is none of them.

    Without `deep` no file is opened, so that what is a folder is told alone.
    """
    try:
        with os.scandir(folder) as items:
            for item in items:
                name = item.name
                ending = name[name.rfind(".") :].lower()
                if ending in IMAGE_SUFFIXES and item.is_file(follow_symlinks=False) and not name.startswith("."):
                    yield "image", name  # a million of them, so that nothing more is asked
                    continue
                if is_litter(name):
                    continue
                if item.is_symlink() and leads_back(Path(item.path)):
                    yield "link to a folder that it lies in", item.name
                else:
                    yield ("folder" if _is_folder(item) else _kind(item) if deep else ""), item.name
    except OSError as error:
        raise DataError(
            f"The folder {shown(folder)} cannot be listed: {error.strerror or error}.",
            "Make it readable, or take it away. What is finished is kept: the same command again continues.",
            code=3,
        ) from error


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link in a circle
        return False


def _kind(item: os.DirEntry[str]) -> str:
    name = item.name.lower()
    ending = os.path.splitext(name)[1]  # noqa: PTH122 (a Path for each of a million is slow)
    if name.endswith(_ARCHIVES):
        return "archive"
    said = f"ending {ending}" if re.fullmatch(r"\.[a-z0-9_~-]{1,12}", ending) else "no ending"
    if ending in _OTHERS:
        return said
    try:
        # A link that leads nowhere is an image by its name: whoever reads it says what is wrong.
        if not item.is_file() and not stat.S_ISREG(Path(item.path).stat().st_mode):
            return "not a plain file"
        if ending not in IMAGE_SUFFIXES:
            with open(item.path, "rb") as file:  # noqa: PTH123
                return "image" if looks_like_image(file.read(HEAD)) else said
    except OSError:
        return "image" if ending in IMAGE_SUFFIXES else said
    return "image"
