#!/usr/bin/env python
"""How fast scores are given, and whether they are the same bytes however many processes give them and however often
these are killed.

    python scripts/bench_scores.py                     # 10,000 drawings by a small network in two processes
    python scripts/bench_scores.py --kills 20          # and 1,000 in 1, 2 and 3 processes, and through 20 kills

It prints seconds, images per second and the processor time of all processes, starting them included. The aim is three
minutes for the 10,000 on two cores; exit code 1 where they are missed, or where any byte differs. A kill is SIGKILL to
the whole process group of `hfsyn score --num-processes 2` at a random moment after
the first shard; the same command then continues.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from check_scores import make_run

import hfsyn
from builders.runs import layout

MOST_SECONDS = 180.0
KILLED_RUN = 100  # images of each class


def command(run: Path, judge: Path, processes: int) -> list[str]:
    """The command that scores a run."""
    words = ["score", str(run), "--judge", f"j={judge}", "--num-processes", str(processes), "--device", "cpu", "-q"]
    return [sys.executable, "-m", "hfsyn", *words]


def scored(run: Path, judge: Path, processes: int) -> tuple[float, float]:
    """Score a run; wall and processor seconds."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command(run, judge, processes), check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu


def scores_in(run: Path) -> dict[str, bytes]:
    """All files of scores in a run folder."""
    found = [*(run / layout.SCORES).rglob("*.parquet"), run / layout.SCORES_TABLE]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in found}


def killed(run: Path, judge: Path, kills: int) -> int:
    """Score a run through kills at random moments; returns how many met a process at work."""
    rng, met, marks = random.Random(0), 0, run / layout.SIDECARS / layout.SCORES / "j"
    for number in range(kills):
        before, began = len(list(marks.glob("*.json"))), time.monotonic()
        child = subprocess.Popen(
            command(run, judge, 2), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Until the first shard is finished, and then a moment, so that others are at work.
        while child.poll() is None and len(list(marks.glob("*.json"))) <= before and time.monotonic() - began < 120:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 1.0))
        met += child.poll() is None
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        done = sorted(marks.glob("*.json"))
        for mark in rng.sample(done, (len(done) + 1) // 2):  # so that there is work left for the next one
            mark.unlink()
        print(f"kill {number + 1}: {len(done)} shards were finished", file=sys.stderr, flush=True)
    scored(run, judge, 2)
    return met


def main() -> int:
    """Print the numbers; 1 where they fall short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=0)
    words = parser.parse_args()
    fails = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        how = {"config": "shapes", "train_dataset": "shapes", "limit": 20, "epochs": 1, "device": "cpu", "quiet": True}
        hfsyn.train(folder / "judge", num_processes=1, **how)
        run = make_run(folder / "run", 0, 0.0, words.images // 10)
        seconds, cpu = scored(run, folder / "judge", 2)
        fails += seconds > MOST_SECONDS * words.images / 10_000
        rate = words.images / seconds
        print(f"{words.images} images, two processes: {seconds:.0f} s, {rate:.0f} images/s, {cpu:.0f} s of processors")
        if words.kills:
            first = make_run(folder / "small", 1, 0.0, KILLED_RUN)
            copies = {n: Path(shutil.copytree(first, folder / f"small-{n}")) for n in ("2", "3", "killed")}
            scored(first, folder / "judge", 1)
            for processes in (2, 3):
                scored(copies[str(processes)], folder / "judge", processes)
            met = killed(copies["killed"], folder / "judge", words.kills)
            same = {name: scores_in(copy) == scores_in(first) for name, copy in copies.items()}
            fails += not all(same.values())
            told = ", ".join(f"{name}: {'equal' if equal else 'DIFFERENT'}" for name, equal in same.items())
            print(f"bytes of the scores against one process: {told} ({met} of {words.kills} kills met work)")
    return int(bool(fails))


if __name__ == "__main__":
    sys.exit(main())
