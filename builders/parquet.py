"""Variants in Parquet files, local or on any fsspec filesystem (the Hub among them).

The index reads the columns of labels and file names only; images are read by the row groups that hold wanted rows. So
a few images of each class cost about as much as they weigh, also where the rows are sorted by class.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import DataError
from builders.folders import SPLIT_FOLDERS
from builders.labels import check_names, file_wnid, hub_labels, is_wnid, label_map, refuse, shorten
from builders.resuming import read_whole, resumed
from builders.rows import IndexEntry, SourceRow
from builders.variants import ClassInfo, Variant

__all__ = [
    "IMAGE_COLUMNS", "LABEL_COLUMNS", "ParquetSource", "class_label", "find_parquet", "images_of", "list_parquet",
    "open_parquet", "pick_parquet", "split_of",
]  # fmt: skip

LABEL_COLUMNS = ("wnid", "synset", "label", "labels", "class", "class_name", "fine_label", "target")
"""Columns that may hold the class, the surest first."""

IMAGE_COLUMNS = ("image", "img", "jpg", "image_bytes")
"""Columns that may hold the image."""

_AHEAD = 8
"""Files whose labels are fetched at once from a remote filesystem: each costs a few round trips and few bytes."""


class _Columns:
    """Where the image and the class are in one Parquet file, and which wnid each label is."""

    def __init__(self, schema: pa.Schema, variant: Variant, name: str, *, trusted: bool) -> None:
        # What the variant says of its own repository goes there; elsewhere people have other names.
        image_columns = (variant.hub.image_column,) if trusted and variant.hub else IMAGE_COLUMNS
        label_columns = (variant.hub.label_column,) if trusted and variant.hub else LABEL_COLUMNS
        self.image = next((column for column in image_columns if column in schema.names), "")
        kind = schema.field(self.image).type if self.image else None
        if kind is not None and images_of(kind):
            self.nested = pa.types.is_struct(kind)
            self.has_path = self.nested and kind.get_field_index("path") >= 0
        else:
            raise DataError(
                f"'{name}' has no column of images; its columns are {shorten(schema.names)}.",
                f"Expected one of {shorten(image_columns)}, of bytes, or of {{bytes, path}} as `datasets` writes it.",
            )
        self.label = next((column for column in label_columns if column in schema.names), "")
        if not self.label:
            raise DataError(
                f"'{name}' has no column of classes; its columns are {shorten(schema.names)}.",
                f"Expected one of {shorten(label_columns)}.",
            )
        # Rows that this project wrote say their id themselves; a synthetic row's source id may stand in several rows.
        self.id = next((column for column in ("sample_id", "source_id") if column in schema.names), "")
        self.numbered = pa.types.is_integer(schema.field(self.label).type)
        self.names = class_label(schema, self.label)
        self.explicit = False
        self.by_number: tuple[str | None, ...] = ()
        if self.numbered:
            if self.names is None and variant.label_ids:
                self.names = variant.hub_label_names  # a class map says them
            if self.names is None:
                raise DataError(
                    f"The labels of '{name}' are numbers without names (column '{self.label}').",
                    "Write the file with `datasets` and a ClassLabel feature, or add a column 'wnid'.",
                )
            known = check_names(variant, self.names) if trusted else hub_labels(variant, self.names)
            self.explicit = known is not None
            named = label_map(variant, self.names)
            self.by_number = known or tuple(named[label] for label in self.names)

    @property
    def for_index(self) -> list[str]:
        """What the index reads: never the bytes."""
        name = [self.id] if self.id else [f"{self.image}.path"] if self.has_path else []
        return [self.label, *name]

    @property
    def bytes_column(self) -> str:
        """What reading an image reads."""
        return f"{self.image}.bytes" if self.nested else self.image

    def wnids(self, variant: Variant, labels: Iterable[Any]) -> dict[Any, str | None]:
        """The wnid of each stored label, None for one that is no class of the variant (also: no label, or -1)."""
        if not self.numbered:
            return label_map(variant, labels)
        count = len(self.by_number)
        return {label: self.by_number[label] if label is not None and 0 <= label < count else None for label in labels}

    def file_names(self, table: pa.Table) -> list[str | None]:
        """The file name of each row, None where the file does not say it; `table` has the columns `for_index`."""
        if self.id:
            return table.column(self.id).to_pylist()
        if not self.has_path:
            return [None] * len(table)
        paths = table.column(self.image).combine_chunks().field("path").to_pylist()
        return [path and path.rsplit("/", 1)[-1] for path in paths]

    def spoken(self, label: Any) -> str:
        """A stored label as people would call it in a message."""
        if self.numbered and self.names is not None and label is not None and 0 <= label < len(self.names):
            return self.names[label]
        return "no label" if label is None or label == -1 else str(label)


class ParquetSource:
    """One split in Parquet files. Satisfies `builders.rows.Source`."""

    def __init__(
        self,
        variant: Variant,
        filesystem: Any,
        root: str,
        names: Sequence[str],
        layout: str,
        *,
        trusted: bool = False,
        local: bool = True,
        limit_per_class: int | None = None,
    ) -> None:
        """`names`: files under `root` of an fsspec filesystem. `trusted`: they are the variant's own Hub repository."""
        self.layout = layout
        self._variant, self._fs, self._root, self._names = variant, filesystem, root, tuple(names)
        self._trusted, self._local, self._limit = trusted, local, limit_per_class

    @cached_property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes that occur. Of a remote repository: all that it can have, since finding out reads every label."""
        if not self._local:
            return self._variant.classes
        found = {wnid for name in self._names for wnid in self._occurring(name).values()}
        return tuple(info for info in self._variant.classes if info.wnid in found)

    def check(self) -> None:
        """Raise DataError unless every label that occurs is a class of the variant; reads the column of labels only."""
        unmatched = [label for name in self._names for label, wnid in self._occurring(name).items() if wnid is None]
        if unmatched:
            raise refuse(self._variant, sorted(set(unmatched)), self.layout)
        if not self.classes:
            raise DataError(f"There are no rows in {self.layout}.", "Expected at least one image.")

    def index(self) -> Iterator[IndexEntry]:
        """The rows in file order (files by name). Stops as soon as every class has as many as the limit.

        Raises DataError for a label that is no class of the variant, and for two rows of one source id.
        """
        counts: dict[str, int] = {}
        full, wanted = 0, len(self.classes)
        seen: set[str] = set()
        for entries in self._every_part():
            for entry in entries:
                if self._limit is not None:
                    count = counts[entry.wnid] = counts.get(entry.wnid, 0) + 1
                    if count > self._limit:
                        continue
                    full += count == self._limit
                yield _unseen(entry, seen)
                if full == wanted:
                    return

    def parts(self) -> list[str]:
        """Pieces of the index that can be listed one by one: the files."""
        return list(self._names)

    def index_part(self, name: str) -> Iterator[IndexEntry]:
        """The rows of one file, as in `index` without a limit."""
        seen: set[str] = set()
        for entry in self._entries(name):
            yield _unseen(entry, seen)

    def read(self, entries: Sequence[IndexEntry]) -> Iterator[SourceRow]:
        """The stored bytes in the order of `entries`.

        Give many entries at once, in the order of the index: neighbours in one row group are read together, and a row
        group is read again by each call that wants something of it. Where a remote file breaks off, it is taken up
        again (see `builders.resuming`).

        Raises DataError for a local file that is gone, damaged or another than that of the index.
        """
        for name, neighbours in groupby(entries, key=lambda entry: entry.location):
            wanted = list(neighbours)
            rows = [entry.row for entry in wanted]
            images = self._images(name, rows) if self._local else self._resumed_images(name, rows)
            for entry, image in zip(wanted, images, strict=True):
                yield SourceRow(entry.source_id, entry.wnid, image, entry.source_id.split("/", 1)[1])

    def _open(self, name: str) -> Any:
        # Remote files are asked for just the ranges that pyarrow wants: read-ahead would fetch image bytes with them.
        options = {} if self._local else {"cache_type": "none"}
        return self._fs.open(f"{self._root}/{name}", "rb", **options)

    def _columns(self, schema: pa.Schema, name: str) -> _Columns:
        return _Columns(schema, self._variant, name, trusted=self._trusted)

    def _occurring(self, name: str) -> dict[str, str | None]:
        """The labels that occur in a file, as people would call them -> wnid, None for what is no class."""
        with self._open(name) as stream:
            file = pq.ParquetFile(stream)
            columns = self._columns(file.schema_arrow, name)
            values = file.read(columns=[columns.label]).column(0).unique().to_pylist()
        return {columns.spoken(value): wnid for value, wnid in columns.wnids(self._variant, values).items()}

    def _entries(self, name: str) -> list[IndexEntry]:
        """The index entries of one file."""
        with self._open(name) as stream:
            file = pq.ParquetFile(stream, pre_buffer=True)  # joins the reads of neighbouring columns into one request
            columns = self._columns(file.schema_arrow, name)
            table = file.read(columns=columns.for_index)
        labels = table.column(columns.label).to_pylist()
        wnids = columns.wnids(self._variant, set(labels))
        unmatched = [columns.spoken(label) for label, wnid in wnids.items() if wnid is None]
        if unmatched:
            raise refuse(self._variant, sorted(unmatched), f"'{name}'")
        stem = name.rsplit("/", 1)[-1].removesuffix(".parquet")
        entries = []
        for row, (label, path) in enumerate(zip(labels, columns.file_names(table), strict=True)):
            wnid = str(wnids[label])
            file_name = path.removeprefix(f"{wnid}/") if path else f"{stem}-{row:06d}"
            if columns.explicit and is_wnid(wnid) and file_wnid(file_name) not in (None, wnid):
                raise DataError(
                    f"Row {row} of '{name}' has the label of {wnid}, but its file is named {file_name}.",
                    f"The labels are not those that '{self._variant.name}' knows: read a copy with class folders.",
                )
            entries.append(IndexEntry(f"{wnid}/{file_name}", wnid, name, row))
        return entries

    def _every_part(self) -> Iterator[list[IndexEntry]]:
        """The entries of each file in turn; of remote ones, a few files are under way at once."""
        if self._local:
            yield from map(self._entries, self._names)
            return
        with ThreadPoolExecutor(_AHEAD) as pool:
            coming: deque[Future[list[IndexEntry]]] = deque()
            try:
                for name in self._names:
                    coming.append(pool.submit(self._remote_entries, name))
                    if len(coming) == _AHEAD:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                for future in coming:
                    future.cancel()

    def _remote_entries(self, name: str) -> list[IndexEntry]:
        return read_whole(lambda: self._entries(name), *self._repository)

    def _resumed_images(self, name: str, rows: Sequence[int]) -> Iterator[bytes]:
        return resumed(lambda given: self._images(name, rows[given:]), *self._repository)

    @property
    def _repository(self) -> tuple[str, str]:
        """Name and commit of the repository on the Hub, for messages."""
        repo_id, _, revision = self._root.removeprefix("datasets/").partition("@")
        return repo_id, revision

    def _images(self, name: str, rows: Sequence[int]) -> Iterator[bytes]:
        """The image of each row of a file, in the order of `rows`: one row group in memory at a time."""
        try:
            with self._open(name) as stream:
                file = pq.ParquetFile(stream)
                columns = self._columns(file.schema_arrow, name)
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
                ends = list(accumulate(sizes))
                for group, neighbours in groupby(rows, key=lambda row: bisect_right(ends, row)):
                    wanted = [row - (ends[group] - sizes[group]) for row in neighbours]
                    found = _row_group(file, group, columns.bytes_column, set(wanted))
                    for row in wanted:
                        yield found[row]
        except (OSError, LookupError, pa.ArrowException) as error:
            if not self._local:
                raise
            what = "it has no longer the rows that it had" if isinstance(error, LookupError) else _said(error)
            raise DataError(
                f"{self._root}/{name} cannot be read: {what}.",
                "The images must stay as they were when the run began. What is finished is kept: put the file back, "
                "and run the same command again to continue.",
                code=4,
            ) from error


def _said(error: Exception) -> str:
    """What the system or pyarrow says of a file, on one line."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return (strerror or " ".join(str(error).split())[:200] or type(error).__name__).rstrip(".")


def _row_group(file: Any, group: int, column: str, rows: set[int]) -> dict[int, bytes]:
    """The images of some rows of a row group (counted within it)."""
    found: dict[int, bytes] = {}
    start = 0
    for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[column]):
        images = batch.column(0).field("bytes") if pa.types.is_struct(batch.column(0).type) else batch.column(0)
        for row in range(start, start + len(batch)):
            if row in rows:
                found[row] = images[row - start].as_py() or b""
        start += len(batch)
        if len(found) == len(rows):
            break
    return found


def _unseen(entry: IndexEntry, seen: set[str]) -> IndexEntry:
    if entry.source_id in seen:
        raise DataError(
            f"Two images have the source id '{entry.source_id}', the second in row {entry.row} of '{entry.location}'.",
            "File names (image.path) must be unique in a class, because they identify an image.",
        )
    seen.add(entry.source_id)
    return entry


def images_of(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images: bytes, or {bytes, path} as `datasets` writes it."""
    nested = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return nested or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def class_label(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The label names that `datasets` keeps in the metadata of a Parquet file, None if there are none."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return tuple(feature["names"])
    except (KeyError, TypeError, ValueError):
        return None


def pick_parquet(files: Sequence[str], split: str, config: str | None) -> list[str]:
    """Those of a repository's files that are a split's Parquet shards, sorted.

    The split is said by the file's name (`data/train-00000-of-00017.parquet`) or its folder
    (`full_size/train/0000.parquet`). Files which name no split are taken if no file names one.
    """
    found = sorted(name for name in files if name.endswith(".parquet"))
    if config is not None and any(name.startswith(f"{config}/") for name in found):
        found = [name for name in found if name.startswith(f"{config}/")]
    splits = {name: split_of(name) for name in found}
    if not any(splits.values()):
        return found
    return [name for name in found if splits[name] == split]


def split_of(name: str) -> str | None:
    """The split that a Parquet file is of by its name or its folders' names, None where they say none."""
    folder, _, file = name.rpartition("/")
    words = [*re.split(r"[-_.]", file), *reversed(folder.split("/"))]
    return next((split for word in words for split, names in SPLIT_FOLDERS.items() if word in names), None)


def find_parquet(root: Path, split: str, config: str | None) -> list[str]:
    """The Parquet files of a split in a local folder; see `list_parquet` and `pick_parquet`."""
    return pick_parquet(list_parquet(root, config), split, config)


def list_parquet(root: Path, config: str | None) -> list[str]:
    """The Parquet files in a folder, in its data/ and the configuration's folder, and in split folders in these."""
    tops = [root, root / "data", *([root / config] if config else [])]
    folders = [*tops, *(top / name for top in tops for names in SPLIT_FOLDERS.values() for name in names)]
    return sorted({path.relative_to(root).as_posix() for folder in folders for path in folder.glob("*.parquet")})


def open_parquet(
    variant: Variant, root: Path, names: Sequence[str], *, limit_per_class: int | None = None
) -> ParquetSource:
    """A source of local Parquet files, whose labels are checked now. Raises DataError as `ParquetSource.check` does."""
    layout = f"{len(names)} Parquet file{'s' if len(names) > 1 else ''} ({shorten(names, 2)}) in {root}"
    source = ParquetSource(
        variant, fsspec.filesystem("file"), str(root), names, layout, limit_per_class=limit_per_class
    )
    try:
        source.check()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"A Parquet file in {root} cannot be read: {error}", "Copy it again, or leave it out."
        ) from error
    return source
