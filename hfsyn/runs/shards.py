"""Shards on disk: written once, marked last, checked against their sidecars.

A shard goes to a temporary name in its own folder, is flushed to the disk, renamed, and only then marked by its
sidecar, which is written in the same way. A process that dies at any moment leaves at most a temporary file, which the
next process to make that shard removes; see `builders.files`. Tables that may be larger than memory are written a row
group at a time, and single rows of a run's shards can be read without the others.
"""

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.files import atomic_text, atomic_write, sha256_of
from builders.runs import layout
from builders.stores import copies
from builders.stores.store import stand_in
from hfsyn.runs.leases import note_again

if TYPE_CHECKING:
    from PIL import Image

# Boundaries found by content keep most chunks of an edited file equal, so that the Hub's storage sends only what
# changed.
_CHUNKING = {"min_chunk_size": 256 * 2**10, "max_chunk_size": 2**20, "norm_level": 0}
_BATCH = 16  # rows decoded at a time; with images of 512 px about 2 MB
_BUFFER = 1 << 20  # bytes of a column read ahead; without a buffer a whole row group of images is read to reach one row


def write_parquet(
    path: Path, columns: dict[str, list[Any]], schema: pa.Schema, *, group_rows: int | None = None
) -> None:
    """Write equally long columns atomically as one Parquet file, the way that the Hub's viewer and storage like it.

    Image bytes are stored as they are (they are compressed already, and then an edit elsewhere leaves them in place),
    other columns are compressed; pages are indexed; row groups stay under 100 MB, or have `group_rows` rows. The same
    columns give the same bytes. The schema has features' metadata if `datasets` is to restore them.
    """
    table = _table(columns, schema)
    rows = group_rows or max(1, min(table.num_rows, table.num_rows * layout.ROW_GROUP_BYTES // max(1, table.nbytes)))
    # A row group without rows would be read in portions of none, which `datasets` cannot.
    _write(path, [(table, rows)] if table.num_rows else [], schema)


def _table(columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([pa.array(columns[field.name], type=field.type) for field in schema], schema=schema)


def _write(path: Path, tables: Iterable[tuple[pa.Table, int]], schema: pa.Schema) -> int:
    """Write tables, each with the number of rows of its row groups, to one file; return the number of all rows."""
    leaves, written = _leaf_paths(schema), 0
    raw = {leaf for leaf in leaves if leaf.endswith(".bytes")}

    def write(temporary: Path) -> None:
        nonlocal written
        with pq.ParquetWriter(
            temporary,
            schema,
            compression={leaf: "NONE" if leaf in raw else "SNAPPY" for leaf in leaves},
            use_dictionary=[leaf for leaf in leaves if leaf not in raw],
            write_page_index=True,
            use_content_defined_chunking=_CHUNKING,
        ) as writer:
            for table, rows in tables:
                writer.write_table(table, row_group_size=rows)
                written += table.num_rows

    atomic_write(path, write)
    return written


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Dotted Parquet paths of the leaf columns: ``image.bytes``, ``caption_flags.list.element``."""

    def leaves(prefix: str, kind: pa.DataType) -> Iterator[str]:
        if pa.types.is_struct(kind):
            for i in range(kind.num_fields):
                yield from leaves(f"{prefix}.{kind.field(i).name}", kind.field(i).type)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            yield from leaves(f"{prefix}.list.element", kind.value_type)
        else:
            yield prefix

    return [leaf for field in schema for leaf in leaves(field.name, field.type)]


def write_shard(
    path: Path, columns: dict[str, list[Any]], schema: pa.Schema, sidecar: Callable[[str, int], layout.Sidecar]
) -> layout.Sidecar:
    """Write a shard, as `write_parquet`, then its sidecar, made from the shard's SHA-256 and its size in bytes."""
    mark = layout.sidecar_of(path)
    if arrived(path) and copies.store_of(path) is not None:
        note_again(path)
        return layout.load_sidecar(mark)
    # But not the run folder above them, which may have been removed meanwhile.
    run = layout.run_of(path)
    for folder in (*reversed(path.relative_to(run).parents), *reversed(mark.relative_to(run).parents)):
        if folder != Path():
            (run / folder).mkdir(exist_ok=True)
    write_parquet(path, columns, schema)
    made = sidecar(sha256_of(path), path.stat().st_size)
    atomic_text(mark, made.dump())
    if path.parent.name == layout.DATA:
        copies.let_go(path)
    return made


def arrived(path: Path) -> bool:
    """As `is_done`; asks the store of a run in object storage whether another job has finished the shard."""
    mark = layout.sidecar_of(path)
    if copies.arrived(mark) and not path.exists():
        stand_in(path, layout.load_sidecar(mark).bytes)
    return is_done(path)


def is_done(path: Path) -> bool:
    """Whether a shard is finished: its sidecar and the shard itself are there."""
    return layout.sidecar_of(path).exists() and path.exists()


def pending(paths: Sequence[Path]) -> list[Path]:
    """Those of `paths` that are not finished, in order."""
    return [path for path in paths if not is_done(path)]


def sidecars(paths: Sequence[Path]) -> list[layout.Sidecar]:
    """The sidecars of those of `paths` that are finished, in order."""
    return [layout.load_sidecar(layout.sidecar_of(path)) for path in paths if is_done(path)]


def faults(path: Path, fingerprint: str, *, here: bool = False) -> list[str]:
    """What is wrong with a finished shard, one line each; empty if it is as its sidecar says. With `here` the bytes of
    one in object storage are not fetched: they are compared when they are sent on.
    """
    if not is_done(path):
        return [f"{path.name} is missing"]
    sidecar = layout.load_sidecar(layout.sidecar_of(path))
    found = []
    if sidecar.fingerprint != fingerprint:
        found.append(f"{path.name} was made by another recipe ({sidecar.fingerprint[:12]}, not {fingerprint[:12]})")
    if here and copies.is_away(path):
        return found if path.stat().st_size == sidecar.bytes else [*found, f"{path.name} is cut short"]
    with copies.borrowed(path):
        if path.stat().st_size != sidecar.bytes or sha256_of(path) != sidecar.sha256:
            found.append(f"{path.name} has other bytes than its sidecar states")
        elif pq.read_metadata(path).num_rows != sidecar.rows:
            found.append(f"{path.name} has other rows than its sidecar states")
    return found


def image_of(row: Mapping[str, Any]) -> "Image.Image":
    """The decoded image of a stored row."""
    from PIL import Image  # which `hfsyn status` does without

    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def flags_of(row: Mapping[str, Any]) -> list[str]:
    """What is flagged in a row: ``truncated``, ``safety``, ``retried``, and the flags of its caption."""
    columns = (("truncated", "truncated"), ("safety", "safety"), ("retried", "retries"))
    return [flag for flag, column in columns if row.get(column)] + list(row.get("caption_flags", ()))


def write_groups(path: Path, groups: Iterable[Mapping[str, Sequence[Any]]], schema: pa.Schema) -> int:
    """Write row groups as they come to one Parquet file, atomically, and return the number of rows. Each group has the
    schema's columns, equally long and not empty, without image bytes. The bytes are those of `write_parquet` for the
    same rows and groups.
    """
    tables = (_table(columns, schema) for columns in groups)
    return _write(path, ((table, table.num_rows) for table in tables), schema)


class StoredRows:
    """The rows in the finished shards of a run folder, numbered in the order of the shards."""

    def __init__(self, folder: Path) -> None:
        self._shards = list(layout.finished_shards(folder / layout.DATA))
        lengths = [_rows(shard) for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Small text columns of all rows, in order."""
        if not self._shards:
            return pa.table({name: pa.array([], pa.string()) for name in columns})
        return pa.concat_tables(pq.read_table(copies.readable(shard), columns=list(columns)) for shard in self._shards)

    def read(self, numbers: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows with these numbers, in their order, with all columns or these; only a few more are in memory.

        Raises IndexError if there is no row with one of the numbers.
        """
        if wrong := [number for number in numbers if not 0 <= number < len(self)]:
            raise IndexError(f"row {wrong[0]} of {len(self)}")
        wanted: dict[int, set[int]] = defaultdict(set)
        for number in numbers:
            shard = int(np.searchsorted(self._starts, number, side="right")) - 1
            wanted[shard].add(number - int(self._starts[shard]))
        found = {
            int(self._starts[shard]) + row: content
            for shard, rows in sorted(wanted.items())
            for row, content in _read(self._shards[shard], rows, columns).items()
        }
        return [found[number] for number in numbers]


def _rows(shard: Path) -> int:
    """The number of rows of a finished shard."""
    if copies.is_away(shard):
        return layout.load_sidecar(layout.sidecar_of(shard)).rows
    return int(pq.read_metadata(shard).num_rows)


def _read(shard: Path, rows: set[int], columns: Sequence[str] | None) -> dict[int, dict[str, Any]]:
    """Rows of one shard by their number in it; only row groups that hold one are read."""
    found: dict[int, dict[str, Any]] = {}
    with pq.ParquetFile(copies.readable(shard), buffer_size=_BUFFER) as file:
        stop = 0
        for group in range(file.num_row_groups):
            start, stop = stop, stop + file.metadata.row_group(group).num_rows
            missing = {row for row in rows if start <= row < stop}
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns) if missing else ():
                for row in sorted(row for row in missing if start <= row < start + len(batch)):
                    found[row] = batch.slice(row - start, 1).to_pylist()[0]
                start += len(batch)
                if missing <= found.keys():
                    break
    return found
