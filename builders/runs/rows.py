"""The rows of tables and shards: their columns as `datasets.Features`, and shards read so that memory is bounded.

A malicious Parquet file of a few kilobytes can expand to gigabytes: by its compression, by a dictionary with one long
text and a million references to it, or by one huge row group. So the footer is compared with what the manifest states,
texts are measured while they are still references, and rows are read in portions. `names` are class names in label
order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, List, Value
from datasets.builder import Key

from builders.errors import DataError, brief
from builders.runs.layout import ROW_GROUP_BYTES, ShardEntry

_LARGEST_GROUP = 4 * ROW_GROUP_BYTES  # the largest that is read; a single image this large has a row group of its own
_COMPRESSIONS = {"UNCOMPRESSED", "SNAPPY"}
_RATIO, _SLACK = 32, 2**20
"""Snappy compresses at most 22 times; and bytes that a footer may add to a file with few rows."""
_ROWS = 256
_MOST_LISTED = 4 * 2**20  # bytes of a row group's lists of flags: a dictionary of a few words, and a few bits per row
_MOST_BYTES = 64 * 2**20  # of one dictionary-encoded column in a portion: 32 kB per row
Files = Sequence[tuple[str, ShardEntry | None]]  # the path or URL of each shard, and its entry in the manifest


def _columns(text: str, names: Sequence[str]) -> Features:
    """Columns by name, each of the one type that it has in all tables; texts if nothing else is said."""
    kinds = {"image": Image(), "label": ClassLabel(names=list(names)), "caption_flags": List(Value("string"))}
    kinds |= dict.fromkeys(("width", "height", "prompt_tokens", "retries"), Value("int32"))
    kinds |= {"seed": Value("int64"), "truncated": Value("bool"), "safety": Value("bool")}
    return Features({name: kinds.get(name, Value("string")) for name in text.split()})


def source_features(names: Sequence[str]) -> Features:
    """Columns of a real image: the stored image and its class."""
    return _columns("image label wnid class_name source_id", names)


def captioned_features(names: Sequence[str]) -> Features:
    """Columns of a captioned image; the image itself stays in its source.

    `caption` is null if there is none; `source_sha256` is of the stored bytes; `width` and `height` are in pixels after
    decoding, with EXIF rotation.
    """
    return _columns("source_id wnid label class_name caption caption_flags source_sha256 width height", names)


SCORES = {"number": "float64", "whole": "int64", "truth": "bool", "text": "string"}
"""Kind of a score -> type of its column."""


def synthetic_features(
    names: Sequence[str], *, paired: bool = False, scores: Mapping[str, str] | None = None
) -> Features:
    """Columns of a synthetic image, as published.

    `caption` is null if the recipe has none; if images got the captions of others (`paired`), it is the caption as it
    was put into the prompt, and `caption_source_id` is the real image that it describes; `prompt_tokens` is the number
    of the text encoder's tokens before truncation; `safety` is whether a safety checker flagged an attempt; `retries`
    is the number of discarded attempts. `scores` are more columns, of a selection, each with its kind.
    """
    columns = "image label wnid class_name prompt caption seed sample_id source_id prompt_tokens truncated safety"
    more = "retries caption_flags" + (" caption_source_id" if paired else "")
    found = _columns(f"{columns} {more}", names)
    return Features(found | {name: Value(SCORES[kind]) for name, kind in (scores or {}).items()})


class Shard:
    """An open shard whose footer is checked against `entry` of the manifest (None: a shard of a local run).

    Raises DataError, which calls it by `where`, if it is not a Parquet file, does not have the stated rows, or would
    decompress to more than a file of hfsyn's can hold.
    """

    def __init__(self, file: IO[bytes], entry: ShardEntry | None, where: str) -> None:
        self._where = where if entry is None else f"{entry.file} of {where}"
        try:
            self.footer = pq.read_metadata(file)
        except pa.ArrowInvalid as error:
            raise self._refused(f"is not a Parquet file ({brief(error, 120)})") from None
        groups = [self.footer.row_group(number) for number in range(self.footer.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        self._check(groups, chunks, entry)
        self.schema: pa.Schema = self.footer.schema.to_arrow_schema()  # with the metadata of `datasets`
        # Within structs pyarrow cannot keep references if a column switches to plain values in its middle.
        kept = {c.path_in_schema for c in chunks if _is_referring(c) and (_is_top(c) or _is_list(c))}
        self._parquet = pq.ParquetFile(file, metadata=self.footer, read_dictionary=sorted(kept))

    def _check(self, groups: Sequence[Any], chunks: Sequence[Any], entry: ShardEntry | None) -> None:
        size = sum(group.total_byte_size for group in groups)
        largest = max((group.total_byte_size for group in groups), default=0)
        odd = sorted({chunk.compression for chunk in chunks} - _COMPRESSIONS)
        if odd:
            raise self._refused(f"is compressed by {odd[0]}, which hfsyn never writes")
        if largest > _LARGEST_GROUP:
            raise self._refused(f"has a row group of {largest / 1e9:.1f} GB")
        for chunk in filter(_is_referring, chunks):
            if _is_list(chunk) and chunk.total_uncompressed_size > _MOST_LISTED:
                raise self._refused(f"has {chunk.total_uncompressed_size / 1e6:.0f} MB of {chunk.path_in_schema}")
        if entry is None:
            return
        if size > entry.bytes * _RATIO + _SLACK:
            raise self._refused(f"would unpack to {size / 1e9:.1f} GB, and its manifest states {entry.bytes:,} bytes")
        if self.footer.num_rows != entry.rows:
            raise self._refused(f"has {self.footer.num_rows:,} rows, and its manifest states {entry.rows:,}")

    def _refused(self, problem: str) -> DataError:
        return DataError(f"{self._where} {problem}.", "It is not read: it is damaged, or was changed.")

    def groups(self) -> range:
        """The numbers of its row groups."""
        return range(self.footer.num_row_groups)

    def portions(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None, rows: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of some columns and row groups (None is all) in order, at most `rows` at a time.

        Raises DataError if a portion is larger than rows of hfsyn's can be.
        """
        chosen = list(columns) if columns is not None else None
        rows = rows or (_ROWS if "image" in (self.schema.names if columns is None else columns) else 8 * _ROWS)
        for group in self.groups() if groups is None else groups:
            # Each row could refer to the largest value of a struct.
            part = self.footer.row_group(group)
            chunks = filter(_is_referring, map(part.column, range(part.num_columns)))
            sizes = [chunk.total_uncompressed_size for chunk in chunks if not (_is_top(chunk) or _is_list(chunk))]
            at_once = min(rows, max(1, _MOST_BYTES // 4 // max([1, *sizes])))
            for batch in self._parquet.iter_batches(at_once, row_groups=[group], columns=chosen):
                yield self._written_out(batch)

    def _written_out(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        arrays = []
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            if (size := _bytes_of(array)) > _MOST_BYTES:
                raise self._refused(f"has {batch.num_rows} rows whose {name} alone takes {size / 1e9:.1f} GB")
            arrays.append(_plain(array))
        fields = [self.schema.field(name) for name in batch.schema.names]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, self.schema.metadata))

    def rows(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The rows in order, as Python objects; see `portions`."""
        for batch in self.portions(columns, groups=groups):
            yield from batch.to_pylist()


def _is_referring(chunk: Any) -> bool:
    """Whether a column of texts or bytes is dictionary-encoded."""
    return bool(chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page)


def _is_top(chunk: Any) -> bool:
    return "." not in chunk.path_in_schema


def _is_list(chunk: Any) -> bool:
    return str(chunk.path_in_schema).endswith(".list.element")


def _bytes_of(array: pa.Array) -> int:
    """The bytes of an array after decoding its references."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(pc.cast(lengths.take(array.indices), pa.int64())).as_py() or 0)
    return _bytes_of(array.flatten()) if pa.types.is_list(array.type) else 0


def _plain(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return array.dictionary_decode()
    if pa.types.is_list(kind) and pa.types.is_dictionary(kind.value_type):
        return pa.ListArray.from_arrays(array.offsets, _plain(array.values), mask=array.is_null())
    return array


@dataclass
class ShardRowsConfig(datasets.BuilderConfig):
    """The shards of one split."""

    files: Sequence[str] = ()
    """Paths or URLs; those of a published version contain the commit, so that each has a separate cache."""
    entries: Sequence[ShardEntry] = ()
    split: str = "train"


class ShardRows(datasets.ArrowBasedBuilder):
    """Rows in the order of the shards; one shard of the builder for each of them."""

    BUILDER_CONFIG_CLASS = ShardRowsConfig

    def _shards(self) -> dict[str, Files]:
        return {self.config.split: list(zip(self.config.files, self.config.entries, strict=True))}

    def _info(self) -> datasets.DatasetInfo:
        path, entry = next(iter(self._shards().values()))[0]
        with _open(path) as handle:
            return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(Shard(handle, entry, path).schema))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"files": list(files)})
            for split, files in self._shards().items()
        ]

    def _generate_tables(self, files: Files) -> Iterator[tuple[Key, pa.Table]]:
        for number, (path, entry) in enumerate(files):
            with _open(path) as handle:
                for portion, batch in enumerate(Shard(handle, entry, path).portions()):
                    yield Key(number, portion), pa.Table.from_batches([batch])


def _open(path: str) -> Any:
    """A local file, or one on the Hub, which is read by ranges."""
    return fsspec.open(path, "rb").open() if path.startswith("hf://") else Path(path).open("rb")
