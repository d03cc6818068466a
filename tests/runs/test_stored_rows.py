"""Single rows of a run's shards, in the order asked for, without reading the others."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.runs import layout
from builders.runs.rows import synthetic_features
from hfsyn.runs.shards import StoredRows, write_parquet

SHARDS, ROWS, IMAGE = 3, 50, 40_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of fifty images of 40 kB in row groups of twenty; row 7's prompt is "7"."""
    (tmp_path / layout.DATA).mkdir()
    schema = synthetic_features(["a"]).arrow_schema
    schema = pa.schema([schema.field("image"), schema.field("prompt")])
    for number in range(SHARDS):
        shard = tmp_path / layout.DATA / layout.shard_name("train", number, SHARDS)
        rows = range(number * ROWS, (number + 1) * ROWS)
        images = [{"bytes": bytes([row % 251]) * IMAGE, "path": None} for row in rows]
        write_parquet(shard, {"image": images, "prompt": [str(row) for row in rows]}, schema, group_rows=20)
        layout.sidecar_of(shard).parent.mkdir(parents=True, exist_ok=True)
        layout.sidecar_of(shard).write_text("{}")
    return tmp_path


def test_rows_come_in_the_order_asked_for(folder: Path) -> None:
    stored = StoredRows(folder)
    assert len(stored) == SHARDS * ROWS
    assert stored.table(["prompt"])["prompt"].to_pylist() == [str(row) for row in range(SHARDS * ROWS)]
    numbers = [149, 0, 19, 20, 50, 49, 0]
    rows = stored.read(numbers, ["image", "prompt"])
    assert [row["prompt"] for row in rows] == [str(number) for number in numbers]
    assert [row["image"]["bytes"] for row in rows] == [bytes([number % 251]) * IMAGE for number in numbers]
    assert stored.read([], ["prompt"]) == []


@pytest.mark.parametrize("number", [-1, SHARDS * ROWS])
def test_a_row_that_is_not_there_is_an_error(folder: Path, number: int) -> None:
    with pytest.raises(IndexError, match=f"row {number} of {SHARDS * ROWS}"):
        StoredRows(folder).read([0, number], ["prompt"])


def test_a_run_without_shards_has_no_rows(tmp_path: Path) -> None:
    stored = StoredRows(tmp_path)
    assert len(stored) == 0
    assert stored.table(["wnid"])["wnid"].to_pylist() == []


def test_the_other_row_groups_are_not_read(folder: Path) -> None:
    # A stranger's bytes in place of the first row group: reading it fails.
    shard = folder / layout.DATA / layout.shard_name("train", 0, SHARDS)
    group = pq.read_metadata(shard).row_group(0)
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "image.bytes")
    with shard.open("r+b") as file:
        file.seek(column.data_page_offset)
        file.write(b"\xff" * column.total_compressed_size)
    stored = StoredRows(folder)
    assert stored.read([20], ["image"])[0]["image"]["bytes"] == bytes([20]) * IMAGE
    with pytest.raises((OSError, pa.ArrowException)):
        stored.read([0], ["image"])
