"""Carry out the main job on a real dataset and kill it on the way: does every image arrive, under the right class?

    python scripts/check_main_job.py --data DIR [--variant imagenette] [--kills 5] [--limit N] [--out FOLDER]
    python scripts/check_main_job.py --data DIR --publish  # and publish it
    python scripts/check_main_job.py --run FOLDER          # publish a finished run

DIR holds the variant's photographs as class folders, DIR/train/<wnid>/*.JPEG. The built-in models caption every one and
draw an image from each caption, in two processes. At moments that are spread over the job, and drawn from --seed, the
whole process group is ended by SIGKILL and the same command is given again. Afterwards:

- the rows of each class are counted in the stored shards and compared with the files in the class's folder;
- `hfsyn verify` looks at the run;
- a small classifier trains on it for an epoch and is tested on DIR's validation photographs.

With --publish, or of a finished --run, every image is then published to the Hub of the tests on loopback, loaded by
tag, compared with the run row by row, verified, and ten of them are made again from what is published. A run that was
drawn from photographs at another place is told of it by --source.

Prints a line a step and, last, one JSON object with the figures. Exits 1 where something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
SETTLE = 0.5
"""Seconds between two looks at how far the job is."""


def main() -> int:
    """Run the job; 1 where anything is not as it should be."""
    given = options()
    if given.run is not None:
        figures = published(given.run, given.seed, given.source)
        print(json.dumps(figures))
        return int(bool(figures["wrong"]))
    out = given.out or Path(tempfile.mkdtemp(prefix="main-job-")) / "run"
    build = [
        *("build", f"{given.variant}-cip", "--set", f"source.path={given.data}"),
        *("--set", "caption.model=builtin", "--set", "generate.model=builtin"),
        *("--num-processes", str(given.processes), "--device", "cpu", "--out", str(out)),
        *(("--limit", str(given.limit)) if given.limit else ()),
    ]
    began = time.monotonic()
    killed = with_kills(build, out, given.kills, random.Random(given.seed))
    built = time.monotonic() - began
    say(f"built in {built / 60:.1f} minutes, killed {killed} times")

    stored, there = stored_counts(out), folder_counts(given.data / "train", given.limit)
    wrong = {name: (there[name], stored[name]) for name in {*there, *stored} if there[name] != stored[name]}
    say(f"{sum(stored.values())} images of {len(stored)} classes; {len(wrong)} classes differ from the folder's counts")
    verified = hfsyn("verify", str(out))
    say(f"verify: exit {verified.returncode}: {verified.stdout.strip().splitlines()[-1:]}")
    trained = train(given, out)
    figures = {
        "images": sum(stored.values()),
        "classes": len(stored),
        "wrong": wrong,
        "kills": killed,
        "build_minutes": round(built / 60, 2),
        "verify": verified.returncode,
        **trained,
        **({"published": published(out, given.seed, given.source)} if given.publish else {}),
        "minutes": round((time.monotonic() - began) / 60, 2),
    }
    print(json.dumps(figures))
    wrong = wrong or figures.get("published", {}).get("wrong", {})
    return int(bool(wrong) or verified.returncode != 0 or killed != given.kills or "top1" not in trained)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="the photographs: train/ and val/ of class folders")
    what.add_argument("--run", type=Path, help="a finished run folder, to publish and nothing else")
    parser.add_argument("--publish", action="store_true", help="publish the run to a Hub on loopback, and check that")
    parser.add_argument("--source", type=Path, help="where the real images are, for images that were drawn over them")
    parser.add_argument("--variant", default="imagenette")
    parser.add_argument("--out", type=Path, help="the run folder; default: a temporary one, which is kept")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--limit", type=int, help="images a class; default: all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def hfsyn(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "hfsyn", *arguments]
    return subprocess.run(command, env=env or environment(), capture_output=True, text=True, check=False)


def environment() -> dict[str, str]:
    """One torch thread a process, since several share the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def with_kills(build: Sequence[str], out: Path, kills: int, moments: random.Random) -> int:
    """Give the command until it has ended by itself, killing it `kills` times; how often it was killed."""
    killed = 0
    while True:
        before = done(out)
        process = subprocess.Popen(
            [sys.executable, "-m", "hfsyn", *build],
            env=environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        # After some shards more, and a moment later: in the middle of the next ones.
        enough = before + moments.randint(1, 4) if killed < kills else sys.maxsize
        delay = moments.uniform(0, 5)
        while process.poll() is None and done(out) < enough:
            time.sleep(SETTLE)
        if process.poll() is None:
            time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            say(f"killed after {done(out)} shards")
            continue
        if process.returncode:
            raise SystemExit(f"the build ended with exit code {process.returncode}")
        return killed


def done(out: Path) -> int:
    """Finished shards of both stages."""
    return sum(1 for stage in ("captions", "data") for _ in (out / "sidecars" / stage).glob("*.json"))


def stored_counts(out: Path) -> Counter[str]:
    """Rows of each wnid, read from the shards themselves."""
    found: Counter[str] = Counter()
    for shard in sorted((out / "data").glob("*.parquet")):
        found.update(pq.read_table(shard, columns=["wnid"]).column(0).to_pylist())
    return found


def folder_counts(root: Path, limit: int | None) -> Counter[str]:
    """Files in each class folder."""
    counts = {folder.name: sum(1 for _ in folder.iterdir()) for folder in root.iterdir() if folder.is_dir()}
    return Counter({name: min(count, limit or count) for name, count in counts.items()})


def train(given: argparse.Namespace, out: Path) -> dict[str, float]:
    """Train a small network on the run and test it on the real validation photographs."""
    folder = out.with_name(f"{out.name}-classifier")
    ended = hfsyn(
        "train",
        "--train-dataset",
        str(out),
        "--eval-dataset",
        f"{given.variant}={given.data}",
        "--model",
        "resnet10t",
        "--image-size",
        "32",
        "--epochs",
        str(given.epochs),
        "--batch-size",
        "64",
        "--lr",
        "0.02",
        "--set",
        "optimise.warmup_epochs=0",
        "--device",
        "cpu",
        "--out",
        str(folder),
    )
    if ended.returncode:
        say(f"the classifier did not train: {ended.stderr.strip().splitlines()[-1:]}")
        return {}
    result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    top1 = float(result["test"]["metrics"]["top1"]["value"])
    say(f"a classifier trained on it: top-1 {top1:.1%} of the validation photographs")
    return {"top1": round(top1, 4)}


LOADED = """
import hashlib, json, sys
from datasets import Image, load_dataset
rows = load_dataset("alice/main-job", split=sys.argv[1], revision="v1.0.0").cast_column("image", Image(decode=False))
found = {row["sample_id"]: hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in rows}
print(json.dumps([len(rows), found]))
"""


def published(run: Path, seed: int, source: Path | None) -> dict[str, Any]:
    """Publish a run to a Hub of its own, load it by tag, verify it, and make ten of its images again."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from hub_server import Hub

    wrong: dict[str, str] = {}
    seconds: dict[str, float] = {}

    def step(name: str, *command: str) -> subprocess.CompletedProcess[str]:
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, *command], env=env, capture_output=True, text=True, check=False, cwd=place
        )
        seconds[name] = round(time.monotonic() - began, 1)
        if ended.returncode:
            wrong[name] = f"exit code {ended.returncode}: {ended.stderr.strip()[-300:]}"
        say(f"{name}: exit {ended.returncode}: {''.join(ended.stdout.strip().splitlines()[-1:])[:120]}")
        return ended

    stored = {
        row["sample_id"]: hashlib.sha256(row["image"]["bytes"]).hexdigest()
        for shard in sorted((run / "data").glob("*.parquet"))
        for row in pq.read_table(shard, columns=["sample_id", "image"]).to_pylist()
    }
    split = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["split"]
    with tempfile.TemporaryDirectory(prefix="main-job-hub-") as place, Hub(Path(place) / "hub") as hub:
        env = hub.env(home=Path(place) / "home") | {"PYTHONPATH": str(ROOT)}
        step("publish", "-m", "hfsyn", "publish", str(run.resolve()), "alice/main-job", "--version", "1.0.0", "--quiet")
        loaded = step("load", "-c", LOADED, split)
        rows, there = json.loads(loaded.stdout.splitlines()[-1]) if not loaded.returncode else (0, {})
        if rows != len(stored) or there != stored:
            wrong["rows"] = f"{rows} rows by tag, {len(stored)} in the run; or other bytes"
        step("verify", "-m", "hfsyn", "verify", "alice/main-job@v1.0.0")
        for number, sample_id in enumerate(random.Random(seed).sample(sorted(stored), min(10, len(stored)))):
            again = (
                "reproduce",
                "alice/main-job@v1.0.0",
                "--sample-id",
                sample_id,
                "--out",
                str(Path(place) / "again"),
            )
            more = ("--source", str(source.resolve())) if source is not None else ()
            ended = step(f"reproduce {number}", "-m", "hfsyn", *again, "--device", "cpu", *more)
            if "byte-equal" not in ended.stderr:
                wrong.setdefault(f"reproduce {number}", ended.stderr.strip()[-200:])
        commits = len(hub.history("dataset", "alice/main-job"))
    return {"images": len(stored), "loaded": rows, "commits_of_main": commits, "wrong": wrong, "seconds": seconds}


def say(text: str) -> None:
    """A line for people, with the time since the start."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
