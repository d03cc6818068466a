"""A run in object storage becomes a version on the Hub, shard by shard; and buckets of the Hub hold runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hub_buckets
import pytest
from conftest import parquet_bytes
from hub_client import Client
from hub_server import Hub

WORDS = ["shapes-cip", "--limit", "1", "--set", "store.shard_rows=5", "--set", "generate.steps=1"]
WORDS += ["--num-processes", "1", "--quiet"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub"), xet=True) as found:
        yield found


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("client")) as found:
        yield found


@pytest.fixture(scope="module")
def alone(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk") / "run"
    assert client.hfsyn("build", *WORDS, "--out", folder).code == 0
    return folder


def test_a_run_in_a_store_is_published_without_a_copy_of_it(
    hub: Hub, client: Client, alone: Path, tmp_path: Path
) -> None:
    address, scratch = f"file://{tmp_path}/bucket/run", tmp_path / "scratch"
    done = client.hfsyn("build", *WORDS, "--out", address, HFSYN_SCRATCH=str(scratch))
    assert (done.code, done.out) == (0, f"{address}\n"), done.err
    assert parquet_bytes(tmp_path / "bucket" / "run") == parquet_bytes(alone)
    new = tmp_path / "new machine"
    done = client.hfsyn("publish", address, "alice/stored", "--version", "1.0.0", HFSYN_SCRATCH=str(new))
    assert done.code == 0, done.err
    published = hub.files("dataset", "alice/stored", "v1.0.0")
    assert {name: published[name] for name in parquet_bytes(alone)} == parquet_bytes(alone)
    # What was sent is not kept here.
    shards = sorted(new.glob("run-*/data/*.parquet"))
    assert len(shards) == 2
    assert [shard.stat().st_blocks for shard in shards] == [0, 0]
    # The second version compares its rows with those of the first, and sends nothing again.
    before = hub.counters.lfs_bytes
    done = client.hfsyn("publish", address, "alice/stored", "--version", "1.0.1", HFSYN_SCRATCH=str(new))
    assert (done.code, hub.counters.lfs_bytes) == (0, before), done.err


def test_a_damaged_shard_in_a_store_is_not_published(hub: Hub, client: Client, tmp_path: Path) -> None:
    address, scratch = f"file://{tmp_path}/bucket/run", str(tmp_path / "scratch")
    assert client.hfsyn("build", *WORDS, "--out", address, HFSYN_SCRATCH=scratch).code == 0
    shard = tmp_path / "bucket" / "run" / "data" / "train-00001-of-00002.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    done = client.hfsyn("publish", address, "alice/damaged", "--version", "1.0.0", HFSYN_SCRATCH=scratch)
    assert done.code == 3
    said = done.err.splitlines()[-1]
    assert said.startswith(f"Error: {address}/data/{shard.name} has other bytes than its sidecar states.")
    assert "refs/tags/v1.0.0" not in hub.refs("dataset", "alice/damaged")


@pytest.mark.slow  # a bucket has no conditional writes, and each claim waits a second
def test_a_bucket_of_the_hub_holds_a_run(hub: Hub, client: Client, alone: Path, tmp_path: Path) -> None:
    hub_buckets.add_bucket(hub, "alice/runs")
    address, scratch = "hf://buckets/alice/runs/shapes", str(tmp_path / "scratch")
    done = client.hfsyn("build", *WORDS, "--out", address, HFSYN_SCRATCH=scratch)
    assert (done.code, done.out) == (0, f"{address}\n"), done.err
    there = hub_buckets.files_of(hub, "alice/runs")
    root = hub.store.root / "buckets" / "alice" / "runs"
    for name, data in parquet_bytes(alone).items():
        assert (root / there[f"shapes/{name}"]["xetHash"]).read_bytes() == data
    done = client.hfsyn("status", address, "-q", HFSYN_SCRATCH=str(tmp_path / "new"))
    assert (done.code, done.out) == (0, "finished\n"), done.err


def test_a_bucket_that_is_not_there_or_not_writable_is_said_in_one_line(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    scratch = str(tmp_path / "scratch")
    done = client.hfsyn("build", *WORDS, "--out", "hf://buckets/alice/missing/run", HFSYN_SCRATCH=scratch)
    assert (done.code, done.err.count("\n")) == (3, 1), done.err
    assert done.err.startswith("Error: hf://buckets/alice/missing/run is not there, or no longer (")
    hub_buckets.add_bucket(hub, "alice/other")
    done = client.hfsyn(
        "build", *WORDS, "--out", "hf://buckets/alice/other/run", HFSYN_SCRATCH=scratch, HF_TOKEN="hf_alice_read"
    )
    assert (done.code, done.err.count("\n")) == (3, 1), done.err
    assert done.err.startswith("Error: hf://buckets/alice/other/run does not let you in (")
