"""Variants in Parquet files, local or on any fsspec filesystem (such as the Hub).

The index reads only the columns of labels and file names; images are read by the row groups that hold wanted rows. So a
few images of each class cost about as much as their size, even if the rows are sorted by class.
"""

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import DataError, brief, quoted
from builders.files import below
from builders.hub import STREAM_ATTEMPTS, Patience, patiently, resumed
from builders.sources.cards import Tables
from builders.sources.columns import Columns, UnknownLabelsError, class_label, find_columns, unknown_labels, wnids_of
from builders.sources.rows import IndexEntry, SourceRow, file_wnid, is_wnid
from builders.sources.tables import local_choice, open_split, split_there, tables_of
from builders.variants import Choice, ClassInfo, Variant, usual_split

T = TypeVar("T")

_AHEAD = 8  # remote files whose labels are fetched at once: each costs a few round trips and few bytes
_BUFFER = 8 << 20  # bytes of images that are read at once from a local file
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class ParquetSource:
    """One split in Parquet files. Satisfies `builders.sources.rows.Source`."""

    variant: Variant
    filesystem: Any  # of fsspec
    root: str
    names: Sequence[str]  # files under `root`, a split of `tables`
    layout: str
    tables: Tables = field(default_factory=lambda: Tables({}))
    choice: Choice | None = None  # the columns that are known
    trusted: bool = False  # whether the files are from the variant's own Hub repository
    local: bool = True
    limit_per_class: int | None = None
    rows_have_names: bool = field(default=True, init=False)
    """Whether every image has a name of its own in the table; known after the index was read."""
    _unlabelled: dict[str, int] = field(default_factory=dict, init=False)
    _image_columns: dict[str, str] = field(default_factory=dict, init=False)

    @cached_property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes that occur; of a remote repository all of the variant's, to avoid reading every label."""
        if not self.local:
            return self.variant.classes
        return tuple(info for info in self.variant.classes if info.wnid in self._survey[0])

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> number of things that are not in the index; rows are counted as the index is read."""
        without = sum(self._unlabelled.values())
        return {**self.tables.left_out, **({"row without a label": without} if without else {})}

    def check(self) -> None:
        """Raise DataError unless every label that occurs is a class of the variant; reads only the labels."""
        if not self.classes:
            raise DataError(f"There are no rows with a label in {self.layout}.", "Expected at least one image.")

    def index(self) -> Iterator[IndexEntry]:
        """The rows in file order (files by name). Stops as soon as every class has as many as the limit.

        Raises DataError for a label that is not a class of the variant.
        """
        counts: dict[str, int] = {}
        full, wanted = 0, len(self.classes)
        seen: set[str] = set()
        for entries in self._every_part():
            for entry in entries:
                if self.limit_per_class is not None:
                    count = counts[entry.wnid] = counts.get(entry.wnid, 0) + 1
                    if count > self.limit_per_class:
                        continue
                    full += count == self.limit_per_class
                yield self._unseen(entry, seen)
                if full == wanted:
                    return

    def parts(self) -> list[str]:
        """Parts of the index that can be listed separately: the files."""
        return list(self.names)

    def index_part(self, name: str) -> Iterator[IndexEntry]:
        """The rows of one file, as in `index` without a limit."""
        seen: set[str] = set()
        for entry in self._entries(name):
            yield self._unseen(entry, seen)

    def read(self, entries: Sequence[IndexEntry]) -> Iterator[SourceRow]:
        """The stored bytes in the order of `entries`; a remote file that breaks off is resumed.

        Pass many entries at once, in the order of the index: each call reads a row group once for all its entries.
        Raises DataError for a local file that is gone, damaged, or different from that of the index.
        """
        for name, neighbours in groupby(entries, key=lambda entry: entry.location):
            wanted = list(neighbours)
            for entry, (image, problem) in zip(wanted, self._read(name, [e.row for e in wanted]), strict=True):
                yield SourceRow(entry.source_id, entry.wnid, image, entry.source_id.split("/", 1)[1], problem)

    def _read(self, name: str, rows: Sequence[int]) -> Iterator[tuple[bytes, str]]:
        if self.local:
            return self._images(name, rows)
        return resumed(lambda given: self._images(name, rows[given:]), *self._repository)

    def _open(self, name: str) -> Any:
        # Remote files are requested in just the ranges that pyarrow needs: read-ahead would also fetch image bytes.
        options = {} if self.local else {"cache_type": "none"}
        return self.filesystem.open(f"{self.root}/{name}", "rb", **options)

    def _columns(self, schema: pa.Schema, name: str) -> Columns:
        # A variant of the table goes by the numbers of its own repository, whose card may name them in another order.
        own = self.trusted and not self.variant.label_ids
        names = {c: said for c, said in self.tables.names.items() if not (own and class_label(schema, c))}
        return find_columns(schema, f"'{name}'", choice=self.choice, names=names)

    def _listed(self, name: str) -> tuple[bool, list[tuple[str | None, str | None]]]:
        """Whether labels are numbers that the variant knows; class and file name of each row, None if unknown."""
        with self._open(name) as stream:
            file = pq.ParquetFile(stream, pre_buffer=True)  # joins the reads of neighbouring columns into one request
            columns = self._columns(file.schema_arrow, name)
            table = file.read(columns=columns.for_index)
        self._image_columns[columns.image] = name
        wnids, by_number = wnids_of(columns, table, self.variant, trusted=self.trusted)
        return by_number, list(zip(wnids, columns.names(table), strict=True))

    def _entries(self, name: str) -> list[IndexEntry]:
        by_number, rows = self._listed(name)
        entries = []
        for row, (wnid, path) in enumerate(rows):
            if wnid is None:
                continue
            named = path is not None and not self._survey[1]
            file_name = path.removeprefix(f"{wnid}/") if path and named else self._row_name(name, row)
            self.rows_have_names = self.rows_have_names and named
            if by_number and path and is_wnid(wnid) and file_wnid(path) not in (None, wnid):
                raise DataError(
                    f"Row {row} of '{name}' has the label of {wnid}, but its file is named {path}.",
                    f"The labels are not those that '{self.variant.name}' knows: read a copy with class folders.",
                )
            entries.append(IndexEntry(f"{wnid}/{file_name}", wnid, name, row))
        self._unlabelled[name] = len(rows) - len(entries)
        return entries

    @cached_property
    def _survey(self) -> tuple[set[str], bool]:
        """The classes that occur; and whether names of images repeat, so that rows are named by file and number.

        Of remote files, only the first two are looked at.
        """
        classes: set[str] = set()
        seen: set[tuple[str | None, str]] = set()
        unmatched: set[str] = set()
        twice = ""
        for name in self.names if self.local else self.names[:2]:
            try:
                rows = self._patiently(self._listed, name)[1]
            except UnknownLabelsError as error:
                unmatched.update(error.labels)
                continue
            classes.update(wnid for wnid, _ in rows if wnid is not None)
            for wnid, path in rows if not twice else ():
                if wnid is not None and path is not None:
                    twice = path if (wnid, path) in seen else twice
                    seen.add((wnid, path))
        if unmatched:
            raise unknown_labels(self.variant, unmatched, self.layout)
        if len(self._image_columns) > 1:
            raise different_images(self.layout, self._image_columns)
        if twice:
            said = "Images in %s share names (such as %s), so rows are named by file and number."
            _log.warning(said, self.layout, twice)
        return classes, bool(twice)

    @cached_property
    def _stems(self) -> dict[str, str]:
        """A different stem for each file, used in the names of its rows."""
        longer = {name: name[: -len(".parquet")].replace("/", "-") for name in self.names}
        stems = {name: name[: -len(".parquet")].rsplit("/", 1)[-1] for name in self.names}
        numbered = {name: f"{number}-{stem}" for number, (name, stem) in enumerate(longer.items())}
        return next(found for found in (stems, longer, numbered) if len(set(found.values())) == len(self.names))

    def _row_name(self, name: str, row: int) -> str:
        return f"{self._stems[name]}-{row:06d}"

    def _unseen(self, entry: IndexEntry, seen: set[str]) -> IndexEntry:
        """The entry, named by its row if another image has its name."""
        while entry.source_id in seen:
            name = f"{entry.source_id}-{self._row_name(entry.location, entry.row)}"
            entry = IndexEntry(name, entry.wnid, entry.location, entry.row)
        seen.add(entry.source_id)
        return entry

    def _every_part(self) -> Iterator[list[IndexEntry]]:
        """The entries of each file in turn; several remote files are read at once."""
        if self.local:
            return map(self._entries, self.names)
        _ = self._survey  # before the threads need it
        return in_parallel(lambda name: self._patiently(self._entries, name), self.names)

    def _patiently(self, read: Callable[[str], T], name: str) -> T:
        if self.local:
            return read(name)
        repo_id, revision = self._repository
        return patiently(lambda: read(name), Patience(repo_id, revision=revision, attempts=STREAM_ATTEMPTS))

    @property
    def _repository(self) -> tuple[str, str]:
        repo_id, _, revision = self.root.removeprefix("datasets/").partition("@")
        return repo_id, revision

    def _images(self, name: str, rows: Sequence[int]) -> Iterator[tuple[bytes, str]]:
        """The images of some rows of a file in order, a few in memory at a time; or why there is none."""
        folder = Path(self.root, name).parent if self.local else None
        try:
            with self._open(name) as stream:
                # Without a buffer pyarrow reads a column of a row group at once, which is best for the Hub.
                file = pq.ParquetFile(stream, buffer_size=_BUFFER if self.local else 0)
                columns = self._columns(file.schema_arrow, name)
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
                ends = list(accumulate(sizes))
                for group, neighbours in groupby(rows, key=lambda row: bisect_right(ends, row)):
                    wanted = [row - (ends[group] - sizes[group]) for row in neighbours]
                    yield from _row_group(file, group, columns.image, wanted, folder)
        except (OSError, LookupError, pa.ArrowException) as error:
            if not self.local:
                raise
            what = "it has no longer the rows that it had" if isinstance(error, LookupError) else _said(error)
            raise DataError(
                f"{self.root}/{name} cannot be read: {what}.",
                "Images must not change during a run. Finished work is kept: put the file back, and run the same "
                "command again to continue.",
                code=4,
            ) from error


def _said(error: Exception) -> str:
    """What the system or pyarrow says about a file, on one line."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return (strerror or brief(error) or type(error).__name__).rstrip(".")


def _row_group(
    file: Any, group: int, column: str, rows: Sequence[int], folder: Path | None
) -> Iterator[tuple[bytes, str]]:
    """The images of some rows of a row group (counted within it) in order; LookupError for a missing one."""
    # At most 64 rows at once, and of photographs as many as fit into the buffer.
    part = file.metadata.row_group(group)
    chunks = map(part.column, range(part.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    at_once = max(1, min(64, _BUFFER * part.num_rows // max(size, 1)))
    found: dict[int, tuple[bytes, str]] = {}
    last = {row: place for place, row in enumerate(rows)}
    start = given = 0
    for batch in file.iter_batches(batch_size=at_once, row_groups=[group], columns=[column]):
        for row in range(start, start + len(batch)):
            if row in last:
                found[row] = stored_image(batch.column(0)[row - start].as_py(), folder)
        start += len(batch)
        while given < len(rows) and rows[given] in found:
            row, given = rows[given], given + 1
            yield found[row] if last[row] >= given else found.pop(row)
        if given == len(rows):
            return
    raise LookupError(rows[given])


def different_images(where: str, columns: Iterable[str]) -> DataError:
    """The error for files that have their images in columns of different names."""
    said = f"The images in {where} are in columns of different names: {quoted(sorted(columns))}."
    return DataError(said, "Rename the columns, so that all files have the same.")


def stored_image(value: Any, folder: Path | None) -> tuple[bytes, str]:
    """The bytes of an image as a table stores it (bytes, or {bytes, path}), or why there are none.

    `folder` is that of a local table, in which a path without bytes is looked up; None ignores paths.
    """
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if data is not None:
        return bytes(data), ""
    path = value.get("path") if isinstance(value, Mapping) else None
    if not path:
        return b"", ""
    for place in () if folder is None else (folder / path, Path(path)):
        try:
            if place.is_file():
                return place.read_bytes(), ""
        except (OSError, ValueError) as error:
            return b"", f"cannot be read: {getattr(error, 'strerror', '') or type(error).__name__}"
    return b"", f"the table holds no bytes, only the name of a file that is not here ({below(path, folder)!r})"


def in_parallel(read: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
    """The result of `read` for each name, in order; a few are computed ahead."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        coming: deque[Future[T]] = deque()
        try:
            for name in names:
                coming.append(pool.submit(read, name))
                if len(coming) == _AHEAD:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def open_parquet(
    variant: Variant, path: Path, split: str, *, limit_per_class: int | None = None
) -> ParquetSource | None:
    """A source of a split of Parquet files in a folder (or of the file that `path` is), with its labels checked.

    None if no tables have images. Raises DataError if there is no such split, and as `ParquetSource.check`.
    """
    try:
        there = tables_of(variant, path)
        if there is None:
            return None
        root, tables = there
        found = split_there(variant, tables, split)
        if found is None and path.is_file() and not set(map(usual_split, tables.splits)) & set(variant.splits):
            found = next(iter(tables.splits))  # a single file, named by a split that the variant does not have
        if found is None:
            said = f"'{path}' has no split '{split}'."
            raise DataError(said, f"Splits found: {quoted(tables.splits)}. Name one: source.split.")
        names = tables.splits[found]
        layout = f"{len(names)} Parquet file{'s' if len(names) > 1 else ''} ({quoted(names, 2)}) in {root}"
        source = ParquetSource(
            variant,
            fsspec.filesystem("file"),
            str(root),
            names,
            layout,
            tables=tables,
            choice=local_choice(variant, names, root),
            limit_per_class=limit_per_class,
        )
        source.check()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"A Parquet file in {path} cannot be read: {_said(error)}.", "Copy it again.") from error
    return source


def open_hub(
    variant: Variant,
    split: str,
    *,
    revision: str | None = None,
    limit_per_class: int | None = None,
    token: str | bool | None = None,
) -> ParquetSource:
    """A source that reads the variant's repository by ranges, at one commit.

    Raises DataError offline, without access, for an unknown revision, and if the repository has no Parquet files of the
    split: at once if it is known to hold an archive instead, unless a revision is given.
    """
    found, theirs = open_split(variant, split, revision=revision, token=token)
    hub, names = variant.hub, found.tables.splits[theirs]
    assert hub is not None  # by `open_split`
    return ParquetSource(
        variant,
        found.filesystem,
        found.root,
        names,
        f"{len(names)} Parquet files of {hub.repo_id} at {found.commit}",
        tables=found.tables,
        choice=Choice(None, hub.image_column, hub.label_column),
        trusted=True,
        local=False,
        limit_per_class=limit_per_class,
    )
