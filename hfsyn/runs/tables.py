"""Parquet files larger than memory: tables written a row group at a time, and single rows of a run's shards read."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from builders.files import atomic_write
from builders.runs import layout

_BATCH = 16
"""Rows decoded at a time; with images of 512 px about 2 MB."""
_BUFFER = 1 << 20
"""Bytes of a column read ahead; without a buffer a whole row group of images is read to reach one row."""


def image_of(row: Mapping[str, Any]) -> Image.Image:
    """The decoded image of a stored row."""
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def flags_of(row: Mapping[str, Any]) -> list[str]:
    """What is flagged in a row: ``truncated``, ``safety``, ``retried``, and the flags of its caption."""
    columns = (("truncated", "truncated"), ("safety", "safety"), ("retried", "retries"))
    return [flag for flag, column in columns if row.get(column)] + list(row["caption_flags"])


def write_groups(path: Path, groups: Iterable[Mapping[str, Sequence[Any]]], schema: pa.Schema) -> int:
    """Write row groups as they come to one Parquet file, atomically, and return the number of rows.

    The bytes are those of `hfsyn.runs.shards.write_parquet` for the same rows and groups.

    Args:
        path: of the file.
        groups: the columns of one row group after the other: the schema's names, equally long, not empty.
        schema: of the table, without image bytes.
    """
    rows = 0

    def write(temporary: Path) -> None:
        nonlocal rows
        with pq.ParquetWriter(
            temporary,
            schema,
            compression="SNAPPY",
            use_dictionary=True,
            write_page_index=True,
            use_content_defined_chunking={"min_chunk_size": 256 * 2**10, "max_chunk_size": 2**20, "norm_level": 0},
        ) as writer:
            for columns in groups:
                table = pa.table([pa.array(columns[field.name], type=field.type) for field in schema], schema=schema)
                writer.write_table(table, row_group_size=table.num_rows)
                rows += table.num_rows

    atomic_write(path, write)
    return rows


class StoredRows:
    """The rows in the finished shards of a run folder, numbered in the order of the shards."""

    def __init__(self, folder: Path) -> None:
        self._shards = list(layout.finished_shards(folder / layout.DATA))
        lengths = [pq.read_metadata(shard).num_rows for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Small text columns of all rows, in order."""
        if not self._shards:
            return pa.table({name: pa.array([], pa.string()) for name in columns})
        return pa.concat_tables(pq.read_table(shard, columns=list(columns)) for shard in self._shards)

    def read(self, numbers: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows with these numbers, in their order, with all columns or these; only a few more are in memory.

        Raises:
            IndexError: there is no row with one of the numbers.
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
            for row, content in _read(self._shards[shard], rows, None if columns is None else list(columns)).items()
        }
        return [found[number] for number in numbers]


def _read(shard: Path, rows: set[int], columns: list[str] | None) -> dict[int, dict[str, Any]]:
    """Rows of one shard by their number in it; only row groups that hold one are read."""
    found: dict[int, dict[str, Any]] = {}
    with pq.ParquetFile(shard, buffer_size=_BUFFER) as file:
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
