#!/usr/bin/env python
"""How long a command takes to begin, and a small build as a whole; which packages its imports cost.

    python scripts/bench_start.py                                    this checkout
    python scripts/bench_start.py --against ../old --rounds 7        beside another one, with the same Python

Each turn is `hfsyn build shapes-cip --limit 2` in a process of its own: 20 images of the built-in models. Noted are
the seconds from its start to its first line, the first captions, the first images and its end, and the CPU time of all
of it. Turns go A B B, B B A: ours twice in each round, the second as control. A ratio pairs two turns of the same
round; below 1 ours is faster. The first captions and images are seen from within, where progress counts them, which
costs both sides the same few milliseconds. Bytecode is written in the first turn, which warms up. The last line is one
JSON object.

    git worktree add --detach ../old 3166b47        a checkout to compare with
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import CONTROL, CONTROL_RANGE, order, ratio, say

HERE = Path(__file__).resolve().parent.parent
AIM_FIRST, AIM_WHOLE = 1.0, 2 / 3
"""Seconds to the first line; the whole over that of the other checkout."""
IMAGES = 20
BUILD = ["build", "shapes-cip", "--limit", "2", "--num-processes", "1", "--out"]
_SEEN = "seen: "
_WATCHING = f"""
import sys
from hfsyn.cli import main
from hfsyn.progress import Progress
added, seen = Progress.add, set()
def add(self, count):
    what = getattr(self, "_what", "")
    if what not in seen:
        seen.add(what)
        print("{_SEEN}" + what, file=sys.stderr, flush=True)
    added(self, count)
Progress.add = add
main()
"""
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| \s*([\w.]+)")


def main() -> None:
    options = parse_options()
    checkouts = {"ours": HERE} if options.against is None else {"against": options.against.resolve(), "ours": HERE}
    for checkout in checkouts.values():
        turn(checkout)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in (*checkouts, CONTROL)}
    for number, names in enumerate(order(list(checkouts), options.rounds), start=1):
        for name in names:
            turns[name].append(turn(checkouts.get(name, HERE)))
        ends = (f"{name} {turns[name][-1]['end']:.1f} s ({turns[name][-1]['cpu']:.1f} of CPU)" for name in names)
        say(f"round {number}: {', '.join(ends)}")
    medians = {
        name: {what: round(statistics.median(one[what] for one in some), 2) for what in some[0]}
        for name, some in turns.items()
    }
    for name, one in medians.items():
        say(f"{name}: " + ", ".join(f"{what} {seconds:.2f} s" for what, seconds in one.items()))
    ratios = {other: compared(turns["ours"], turns[other]) for other in turns if other != "ours"}
    for other, figures in ratios.items():
        whole, cpu = figures["end"], figures["cpu"]
        say(f"ours / {other}: {whole['ratio']} ({whole['low']} to {whole['high']}), CPU {cpu['ratio']}")
    packages = imported(HERE)
    say("imports: " + ", ".join(f"{package} {share:.0%}" for package, share in packages.items()))
    ok = medians["ours"]["first line"] <= AIM_FIRST and CONTROL_RANGE[0] <= ratios[CONTROL]["end"]["ratio"]
    ok = ok and ratios[CONTROL]["end"]["ratio"] <= CONTROL_RANGE[1]
    ok = ok and ("against" not in ratios or ratios["against"]["end"]["ratio"] <= AIM_WHOLE)
    aims = {"first line": AIM_FIRST, "whole": round(AIM_WHOLE, 3)}
    print(json.dumps({"ok": ok, "aims": aims, "seconds": medians, "ratios": ratios, "imports": packages}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="DIR", type=Path, help="another checkout of hfsyn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each [5]")
    return parser.parse_args()


def environment(checkout: Path) -> dict[str, str]:
    """Of a process that runs a checkout's code with its bytecode kept, as an installed package's is."""
    left = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return left | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def turn(checkout: Path) -> dict[str, float]:
    """Seconds from the start of a build to its first line, captions and images and its end, and its CPU seconds."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        used, began = children_seconds(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", _WATCHING, *BUILD, f"{folder}/run"],
            cwd=folder,
            env=environment(checkout),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            known = {f"{_SEEN}captioning": "first captions", f"{_SEEN}generating": "first images"}
            what = known.get(line.strip(), "first line")
            found.setdefault(what, time.perf_counter() - began)
        code = process.wait()
        found["end"] = time.perf_counter() - began
        found["cpu"] = children_seconds() - used
        if code or not Path(folder, "run", "manifest.json").is_file():
            raise SystemExit(f"The build of {checkout} ended with code {code}:\n{''.join(said[-20:])}")
    return {what: found[what] for what in ("first line", "first captions", "first images", "end", "cpu")}


def children_seconds() -> float:
    """CPU seconds of the processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compared(ours: list[dict[str, float]], other: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Ratios of two arms' turns, for each of their figures."""
    return {what: ratio((one[what], two[what]) for one, two in zip(ours, other, strict=True)) for what in ours[0]}


def imported(checkout: Path) -> dict[str, float]:
    """The ten packages whose modules took the largest shares of a build's import time, without what they import."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "hfsyn", *BUILD, f"{folder}/run"],
            cwd=folder,
            env=environment(checkout),
            capture_output=True,
            text=True,
            check=True,
        )
    own: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        if found := _IMPORT.match(line):
            own[found[2].partition(".")[0]] += int(found[1])
    return {package: round(spent / own.total(), 3) for package, spent in own.most_common(10)}


if __name__ == "__main__":
    main()
