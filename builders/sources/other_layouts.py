"""What people give that is not read, each named for what it is, with the way to make it something that is."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from builders.errors import DataError
from builders.file_names import is_litter, is_plain, shown
from builders.images.formats import IMAGE_SUFFIXES
from builders.sources.folder_contents import contents, images_below, subfolders
from builders.wording import quoted

_SAVED = ("state.json", "dataset_dict.json")
_OF_SAMPLES = (".cls", ".json", ".txt", ".caption")
_LOOKED_AT = 8


def check_place(path: str | os.PathLike[str]) -> Path:
    """The local folder or Parquet file that a path names.

    Raises DataError as `find_place`, and where nothing is.
    """
    place = find_place(path)
    if place is None:
        raise DataError(f"There is no folder '{shown(path)}'.", _nearest(Path(path).expanduser()))
    return place


def find_place(path: str | os.PathLike[str]) -> Path | None:
    """The local folder or Parquet file that a path names, None where nothing is.

    Raises DataError for an empty path, one that is not UTF-8 or cannot be opened, and a file of another kind.
    """
    text = os.fspath(path)
    if not text.strip():
        raise DataError("The path of the images is empty.", "Name a folder; '.' is the current one.")
    if not is_plain(os.path.abspath(text)):  # noqa: PTH100 (a path with a NUL in it, too)
        raise DataError(
            f"The path {shown(text)} has a name that is not UTF-8, or a control character in it.",
            "Rename that folder, since a recipe must be able to name it; what lies in it may be called anything.",
        )
    try:
        place = Path(text).expanduser()
        if not place.exists():
            return None
        if place.is_dir():
            os.scandir(place).close()
    except (OSError, RuntimeError, ValueError) as error:
        said = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise DataError(
            f"'{shown(text)[:200]}' cannot be opened: {said}.", "Name another, or make it readable."
        ) from None
    if not place.is_dir() and place.suffix.lower() != ".parquet":
        raise _refuse_file(place)
    return place


def _refuse_file(place: Path) -> DataError:
    what = f"'{shown(place)}' is neither a folder nor a Parquet file"
    if place.suffix.lower() in IMAGE_SUFFIXES:
        return DataError(f"{what}, but an image.", "Give the folder that holds the class folders.")
    if contents(place.parent).archives.count(place.name):
        return DataError(f"{what}, but an archive.", f"{_unpack(place.name)}, and give the folder that comes of it.")
    return DataError(f"{what}.", "Give a folder of images, or *.parquet.")


def refuse_others(folder: Path) -> DataError | None:
    """The refusal of a folder without images of classes whose kind can be told; None where it cannot."""
    path, there = shown(folder), contents(folder)
    if any((folder / name).is_file() for name in _SAVED):
        splits = subfolders(folder) if (folder / _SAVED[1]).is_file() else []
        first = "train" if "train" in splits or not splits else splits[0]
        part, words = (f"[{first!r}]", f", with the splits {quoted(splits)}") if splits else ("", "")
        return DataError(
            f"'{path}' was written by save_to_disk of `datasets`{words}.",
            'Write it as Parquet, a file a split, and give the folder of these: python -c "import datasets; '
            f"datasets.load_from_disk({path!r}){part}.to_parquet('{first}.parquet')\"",
        )
    if there.archives:
        shards = _shards(folder, there.archives)
        what = "tar shards, as WebDataset reads them" if shards else "archives that are not unpacked"
        return DataError(
            f"'{path}' holds {what}: {quoted(sorted(there.archives), 3)}.",
            f"Write them as Parquet: python -c \"import datasets; datasets.load_dataset('webdataset', "
            f"data_files='{path}/*.tar', split='train').to_parquet('train.parquet')\""
            if shards
            else f"{_unpack(min(there.archives))}; images are read from folders.",
        )
    deep = [name for name in subfolders(folder) if images_below(folder / name)]
    if deep:
        return DataError(
            f"The images in '{path}' lie too deep to tell their classes: below {quoted(deep)}.",
            "A class folder has its images in itself, or in images/. Give the folder that holds the class folders.",
        )
    return None


def _shards(folder: Path, names: list[str]) -> bool:
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


def _nearest(path: Path) -> str:
    parent = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    try:
        return f"In {shown(parent)}: {listing(parent)}."
    except OSError:
        return f"{shown(parent)} cannot be listed either."
