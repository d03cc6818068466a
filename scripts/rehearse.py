#!/usr/bin/env python
"""A dataset of ImageNet-1K's size from the source to the second version, with everything real but the two models.

    python scripts/rehearse.py                                the whole: about an hour of two cores, 20 GB of disk
    python scripts/rehearse.py --rows 20000                   a few minutes
    python scripts/rehearse.py --folder DIR                   kept there; run again, it goes on with the next stage
    python scripts/rehearse.py --folder DIR --only verify     one stage again, of a rehearsal that was kept

The source is Parquet files with as many small true JPEG files of ImageNet-1K's thousand classes. In place of the
captioner and the generator stand two stubs that answer at once: ten words, and 24 x 24 pixels from prompt and seed.
All else is what a user runs: the index, captions and images in two processes (one is killed by SIGKILL in the middle
and started again), finish, status, publication to the Hub of the tests on this machine, verify, a second version in
which the images of one class in twenty are drawn with another seed, diff, loading by tag, whole and as a stream, ten
images made again, scores of all rows by a function in two processes, a selection by them, an epoch of the training
loader, the test of a classifier on all rows, the comparison of the features of 50,000 real and synthetic images.

For each stage: seconds, CPU seconds of its processes (the Hub's not counted), the largest resident set of any of
them, files in the run folders, and what was sent: requests, commits, bytes. Aims on two cores: no process
above 2 GB, the whole within an hour, the second version within 7 % of the bytes of the first. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

ROWS, CLASSES, SIDE = 1_281_167, 1000, 24
CHANGED = 20  # one class in that many is drawn with another seed in the second version
REPO = "alice/rehearsal"
AIM_GB, AIM_MINUTES, AIM_SHARE = 2.0, 60, 0.07
FEATURES = 50_000  # images that are compared by their features
BYTES_PER_ROW = 15_000  # of disk: source, two runs, the Hub's copies of them, and what a client downloads


# --- the stages, each in a process of its own ------------------------------------------------------------------------


WORDS = ["old", "red", "small", "wooden", "bright", "striped", "round", "shiny", "quiet", "green", "large", "brown"]


class Captioner:
    """Ten words that follow from the image."""

    def caption(self, images: Sequence[Any]) -> list[str]:
        found = []
        for image in images:
            draw = random.Random(image.tobytes())
            found.append(" ".join(draw.choice(WORDS) for _ in range(10)))
        return found


class Generator:
    """Pixels that follow from the prompt and the seed."""

    max_tokens = 77

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        return [len(prompt.split()) + 2 for prompt in prompts]

    def start(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> Callable[[], list[Any]]:
        import numpy as np

        from hfsyn.images.generator import Generated

        images = []
        for seed in seeds:
            coarse = np.frombuffer(random.Random(seed).randbytes(12 * 12 * 3), dtype=np.uint8).reshape(12, 12, 3)
            images.append(Generated(coarse.repeat(SIDE // 12, 0).repeat(SIDE // 12, 1), None))
        return lambda: images


def make_source(folder: Path, rows: int) -> None:
    """Parquet files as the Hub's ImageNet has them, each image another one."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from builders.variants import get_variant

    wnids = [info.wnid for info in get_variant("imagenet-1k").classes]
    (folder / "source").mkdir(parents=True, exist_ok=True)
    files = max(1, min(294, rows // 1000))
    for number in range(files):
        images, labels = [], []
        for row in range(number * rows // files, (number + 1) * rows // files):
            out = io.BytesIO()
            Image.frombytes("RGB", (8, 8), random.Random(row).randbytes(192)).save(out, "JPEG", quality=60)
            wnid = wnids[row % CLASSES]
            images.append({"bytes": out.getvalue(), "path": f"{wnid}_{row}.JPEG"})
            labels.append(wnid)
        table = pa.table({"image": images, "wnid": labels})
        pq.write_table(table, folder / "source" / f"train-{number:05d}-of-{files:05d}.parquet")


def recipe_of(folder: Path, version: int) -> Any:
    from builders.variants import get_variant
    from hfsyn.recipes.recipe import load_recipe

    words = [f"source.path={folder / 'source'}", "caption.model=builtin", "generate.model=builtin"]
    seeds = [info.wnid for info in get_variant("imagenet-1k").classes][::CHANGED] if version == 2 else []
    recipe = load_recipe("imagenet-1k-cip", [*words, "name=rehearsal"])
    return recipe.model_copy(update={"class_seeds": dict.fromkeys(seeds, 1)})


def score(folder: Path, rows: int) -> None:
    """Each row by a function of the user's, in two processes."""
    import hfsyn

    function = folder / "brightness.py"
    function.write_text("def brightness(image, row):\n    return sum(image.resize((1, 1)).getpixel((0, 0))) / 765\n")
    hfsyn.score(folder / "run1", f"{function}:brightness", device="cpu", num_processes=2, quiet=True)


def select(folder: Path, rows: int) -> None:
    """The brighter half of each class."""
    import hfsyn

    each = max(1, rows // CLASSES // 2)
    chosen = hfsyn.select(folder / "run1", folder / "selection", per_class=each, by="brightness", quiet=True)
    assert (chosen.rows, chosen.kept) == (rows, each * CLASSES), (chosen.rows, chosen.kept)


def index(folder: Path, rows: int, version: int = 1) -> None:
    from hfsyn.runs.prepare import prepare

    prepare(recipe_of(folder, version), folder / f"run{version}")


def caption(folder: Path, rows: int, version: int = 1) -> None:
    from hfsyn.captions.caption_stage import caption as stage
    from hfsyn.runs.options import WorkOptions

    options = WorkOptions(quiet=True, captions=str(folder / "run1") if version == 2 else None)
    stage(folder / f"run{version}", captioner=Captioner() if version == 1 else None, options=options)


def generate(folder: Path, rows: int, version: int = 1) -> None:
    from hfsyn.images.generate_stage import generate as stage

    stage(folder / f"run{version}", generator=Generator(), quiet=True)


def finish(folder: Path, rows: int, version: int = 1) -> None:
    from hfsyn.runs.finish import finish as stage

    stage(folder / f"run{version}")


def load_whole(folder: Path, rows: int) -> None:
    """All rows by tag, downloaded; a few of them decoded."""
    from datasets import load_dataset

    found = load_dataset(REPO, split="train", revision="v1.0.0")
    assert len(found) == rows, len(found)
    for number in range(0, rows, max(1, rows // 20)):
        assert found[number]["image"].size == (SIDE, SIDE)


def load_streamed(folder: Path, rows: int) -> None:
    """All rows by tag as a stream, undecoded."""
    from datasets import Image, load_dataset

    found = load_dataset(REPO, split="train", revision="v1.0.0", streaming=True).cast_column(
        "image", Image(decode=False)
    )
    assert sum(1 for _ in found) == rows


def reproduce(folder: Path, rows: int) -> None:
    """Ten images made again from what is published."""
    import pyarrow.parquet as pq

    from hfsyn.checks.reproduce import reproduce as again

    shards = sorted((folder / "run1" / "data").glob("*.parquet"))
    for place in range(10):
        shard = shards[place * len(shards) // 10]
        ids = pq.read_table(shard, columns=["sample_id"])["sample_id"].to_pylist()
        sample = ids[place * len(ids) // 10]
        found = again(f"{REPO}@v1.0.0", sample, out=folder / "again", generator=Generator())
        assert found.verdict == "byte-equal", found.text()


def epoch(folder: Path, rows: int) -> None:
    """One epoch of the training loader, with the augmentation of a small network."""
    from hfsyn.judging.preprocessing import Preprocessing
    from hfsyn.judging.sets.batches import Slice
    from hfsyn.judging.train.feeds import open_feed
    from hfsyn.judging.train.timm_parts import Augmentation
    from hfsyn.recipes.training_recipe import load_train_config

    config = load_train_config(values={"data.train": [str(folder / "run1")], "model.image_size": 32})
    feed = open_feed(config)
    augmentation = Augmentation(Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3), config.augment)
    steps = feed.budget // 256
    seen = 0
    for pixels, _ in feed.batches(augmentation, Slice(0, steps, 256, 1, 0, 1, 1, False)):
        seen += len(augmentation.finish(pixels))
    assert seen == steps * 256, seen


def evaluate(folder: Path, rows: int) -> None:
    """A small random network of a thousand classes on all rows."""
    import timm

    from builders.variants import get_variant
    from hfsyn.judging.measures.evaluate import evaluate as test
    from hfsyn.judging.preprocessing import Overrides

    file = folder / "network.safetensors"
    if not file.exists():
        from safetensors.torch import save_file

        save_file(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), file)
    found = test(
        "test_resnet",
        str(folder / "run1"),
        split="train",
        checkpoint=file,
        classes="imagenet-1k",
        overrides=Overrides(image_size=32),
        num_workers=1,
        batch_size=512,
    )
    assert found["n"] == rows, found["n"]
    assert len(get_variant("imagenet-1k").classes) == len(found["metrics"]["per_class"])


def fidelity(folder: Path, rows: int) -> None:
    """Real and synthetic images by the features of a small random network."""
    import timm
    from timm.models import save_for_hf

    from hfsyn.api.judging import fidelity as measure

    network = folder / "features"
    if not network.is_dir():
        size = {"data_config": {"input_size": (3, 32, 32)}}
        save_for_hf(timm.create_model("test_resnet", num_classes=CLASSES), network, model_args=None, **size)
    limit = max(1, FEATURES // CLASSES)
    real = f"imagenet-1k={folder / 'source'}"
    measure(str(folder / "run1"), real, features=f"local-dir:{network}", limit=limit)


STAGES: dict[str, Any] = {
    "source": make_source,
    "index": index,
    "caption": caption,
    "generate": generate,
    "finish": finish,
    "load whole": load_whole,
    "load as a stream": load_streamed,
    "reproduce ten": reproduce,
    "score": score,
    "select": select,
    "an epoch of the loader": epoch,
    "evaluate": evaluate,
    "fidelity": fidelity,
}


_ALONE = (
    "load whole",
    "load as a stream",
    "reproduce ten",
    "score",
    "select",
    "an epoch of the loader",
    "evaluate",
    "fidelity",
)
"""Stages that come last, each one process to start with."""


# --- the rehearsal ----------------------------------------------------------------------------------------------------


class Rehearsal:
    """Runs stages and measures them."""

    def __init__(self, folder: Path, rows: int, hub: Any) -> None:
        self.folder, self.rows, self.hub = folder, rows, hub
        self.env = hub.env(home=folder / "home") | {"PYTHONPATH": str(ROOT), "HF_HUB_ETAG_TIMEOUT": "60"}
        self.found: list[dict[str, Any]] = []

    def stage(self, name: str, *more: str, processes: int = 1, kill: Path | None = None) -> None:
        """A stage of this file, in some processes; with `kill` one of them dies as soon as that folder is half full."""
        what = [str(Path(__file__).resolve()), "--folder", str(self.folder), "--rows", str(self.rows), "--stage", name]
        self.measure(name, [[*what, *more]] * processes, kill=kill)

    def command(self, name: str, *arguments: str, expected: Sequence[int] = (0,)) -> None:
        """A command of hfsyn."""
        self.measure(name, [["-m", "hfsyn", *arguments]], expected=expected)

    def measure(
        self, name: str, commands: Sequence[Sequence[str]], *, kill: Path | None = None, expected: Sequence[int] = (0,)
    ) -> None:
        import psutil

        self.hub.reset()
        began, peak, used, kept = time.monotonic(), 0, _cpu_of_children(), self._in_xet()
        log = (self.folder / "log.txt").open("a")
        print(f"== {name}", file=log, flush=True)
        running = [self._start(command, log) for command in commands]
        spare: list[Sequence[str]] = []
        while any(one.poll() is None for one in running) or spare:
            for one in running:
                if one.poll() is None:
                    peak = max(peak, _largest(psutil.Process(one.pid)))
            if kill is not None and len(list(kill.glob("*.parquet"))) >= self._half(kill):
                os.kill(running[0].pid, signal.SIGKILL)
                running[0].wait()
                running[0], kill = self._start(commands[0], log), None
            time.sleep(0.1)
        for one in running:
            if one.returncode not in expected:
                tail = (self.folder / "log.txt").read_text(errors="replace")[-1500:]
                sys.exit(f"{name} ended with exit code {one.returncode}:\n{tail}")
        entry = {
            "stage": name,
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(_cpu_of_children() - used, 1),
            "peak_gb": round(peak / 1e9, 2),
            "files": sum(1 for run in ("run1", "run2") for _ in (self.folder / run).rglob("*")),
            "requests": len(self.hub.log),
            "commits": self.hub.counters.commits,
            "sent_mb": round((sum(one.received for one in self.hub.log) + self._in_xet() - kept) / 1e6, 1),
        }
        self.found.append(entry)
        print(line(entry), file=sys.stderr, flush=True)

    def _in_xet(self) -> int:
        """Bytes in the storage for large files, which clients write to without a request: new chunks, packed."""
        return sum(
            path.stat().st_size for path in (self.folder / "hub" / "xet").rglob("default.*") if path.suffix != ".tagset"
        )

    def _start(self, command: Sequence[str], log: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, *command], env=self.env, cwd=self.folder, stdout=log, stderr=log)

    def _half(self, folder: Path) -> int:
        return max(1, -(-self.rows // 1000) // 2)


def _cpu_of_children() -> float:
    """Seconds that all processes used that were started here, or by these, and have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system


def _largest(process: Any) -> int:
    """The largest resident set of a process and those that it started."""
    import contextlib

    import psutil

    found = 0
    with contextlib.suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found = max(found, one.memory_info().rss)
    return found


def line(entry: dict[str, Any]) -> str:
    """A stage in a line."""
    wire = f"{entry['requests']:6,} requests {entry['commits']:3} commits {entry['sent_mb']:8,.1f} MB sent"
    took = f"{entry['seconds']:8.1f} s {entry['cpu_seconds']:8.1f} s of CPU"
    return f"{entry['stage']:26} {took} {entry['peak_gb']:6.2f} GB {entry['files']:6,} files {wire}"


def rehearse(folder: Path, rows: int, only: str | None) -> dict[str, Any]:
    """All stages; see the module."""
    from hub_server import Hub

    with Hub(folder / "hub", xet=True) as hub:
        run = Rehearsal(folder, rows, hub)
        one, two = str(folder / "run1"), str(folder / "run2")
        published = f"{REPO}@v1.0.0"
        steps: dict[str, Callable[[], None]] = {
            "source": lambda: run.stage("source"),
            "index": lambda: run.stage("index"),
            "caption": lambda: run.stage("caption", processes=2),
            "generate": lambda: run.stage("generate", processes=2, kill=folder / "run1" / "data"),
            "finish": lambda: run.stage("finish"),
            "status": lambda: run.command("status", "status", one),
            "publish": lambda: run.command("publish", "publish", one, REPO, "--version", "1.0.0", "-q"),
            "verify the run": lambda: run.command("verify the run", "verify", one, "-q"),
            "verify": lambda: run.command("verify", "verify", published, "-q"),
            "second: index": lambda: run.stage("index", "--version", "2"),
            "second: captions": lambda: run.stage("caption", "--version", "2"),
            "second: generate": lambda: run.stage("generate", "--version", "2", processes=2),
            "second: finish": lambda: run.stage("finish", "--version", "2"),
            "second: publish": lambda: run.command("second: publish", "publish", two, REPO, "--version", "1.1.0", "-q"),
            "diff": lambda: run.command("diff", "diff", published, f"{REPO}@v1.1.0", "-q", expected=(0, 1)),
        }
        steps |= {name: lambda name=name: run.stage(name) for name in _ALONE}  # type: ignore[misc]
        kept = folder / "stages.json"
        done = json.loads(kept.read_text()) if kept.exists() else {}
        if done.setdefault("rows", rows) != rows:
            sys.exit(f"{folder} is a rehearsal of {done['rows']} rows: say --rows {done['rows']}, or another --folder.")
        for name, step in steps.items():
            if name == only or (only is None and name not in done):
                step()
                done[name] = run.found[-1] | {"stage": name}
                kept.write_text(json.dumps(done))
        found = [done[name] for name in steps if name in done]
    return summed_up(found, rows)


def summed_up(found: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    """What the rehearsal came to, and whether the aims hold."""
    sent = {one["stage"]: one["sent_mb"] for one in found}
    largest = max(found, key=lambda one: float(one["peak_gb"]))
    minutes = sum(one["seconds"] for one in found) / 60
    share = sent["second: publish"] / sent["publish"] if sent.get("publish") and "second: publish" in sent else None
    return {
        "rows": rows,
        "minutes": round(minutes, 1),
        "largest_gb": largest["peak_gb"],
        "largest_stage": largest["stage"],
        "second_version_share": None if share is None else round(share, 3),
        "holds": {
            f"no process above {AIM_GB:g} GB": largest["peak_gb"] <= AIM_GB,
            f"within {AIM_MINUTES} minutes": minutes <= AIM_MINUTES,
            f"the second version sends at most {AIM_SHARE:.0%}": None if share is None else share <= AIM_SHARE,
        },
        "stages": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="images [1281167]")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to keep everything [a temporary folder]")
    parser.add_argument("--only", metavar="STAGE", help="one stage alone, of a rehearsal that was kept")
    parser.add_argument("--stage", choices=sorted(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--version", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        more = () if given.version is None else (given.version,)
        STAGES[given.stage](given.folder, given.rows, *more)
        return
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="hfsyn-rehearsal-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    need, free = given.rows * BYTES_PER_ROW / 1e9, shutil.disk_usage(folder).free / 1e9
    print(f"{given.rows:,} rows in {folder}: about {need:.1f} GB of disk, {free:.0f} GB are free", file=sys.stderr)
    if need > free:
        sys.exit("That is not enough: --rows for fewer, or --folder on another disk.")
    try:
        found = rehearse(folder, given.rows, given.only)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
