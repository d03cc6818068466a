"""Shards: written whole or not at all, marked last, claimed once, checked."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, List, Value

from builders.files import atomic_text, atomic_write
from builders.runs.layout import ROW_GROUP_BYTES, Sidecar, finished_shards, load_sidecar, shard_name, sidecar_of
from hfsyn.runs.shards import faults, is_done, pending, write_parquet, write_shard

SCHEMA = Features({"image": Image(), "n": Value("int64"), "flags": List(Value("string"))}).arrow_schema


def columns(rows: int = 3, size: int = 50) -> dict[str, list]:
    return {
        "image": [{"bytes": bytes([i % 256]) * size, "path": None} for i in range(rows)],
        "n": list(range(rows)),
        "flags": [["a", "b"][: i % 3] for i in range(rows)],
    }


def sidecar(sha256: str, size: int, rows: int = 3) -> Sidecar:
    return Sidecar("generate", 0, 1, 0, rows, rows, sha256, size, "f" * 64)


def test_a_shard_comes_with_a_sidecar_that_states_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "data" / shard_name("train", 0, 1)
    made = write_shard(path, columns(), SCHEMA, sidecar)
    assert is_done(path)
    assert load_sidecar(sidecar_of(path)) == made
    assert faults(path, "f" * 64) == []
    assert pq.read_table(path).to_pylist()[2] == {
        "image": {"bytes": b"\x02" * 50, "path": None},
        "n": 2,
        "flags": ["a", "b"],
    }


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_parquet(tmp_path / name, columns(), SCHEMA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_images_are_stored_uncompressed_and_indexed_and_row_groups_stay_small(tmp_path: Path) -> None:
    path = tmp_path / "big.parquet"
    write_parquet(path, columns(24, 10 * 2**20), SCHEMA)
    meta = pq.read_metadata(path)
    kinds = {meta.row_group(0).column(i).path_in_schema: meta.row_group(0).column(i) for i in range(meta.num_columns)}
    assert kinds["image.bytes"].compression == "UNCOMPRESSED"
    assert kinds["n"].compression == kinds["flags.list.element"].compression == "SNAPPY"
    assert all(column.has_offset_index and column.has_column_index for column in (kinds["n"], kinds["image.path"]))
    assert meta.num_row_groups > 1
    assert max(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)) <= ROW_GROUP_BYTES * 1.01


def test_features_survive(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", columns(), SCHEMA)
    assert Features.from_arrow_schema(pq.read_schema(tmp_path / "a.parquet"))["image"] == Image()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    atomic_text(tmp_path / "a.json", "old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(tmp_path / "a.json", fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_anything_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a machine that loses its power keeps the name of an empty file, or a sidecar without its shard."""
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(handle: int) -> None:
        done.append(("flush", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        done.append(("rename", path.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    folder = tmp_path / "data"
    write_shard(folder / shard_name("train", 0, 1), columns(), SCHEMA, sidecar)
    names = [name for deed, name in done if deed == "rename"]
    assert [name.split(".")[1] for name in names] == ["train-00000-of-00001"] * 2
    one = [[("flush", name), ("rename", name), ("flush", folder.name)] for name in names]
    assert done == [*one[0], *one[1]]


def test_left_over_temporary_files_go_when_their_shard_is_made(tmp_path: Path) -> None:
    path = tmp_path / "data" / shard_name("train", 0, 1)
    gone = subprocess.Popen(["true"])
    gone.wait()
    whose = f"{socket.gethostname()}.{gone.pid}.0123abcd.tmp"
    path.parent.mkdir()
    path.with_name(f".{path.name}.{whose}").write_text("half")
    other = path.with_name(f".train-00001-of-00002.parquet.{whose}")
    other.write_text("another shard's")
    write_shard(path, columns(), SCHEMA, sidecar)
    assert sorted(p.name for p in tmp_path.rglob(".*.tmp")) == [other.name]


def test_a_shard_without_its_sidecar_is_not_done(tmp_path: Path) -> None:
    path = tmp_path / "data" / shard_name("train", 0, 1)
    write_shard(path, columns(), SCHEMA, sidecar)
    assert list(finished_shards(path.parent)) == [path]
    sidecar_of(path).unlink()
    assert not is_done(path)
    assert pending([path]) == [path]
    assert list(finished_shards(path.parent)) == []


@pytest.mark.parametrize("damage", ["bytes", "size", "recipe", "rows", "gone"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "data" / shard_name("train", 0, 1)
    write_shard(path, columns(), SCHEMA, lambda sha, n: sidecar(sha, n, 4 if damage == "rows" else 3))
    data = path.read_bytes()
    if damage == "bytes":
        path.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])
    elif damage == "size":
        path.write_bytes(data + b"x")
    elif damage == "gone":
        path.unlink()
    assert len(faults(path, "e" * 64 if damage == "recipe" else "f" * 64)) == 1


def test_a_schema_with_nested_lists_writes(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.list_(pa.struct([("y", pa.string())])))])
    write_parquet(tmp_path / "n.parquet", {"x": [[{"y": "a"}], []]}, schema)
    assert pq.read_table(tmp_path / "n.parquet").to_pylist() == [{"x": [{"y": "a"}]}, {"x": []}]


def test_a_shard_without_rows_has_no_row_group(tmp_path: Path) -> None:
    """`datasets` would read one without rows in portions of none, and fail."""
    schema = pa.schema([("sample_id", pa.string())])
    write_parquet(tmp_path / "a.parquet", {"sample_id": []}, schema)
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 0
    assert pq.read_table(tmp_path / "a.parquet").schema == schema
