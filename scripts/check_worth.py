#!/usr/bin/env python
"""What a training's record says an image is worth, against what leaving it out costs.

    python scripts/check_worth.py                  # about 25 minutes of one core
    python scripts/check_worth.py --out DIR        # keeps everything there; run again, it continues
    python scripts/check_worth.py --json

The set is drawn so that its images differ in worth, and in a way that is known: `SET`, 1,500 images. Of `shapes`, in
whose drawings colour, background and texture say nothing about the class, as in the test; of `shapes-context`, where
they go with the class in nine of ten drawings, so that a network learns a shortcut that the test does not have; and of
`shapes` with the label of another class. So the first are worth most, and the last less than nothing.

A training with ``--record`` on the whole set gives five measures of each image, with 500 other drawings of `shapes` as
the real images that tell what helps. By each measure, the 30 % of lowest and the 30 % of highest worth are left out in
turn, and the same training runs again on the rest; beside them 30 % drawn at random. `SEEDS` decide weights and order
of both trainings. Stated are the mean change of accuracy on the 2,000 test drawings of `shapes`, in points, with its
95 % interval over the seeds (Student's t), the mean rank correlation (Spearman) of the measure between two seeds, and
how much of each kind is among the 30 %.

Expected, and written down before the first run: `influence` is the measure that holds. Leaving out its lowest 30 %
costs at most half a point (it should gain, since the wrong labels are among them), its highest 30 % at least three
points, and two seeds agree with a rank correlation of at least .5. `likeness` should be near it. `early_loss`, `margin`
and `forgotten` call what is hard worth most, and here the wrong labels are hardest of all: they should fail.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders.sources import open_source
from hfsyn import train
from hfsyn.judging.train.checkpoints import RECORDED

SET = {"independent": ("shapes", 45), "contexts": ("shapes-context", 90), "wrong labels": ("shapes", 15)}
"""Kind -> the variant, and how many images of each of the ten classes; all of the training split."""
AGAINST = 50  # further drawings of each class of `shapes`, the real images that tell what helps
SHARE = 0.3  # of the set that is left out
SEEDS = (0, 1, 2, 3, 4)
WORTH = {"influence": 1, "likeness": 1, "early_loss": 1, "margin": -1, "forgotten": 1}
"""Measure -> 1 where a high value is a high worth, -1 where a low one is."""
T4 = 2.776  # Student's t for 95 % with four degrees of freedom


def drawings(variant: str) -> dict[str, list[Any]]:
    """The training drawings of a variant by wnid, as index entries."""
    found: dict[str, list[Any]] = {}
    for entry in open_source(variant, "train").index():
        found.setdefault(entry.wnid, []).append(entry)
    return found


def rows_of_the_set() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training images and the real ones, as rows of a table: id, kind, wnid, image."""
    taken: Counter[tuple[str, str]] = Counter()  # by variant and class: no drawing twice
    entries = {variant: drawings(variant) for variant, _ in SET.values()}
    wnids = sorted(entries["shapes"])

    def take(kind: str, variant: str, each: int) -> list[dict[str, Any]]:
        chosen = []
        for number, wnid in enumerate(wnids):
            first = taken[variant, wnid]
            taken[variant, wnid] += each
            for place, entry in enumerate(entries[variant][wnid][first : first + each]):
                other = wnids[(number + 1 + place % 9) % 10]
                chosen.append((entry, other if kind == "wrong labels" else wnid))
        images = open_source(variant, "train").read([entry for entry, _ in chosen])
        return [
            {"source_id": f"{kind}/{entry.source_id}", "kind": kind, "wnid": said, "image": {"bytes": row.image}}
            for (entry, said), row in zip(chosen, images, strict=True)
        ]

    rows = [row for kind, (variant, each) in SET.items() for row in take(kind, variant, each)]
    return rows, take("real", "shapes", AGAINST)


def write(rows: list[dict[str, Any]], folder: Path) -> Path:
    """Write rows as a folder of Parquet that can be trained on."""
    names = sorted({row["wnid"] for row in rows})
    words = {entry.wnid: entry.name for entry in _classes()}
    features = Features(
        {
            "source_id": Value("string"),
            "image": Image(),
            "wnid": Value("string"),
            "class_name": Value("string"),
            "label": ClassLabel(names=[words[wnid] for wnid in names]),
        }
    )
    table = [
        {
            "source_id": row["source_id"],
            "image": {**row["image"], "path": None},
            "wnid": row["wnid"],
            "class_name": words[row["wnid"]],
            "label": names.index(row["wnid"]),
        }
        for row in rows
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table, schema=features.arrow_schema), folder / "train-00000-of-00001.parquet")
    return folder


def _classes() -> Any:
    from builders.variants import get_variant

    return get_variant("shapes").classes


def trained(folder: Path, data: Path, seed: int, real: Path | None = None) -> float:
    """Train on a folder and return the accuracy; with `real` images it is recorded. What is finished is read."""
    words: dict[str, Any] = {"config": "shapes", "train_dataset": f"shapes={data}", "eval_dataset": "shapes"}
    words |= {"eval_split": "test", "seed": seed, "device": "cpu", "quiet": True}
    if real is not None:
        words |= {"record": True, "overrides": [f"test.record_against=shapes={real}"]}
    return float(train(folder, **words)["test"]["metrics"]["top1"]["value"])


def worths(folder: Path, measure: str) -> np.ndarray:
    """The worth of each image, in the set's order, from a recorded training."""
    column = pq.read_table(folder / RECORDED, columns=[measure])[measure].to_numpy(zero_copy_only=False)
    return WORTH[measure] * column.astype(np.float64)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equal values with the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


def spread(values: list[float]) -> dict[str, float]:
    """Mean and 95 % interval over the seeds, in points."""
    points = 100 * np.array(values)
    half = T4 * points.std(ddof=1) / len(points) ** 0.5
    return {"mean": float(points.mean()), "low": float(points.mean() - half), "high": float(points.mean() + half)}


def check(out: Path) -> dict[str, Any]:
    """Everything; see the module."""
    rows, real = rows_of_the_set()
    data, against = write(rows, out / "set"), write(real, out / "real")
    kinds = [row["kind"] for row in rows]
    whole = {seed: trained(out / f"whole-{seed}", data, seed, against) for seed in SEEDS}
    print(f"whole set: {100 * np.mean(list(whole.values())):.1f} %", file=sys.stderr, flush=True)
    count = round(SHARE * len(rows))

    def without(name: str, left_out: set[int], seed: int) -> float:
        kept = [row for number, row in enumerate(rows) if number not in left_out]
        folder = out / f"{name}-{seed}"
        return trained(folder, write(kept, out / "sets" / folder.name), seed) - whole[seed]

    found: dict[str, Any] = {"accuracy": spread(list(whole.values())), "measures": {}}
    at_random = [
        without("random", set(random.Random(f"worth {seed}").sample(range(len(rows)), count)), seed) for seed in SEEDS
    ]
    found["random"] = spread(at_random)
    for measure in WORTH:
        changes: dict[str, list[float]] = {"lowest": [], "highest": []}
        among: dict[str, Counter[str]] = {"lowest": Counter(), "highest": Counter()}
        for seed in SEEDS:
            order = np.argsort(worths(out / f"whole-{seed}", measure), kind="stable")
            for end, numbers in (("lowest", order[:count]), ("highest", order[-count:])):
                changes[end].append(without(f"{measure}-{end}", set(numbers.tolist()), seed))
                among[end].update(kinds[number] for number in numbers)
        pairs = [
            float(np.corrcoef(*(ranks(worths(out / f"whole-{seed}", measure)) for seed in pair))[0, 1])
            for pair in combinations(SEEDS, 2)
        ]
        found["measures"][measure] = {
            **{f"without the {end}": spread(values) for end, values in changes.items()},
            "rank correlation": float(np.mean(pairs)),
            "among": {end: {k: n / len(SEEDS) for k, n in counts.items()} for end, counts in among.items()},
        }
        print(line(measure, found["measures"][measure]), file=sys.stderr, flush=True)
    return found


def line(measure: str, one: dict[str, Any]) -> str:
    """A measure in a line."""
    parts = [f"{measure:<11}"]
    for end in ("lowest", "highest"):
        change = one[f"without the {end}"]
        among = ", ".join(f"{n:.0f} {kind}" for kind, n in sorted(one["among"][end].items()))
        parts.append(
            f"without the {end} {change['mean']:+.1f} points [{change['low']:+.1f}, {change['high']:+.1f}] ({among})"
        )
    return "; ".join([*parts, f"rank correlation of two seeds {one['rank correlation']:.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="Keep everything there; run again, it continues.")
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        found = check(options.out or Path(temporary))
    if options.json:
        print(json.dumps(found, indent=1))
        return
    accuracy, at_random = found["accuracy"], found["random"]
    print(f"whole set {accuracy['mean']:.1f} % [{accuracy['low']:.1f}, {accuracy['high']:.1f}]")
    print(f"without 30 % at random {at_random['mean']:+.1f} points [{at_random['low']:+.1f}, {at_random['high']:+.1f}]")
    for measure, one in found["measures"].items():
        print(line(measure, one))
    best = found["measures"]["influence"]
    held = (
        best["without the lowest"]["mean"] >= -0.5
        and best["without the highest"]["mean"] <= -3
        and best["rank correlation"] >= 0.5
    )
    print(f"influence {'holds' if held else 'does not hold'} what was expected ({time.monotonic() - started:.0f} s)")
    sys.exit(not held)


if __name__ == "__main__":
    main()
