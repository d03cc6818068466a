"""What lies in one folder: images, folders, archives, other files; and what is given that cannot be read at all."""

import os
import re
import stat
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builders.errors import DataError, and_more, near_path, quoted, shown
from builders.files import as_text, below, is_litter
from builders.images.formats import HEAD, IMAGE_SUFFIXES, format_of

IMAGES = "images"
"""The folder within a class folder, or beside a list of labels, that holds the images in Tiny ImageNet's layout."""

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".rar", ".7z", ".gz", ".bz2", ".xz")
_OTHER = """
    txt md rst json jsonl xml csv tsv yaml yml html log pdf py ipynb mat npy npz pt pth pkl h5 safetensors parquet arrow
    lmdb mdb db caption tags cls mp4 avi mov mkv webm mp3 wav
"""
_OTHERS = frozenset("." + ending for ending in _OTHER.split())
"""Not images, judged by the ending: a million captions may lie beside the images, and are not opened."""
_SAVED = ("state.json", "dataset_dict.json")
_OF_SAMPLES = (".cls", ".json", ".txt", ".caption")
_LOOKED_AT = 8


@dataclass
class Contents:
    """What a folder holds except litter; names as the system has them, in no order."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # reason in words -> number of files that are not images


@dataclass(frozen=True)
class Part:
    """The images of one split."""

    folder: Path
    labels: Mapping[str, Sequence[Path]]  # label of a class -> the folders that hold its images
    words: str  # where the labels come from
    names: Mapping[str, Sequence[str]] | None = None
    """Label -> file names, where labels come from a list or the names; None is every image of the folders."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of things that are not read, apart from those in class folders."""
    passed_over: Collection[str] = ()  # folders beside those of the classes that `left_out` tells of already


def contents(folder: Path) -> Contents:
    """Everything in a folder. Raises DataError for a folder that cannot be listed."""
    found = Contents()
    named_kinds = {"image": found.images, "folder": found.folders, "archive": found.archives}
    for kind, name in _items(folder):
        if kind in named_kinds:
            named_kinds[kind].append(name)
        else:
            found.others[kind] += 1
    return found


def has_images(folder: Path) -> bool:
    """Whether a folder exists and has an image directly in it."""
    return folder.is_dir() and any(kind == "image" for kind, _ in _items(folder))


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return sorted(name for kind, name in _items(folder, deep=False) if kind == "folder")


def folders_below(folder: Path) -> Iterator[Path]:
    """A folder and all folders below it, except litter and links."""
    for inner, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        yield Path(inner)


def images_below(folder: Path) -> dict[Path, int]:
    """The number of images in a folder and in each folder below it that has some."""
    counts = {inner: len(contents(inner).images) for inner in folders_below(folder)}
    return {inner: count for inner, count in counts.items() if count}


def leads_back(path: Path) -> bool:
    """Whether a path is a link to a folder that contains it."""
    return path.is_symlink() and Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(path))


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The folders in `folder` that have images, directly or in their images/: label -> where the images are.

    A label is the folder's name in Unicode's composed form, since systems differ in how they write an ö.
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
                said = f"The class folders '{shown(other)}' and '{shown(label)}' in '{shown(folder)}' are one folder."
                raise DataError(said, "An image has one class: remove one of the links.")
    return found


def named(what: str, names: Sequence[str], most: int = 3) -> str:
    """A reason with the names that it is about: "archive not unpacked (a.tar, b.tar and 4 more)".

    Reasons are published, so that of a path on this machine only the last name is given.
    """
    shortened = ", ".join(shown(below(name))[:80] for name in sorted(names)[:most])
    return f"{what} ({shortened}{and_more(len(names), most)})"


def _items(folder: Path, *, deep: bool = True) -> Iterator[tuple[str, str]]:
    """Kind and name of each item: "image", "folder", "archive", or why it is not one of them.

    Without `deep` no file is opened, and only folders are recognized.
    """
    try:
        with os.scandir(folder) as items:
            for item in items:
                name = item.name
                ending = name[name.rfind(".") :].lower()
                if ending in IMAGE_SUFFIXES and item.is_file(follow_symlinks=False) and not name.startswith("."):
                    yield "image", name  # there may be a million of them, so nothing more is checked
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
            "Make it readable, or move it away. Finished work is kept: the same command continues it.",
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
        # A broken link with an image's name counts as an image: reading it reports what is wrong.
        if not item.is_file() and not stat.S_ISREG(Path(item.path).stat().st_mode):
            return "not a plain file"
        if ending not in IMAGE_SUFFIXES:
            with open(item.path, "rb") as file:  # noqa: PTH123
                return said if format_of(file.read(HEAD)) is None else "image"
    except OSError:
        return "image" if ending in IMAGE_SUFFIXES else said
    return "image"


# --- places that cannot be read ----------------------------------------------------------------------------------


def check_place(path: str | os.PathLike[str]) -> Path:
    """The local folder or Parquet file that a path names. Raises DataError as `find_place`, and if there is none."""
    if (place := find_place(path)) is not None:
        return place
    wanted = Path(path).expanduser()
    parent = next((folder for folder in wanted.absolute().parents if folder.is_dir()), Path("/"))
    try:
        there = f"In {shown(parent)}: {listing(parent)}."
    except OSError:
        there = f"{shown(parent)} cannot be listed either."
    raise DataError(f"There is no folder '{shown(path)}'.{near_path(path)}", there)


def find_place(path: str | os.PathLike[str]) -> Path | None:
    """The local folder or Parquet file that a path names, None if it does not exist.

    Raises DataError for an empty path, one that is not UTF-8 or cannot be opened, and a file of another kind.
    """
    text = os.fspath(path)
    if not text.strip():
        raise DataError("The path of the images is empty.", "Name a folder; '.' is the current one.")
    absolute = os.path.abspath(text)  # noqa: PTH100 (also for a path with a NUL in it)
    if shown(absolute) != absolute:
        raise DataError(
            f"The path {shown(text)} has a name that is not UTF-8, or contains a control character.",
            "Rename that folder, since a recipe must be able to name it; files in it may have any name.",
        )
    try:
        place = Path(text).expanduser()
        if not place.exists():
            return None
        if place.is_dir():
            os.scandir(place).close()
    except (OSError, RuntimeError, ValueError) as error:
        said = str(getattr(error, "strerror", None) or error).rstrip(".")
        problem = f"'{shown(text)[:200]}' cannot be opened: {said}."
        raise DataError(problem, "Name another, or make it readable.") from None
    if place.is_dir() or place.suffix.lower() == ".parquet":
        return place
    what = f"'{shown(place)}' is neither a folder nor a Parquet file"
    if place.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{what}, but an image.", "Give the folder that holds the class folders.")
    if place.name in contents(place.parent).archives:
        raise DataError(f"{what}, but an archive.", f"{_unpack(place.name)}, and give the unpacked folder.")
    raise DataError(f"{what}.", "Give a folder of images, or *.parquet.")


def refuse_others(folder: Path) -> DataError | None:
    """The error for a folder without images of classes, where its kind is recognized; else None."""
    path, there = shown(folder), contents(folder)
    if any((folder / name).is_file() for name in _SAVED):
        splits = subfolders(folder) if (folder / _SAVED[1]).is_file() else []
        first = "train" if "train" in splits or not splits else splits[0]
        part, words = (f"[{first!r}]", f", with the splits {quoted(splits)}") if splits else ("", "")
        return DataError(
            f"'{path}' was written by save_to_disk of `datasets`{words}.",
            'Write it as Parquet, a file per split, and give the folder of these: python -c "import datasets; '
            f"datasets.load_from_disk({path!r}){part}.to_parquet('{first}.parquet')\"",
        )
    if there.archives and _has_samples(folder, there.archives):
        return DataError(
            f"'{path}' holds tar shards, as WebDataset reads them: {quoted(sorted(there.archives), 3)}.",
            f"Write them as Parquet: python -c \"import datasets; datasets.load_dataset('webdataset', "
            f"data_files='{path}/*.tar', split='train').to_parquet('train.parquet')\"",
        )
    if there.archives:
        said = f"'{path}' holds archives that are not unpacked: {quoted(sorted(there.archives), 3)}."
        return DataError(said, f"{_unpack(min(there.archives))}; images are read from folders.")
    if deep := [name for name in subfolders(folder) if images_below(folder / name)]:
        return DataError(
            f"The images in '{path}' lie too deep to tell their classes: below {quoted(deep)}.",
            "A class folder has its images in itself, or in images/. Give the folder that holds the class folders.",
        )
    return None


def _has_samples(folder: Path, names: list[str]) -> bool:
    """Whether a tar archive holds samples: an image beside a class or a text of the same name."""
    tar = next((name for name in sorted(names) if name.endswith(".tar")), None)
    if tar is None:
        return False
    try:
        with tarfile.open(folder / tar) as archive:
            first = [member.name for member, _ in zip(archive, range(_LOOKED_AT), strict=False)]
    except (OSError, tarfile.TarError):
        return False
    stems = {name.rpartition(".")[0] for name in first if name.lower().endswith(_OF_SAMPLES)}
    return any(name.rpartition(".")[0] in stems for name in first if Path(name).suffix.lower() in IMAGE_SUFFIXES)


def _unpack(name: str) -> str:
    return f"Unpack it ({'unzip' if name.lower().endswith('.zip') else 'tar -xf'} {shown(name)})"


def listing(folder: Path) -> str:
    """What lies in a folder, in words."""
    found = (path for path in folder.iterdir() if not is_litter(path.name))
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in found)
    return f"found {quoted(names)}" if names else "the folder is empty"
