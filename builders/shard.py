"""The rows of shards in portions whose size is known before they are unpacked: memory is bounded, whoever wrote them.

A Parquet file of a few kilobytes can stand for gigabytes: a compression that is nothing but a number, a dictionary with
one long text and a million references to it, one row group with all of it. A shard of hfsyn's has none of these. So the
footer is compared with what the manifest states, and texts are counted while they are still references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builders.errors import DataError
from builders.layout import ROW_GROUP_BYTES, ShardEntry

__all__ = ["Shard"]

_LARGEST_GROUP = 4 * ROW_GROUP_BYTES
"""What is read: one image of this size alone makes a row group of its own."""
_COMPRESSIONS = {"UNCOMPRESSED", "SNAPPY"}
_RATIO, _SLACK = 32, 2**20
"""Snappy makes nothing smaller than by 22 times; and what a footer may add to a file of few rows."""
_ROWS = 256
_MOST_BYTES = 64 * 2**20
"""Of one column in a portion, where it is written as references: 256 kB a row."""


class Shard:
    """An open shard, its footer found fit to be read.

    Args:
        file: of the shard, open for reading.
        entry: what the manifest states of it; None for a shard of a run on this disk.
        where: whose it is, for messages.

    Raises:
        DataError: it is not a Parquet file, has other rows than its entry states, or would unpack to more than a file
            of hfsyn's can hold.
    """

    def __init__(self, file: IO[bytes], entry: ShardEntry | None, where: str) -> None:
        self._where = where if entry is None else f"{entry.file} of {where}"
        try:
            self.footer = pq.read_metadata(file)
        except pa.ArrowInvalid as error:
            raise self._refused(f"is not a Parquet file ({' '.join(str(error).split())[:120]})") from None
        groups = [self.footer.row_group(number) for number in range(self.footer.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        self._check(groups, chunks, entry)
        self.schema: pa.Schema = self.footer.schema.to_arrow_schema()
        """Its columns, with what `datasets` says of them in the metadata."""
        references = sorted(
            {c.path_in_schema for c in chunks if c.physical_type == "BYTE_ARRAY" and c.has_dictionary_page}
        )
        self._parquet = pq.ParquetFile(file, metadata=self.footer, read_dictionary=references)

    def _check(self, groups: Sequence[Any], chunks: Sequence[Any], entry: ShardEntry | None) -> None:
        size = sum(group.total_byte_size for group in groups)
        largest = max((group.total_byte_size for group in groups), default=0)
        odd = sorted({chunk.compression for chunk in chunks} - _COMPRESSIONS)
        if odd:
            raise self._refused(f"is compressed by {odd[0]}, which hfsyn never writes")
        if largest > _LARGEST_GROUP:
            raise self._refused(f"has a row group of {largest / 1e9:.1f} GB")
        if entry is None:
            return
        if size > entry.bytes * _RATIO + _SLACK:
            raise self._refused(f"would unpack to {size / 1e9:.1f} GB, and its manifest states {entry.bytes:,} bytes")
        if self.footer.num_rows != entry.rows:
            raise self._refused(f"has {self.footer.num_rows:,} rows, and its manifest states {entry.rows:,}")

    def _refused(self, problem: str) -> DataError:
        return DataError(f"{self._where} {problem}.", "It is not read: it is damaged, or somebody changed it.")

    def groups(self) -> range:
        """The numbers of its row groups."""
        return range(self.footer.num_row_groups)

    def portions(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None, rows: int = _ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Its rows in order, a few at a time.

        Args:
            columns: by name; None is all.
            groups: numbers of row groups; None is all.
            rows: in a portion, at most.

        Raises:
            DataError: a portion would be larger than rows of hfsyn's are.
        """
        chosen = list(columns) if columns is not None else None
        wanted = list(groups) if groups is not None else list(self.groups())
        for batch in self._parquet.iter_batches(rows, row_groups=wanted, columns=chosen):
            arrays = []
            for name, array in zip(batch.schema.names, batch.columns, strict=True):
                if (size := _bytes_of(array)) > _MOST_BYTES:
                    raise self._refused(f"has {batch.num_rows} rows whose {name} alone takes {size / 1e9:.1f} GB")
                arrays.append(_plain(array))
            fields = [self.schema.field(name) for name in batch.schema.names]
            yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, self.schema.metadata))

    def rows(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Its rows in order, as Python's own values; see `portions`."""
        for batch in self.portions(columns, groups=groups):
            yield from batch.to_pylist()


def _bytes_of(array: pa.Array) -> int:
    """Bytes that references in an array stand for."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(pc.cast(lengths.take(array.indices), pa.int64())).as_py() or 0)
    if pa.types.is_struct(array.type):
        return sum(_bytes_of(array.field(number)) for number in range(array.type.num_fields))
    return _bytes_of(array.flatten()) if pa.types.is_list(array.type) else 0


def _plain(array: pa.Array) -> pa.Array:
    """An array with its references written out."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return array.dictionary_decode()
    if pa.types.is_struct(kind):
        parts = [_plain(array.field(number)) for number in range(kind.num_fields)]
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return pa.StructArray.from_arrays(parts, names, mask=array.is_null())
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(array.offsets, _plain(array.values), mask=array.is_null())
    return array
