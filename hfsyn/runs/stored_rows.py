"""Some of a run's stored rows, without the others' images: a run may be larger than memory.

Which rows is decided on a table of small columns; the images are then read of these alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.runs import layout

_BATCH = 16
"""Rows decoded at a time; with images of 512 px about 2 MB."""
_BUFFER = 1 << 20
"""Bytes of a column read ahead; without a buffer a whole row group of images is read to reach one row."""


class StoredRows:
    """The rows in the finished shards of a run folder, numbered through in the shards' order."""

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

    def read(self, numbers: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows with these numbers, in the numbers' order; memory for these and a few more.

        Raises:
            IndexError: a number is not that of a row.
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
            for row, content in _read(self._shards[shard], rows, list(columns)).items()
        }
        return [found[number] for number in numbers]


def _read(shard: Path, rows: set[int], columns: list[str]) -> dict[int, dict[str, Any]]:
    """Rows of one shard by their number in it."""
    found: dict[int, dict[str, Any]] = {}
    with pq.ParquetFile(shard, buffer_size=_BUFFER) as file:
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            missing = {row for row in rows if start <= row < stop}
            first = start
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns) if missing else ():
                for row in sorted(row for row in missing if first <= row < first + len(batch)):
                    found[row] = batch.slice(row - first, 1).to_pylist()[0]
                first += len(batch)
                if missing <= found.keys():
                    break
            start = stop
    return found
