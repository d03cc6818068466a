"""Opened datasets: labels by wnid in memory, images as stored bytes, wherever they come from.

Images are never decoded by `datasets`, whose decoder stops at the first corrupt one.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from builders.errors import DataError, quoted
from builders.files import as_path, disk_error
from builders.images.decoding import ImageRejected, decode_rgb
from builders.runs import layout, run_files
from builders.sources import open_source
from builders.sources.cards import Tables
from builders.sources.columns import find_columns
from builders.sources.folders import FolderSource, local_splits
from builders.sources.parquet import stored_image
from builders.sources.rows import IndexEntry, Source
from builders.sources.tables import local_choice, tables_of
from builders.variants import VARIANTS, Choice, get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.sets import tables
from hfsyn.judging.sets.references import Reference, parse_dataset, part_of, pick_split
from hfsyn.judging.sets.tables import Labelled, Parts
from hfsyn.rules import fold_of

TRAIN, TEST = ("train",), ("validation", "test")
"""Splits to look for, in this order, if none is named: to train on, and to test on."""
_SAMPLED = 8  # images that go into a fingerprint
_NAMED = 20  # unreadable images that a result names


class Bytes(Protocol):
    """The encoded images of a set by their number; empty if one cannot be read."""

    def __getitem__(self, number: int, /) -> bytes: ...

    def lengths(self, numbers: Sequence[int], /) -> list[int] | None:
        """Bytes of these images, 0 for one that cannot be read; None where they are not known without reading all."""
        ...


@dataclass(frozen=True)
class ImageSet:
    """One split of a dataset, with a class for each image."""

    reference: str  # as the user wrote it, without a weight
    split: str
    wnids: Sequence[str]  # the class of each image
    names: Mapping[str, str]  # class name of each wnid that occurs
    images: Bytes
    ids: Sequence[str]  # the id of each image, unique in its set
    revision: str | None = None
    """The commit on the Hub, or the run's recipe fingerprint; None for local files and drawn variants."""
    complete: bool = True
    """Whether it should have exactly as many images as its variant states: no limit, no class missing."""
    variant: str | None = None
    hub: str | None = None  # the repository on the Hub that it was read from
    named_split: bool = True  # whether the data itself names the split; otherwise it is named after its use
    left_out: Mapping[str, int] = field(default_factory=dict)  # what is in the split but not in the set, by reason
    part_of: tuple[int, int] | None = None
    """Classes and images of the whole set, where this is the part of it whose classes a classifier has."""

    def __len__(self) -> int:
        return len(self.wnids)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The wnids that occur, sorted."""
        return tuple(sorted(set(self.wnids)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids and classes in order, and of a few images, since ids may be mere row numbers.

        It is the same for the same images in the same order, whatever they are used for.
        """
        prefix = "" if self.named_split else f"{self.split}/"
        text = "\n".join(f"{n.removeprefix(prefix)}\t{wnid}" for n, wnid in zip(self.ids, self.wnids, strict=True))
        found = hashlib.sha256(text.encode())
        for number in spread(len(self), _SAMPLED):
            found.update(hashlib.sha256(self.images[number]).digest())
        return found.hexdigest()

    def facts(self) -> dict[str, Any]:
        """What a result says about the set."""
        return {
            "reference": self.reference,
            "split": self.split,
            "revision": self.revision,
            "images": len(self),
            "classes": len(self.classes),
            "fingerprint": self.fingerprint,
            "variant": self.variant,
            "hub": self.hub,
            "left_out": dict(self.left_out),
            **({"part_of": dict(zip(("classes", "images"), self.part_of, strict=True))} if self.part_of else {}),
        }

    def only(self, numbers: Sequence[int]) -> "ImageSet":
        """Some of the images, by number."""
        wnids, ids = [self.wnids[n] for n in numbers], [self.ids[n] for n in numbers]
        return replace(self, wnids=wnids, ids=ids, images=_Some(self.images, numbers), complete=False)

    def without_fold(self, fold: tuple[int, int] | None) -> "ImageSet":
        """All but the K-th of N parts, by the rule of folds; all where it is None."""
        if fold is None:
            return self
        return self.only([number for number, name in enumerate(self.ids) if fold_of(name, fold[1]) != fold[0]])

    @property
    def drawn(self) -> bool:
        """Whether its images are drawn by this package, each decided by its id."""
        images = self.images
        while isinstance(images, _Some):
            images = images.images
        return isinstance(images, _Drawn)

    def picture(self, number: int) -> Image.Image:
        """An image, decoded; raises ImageRejected with the reason if that fails."""
        data = self.images[number]
        if not data:
            raise ImageRejected("empty, or cannot be opened")
        return decode_rgb(data)


def spread(size: int, count: int) -> list[int]:
    """At most `count` numbers below `size`, evenly spread, including the first and the last."""
    if size <= count:
        return list(range(size))
    return [round(place * (size - 1) / (count - 1)) for place in range(count)]


Unread = Mapping[str, str]  # image id -> why it cannot be read


def facts_of(unread: Unread) -> dict[str, Any]:
    """What a result says about unreadable images: ``count``, ``reasons`` (images of each) and the ``first`` ids."""
    reasons = Counter(unread.values())
    return {"count": len(unread), "reasons": dict(sorted(reasons.items())), "first": sorted(unread)[:_NAMED]}


def tell_unread(unread: Unread, what: str) -> None:
    """Report on stderr how many images of `what` could not be read, and why."""
    if unread:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(unread.values()).most_common())
        images = "1 image" if len(unread) == 1 else f"{len(unread)} images"
        print(f"{images} of {what} could not be read ({reasons}): {quoted(sorted(unread), 3)}.", file=sys.stderr)


def tell_left_out(facts: Mapping[str, Any]) -> None:
    """Report on stderr what is in a set's split but not in the set; `facts` are those of the set."""
    if left_out := facts.get("left_out"):
        reasons = quoted((f"{count} ({reason})" for reason, count in left_out.items()), 5)
        print(f"Not read in {facts['reference']} ({facts['split']}): {reasons}.", file=sys.stderr)


@dataclass(frozen=True)
class _Files:
    root: Path
    entries: Sequence[IndexEntry]

    def __getitem__(self, number: int) -> bytes:
        try:
            return (self.root / as_path(self.entries[number].location)).read_bytes()
        except OSError:  # deleted, or no permission: reported when it is decoded
            return b""

    def lengths(self, numbers: Sequence[int]) -> list[int]:
        """See `Bytes`."""
        found = []
        for number in numbers:
            try:
                found.append((self.root / as_path(self.entries[number].location)).stat().st_size)
            except OSError:
                found.append(0)
        return found


@dataclass(frozen=True)
class _Drawn:
    """Drawings, drawn on first use and then kept: they are small and slow to draw."""

    source: Source
    entries: Sequence[IndexEntry]
    kept: dict[int, bytes] = field(default_factory=dict)

    def __getitem__(self, number: int) -> bytes:
        if number not in self.kept:
            self.kept[number] = next(iter(self.source.read([self.entries[number]]))).image
        return self.kept[number]

    def lengths(self, numbers: Sequence[int]) -> None:
        """See `Bytes`."""
        return


@dataclass(frozen=True)
class _Stored:
    """The image column of a `datasets.Dataset` in Arrow format: memory-mapped, read without its decoder."""

    rows: Any
    labelled: Labelled

    def __getitem__(self, number: int) -> bytes:
        labelled = self.labelled
        row = int(number) if labelled.rows is None else labelled.rows[number]
        value = self.rows[row].column(labelled.image)[0].as_py()
        return stored_image(value, labelled.folders[number] if labelled.folders else None)[0]

    def lengths(self, numbers: Sequence[int]) -> list[int] | None:
        """See `Bytes`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self.rows[:].column(self.labelled.image)
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)) or column.null_count:
            return None  # files beside the table
        every = pc.binary_length(column).to_numpy()
        rows = self.labelled.rows
        return [int(every[number if rows is None else rows[number]]) for number in numbers]


@dataclass(frozen=True)
class _Some:
    images: Bytes
    numbers: Sequence[int]

    def __getitem__(self, number: int) -> bytes:
        return self.images[self.numbers[number]]

    def lengths(self, numbers: Sequence[int]) -> list[int] | None:
        """See `Bytes`."""
        return self.images.lengths([self.numbers[number] for number in numbers])


def open_images(
    reference: str | Reference, split: str | None = None, *, default: Sequence[str] = TEST, limit: int | None = None
) -> ImageSet:
    """Open one split of a dataset.

    Args:
        reference: see `hfsyn.judging.sets.references`.
        split: None takes the first of `default` (`TRAIN` or `TEST`) that exists, or the only split; it may be a part of
            a split.
        limit: at most that many images per class, the first ones.

    Raises:
        HfsynError: nothing of that name, split or revision; no images; no column of images or of classes; or
            labels that are not classes of a known variant, with the list.
    """
    found = parse_dataset(reference) if isinstance(reference, str) else reference
    opener = {"hub": _open_hub, "local": _open_local, "variant": _open_variant}[found.kind]
    split, part, within = part_of(split)
    opened = opener(found, split, default)
    if within is not None:
        chosen = opened.only([number for number, name in enumerate(opened.ids) if within(name)])
        opened = replace(chosen, split=f"{opened.split}{part}")
    if limit is not None:
        seen: Counter[str] = Counter()
        keep = []
        for number, wnid in enumerate(opened.wnids):
            seen[wnid] += 1
            if seen[wnid] <= limit:
                keep.append(number)
        opened = opened.only(keep)
    if not len(opened):
        raise HfsynError(f"The split {opened.split!r} of {opened.reference} is empty.", "Name another with --*-split.")
    return opened


def _open_variant(found: Reference, split: str | None, default: Sequence[str]) -> ImageSet:
    variant = get_variant(found.place)
    split = pick_split(list(variant.splits), split, default, f"The variant {variant.name!r}")
    if variant.drawn:
        return _from_source(open_source(variant.name, split), str(found), split, variant.name)
    parts = tables.find_variant_rows(variant, split, found.revision)
    return replace(_from_files(parts.downloaded(), found), split=split)


def _open_local(found: Reference, split: str | None, default: Sequence[str]) -> ImageSet:
    parts = local_tables(found, split, default)
    if parts is not None:
        return replace(_from_files(parts, found), named_split=parts.tables.named)
    # Class folders named by wnid need no variant: ImageNet-1k has every wnid.
    path, variant = Path(found.place).expanduser(), found.variant or "imagenet-1k"
    try:
        split = pick_split(local_splits(get_variant(variant), path), split, default, found.place)
        return _from_source(open_source(variant, split, path=path), str(found), split, variant)
    except DataError as error:
        hint = f"{error.hint} A variant is stated as VARIANT={found.place}." if found.variant is None else error.hint
        raise DataError(error.message, hint, error.code) from None


def _open_hub(found: Reference, split: str | None, default: Sequence[str]) -> ImageSet:
    found = replace(found, variant=found.variant or variant_of_repository(found.place))
    rows, split, revision = tables.find_rows(found, split, default)
    if isinstance(rows, Parts):
        return _from_files(rows.downloaded(), found)
    columns = find_columns(rows.features.arrow_schema, str(found))
    if len(rows) == 0:
        raise HfsynError(f"The split {split!r} of {found} is empty.", "Name another split or dataset.")
    labelled = tables.label_rows(rows, columns, found.variant, split)
    return replace(_labelled_set(labelled, rows, found, split, revision), hub=found.place)


def variant_of_repository(repo_id: str) -> str | None:
    """The test-only variant whose own repository this is; None if there is none, or several."""
    owned = [v.name for v in VARIANTS.values() if v.tests_only and v.hub is not None and v.hub.repo_id == repo_id]
    return owned[0] if len(owned) == 1 else None


def local_tables(found: Reference, split: str | None, default: Sequence[str]) -> Parts | None:
    """The Parquet files of one split of a local dataset; None if it has image files instead."""
    path = Path(found.place).expanduser()
    if path.is_dir() and layout.is_run_folder(path):
        return _run_tables(path, found, split, default)
    variant = get_variant(found.variant or "imagenet-1k")
    there = tables_of(variant, path, found.config) if path.suffix.lower() == ".parquet" or path.is_dir() else None
    if there is None:
        return None
    root, found_tables = there
    if not found_tables.named:  # name it after its use
        named = {split or default[0]: next(iter(found_tables.splits.values()))}
        found_tables = replace(found_tables, splits=named)
    split = pick_split(list(found_tables.splits), split, default, found.place)
    choice = local_choice(variant, found_tables.splits[split], root) if found.variant else Choice()
    return Parts(str(root), found_tables, split, None, choice)


def _run_tables(path: Path, found: Reference, split: str | None, default: Sequence[str]) -> Parts:
    manifest = run_files.finished(path)
    shards: dict[str, list[Path]] = {}
    for shard in run_files.shards(path, layout.DATA):
        shards.setdefault((layout.shard_number(shard) or ("",))[0], []).append(shard)
    if not shards:
        raise HfsynError(f"{found.place} has no finished shard yet.", f"Run: hfsyn generate {found.place}")
    if manifest is None:
        said = f"The run {found.place} is not finished: its images are not all there."
        raise HfsynError(said, f"`hfsyn status {found.place}` shows what is missing.")
    split = pick_split(sorted(shards), split, default, f"The run {found.place}")
    fingerprint = layout.load_sidecar(layout.sidecar_of(shards[split][0])).fingerprint
    files = tuple(shard.relative_to(path).as_posix() for shard in shards[split])
    return Parts(str(path), Tables({split: files}), split, fingerprint)


def _from_source(source: Source, reference: str, split: str, variant: str) -> ImageSet:
    entries = list(source.index())
    images: Bytes = _Files(source.root, entries) if isinstance(source, FolderSource) else _Drawn(source, entries)
    wnids, ids = [entry.wnid for entry in entries], [entry.source_id for entry in entries]
    names = {info.wnid: info.name for info in source.classes}
    complete = _has_all_classes(variant, names)
    return ImageSet(reference, split, wnids, names, images, ids, None, complete, variant, left_out=source.left_out)


def _from_files(parts: Parts, found: Reference) -> ImageSet:
    """An ImageSet over Parquet files on the disk: labels file by file, images in one memory-mapped table."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.exceptions import DatasetGenerationError

    try:
        sizes = [pq.read_metadata(path).num_rows for path in parts.paths]
        labelled = tables.label_files(parts, sizes, found.variant, str(found))
        rows = tables.table_rows(parts, sizes, [labelled.image])
    except (DatasetGenerationError, pa.ArrowException, OSError) as error:
        if disk_error(error) is not None:  # such as a full cache: the files are fine
            raise
        said = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise HfsynError(f"{found} cannot be read: {said[:300]}.", "Copy the files again.") from None
    opened = _labelled_set(labelled, rows, found, parts.split, parts.revision)
    # A copy may be a part of the variant, its own repository may not.
    complete = opened.complete or parts.trusted
    return replace(opened, hub=parts.hub, complete=complete)


def _labelled_set(labelled: Labelled, rows: Any, found: Reference, split: str, revision: str | None) -> ImageSet:
    variant, wnids = found.variant, labelled.wnids
    names = labelled.names or tables.class_names(set(wnids), variant)
    images = _Stored(rows.select_columns([labelled.image]).with_format("arrow"), labelled)
    complete = variant is not None and _has_all_classes(variant, names)
    opened = ImageSet(str(found), split, wnids, names, images, labelled.ids, revision, complete, variant)
    return replace(opened, left_out=labelled.left_out)


def _has_all_classes(variant: str, names: Mapping[str, str]) -> bool:
    """Whether a set has all classes of its variant; one of a test-only variant is meant to, whatever it has."""
    known = get_variant(variant)
    return known.tests_only or len(names) == len(known.classes)
