"""Variants in Parquet files, local or on any fsspec filesystem (the Hub among them).

The index reads the columns of labels and file names only; images are read by the row groups that hold wanted rows. So
a few images of each class cost about as much as they weigh, also where the rows are sorted by class.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import DataError
from builders.file_names import below
from builders.hub.resuming import read_whole, resumed
from builders.sources.cards import Tables
from builders.sources.columns import Columns, UnknownLabelsError, class_label, find_columns, unknown_labels, wnids_of
from builders.sources.labels import file_wnid, is_wnid
from builders.sources.on_disk import local_choice, split_there, tables_of
from builders.sources.rows import IndexEntry, SourceRow
from builders.variants import Choice, ClassInfo, Variant, usual_split
from builders.wording import quoted

T = TypeVar("T")

_AHEAD = 8
"""Files whose labels are fetched at once from a remote filesystem: each costs a few round trips and few bytes."""

_BUFFER = 8 << 20
"""Bytes of images that are read at once from a file on this machine."""
_log = logging.getLogger(__name__)


class ParquetSource:
    """One split in Parquet files. Satisfies `builders.sources.rows.Source`."""

    def __init__(
        self,
        variant: Variant,
        filesystem: Any,
        root: str,
        names: Sequence[str],
        layout: str,
        *,
        tables: Tables | None = None,
        choice: Choice | None = None,
        trusted: bool = False,
        local: bool = True,
        limit_per_class: int | None = None,
    ) -> None:
        """`names`: files under `root` of an fsspec filesystem, a split of `tables`. `choice`: the columns, where they
        are known. `trusted`: the files are the variant's own Hub repository.
        """
        self.layout = layout
        self._variant, self._fs, self._root, self._names = variant, filesystem, root, tuple(names)
        self._tables, self._choice = tables or Tables({}), choice
        self._trusted, self._local, self._limit = trusted, local, limit_per_class
        self._unlabelled: dict[str, int] = {}
        self._nameless = False
        self._image_columns: dict[str, str] = {}

    @cached_property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes that occur. Of a remote repository: all that it can have, since finding out reads every label."""
        if not self._local:
            return self._variant.classes
        return tuple(info for info in self._variant.classes if info.wnid in self._survey[0])

    @property
    def left_out(self) -> dict[str, int]:
        """What lies there and is not in the index, by reason; rows are counted as the index is read."""
        without = sum(self._unlabelled.values())
        return {**self._tables.left_out, **({"row without a label": without} if without else {})}

    @property
    def rows_have_names(self) -> bool:
        """Whether every image has a name of its own in the table; known when the index was read."""
        return not self._nameless

    def check(self) -> None:
        """Raise DataError unless every label that occurs is a class of the variant; reads the labels only."""
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
                if self._limit is not None:
                    count = counts[entry.wnid] = counts.get(entry.wnid, 0) + 1
                    if count > self._limit:
                        continue
                    full += count == self._limit
                yield self._unseen(entry, seen)
                if full == wanted:
                    return

    def parts(self) -> list[str]:
        """Pieces of the index that can be listed one by one: the files."""
        return list(self._names)

    def index_part(self, name: str) -> Iterator[IndexEntry]:
        """The rows of one file, as in `index` without a limit."""
        seen: set[str] = set()
        for entry in self._entries(name):
            yield self._unseen(entry, seen)

    def read(self, entries: Sequence[IndexEntry]) -> Iterator[SourceRow]:
        """The stored bytes in the order of `entries`.

        Give many entries at once, in the order of the index: neighbours in one row group are read together, and a row
        group is read again by each call that wants something of it. Where a remote file breaks off, it is taken up
        again (see `builders.hub.resuming`).

        Raises DataError for a local file that is gone, damaged or another than that of the index.
        """
        for name, neighbours in groupby(entries, key=lambda entry: entry.location):
            wanted = list(neighbours)
            rows = [entry.row for entry in wanted]
            images = self._images(name, rows) if self._local else self._resumed_images(name, rows)
            for entry, (image, problem) in zip(wanted, images, strict=True):
                yield SourceRow(entry.source_id, entry.wnid, image, entry.source_id.split("/", 1)[1], problem)

    def _open(self, name: str) -> Any:
        # Remote files are asked for just the ranges that pyarrow wants: read-ahead would fetch image bytes with them.
        options = {} if self._local else {"cache_type": "none"}
        return self._fs.open(f"{self._root}/{name}", "rb", **options)

    def _columns(self, schema: pa.Schema, name: str) -> Columns:
        # A variant of the table goes by the numbers of its own repository, whose card may name them in another order.
        own = self._trusted and not self._variant.label_ids
        names = {c: said for c, said in self._tables.names.items() if not (own and class_label(schema, c))}
        return find_columns(schema, f"'{name}'", choice=self._choice, names=names)

    def _listed(self, name: str) -> tuple[bool, list[tuple[str | None, str | None]]]:
        """Class and file name of each row of a file, None where the row does not say it; whether labels are numbers
        that the variant knows.
        """
        with self._open(name) as stream:
            file = pq.ParquetFile(stream, pre_buffer=True)  # joins the reads of neighbouring columns into one request
            columns = self._columns(file.schema_arrow, name)
            table = file.read(columns=columns.for_index)
        self._image_columns[columns.image] = name
        wnids, by_number = wnids_of(columns, table, self._variant, trusted=self._trusted)
        return by_number, list(zip(wnids, columns.names(table), strict=True))

    def _entries(self, name: str) -> list[IndexEntry]:
        """The index entries of one file."""
        by_number, rows = self._listed(name)
        entries = []
        for row, (wnid, path) in enumerate(rows):
            if wnid is None:
                continue
            named = path is not None and not self._survey[1]
            file_name = path.removeprefix(f"{wnid}/") if path and named else self._row_name(name, row)
            self._nameless = self._nameless or not named
            if by_number and path and is_wnid(wnid) and file_wnid(path) not in (None, wnid):
                raise DataError(
                    f"Row {row} of '{name}' has the label of {wnid}, but its file is named {path}.",
                    f"The labels are not those that '{self._variant.name}' knows: read a copy with class folders.",
                )
            entries.append(IndexEntry(f"{wnid}/{file_name}", wnid, name, row))
        self._unlabelled[name] = len(rows) - len(entries)
        return entries

    @cached_property
    def _survey(self) -> tuple[set[str], bool]:
        """The classes that occur; and whether names of the images (`image.path`) do not tell them apart, so that rows
        are called by file and number. Of remote files, the first two say so: nobody reads them all for a few images.
        """
        classes: set[str] = set()
        seen: set[tuple[str | None, str]] = set()
        unmatched: set[str] = set()
        twice = ""
        for name in self._names if self._local else self._names[:2]:
            try:
                rows = self._listed(name)[1] if self._local else self._fetched(name)
            except UnknownLabelsError as error:
                unmatched.update(error.labels)
                continue
            classes.update(wnid for wnid, _ in rows if wnid is not None)
            for wnid, path in rows if not twice else ():
                if wnid is not None and path is not None:
                    twice = path if (wnid, path) in seen else twice
                    seen.add((wnid, path))
        if unmatched:
            raise unknown_labels(self._variant, unmatched, self.layout)
        if len(self._image_columns) > 1:
            raise different_images(self.layout, self._image_columns)
        if twice:
            _log.warning(
                "The images in %s do not have names of their own (such as %s), so that a row is called by its file and "
                "number.",
                self.layout,
                twice,
            )
        return classes, bool(twice)

    def _fetched(self, name: str) -> list[tuple[str | None, str | None]]:
        return read_whole(lambda: self._listed(name)[1], *self._repository)

    @cached_property
    def _stems(self) -> dict[str, str]:
        """What each file is called in the names of its rows: different for each."""
        stems = {name: name.rsplit("/", 1)[-1][: -len(".parquet")] for name in self._names}
        if len(set(stems.values())) == len(stems):
            return stems
        longer = {name: name[: -len(".parquet")].replace("/", "-") for name in self._names}
        if len(set(longer.values())) == len(longer):
            return longer
        return {name: f"{number}-{stem}" for number, (name, stem) in enumerate(longer.items())}

    def _row_name(self, name: str, row: int) -> str:
        return f"{self._stems[name]}-{row:06d}"

    def _unseen(self, entry: IndexEntry, seen: set[str]) -> IndexEntry:
        """The entry, called by its row where another image has its name."""
        while entry.source_id in seen:
            name = f"{entry.source_id}-{self._row_name(entry.location, entry.row)}"
            entry = IndexEntry(name, entry.wnid, entry.location, entry.row)
        seen.add(entry.source_id)
        return entry

    def _every_part(self) -> Iterator[list[IndexEntry]]:
        """The entries of each file in turn; of remote ones, a few files are under way at once."""
        if self._local:
            yield from map(self._entries, self._names)
            return
        _ = self._survey  # before the threads ask
        yield from in_parallel(lambda name: read_whole(lambda: self._entries(name), *self._repository), self._names)

    def _resumed_images(self, name: str, rows: Sequence[int]) -> Iterator[tuple[bytes, str]]:
        return resumed(lambda given: self._images(name, rows[given:]), *self._repository)

    @property
    def _repository(self) -> tuple[str, str]:
        """Name and commit of the repository on the Hub, for messages."""
        repo_id, _, revision = self._root.removeprefix("datasets/").partition("@")
        return repo_id, revision

    def _images(self, name: str, rows: Sequence[int]) -> Iterator[tuple[bytes, str]]:
        """The image of each row of a file, in the order of `rows`, or why there is none: a few in memory at a time."""
        folder = Path(self._root, name).parent if self._local else None
        try:
            with self._open(name) as stream:
                # Without a buffer pyarrow reads a column of a row group at once; from the Hub that is what is wanted.
                file = pq.ParquetFile(stream, buffer_size=_BUFFER if self._local else 0)
                columns = self._columns(file.schema_arrow, name)
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
                ends = list(accumulate(sizes))
                for group, neighbours in groupby(rows, key=lambda row: bisect_right(ends, row)):
                    wanted = [row - (ends[group] - sizes[group]) for row in neighbours]
                    yield from _row_group(file, group, columns.image, wanted, folder)
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


def _row_group(
    file: Any, group: int, column: str, rows: Sequence[int], folder: Path | None
) -> Iterator[tuple[bytes, str]]:
    """The images of some rows of a row group (counted within it) in order; LookupError for one that is not there."""
    found: dict[int, tuple[bytes, str]] = {}
    last = {row: place for place, row in enumerate(rows)}
    start = given = 0
    for batch in file.iter_batches(batch_size=_batch_size(file, group, column), row_groups=[group], columns=[column]):
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


def _batch_size(file: Any, group: int, column: str) -> int:
    """How many rows of a row group are read at once: at most 64, and of photographs as many as a buffer holds."""
    part = file.metadata.row_group(group)
    chunks = map(part.column, range(part.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    return max(1, min(64, _BUFFER * part.num_rows // max(size, 1)))


def different_images(where: str, columns: Iterable[str]) -> DataError:
    """The error for files that have their images in columns of different names."""
    return DataError(
        f"The images in {where} are in columns of different names: {quoted(sorted(columns))}.",
        "Rename the columns, so that all files have the same.",
    )


def stored_image(value: Any, folder: Path | None) -> tuple[bytes, str]:
    """The bytes of an image as a table stores it, or why there are none.

    Args:
        value: bytes, or {bytes, path} as `datasets` writes it.
        folder: of the table on this disk; the file that an image without bytes names is read, from there or from where
            it says. None is a table from elsewhere, whose paths mean nothing here.
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
    """What `read` gives of each name, in order; a few are under way at once."""
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
    variant: Variant, path: Path, split: str, *, config: str | None = None, limit_per_class: int | None = None
) -> ParquetSource | None:
    """A source of a split of Parquet files in a folder (or of the file that `path` is), with its labels checked now.

    None where there are no tables with images. Raises DataError where there is no such split or configuration, and as
    `ParquetSource.check` does.
    """
    try:
        there = tables_of(variant, path, config)
        if there is None:
            return None
        root, tables = there
        found = split_there(variant, tables, split)
        if found is None and path.is_file() and not set(map(usual_split, tables.splits)) & set(variant.splits):
            found = next(iter(tables.splits))  # named by itself, and by a word that the variant does not have
        if found is None:
            raise DataError(
                f"'{path}' has no split '{split}'.", f"Splits found: {quoted(tables.splits)}. Name one: source.split."
            )
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
