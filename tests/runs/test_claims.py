"""Shards are shared without a message: each is in one process's hands, and none is lost with its process."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from test_shards import SCHEMA, columns, sidecar

import hfsyn.runs.claims
from builders.runs.layout import shard_name
from hfsyn.runs.claims import Claims, lock
from hfsyn.runs.shards import write_shard


def _hold(folder: str, ready: multiprocessing.Queue, stay: float) -> None:
    import time

    with lock(Path(folder), "generate-train-00000-of-00002", wait=False) as held:
        ready.put(held)
        time.sleep(stay)


def test_a_claimed_shard_is_left_to_its_holder_until_that_dies(tmp_path: Path) -> None:
    paths = [tmp_path / "data" / shard_name("train", i, 2) for i in range(2)]
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready, 600))
    holder.start()
    assert ready.get(timeout=60) is True
    taking = Claims(tmp_path, paths, stage="generate")
    first = taking.take()
    assert first is not None
    assert (first.path, taking.take(), taking.held_elsewhere) == (paths[1], None, [paths[0]])
    write_shard(first.path, columns(), SCHEMA, sidecar)
    holder.kill()
    holder.join()
    second = taking.take()
    assert second is not None
    assert second.path == paths[0]


def test_what_is_taken_is_not_offered_again_and_what_is_released_unfinished_is_left_to_others(tmp_path: Path) -> None:
    paths = [tmp_path / "data" / shard_name("train", i, 3) for i in range(3)]
    mine, theirs = Claims(tmp_path, paths, stage="generate"), Claims(tmp_path, paths[::-1], stage="generate")
    first, last = mine.take(), theirs.take()
    assert first is not None
    assert last is not None
    assert (first.path, last.path) == (paths[0], paths[2])
    middle = mine.take()
    assert middle is not None
    assert (mine.take(), theirs.take()) == (None, None)
    assert mine.held_elsewhere == [paths[2]]
    assert sorted(theirs.held_elsewhere) == paths[:2]
    write_shard(middle.path, columns(), SCHEMA, sidecar)
    for claim in (first, middle, last):
        claim.release()
        claim.release()
    # The finished one is nobody's any more, and each can have what the other gave up.
    one, other = mine.take(), theirs.take()
    assert one is not None
    assert other is not None
    assert (one.path, other.path) == (paths[2], paths[0])


def test_a_shard_that_was_finished_between_the_look_and_the_lock_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / shard_name("train", i, 2) for i in range(2)]
    locked = hfsyn.runs.claims._locked

    def slowly(folder: Path, name: str, **options: bool) -> object:
        if paths[0].stem in name and not paths[0].exists():
            write_shard(paths[0], columns(), SCHEMA, sidecar)  # another process ends just now
        return locked(folder, name, **options)

    monkeypatch.setattr(hfsyn.runs.claims, "_locked", slowly)
    claim = Claims(tmp_path, paths, stage="generate").take()
    assert claim is not None
    assert claim.path == paths[1]


def test_a_wait_says_after_a_while_who_holds_the_shards_and_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hfsyn.runs.claims, "PAUSE", 0)
    monkeypatch.setattr(hfsyn.runs.claims, "SILENCE", 0)
    paths = [tmp_path / "data" / shard_name("train", 0, 1)]
    held = Claims(tmp_path, paths, stage="caption").take()
    assert held is not None
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 3:
            held.release()

    waiting = Claims(tmp_path, paths, stage="caption").each(look=look)
    assert next(waiting).path == paths[0]
    said = capsys.readouterr().err
    import os
    import socket

    assert said == f"hfsyn: still waiting for {paths[0].name} (process {os.getpid()} on {socket.gethostname()})\n"
    assert len(looks) == 3
