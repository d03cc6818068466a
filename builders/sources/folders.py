"""Local folders of image files, in many layouts.

    <path>/train/<wnid>/*.JPEG            class folders, a folder per split (ImageNet, Imagenette, torchvision)
    <path>/<wnid>/*.JPEG                  class folders without splits
    <path>/imagenet-a/<wnid>/*.jpg        the folder that the set's original archive unpacks to
    <path>/0/*.jpeg, <path>/10/*.jpeg     ImageNetV2's class numbers, read as numbers
    <path>/train/<wnid>/images/*.JPEG     Tiny ImageNet as it is published, with
    <path>/val/images/*.JPEG                  val/val_annotations.txt beside the images
    <path>/train/n01440764_10026.JPEG     images with the class in their names, or in a list beside them
    <path>/**/train-*.parquet             Parquet: read by builders.sources.parquet

A set that only tests a classifier may lie in test/, in val/, or in no split folder. Class folders may also have class
names, and some classes may be missing. All of it may lie a few folders deeper, as archives unpack.
`builders.sources.folder_layouts` decides what is what.
"""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from builders.errors import DataError, quoted, shown
from builders.files import as_path, as_text
from builders.sources.folder_contents import (
    Contents,
    Part,
    check_place,
    contents,
    images_below,
    listing,
    named,
    refuse_others,
)
from builders.sources.folder_layouts import Layout, folder_layout
from builders.sources.rows import IndexEntry, Source, SourceRow, check_numbers, label_map, refuse
from builders.variants import SPLIT_WORDS, VARIANTS, ClassInfo, Variant

_OF_ONE_FILE = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP})
"""Errors of a single file, if it still exists, that do not mean that the disk is gone."""


@dataclass
class LabelImages:
    """The images with one label, and what else lies in their folders."""

    names: dict[str, Path] = field(default_factory=dict)  # file name, as the system has it -> folder
    others: Counter[str] = field(default_factory=Counter)  # reason in words -> number of files that are not read
    archives: list[str] = field(default_factory=list)
    deeper: dict[str, int] = field(default_factory=dict)
    """Folder within a class folder, relative to the split's -> number of images in it, which are not read."""


def images_of(part: Part, labels: Iterable[str], called: str) -> LabelImages:
    """Everything in the folders of the labels of one class. Raises DataError for two files of one name."""
    found = LabelImages()
    for label in labels:
        for folder in part.labels[label]:
            there = contents(folder) if part.names is None else Contents(images=list(part.names[label]))
            for name in there.images:
                if name in found.names:
                    first, second = shown(found.names[name]), shown(folder)
                    raise DataError(
                        f"The class {shown(called)} has two images named '{shown(name)}': in {first} and in {second}.",
                        "File names must be unique within a class, because they identify the image. Rename one.",
                    )
                found.names[name] = folder
            found.others.update(there.others)
            found.archives += there.archives
            for inner in (folder / name for name in there.folders if folder / name not in part.labels[label]):
                found.deeper |= {str(place.relative_to(part.folder)): n for place, n in images_below(inner).items()}
    return found


def beside(part: Part) -> tuple[list[str], dict[str, int], dict[str, int]]:
    """What lies beside the class folders: folders without images, deeper folder -> images, reason -> other items."""
    if part.names is not None:
        return [], {}, dict(part.left_out)
    there = contents(part.folder)
    read = {place.relative_to(part.folder).parts[0] for places in part.labels.values() for place in places}
    read |= set(part.passed_over)
    below = {name: images_below(part.folder / name) for name in sorted(there.folders) if name not in read}
    deeper = {str(place.relative_to(part.folder)): count for found in below.values() for place, count in found.items()}
    left = dict(part.left_out)
    if there.images:
        left["image outside of the class folders"] = len(there.images)
    if there.archives:
        left[named("archive not unpacked", there.archives)] = len(there.archives)
    return [name for name, found in below.items() if not found], deeper, left


class FolderSource:
    """One split in a folder of image files. Satisfies `builders.sources.rows.Source`."""

    def __init__(
        self, root: Path, part: Part, wnids: Mapping[str, str], variant: Variant, layout: str, limit: int | None
    ) -> None:
        """`wnids`: label -> wnid, of all labels of the part. `limit`: images per class."""
        self.root, self._part = root, part
        self._variant, self._limit = variant, limit
        self._labels: dict[str, list[str]] = {}
        for label in sorted(wnids):
            self._labels.setdefault(wnids[label], []).append(label)
        self._seen: dict[str, LabelImages] = {}
        self.layout = f"{layout} in {shown(root)}"

    @cached_property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes that have at least one image."""
        return tuple(info for info in self._variant.classes if info.wnid in self._labels)

    def index(self) -> Iterator[IndexEntry]:
        """The images sorted by wnid and file name. Raises DataError for two files of one name in a class."""
        for wnid in self.parts():
            yield from self.index_part(wnid)

    def parts(self) -> list[str]:
        """Parts of the index that can be listed separately: the wnids."""
        return sorted(self._labels)

    def index_part(self, wnid: str) -> Iterator[IndexEntry]:
        """The images of one class, as in `index`."""
        self._seen[wnid] = found = images_of(self._part, self._labels[wnid], wnid)
        names, found.names = found.names, {}  # only the counts are kept
        for name in islice(sorted(names, key=as_text), self._limit):
            location = as_text((names[name] / name).relative_to(self.root).as_posix())
            yield IndexEntry(source_id=f"{wnid}/{as_text(name)}", wnid=wnid, location=location, row=0)

    @property
    def left_out(self) -> Mapping[str, int]:
        """Reason -> number of things in the split that are not in the index; lists the remaining class folders."""
        seen = [self._seen.get(wnid) or images_of(self._part, labels, wnid) for wnid, labels in self._labels.items()]
        empty, deeper, left = beside(self._part)
        others = sum((found.others for found in seen), Counter[str]())
        archives = [name for found in seen for name in found.archives]
        deeper = deeper | {place: count for found in seen for place, count in found.deeper.items()}
        absent = [info.wnid for info in self._variant.classes if info.wnid not in self._labels]
        by_reason = [
            *left.items(),
            (named("archive in a class folder, not unpacked", archives), len(archives)),
            (named("image in a folder within a class folder", list(deeper)), sum(deeper.values())),
            (named("class folder without images", empty), len(empty)),
            (named(f"class of {self._variant.name.partition('@')[0]} that is not there", absent), len(absent)),
            *sorted(others.items()),
        ]
        return {reason: count for reason, count in by_reason if count}

    def read(self, entries: Sequence[IndexEntry]) -> Iterator[SourceRow]:
        """The files' bytes in the order of `entries`; empty, with the reason, for a single file that cannot be read.

        Raises DataError if a file of the index, its folder or the disk is gone.
        """
        for entry in entries:
            image, problem = b"", ""
            path = self.root / as_path(entry.location)
            try:
                image = path.read_bytes()
            except OSError as error:
                problem = f"cannot be read: {_fault(path, error)}"
            yield SourceRow(entry.source_id, entry.wnid, image, entry.location.rsplit("/", 1)[-1], problem)


def open_path(
    variant: Variant, split: str, path: str | os.PathLike[str], *, limit_per_class: int | None = None
) -> Source:
    """The split of a variant in a local folder or Parquet file, in whichever layout.

    Raises DataError, which says what was found, if there is no such folder or split, no image, or if labels are not the
    variant's.
    """
    from builders.sources.parquet import open_parquet  # pyarrow only if it is needed

    top = check_place(path)
    tables = open_parquet(variant, top, split, limit_per_class=limit_per_class)
    if tables is not None:
        return tables
    layout = layout_of(top, variant)
    part = layout.part(_splits(variant, split))
    if part is None:
        raise _nothing(variant, split, top, layout)
    return _folder_source(variant, layout, part, limit_per_class)


def _splits(variant: Variant, split: str) -> list[str]:
    """Names of a split: a set that only tests a classifier may also lie in val/."""
    return [split, "validation"] if variant.tests_only else [split]


def layout_of(top: Path, variant: Variant) -> Layout:
    """The layout of a folder of images, given a variant; see `builders.sources.folder_layouts`."""
    root = top
    for folder in (variant.archive_folder, Path(variant.archive_folder).name):  # of the variant's original archive
        if folder and root == top and (top / folder).is_dir() and folder_layout(top / folder).parts:
            root = top / folder
    found = folder_layout(root, lambda label: label_map(variant, [label])[label] is not None)
    # ImageNetV2's three archives differ only in their names.
    others = (v.name for v in VARIANTS.values() if v.archive_folder and v.archive_folder == found.root.name)
    other = next(others, variant.name)
    if other != variant.name and variant.archive_folder:
        said = f"'{found.root}' is the folder of '{other}', not of '{variant.name}'."
        raise DataError(said, f"Give the folder {variant.archive_folder}, or name the variant {other}.")
    return found


def _nothing(variant: Variant, split: str, top: Path, layout: Layout) -> DataError:
    wanted = " or ".join(f"{name}/" for key in _splits(variant, split) for name in SPLIT_WORDS[key])
    if layout.parts:
        archives = sorted(contents(layout.root).archives)
        found = [part.folder.name if isinstance(part, Part) else split for split, part in layout.parts.items()]
        return DataError(
            f"'{shown(top)}' has no split '{split}': no images in {wanted}.",
            f"Splits found: {quoted(found)}.{f' Not unpacked: {quoted(archives)}.' if archives else ''}",
        )
    return refuse_others(top) or DataError(
        f"There are no images of classes in '{shown(top)}': {listing(top)}.",
        f"Expected class folders (in the folder or in {wanted}), Tiny ImageNet's layout, or Parquet.",
    )


def local_splits(variant: Variant, path: str | os.PathLike[str]) -> list[str]:
    """The variant's splits in a local folder; only the first one if the layout has no splits.

    Raises DataError if there is no such folder.
    """
    from builders.sources.tables import split_there, tables_of

    top = check_place(path)
    there = tables_of(variant, top)
    if there is not None:
        tables = there[1]
        found = [split for split in variant.splits if tables.named and split_there(variant, tables, split)]
    else:
        parts = layout_of(top, variant).parts
        named_so = {split for split, part in parts.items() if isinstance(part, Part)}
        found = [split for split in variant.splits if named_so.intersection(_splits(variant, split))]
    return found or list(variant.splits)[:1]


def _folder_source(variant: Variant, layout: Layout, part: Part, limit: int | None) -> FolderSource:
    where = f"'{shown(part.folder)}'"
    if part.names is None:
        check_numbers(variant, part.labels, where)
    wnids = label_map(variant, part.labels)
    if variant.has_more and (more := part.labels.keys() - variant.label_ids.keys()):
        known = {label: places for label, places in part.labels.items() if label not in more}
        reason = named(f"class folder that is not one of {variant.name}'s", sorted(more))
        part = replace(part, labels=known, left_out={**part.left_out, reason: len(more)}, passed_over=more)
        wnids = {label: wnids[label] for label in known}
    if unmatched := [label for label, wnid in wnids.items() if wnid is None]:
        raise refuse(variant, unmatched, f"the folders of {where}" if part.names is None else where)
    labels = {str(label): str(wnid) for label, wnid in wnids.items()}
    called = "wnid" if all(label == wnid for label, wnid in labels.items()) else "class name"
    if variant.numbered_folders and all(label.isdecimal() for label in labels):
        called = "class number"
    words = part.words.replace("class folders", f"class folders by {called}")
    if part.words.endswith("val_annotations.txt"):
        words = f"Tiny ImageNet's original layout, {words}"
    inside = "no split folders" if "" in layout.parts else f"{shown(part.folder.name)}/"
    return FolderSource(layout.root, part, labels, variant, f"{words} ({inside})", limit)


def _fault(path: Path, error: OSError) -> str:
    """Why this one file cannot be read, in the system's words.

    Raises DataError if the disk or folder may be gone: otherwise every image would count as a bad one.
    """
    target = Path(os.path.realpath(path))  # of a link, its target matters
    if error.errno in _OF_ONE_FILE and os.path.lexists(target):
        return error.strerror or type(error).__name__
    if error.errno == errno.ENOENT and path.is_symlink() and target.parent.is_dir():
        return "the link leads to no file"
    raise DataError(
        f"{shown(path)} cannot be read: {error.strerror or error}.",
        "The images must not change during a run. Finished work is kept: put them back, and run the same command "
        "again to continue.",
        code=4,
    ) from error
