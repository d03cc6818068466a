"""Killed at any moment, continued with any number of processes: the same bytes as an uninterrupted run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, parquet_bytes, run_folder

from builders.runs import layout
from hfsyn.runs.finish import finish
from hfsyn.runs.run import load_run
from hfsyn.runs.shards import pending

DRIVER = ROOT / "tests" / "drive_fakes.py"
SMALL = ("source.limit_per_class=12", "store.shard_rows=10", "caption.batch_size=4", "generate.batch_size=4")


def start(run: Path, rank: int = 0, world: int = 1) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.Popen([sys.executable, str(DRIVER), str(run)], env=environment)


@pytest.mark.parametrize("most", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_no_byte(most: int, tmp_path: Path) -> None:
    whole = run_folder(tmp_path, *SMALL, name="whole")
    assert start(whole).wait(timeout=120) == 0
    finish(whole)
    chance = random.Random(20)
    killed = run_folder(tmp_path, *SMALL, name="killed")
    kills, stages = 0, set()
    while kills < most or len(stages) < 2:
        world = chance.choice([1, 2, 3])
        workers = [start(killed, rank, world) for rank in range(world)]
        # Long enough that the imports are over and some work is under way, short against a whole run.
        deadline = time.monotonic() + 60
        before = len(pending(load_run(killed).caption_shards()))
        while len(pending(load_run(killed).caption_shards())) == before and before and time.monotonic() < deadline:
            time.sleep(0.005)
        # The first kill meets the captions for certain, on a slow machine too.
        time.sleep(0 if not stages else chance.uniform(0, 0.4) if before else chance.uniform(0.8, 2.0))
        running = [worker for worker in workers if worker.poll() is None]
        for worker in running:
            worker.kill()
        for worker in workers:
            worker.wait()
        kills += len(running)
        stages.add("caption" if pending(load_run(killed).caption_shards()) else "generate")
        if load_run(killed).planned_rows is not None and not pending(load_run(killed).data_shards()):
            # All done before the last kill: take some shards away, so that there is work to be killed in.
            for shard in chance.sample(load_run(killed).data_shards(), 6):
                layout.sidecar_of(shard).unlink()
    workers = [start(killed, rank, 2) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finish(killed)
    assert stages == {"caption", "generate"}
    assert parquet_bytes(killed) == parquet_bytes(whole)
    assert (killed / layout.MANIFEST).read_bytes() == (whole / layout.MANIFEST).read_bytes()
    litter = list(killed.rglob(".*.tmp"))
    assert not litter


def test_processes_at_work_together_share_the_shards(tmp_path: Path) -> None:
    run = run_folder(tmp_path, *SMALL)
    workers = [start(run, rank, 3) for rank in range(3)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    finish(run)
    made_by = {layout.load_sidecar(layout.sidecar_of(shard)).worker for shard in load_run(run).data_shards()}
    assert len(made_by) > 1
