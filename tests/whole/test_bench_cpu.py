"""The CPU benchmarks run and count; their times are theirs to tell, not a test's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT


def figures(*command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / command[0]), *command[1:]],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_the_harness_is_measured_against_a_plain_loop_and_a_device() -> None:
    found = figures("bench_harness.py", "--rounds", "1", "--seconds", "0.5", "--batch-size", "2", "--pace", "5")
    assert found["ratio"]["pairs"] == 1
    assert found["ratio"]["ratio"] > 0
    # Shards of a run on a device of 5 ms an image can end no sooner than the device.
    assert found["blocked_ms"] >= 0
    assert found["aim_blocked_ms"] == 1.0


@pytest.mark.slow
def test_the_small_models_do_exactly_the_work_that_they_must() -> None:
    found = figures("bench_small.py", "--rounds", "1", "--seconds", "1", "--shard-batches", "1")
    assert found["unet_rows_per_image_and_step"] == 2
    assert found["overhead"] >= 1


@pytest.mark.slow
def test_memory_is_measured_in_each_stage() -> None:
    found = figures("bench_memory.py", "--images", "40", "80", "--until", "caption", "--rounds", "1")
    assert set(found["ratios"]) == {"caption"}
    assert all(0.5 < ratio < 2 for ratio in found["ratios"].values())
