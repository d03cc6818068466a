"""What was sent is read back before it is tagged: a Hub that serves something else gets no version."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("run"), "store.shard_rows=20")


def another_picture(data: bytes) -> bytes:
    """The same table but for one byte in its first image."""
    place = data.index(b"\x89PNG") + 60
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def another_count(data: bytes) -> bytes:
    """The same bytes but for one in the footer, which says another number of rows."""
    rows = pq.read_metadata(pa.BufferReader(data)).num_rows
    place = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    while (place := data.find(bytes([0x16, 2 * rows]), place + 1)) >= 0:  # a field of 64 bits with this number in it
        changed = data[: place + 1] + bytes([2 * rows - 2]) + data[place + 2 :]
        if pq.read_metadata(pa.BufferReader(changed)).num_rows == rows - 1:
            return changed
    raise AssertionError("no byte of the footer counts the rows")


def zeros(data: bytes) -> bytes:
    """As many bytes, all of them 0."""
    return bytes(len(data))


@pytest.mark.parametrize("served", [another_picture, another_count, zeros])
def test_a_hub_that_serves_other_bytes_than_were_sent_gets_no_tag(
    hub: Any, alice: Any, run: Path, served: Callable[[bytes], bytes]
) -> None:
    repo = f"alice/{served.__name__.replace('_', '-')}"
    shard = sorted((run / "data").glob("*.parquet"))[0].read_bytes()
    receive, meant = hub.store.receive, hub.store.keep(shard)

    def received(*arguments: Any) -> Any:
        found = receive(*arguments)
        if hub.store.blob(meant).read_bytes() == shard:
            beside = hub.store.incoming / f"changed-{threading.get_ident()}"
            beside.write_bytes(served(shard))
            beside.replace(hub.store.blob(meant))  # at once: meanwhile the Hub is asked whether the file has arrived
        return found

    hub.store.receive = received
    try:
        done = alice.hfsyn("publish", run, repo, "--version", "1.0.0", "-q")
    finally:
        hub.store.receive = receive
        hub.store.blob(meant).write_bytes(shard)
    assert done.code == 4, (done.out, done.err)
    assert "is not what was sent" in done.err
    assert "Traceback" not in done.err
    assert "v1.0.0" not in str(hub.refs("dataset", repo))
    # Nothing is lost: once the Hub serves what it was sent, the same command ends in the version.
    done = alice.hfsyn("publish", run, repo, "--version", "1.0.0", "-q")
    assert done.code == 0, done.err
    assert "v1.0.0" in str(hub.refs("dataset", repo))


def test_a_hub_that_leaves_a_file_out_of_a_commit_gets_no_tag(hub: Any, alice: Any, run: Path) -> None:
    apply = hub.store._apply

    def applied(repo: Any, files: dict[str, Any], key: str, value: dict[str, Any]) -> None:
        apply(repo, files, key, value)
        files.pop("rejected.jsonl", None)

    hub.store._apply = applied
    try:
        done = alice.hfsyn("publish", run, "alice/left-out", "--version", "1.0.0", "-q")
    finally:
        hub.store._apply = apply
    assert done.code == 4, (done.out, done.err)
    assert "rejected.jsonl" in done.err
    assert "v1.0.0" not in str(hub.refs("dataset", "alice/left-out"))
