"""Tables of a million lines, written to Parquet a row group at a time: memory does not grow with their length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.files import atomic_write

Columns = Mapping[str, Sequence[Any]]


def write_groups(path: Path, groups: Iterable[Columns], schema: pa.Schema) -> int:
    """Write row groups as they come to one Parquet file, atomically.

    The bytes are those of `hfsyn.runs.shards.write_parquet` for the same rows and groups.

    Args:
        path: of the file.
        groups: the columns of one row group after the other, each of the schema's names, equally long, not empty.
        schema: of the table, without image bytes.

    Returns:
        How many rows were written.
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
