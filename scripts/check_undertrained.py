#!/usr/bin/env python
"""Whether tuning an under-trained generator on captioned drawings makes better training images of it.

    python scripts/check_undertrained.py --out DIR     # about twenty CPU minutes; run again, it continues
    python scripts/check_undertrained.py --json

The under-trained generator is the built-in one with a UNet that begins with random weights (`tune.from_config`) and is
trained for `WEAK["tune.steps"]` steps on `DRAWN` captioned drawings, which belong to no split: about a thirtieth of
what the built-in one has seen, at a constant learning rate. Then `hfsyn tune` goes on with it, on `LIMIT` drawings of
each class of the training split of `shapes` with the captions of the built-in captioner. Both generators draw the
recipe `shapes-cip` on the first `IMAGES` of these of each class, with each seed; a classifier is trained on each set
with the same seed, by the shipped training recipe `shapes`, and tested on the 2,000 drawings of the test split.

Expected, and written down before the first run: over five seeds the accuracy rises by at least 5 points, and the
95 % interval of the mean difference (Student's t, paired by seed) is above zero.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hfsyn
from builders.sources.drawing import caption_of, draw, sample_attributes
from hfsyn.judging.measures.metrics import paired_difference

DRAWN, LIMIT, IMAGES, SEEDS = 4000, 100, 50, range(5)
HOW: dict[str, Any] = {
    "tune.full": True,
    "tune.batch_size": 64,
    "tune.lr": 1e-3,
    "tune.beta2": 0.98,
    "tune.warmup_steps": 50,
    "tune.min_snr": None,
    "tune.uniform": 0.3,
    "tune.logit_mean": -0.5,
    "tune.dtype": "bfloat16",
}
"""Of both trainings: those of the trial with small models on drawings, but for the numbers of steps."""
WEAK = {**HOW, "tune.from_config": True, "tune.steps": 500, "tune.ema": 0.99}
TUNED = {**HOW, "tune.steps": 500, "tune.schedule": "cosine", "tune.ema": 0.99}
POINTS = 0.05


def said(fields: dict[str, Any]) -> list[str]:
    """Fields as overrides of a recipe."""
    return [f"{key}={json.dumps(value)}" for key, value in fields.items()]


def drawings(folder: Path) -> Path:
    """Captioned drawings of no split, as somebody would bring them: a Parquet file with images and texts."""
    import datasets

    path = folder / "drawings.parquet"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        some = [sample_attributes(11, "undertrained", number) for number in range(DRAWN)]
        texts = [[f"a photo of {one.shape}", *[f"a photo of {one.shape}, {caption_of(one)}"] * 3] for one in some]
        features = datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))})
        table = datasets.Dataset.from_dict({"image": [draw(one) for one in some], "text": texts}, features=features)
        table.to_parquet(str(path))
    return path


def accuracy(out: Path, name: str, generator: Path, seed: int) -> float:
    """Of a classifier that has seen only images of a generator."""
    run = out / "runs" / f"{name}-{seed}"
    words = ["generate.scheduler=default", f"generate.model={generator}", "generate.dtype=float32"]
    captions = None if seed == SEEDS[0] and name == "weak" else str(out / "runs" / f"weak-{SEEDS[0]}")
    hfsyn.build("shapes-cip", run, limit=IMAGES, seed=seed, overrides=words, captions=captions, num_processes=1)
    cell = out / "cells" / f"{name}-{seed}"
    found = hfsyn.train(cell, config="shapes", train_dataset=str(run), eval_dataset="shapes", seed=seed, device="cpu")
    return float(found["test"]["metrics"]["top1"]["value"])


def check(out: Path) -> dict[str, Any]:
    """Everything; see the module."""
    began, busy = time.monotonic(), time.process_time()
    weak = hfsyn.tune(
        "shapes-cip", out / "weak", dataset=str(drawings(out)), overrides=said(WEAK), device="cpu", samples=4
    )
    generator = out / "weak" / "pipeline"
    more = [f"generate.model={generator}", *said(TUNED)]
    tuned = hfsyn.tune("shapes-cip", out / "tuned", limit=LIMIT, overrides=more, device="cpu", samples=4)
    ways = {"weak": generator, "tuned": out / "tuned" / "pipeline"}
    top1: dict[str, list[float]] = {name: [] for name in ways}
    for seed in SEEDS:
        for name, model in ways.items():
            top1[name].append(accuracy(out, name, model, seed))
            print(f"seed {seed}, {name}: {top1[name][-1]:.4f}", file=sys.stderr, flush=True)
    gain = paired_difference(top1["tuned"], top1["weak"])
    return {
        "top1": top1,
        "gain": gain,
        "loss": {"weak": weak["loss"], "tuned": tuned["loss"]},
        "seconds": {"weak": weak["seconds"], "tuned": tuned["seconds"]},
        "minutes": {"wall": (time.monotonic() - began) / 60, "cpu": (time.process_time() - busy) / 60},
        "holds": gain["mean"] >= POINTS and gain["low"] > 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="Keep everything there; run again, it continues.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = check((options.out or Path(temporary)).resolve())
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for name, values in found["top1"].items():
            print(f"{name}: {statistics.mean(values):.4f}  ({', '.join(f'{value:.3f}' for value in values)})")
        gain = found["gain"]
        print(f"gain {100 * gain['mean']:.1f} points, {100 * gain['low']:.1f} to {100 * gain['high']:.1f}")
        print("holds" if found["holds"] else "does not hold")
    sys.exit(not found["holds"])


if __name__ == "__main__":
    main()
