"""Files of strangers that unpack to far more than they weigh: refused in one line, by each command that reads them, in
little
memory.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import command
from conftest import finished_run
from datasets import Image as Undecoded
from hub_client import Client
from hub_server import Hub
from PIL import Image

from builders.errors import DataError
from builders.files import sha256_of
from builders.runs import layout
from builders.runs.layout import ShardEntry
from builders.runs.rows import synthetic_features
from builders.synthetic import Synthetic
from hfsyn.captions.providers import KnownCaptions
from hfsyn.recipes.recipe import stored_recipe
from hfsyn.runs.shards import write_parquet

ROWS = 400
TEXT = "x" * 2**20
MOST = 150.0
"""MB that a command may take beyond what it has: the files unpack to 400 and more."""
SHARD, CAPTIONS = "data/train-00001-of-00004.parquet", "captions/train-00001-of-00004.parquet"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = finished_run(tmp_path_factory.mktemp("made"))
    assert len(list(Synthetic(run=str(run)).as_streaming_dataset("train"))) == 30  # imports what takes memory itself
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def referring(values: list[Any], kind: pa.DataType) -> pa.Array:
    """A long column of one value, written as references to it."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), pa.array(values, kind))


def filled(path: Path, **columns: pa.Array) -> pa.Table:
    """The columns of a shard, its first row over and over but for these columns."""
    first = pq.read_table(path).slice(0, 1)
    arrays = {name: columns.get(name, pa.chunked_array([first[name].chunk(0)] * ROWS)) for name in first.column_names}
    return pa.table(arrays, metadata=first.schema.metadata)


def written(table: pa.Table, path: Path) -> None:
    """Write references as texts: without Arrow's own schema nobody knows that there were any."""
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.add_key_value_metadata(table.schema.metadata)
        writer.write_table(table)


def dictionary(path: Path, column: str) -> None:
    """A megabyte of text that 400 rows refer to."""
    written(filled(path, **{column: referring([TEXT], pa.string())}), path)


def compressed(path: Path, column: str) -> None:
    """The same text in every row, packed by a codec that makes nothing of it; a row group at a time."""
    first = pq.read_table(path).slice(0, 1)
    long = first.set_column(first.column_names.index(column), column, pa.array([TEXT]))
    part = pa.concat_tables([long] * 20)
    with pq.ParquetWriter(path, first.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(ROWS // 20):
            writer.write_table(part)


def images(path: Path, column: str) -> None:
    """One picture of a megabyte to which the rows refer."""
    stored = io.BytesIO()
    Image.effect_noise((600, 600), 90).convert("RGB").save(stored, "BMP")
    parts = [referring([stored.getvalue()], pa.binary()), pa.array([None] * ROWS, pa.string())]
    written(filled(path, image=pa.StructArray.from_arrays(parts, ["bytes", "path"])), path)


def packed(
    run: Path, how: Callable[[Path, str], None], shard: str = SHARD, column: str = "prompt", *, stated: bool = True
) -> None:
    """Put such a file into a finished run, `stated` with a manifest that says what it is."""
    path = run / shard
    how(path, column)
    size = path.stat().st_size
    assert size < 3 * 2**20
    if not stated:
        return
    manifest = json.loads((run / layout.MANIFEST).read_text())
    for entry in (*manifest["shards"], *manifest["captions"]):
        if entry["file"] == shard:
            entry.update(sha256=sha256_of(path), bytes=size, rows=ROWS)
    manifest["rows"] = sum(entry["rows"] for entry in manifest["shards"])
    (run / layout.MANIFEST).write_text(json.dumps(layout.sealed(manifest)))


def peak(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the MB that this process took meanwhile."""

    def megabytes(key: str) -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{key}:")[1].split()[0]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = megabytes("VmRSS")
    found = call()
    return found, megabytes("VmHWM") - before


KINDS = pytest.mark.parametrize("how", [dictionary, compressed])


@KINDS
@pytest.mark.parametrize("stated", [False, True], ids=["exchanged", "stated"])
@pytest.mark.parametrize(("shard", "column"), [(SHARD, "prompt"), (CAPTIONS, "caption")], ids=["data", "captions"])
def test_verify_names_the_file_and_takes_little_memory(
    run: Path, how: Any, shard: str, column: str, stated: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    packed(run, how, shard, column, stated=stated)
    said, taken = peak(lambda: command(capsys, "verify", run))
    assert taken < MOST
    assert (said.code, f"{shard} cannot be read: {shard} of " in said.out) == (1, True), said.out[:2000]


@pytest.mark.parametrize("how", [dictionary, compressed, images])
def test_diff_reproduce_and_the_builder_refuse_it_in_one_line(
    run: Path, made: Path, how: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    packed(run, how)
    there = pq.read_table(made / SHARD)["sample_id"][0].as_py()
    for words in (("diff", made, run), ("reproduce", run, "--sample-id", there, "--device", "cpu")):
        if how is images and words[0] == "reproduce":
            continue  # it draws the image again
        said, taken = peak(lambda words=words: command(capsys, *words))
        assert taken < MOST, words
        if how is images:  # read a few at a time: other tools write images so, if not as many of one
            continue
        assert (said.code, len(said.err.splitlines()), f"{SHARD} of {run}" in said.err) == (2, 1, True), said
    from builders.runs.rows import ShardRows

    manifest = layout.load_manifest((run / layout.MANIFEST).read_text(), "the manifest")
    rows = ShardRows(files=[str(run / e.file) for e in manifest.shards], entries=manifest.shards)

    def streamed() -> str:
        try:
            return str(sum(1 for _ in rows.as_streaming_dataset("train").cast_column("image", Undecoded(decode=False))))
        except DataError as error:
            return error.message

    told, taken = peak(streamed)
    assert taken < MOST
    assert told == str(22 + ROWS) if how is images else f"{SHARD} of " in told


@KINDS
def test_captions_that_are_taken_from_elsewhere_are_looked_at_too(run: Path, how: Any) -> None:
    packed(run, how, CAPTIONS, "caption")

    def take() -> None:
        with pytest.raises(DataError, match=f"{CAPTIONS} of {run}"):
            KnownCaptions(str(run), stored_recipe(run))

    assert peak(take)[1] < MOST


def test_columns_that_go_over_to_plain_values_in_their_middle_are_read_as_they_are(tmp_path: Path) -> None:
    """What pyarrow does where a dictionary is full; and row groups, each with a dictionary of its own."""
    from builders.runs.rows import Shard

    rows = [
        {
            "image": {"bytes": b"x" * (n % 90), "path": f"{n:060d}.jpg"} if n % 11 else None,
            "prompt": f"{n} {'fish ' * 20}" if n % 5 else None,
            "caption_flags": ["empty", "repeated"][: n % 3],
        }
        for n in range(24_000)
    ]
    schema = synthetic_features(["a"]).arrow_schema
    schema = pa.schema([schema.field(name) for name in rows[0]])
    write_parquet(
        tmp_path / "x.parquet", {name: [row[name] for row in rows] for name in rows[0]}, schema, group_rows=20_000
    )
    with (tmp_path / "x.parquet").open("rb") as file:
        assert list(Shard(file, None, "x").rows()) == rows


@pytest.fixture
def packed_on_the_hub(run: Path, hub: Hub) -> str:
    packed(run, dictionary)
    files = {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob("*.*") if p.is_file()}
    if ("dataset", "bob/packed") not in hub.store.repos:
        hub.add_repo("dataset", "bob/packed", {name: data for name, data in files.items() if not name.startswith(".")})
    return "bob/packed"


@pytest.mark.slow
def test_a_published_set_that_holds_it_does_not_load(packed_on_the_hub: str, alice: Client) -> None:
    code = f"""
from builders.published import load_version
result = []
for streaming in (False, True):
    try:
        result.append(sum(1 for _ in load_version({packed_on_the_hub!r}, "main", streaming=streaming)))
    except Exception as error:
        chain = [error, error.__cause__, error.__context__]
        result.append([{SHARD!r} in str(one) for one in chain if one].count(True) > 0)
"""
    assert alice.python(code) == [True, True]


@pytest.mark.slow
def test_a_training_on_a_published_set_refuses_it(packed_on_the_hub: str, alice: Client, tmp_path: Path) -> None:
    done = alice.hfsyn(
        "train",
        "--train-dataset",
        f"{packed_on_the_hub}@main",
        "--model",
        "test_resnet",
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--out",
        tmp_path / "trained",
    )
    assert (done.code, f"{SHARD} of " in done.err.splitlines()[-1]) == (2, True), done.err


@pytest.mark.parametrize(
    ("change", "words"),
    [({"rows": 7}, "has 8 rows, and its manifest states 7"), ({"bytes": 20}, "would unpack to"), ({}, None)],
)
def test_a_shard_is_what_its_manifest_states(made: Path, change: dict[str, int], words: str | None) -> None:
    import builders.runs.rows
    from builders.runs.rows import Shard

    path, stated = made / SHARD, {"rows": 8, "bytes": (made / SHARD).stat().st_size} | change
    entry = ShardEntry(SHARD, stated["rows"], stated["bytes"], "0" * 64)
    with path.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders.runs.rows, "_SLACK", 0)
        if words is None:
            assert pa.Table.from_batches(Shard(file, entry, "x").portions()).equals(pq.read_table(path))
            return
        with pytest.raises(DataError, match=words):
            Shard(file, entry, "x")


def test_a_row_group_that_is_too_large_to_be_read_at_once_is_refused(made: Path) -> None:
    import builders.runs.rows
    from builders.runs.rows import Shard

    with (made / SHARD).open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders.runs.rows, "_LARGEST_GROUP", 1000)
        with pytest.raises(DataError, match="has a row group of"):
            Shard(file, None, "x")


def test_a_manifest_that_states_more_rows_than_bytes_is_refused(made: Path) -> None:
    fields = json.loads((made / layout.MANIFEST).read_text())
    fields["shards"][0]["rows"] = fields["shards"][0]["bytes"] + 1
    with pytest.raises(DataError, match="not a manifest"):
        layout.load_manifest(json.dumps(layout.sealed(fields)), "the manifest")
