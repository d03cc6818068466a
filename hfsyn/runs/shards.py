"""Shards on disk: written once, marked last, checked against their sidecars.

A shard goes to a temporary name in its own folder, is flushed to the disk, renamed, and only then marked by its
sidecar, which is written in the same way. A process that dies at any moment leaves at most a temporary file, which the
next process to make that shard removes; see `builders.files`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.files import atomic_text, atomic_write, sha256_of
from builders.runs.layout import ROW_GROUP_BYTES, Sidecar, load_sidecar, sidecar_of

# Boundaries found by content keep most chunks of an edited file equal, so that the Hub's storage sends only what
# changed.
_CHUNKING = {"min_chunk_size": 256 * 2**10, "max_chunk_size": 2**20, "norm_level": 0}


def write_parquet(
    path: Path, columns: dict[str, list[Any]], schema: pa.Schema, *, group_rows: int | None = None
) -> None:
    """Write columns as one Parquet file, the way that the Hub's viewer and storage like it.

    Image bytes are stored as they are (they are compressed already, and then an edit elsewhere leaves them in place),
    other columns are compressed; pages are indexed; row groups stay under 100 MB. The same columns give the same bytes.

    Args:
        path: written atomically.
        columns: equally long lists, in the schema's order.
        schema: of the table; features' metadata included where `datasets` shall restore them.
        group_rows: rows a row group; None chooses by size.
    """
    table = pa.table([pa.array(columns[f.name], type=f.type) for f in schema], schema=schema)
    leaves = _leaf_paths(schema)
    raw = {leaf for leaf in leaves if leaf.endswith(".bytes")}
    rows_in_group = group_rows or max(1, min(table.num_rows, table.num_rows * ROW_GROUP_BYTES // max(1, table.nbytes)))

    def write(temporary: Path) -> None:
        pq.write_table(
            table,
            temporary,
            row_group_size=rows_in_group,
            compression={leaf: "NONE" if leaf in raw else "SNAPPY" for leaf in leaves},
            use_dictionary=[leaf for leaf in leaves if leaf not in raw],
            write_page_index=True,
            use_content_defined_chunking=_CHUNKING,
        )

    atomic_write(path, write)


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
    path: Path, columns: dict[str, list[Any]], schema: pa.Schema, sidecar: Callable[[str, int], Sidecar]
) -> Sidecar:
    """Write a shard, as `write_parquet`, then its sidecar, made from the shard's SHA-256 and its size in bytes."""
    mark = sidecar_of(path)
    # But not the run folder above them, which may have been removed meanwhile.
    for folder in (path.parent, mark.parent.parent, mark.parent):
        folder.mkdir(exist_ok=True)
    write_parquet(path, columns, schema)
    made = sidecar(sha256_of(path), path.stat().st_size)
    atomic_text(mark, made.dump())
    return made


def is_done(path: Path) -> bool:
    """Whether a shard is finished: its sidecar and the shard itself are there."""
    return sidecar_of(path).exists() and path.exists()


def pending(paths: Sequence[Path]) -> list[Path]:
    """Those of `paths` that are not finished, in order."""
    return [path for path in paths if not is_done(path)]


def sidecars(paths: Sequence[Path]) -> list[Sidecar]:
    """The sidecars of those of `paths` that are finished, in order."""
    return [load_sidecar(sidecar_of(path)) for path in paths if is_done(path)]


def faults(path: Path, fingerprint: str) -> list[str]:
    """What is wrong with a finished shard, one line each; empty where it is as its sidecar says."""
    if not is_done(path):
        return [f"{path.name} is missing"]
    sidecar = load_sidecar(sidecar_of(path))
    found = []
    if sidecar.fingerprint != fingerprint:
        found.append(f"{path.name} was made by another recipe ({sidecar.fingerprint[:12]}, not {fingerprint[:12]})")
    if path.stat().st_size != sidecar.bytes or sha256_of(path) != sidecar.sha256:
        found.append(f"{path.name} has other bytes than its sidecar states")
    elif pq.read_metadata(path).num_rows != sidecar.rows:
        found.append(f"{path.name} has other rows than its sidecar states")
    return found
