"""Local folders of image files, in the layouts that people have.

    <path>/train/<wnid>/*.JPEG            class folders, a folder a split (ImageNet, Imagenette, torchvision)
    <path>/<wnid>/*.JPEG                  class folders without splits
    <path>/imagenet-a/<wnid>/*.jpg        the folder that the set's original archive unpacks to
    <path>/0/*.jpeg, <path>/10/*.jpeg     ImageNetV2's class numbers, read as numbers
    <path>/train/<wnid>/images/*.JPEG     Tiny ImageNet as it is published, with
    <path>/val/images/*.JPEG                  val/val_annotations.txt beside the images
    <path>/**/train-*.parquet             Parquet: read by builders.parquet

A set that only tests a classifier may lie in test/, in val/, or in no split folder. A class folder may also be named
by a class's name. The classes may be some of the variant's. The index is sorted by wnid, then by file name, whatever
the file system says.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from builders.errors import DataError
from builders.labels import check_numbers, label_map, refuse, shorten
from builders.rows import IndexEntry, Source, SourceRow
from builders.variants import SPLIT_WORDS, VARIANTS, ClassInfo, Variant

__all__ = [
    "SPLIT_FOLDERS",
    "FolderSource",
    "class_folders",
    "image_names",
    "listed_images",
    "local_splits",
    "open_path",
]

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""What counts as an image by its name, in lower case. Anything else in a class folder is left alone."""

SPLIT_FOLDERS = SPLIT_WORDS
"""Our name of a split -> what its folder or file may be called."""

ANNOTATIONS = "val_annotations.txt"

_OF_ONE_FILE = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP})
"""What may be wrong with one file while the disk is well, if the file is still there."""


class FolderSource:
    """One split in a folder of image files. Satisfies `builders.rows.Source`."""

    def __init__(
        self,
        root: Path,
        folders: Mapping[str, Sequence[Path]],
        variant: Variant,
        layout: str,
        *,
        listed: Mapping[str, Sequence[str]] | None = None,
        limit_per_class: int | None = None,
    ) -> None:
        """`folders`: wnid -> the folders that hold its images. `listed`: wnid -> file names, where a list says them."""
        self.root, self._folders, self._listed = root, folders, listed
        self._variant, self._limit = variant, limit_per_class
        self.layout = f"{layout} in {root}"

    @cached_property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes that have at least one image."""
        return tuple(info for info in self._variant.classes if info.wnid in self._folders)

    def index(self) -> Iterator[IndexEntry]:
        """The images sorted by wnid and file name. Raises DataError for two files of one name in a class."""
        for wnid in self.parts():
            yield from self.index_part(wnid)

    def parts(self) -> list[str]:
        """Pieces of the index that can be listed one by one: the wnids."""
        return sorted(self._folders)

    def index_part(self, wnid: str) -> Iterator[IndexEntry]:
        """The images of one class, as in `index`."""
        names: dict[str, Path] = {}
        for folder in self._folders[wnid]:
            for name in self._listed[wnid] if self._listed is not None else image_names(folder):
                if name in names:
                    raise DataError(
                        f"The class {wnid} has two images named '{name}': in {names[name]} and in {folder}.",
                        "File names must be unique in a class, because they identify an image. Rename one of them.",
                    )
                names[name] = folder
        for name in islice(sorted(names), self._limit):
            location = (names[name] / name).relative_to(self.root).as_posix()
            yield IndexEntry(source_id=f"{wnid}/{name}", wnid=wnid, location=location, row=0)

    def read(self, entries: Sequence[IndexEntry]) -> Iterator[SourceRow]:
        """The files' bytes in the order of `entries`; empty, with the reason, for a file that alone cannot be read.

        Raises DataError where a file of the index is gone, or its folder, or the disk.
        """
        for entry in entries:
            image, problem = b"", ""
            try:
                image = (self.root / entry.location).read_bytes()
            except OSError as error:
                problem = f"cannot be read: {_fault(self.root / entry.location, error)}"
            yield SourceRow(entry.source_id, entry.wnid, image, entry.location.rsplit("/", 1)[-1], problem)


def open_path(
    variant: Variant,
    split: str,
    path: str | os.PathLike[str],
    *,
    config: str | None = None,
    limit_per_class: int | None = None,
) -> Source:
    """The split of a variant in a local folder or Parquet file, in whichever layout it has; of tables, `config`.

    Raises DataError, saying what was found there, if there is no such folder or split, no image, or if labels are not
    the variant's.
    """
    from builders.parquet import open_parquet  # pyarrow only where it is needed

    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"There is no folder '{path}'.", _nearest(root))
    if root.is_file() and root.suffix.lower() != ".parquet":
        raise DataError(f"'{path}' is neither a folder nor a Parquet file.", "Give a folder of images, or *.parquet.")
    tables = open_parquet(variant, root, split, config=config, limit_per_class=limit_per_class)
    if tables is not None:
        return tables
    root = _unpacked(variant, root)
    names = _split_folders(variant, split)
    for name in names:
        folder = root / name
        # People sort the validation images into class folders and leave the list behind: images/ is then gone or empty.
        if (folder / ANNOTATIONS).is_file() and _has_images(folder / "images"):
            return _annotated(variant, root, folder, limit_per_class)
        if folder.is_dir() and class_folders(folder):
            return _class_layout(variant, root, folder, limit_per_class)
    if (root / ANNOTATIONS).is_file() and _has_images(root / "images"):  # the path is val/ itself
        return _annotated(variant, root, root, limit_per_class)
    found = _split_names(root)
    if not found and class_folders(root):
        return _class_layout(variant, root, root, limit_per_class)
    flat = next((root / name for name in names if _has_images(root / name)), None)
    if flat is not None:
        raise DataError(
            f"'{flat}' holds images, but nothing there says their classes.", "Sort them into folders named by wnid."
        )
    wanted = " or ".join(f"{name}/" for name in names)
    if found:
        raise DataError(f"'{path}' has no split '{split}': no images in {wanted}.", f"Splits found: {shorten(found)}.")
    raise DataError(
        f"There are no images in '{path}': {_listing(root)}.",
        f"Expected class folders named by wnid (in the folder or in {wanted}), Tiny ImageNet's layout, or Parquet.",
    )


def local_splits(variant: Variant, path: str | os.PathLike[str], config: str | None = None) -> list[str]:
    """The variant's splits that are in a local folder; the first one alone where the layout knows no splits.

    Raises DataError if there is no such folder.
    """
    from builders.sources.on_disk import split_there, tables_of

    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"There is no folder '{path}'.", _nearest(root))
    there = tables_of(variant, root, config)
    if there is not None:
        tables = there[1]
        named = [split for split in variant.splits if tables.named and split_there(variant, tables, split)]
        return named or list(variant.splits)[:1]
    found = [
        split
        for split in variant.splits
        if any((root / name).is_dir() and class_folders(root / name) for name in SPLIT_FOLDERS[split])
    ]
    return found or list(variant.splits)[:1]


def _split_folders(variant: Variant, split: str) -> tuple[str, ...]:
    """What the folder of a split may be called: validation images are what people keep sets for testing beside."""
    return SPLIT_FOLDERS[split] + (SPLIT_FOLDERS["validation"] if variant.tests_only else ())


def _unpacked(variant: Variant, root: Path) -> Path:
    """The folder of the variant's original archive, if that is in `root`; else `root` itself.

    Raises DataError for the folder of another variant's archive: ImageNetV2's three are alike but for their names.
    """
    other = next(
        (v.name for v in VARIANTS.values() if v.archive_folder and v.archive_folder == root.name), variant.name
    )
    if other != variant.name and variant.archive_folder:
        raise DataError(
            f"'{root}' is the folder of '{other}', not of '{variant.name}'.",
            f"Give the folder {variant.archive_folder}, or name the variant {other}.",
        )
    inner = root / variant.archive_folder
    return inner if variant.archive_folder and inner.is_dir() and class_folders(inner) else root


def _class_layout(variant: Variant, root: Path, folder: Path, limit: int | None) -> FolderSource:
    found = class_folders(folder)
    check_numbers(variant, found, f"'{folder}'")
    wnids = label_map(variant, found)
    unmatched = [name for name, wnid in wnids.items() if wnid is None]
    if unmatched:
        raise refuse(variant, unmatched, f"the folders of '{folder}'")
    folders: dict[str, list[Path]] = {}
    for name in sorted(found):
        folders.setdefault(str(wnids[name]), []).extend(found[name])
    called = "wnid" if all(name == wnid for name, wnid in wnids.items()) else "class name"
    if variant.numbered_folders and all(name.isdecimal() for name in found):
        called = "class number"
    nested = any(path.name == "images" for paths in found.values() for path in paths)
    layout = f"class folders by {called}{', images in images/' if nested else ''}"
    where = "no split folders" if folder == root else f"{folder.name}/"
    return FolderSource(root, folders, variant, f"{layout} ({where})", limit_per_class=limit)


def _annotated(variant: Variant, root: Path, folder: Path, limit: int | None) -> FolderSource:
    """Tiny ImageNet's validation images, by their list."""
    listed = listed_images(folder)
    wnids = label_map(variant, listed)
    unmatched = [name for name, wnid in wnids.items() if wnid is None]
    if unmatched:
        raise refuse(variant, unmatched, f"'{folder / ANNOTATIONS}'")
    if not listed:
        raise DataError(
            f"{folder / ANNOTATIONS} lists no images.", "Expected a line for each image: file name, tab, wnid."
        )
    images = folder / "images"
    by_wnid: dict[str, list[str]] = {}
    for label, names in listed.items():
        by_wnid.setdefault(str(wnids[label]), []).extend(names)
    return FolderSource(
        root,
        {wnid: [images] for wnid in by_wnid},
        variant,
        f"Tiny ImageNet's original layout ({folder.name}/{ANNOTATIONS})",
        listed=by_wnid,
        limit_per_class=limit,
    )


def listed_images(folder: Path) -> dict[str, list[str]]:
    """Label -> file names in images/, as Tiny ImageNet's tab-separated list says them (the boxes are not used).

    Empty where the folder has no such list, or nothing in images/. Raises DataError for a line that says no label.
    """
    listed: dict[str, list[str]] = {}
    # People sort the validation images into class folders and leave the list behind: images/ is then gone or empty.
    if not (folder / ANNOTATIONS).is_file() or not _has_images(folder / "images"):
        return listed
    lines = (folder / ANNOTATIONS).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if not line.strip():
            continue
        if len(fields) < 2:
            raise DataError(
                f"Line {number} of {folder / ANNOTATIONS} is '{line[:60]}'.", "Expected: file name, tab, wnid, ..."
            )
        listed.setdefault(fields[1], []).append(fields[0])
    return listed


def image_names(folder: Path) -> Iterator[str]:
    """The names of the image files in a folder, by suffix; hidden files and folders are not among them.

    Raises DataError for a folder that cannot be listed.
    """
    try:
        with os.scandir(folder) as items:
            for item in items:
                suffix = os.path.splitext(item.name)[1].lower()  # noqa: PTH122 (a Path for each of a million is slow)
                if suffix in IMAGE_SUFFIXES and not item.name.startswith(".") and not item.is_dir():
                    yield item.name
    except OSError as error:
        raise _gone(folder, error) from error


def _fault(path: Path, error: OSError) -> str:
    """Why this one file cannot be read, in the system's words.

    Raises DataError where it is not the file's own fault: of a disk that is away, every image would pass for a bad one.
    """
    target = Path(os.path.realpath(path))  # of a link, what matters is where it leads
    if error.errno in _OF_ONE_FILE and os.path.lexists(target):
        return error.strerror or type(error).__name__
    if error.errno == errno.ENOENT and path.is_symlink() and target.parent.is_dir():
        return "the link leads to no file"
    raise _gone(path, error) from error


def _gone(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be read: {error.strerror or error}.",
        "The images must stay as they were when the run began. What is finished is kept: put them back, and run the "
        "same command again to continue.",
        code=4,
    )


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and next(image_names(folder), None) is not None


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The folders in `folder` that have images, in themselves or in their images/; name -> where the images are."""
    found: dict[str, list[Path]] = {}
    for item in sorted(folder.iterdir()):
        if item.name.startswith(".") or not item.is_dir():
            continue
        places = [place for place in (item, item / "images") if _has_images(place)]
        if places:
            found[item.name] = places
    return found


def _split_names(root: Path) -> list[str]:
    """The folders of `root` that are named like splits, with something in them."""
    names = [name for names in SPLIT_FOLDERS.values() for name in names]
    return [name for name in names if (root / name).is_dir() and any((root / name).iterdir())]


def _listing(folder: Path) -> str:
    names = sorted(item.name + ("/" if item.is_dir() else "") for item in folder.iterdir())
    return f"found {shorten(names)}" if names else "the folder is empty"


def _nearest(path: Path) -> str:
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    return f"In {parent}: {_listing(parent)}."
