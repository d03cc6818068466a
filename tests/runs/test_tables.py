"""Long tables: the same bytes as when they are written at once, and nothing half-written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hfsyn.runs.shards import write_groups, write_parquet
from hfsyn.runs.stage import PLAN_SCHEMA


def columns(rows: int) -> dict[str, list[Any]]:
    rng = random.Random(0)
    return {
        "sample_id": [f"n{i}/x.png#{i}" for i in range(rows)],
        "source_id": [f"{rng.random()}" for _ in range(rows)],
        "wnid": ["n00000001"] * rows,
        "class_name": [f"class {i % 7}" for i in range(rows)],
        "label": list(range(rows)),
        "prompt": ["word " * rng.randrange(40) + str(i) for i in range(rows)],
        "caption": [None if i % 3 else str(i) for i in range(rows)],
        "caption_flags": [["a", "b"][: i % 3] for i in range(rows)],
        "seed": [rng.getrandbits(63) for _ in range(rows)],
    }


def groups(whole: dict[str, list[Any]], size: int) -> Iterator[dict[str, list[Any]]]:
    for start in range(0, len(whole["seed"]), size):
        yield {name: values[start : start + size] for name, values in whole.items()}


@pytest.mark.parametrize("size", [7, 1000, 2500, 9000])
def test_group_by_group_gives_the_bytes_of_all_at_once(tmp_path: Path, size: int) -> None:
    whole = columns(2500)
    write_parquet(tmp_path / "once.parquet", whole, PLAN_SCHEMA, group_rows=size)
    assert write_groups(tmp_path / "groups.parquet", groups(whole, size), PLAN_SCHEMA) == 2500
    assert (tmp_path / "groups.parquet").read_bytes() == (tmp_path / "once.parquet").read_bytes()
    sizes = [pq.read_metadata(tmp_path / "groups.parquet").row_group(i).num_rows for i in range(-(-2500 // size))]
    assert sizes == [min(size, 2500 - start) for start in range(0, 2500, size)]


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, list[Any]]]:
        yield columns(10)
        raise RuntimeError("the source broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        write_groups(tmp_path / "table.parquet", broken(), PLAN_SCHEMA)
    assert not list(tmp_path.iterdir())
