"""SIGKILL at any moment of a real loop: the same command, in other numbers of processes, ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

RECIPE = """\
extends: shapes-basic
name: shapes-fast
generate: {steps: 2, batch_size: 4}
store: {shard_rows: 5}
"""
LOOP = {
    "factors": "shapes",
    "train": {
        "model": {"name": "test_resnet", "image_size": 32, "channels_last": False},
        "optimise": {"epochs": 2, "batch_size": 10, "warmup_epochs": 0},
    },
    "policy": ["uncertain", "not-learned-early", "audit"],
    "images": 24,
    "rounds": 1,
    "candidates": 2,
    "steer": {"dataset": "shapes", "split": "test", "limit": 2},
    "test": {"dataset": "shapes", "split": "train[held 5%]", "limit": 2},
}
LIMIT = 1200  # seconds of the clock, after which a loop counts as stuck


def start(file: Path, out: Path, processes: int) -> subprocess.Popen[str]:
    words = ["loop", str(file), "--out", str(out), "--num-processes", str(processes), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, "-m", "hfsyn", *words], env=environment, **how)  # type: ignore[call-overload, no-any-return]


def finished(process: subprocess.Popen[str]) -> None:
    said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 0, said[-2000:]


def files(out: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(out))  # which passes over folders that are gone meanwhile


def lasting(out: Path) -> dict[str, bytes]:
    """What must be the same: images, prompts, plans, weights, what was measured, the curve."""
    ends = ("*.parquet", "*.safetensors", "plan.json", "measured.json", "curve.json", "manifest.json")
    found = [path for end in ends for path in out.rglob(end) if "checkpoints" not in path.parts]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(found)}


def swept(tmp_path: Path, kills: int) -> None:
    """Kill a loop that many times, spread over all that it writes, and compare it with one that nothing disturbed."""
    (tmp_path / "fast.yaml").write_text(RECIPE)
    file, out = tmp_path / "loop.yaml", tmp_path / "loop"
    file.write_text(json.dumps({**LOOP, "recipe": str(tmp_path / "fast.yaml")}))
    finished(start(file, out, 1))
    wanted, total = lasting(out), files(out)
    out.rename(tmp_path / "whole")  # runs and trainings name their place, so both must have the same one
    chance, began = random.Random(0), time.monotonic()
    for number in range(1, kills + 1):
        at = (number - 1 + chance.random()) / kills * 0.98 * total
        process = start(file, out, 1 + number % 3)
        while (not out.exists() or files(out) < at) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(chance.random() * 0.3)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finished(start(file, out, 2))
    assert lasting(out) == wanted
    assert not list(out.rglob(".*.tmp"))
    print(f"{kills} kills, {len(wanted)} files the same, {time.monotonic() - began:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_loop_that_is_killed_twenty_times_ends_in_the_same_bytes(tmp_path: Path) -> None:
    swept(tmp_path, 20)
