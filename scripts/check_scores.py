#!/usr/bin/env python
"""Whether scores find wrong labels, and what selecting by them is worth, where it is known which labels are wrong.

    python scripts/check_scores.py                                    # drawings, half an hour on two cores
    python scripts/check_scores.py --seeds 1 --out DIR                # one seed, kept there; run again, it continues
    python scripts/check_scores.py --data imagenette --judge MODEL    # photographs, minutes

**Drawings.** A run of 2,000 images of the variant `shapes`, 200 of each class, in which an image shows another class
than its label with a chance of 30 %, any of the nine others alike; that is a generator that draws the wrong thing. The
judge is `crossfit:` with three networks, trained on the same wrong labels by the shipped recipe `shapes`. It aims at an
area under the ROC curve of p_label, right against wrong labels, of at least .97 in the mean of the seeds. Then a rule
selects, and networks are trained for the same number of steps (2,000 images an epoch): on the set as it is, on the
selection, and on the same drawings without a wrong one. All are tested on 4,000 other drawings. The selection should
regain at least 80 % of the accuracy that the wrong labels cost: of the mean over the seeds.

The rule is `margin > 0`: the label is the likeliest class. `p_label >= 0.5` was the rule of the first runs, of the
seeds 0 to 4, written down before them. A network that has learnt from 30 % wrong labels, with smoothed ones, seldom
gives a right label more than .6, so that this rule threw away a quarter of the right ones; it regained 80.0 % (74 % in
the mean of the seeds' own shares), and `margin > 0`, added after seed 0, 94 %. Those were tested on 400 drawings, of
which the wrong labels cost three to nine. Seeds 5 to 9, the larger test and the rule were fixed before any of these
seeds was run. Both rules are printed; the exit code is that of `margin > 0`.

**Photographs.** 5 % of the labels of ImageNette's validation photographs (DIR has val/<wnid>/*) are replaced by another
of the ten classes, and MODEL, any classifier of `hfsyn evaluate` that has these classes, judges all of them. Ranked by
p_label, at the place where 90 % of the wrong labels are found at least 90 % of what is found should be wrong.

Exit code 1 where it falls short. All other settings below were written down before the first run.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hfsyn
from builders.runs import layout
from builders.sources.drawing import draw_array, sample_attributes
from builders.variants import get_variant
from hfsyn.images.generate_stage import generate
from hfsyn.images.generator import Generated
from hfsyn.judging.scores.classifiers import classifier_judge
from hfsyn.judging.sets.image_set import open_images
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.finish import finish
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import load_run
from hfsyn.runs.shards import StoredRows

WRONG, PER_CLASS = 0.3, 200
PARTS = 3
RULES = {"agreed": "margin > 0", "kept": "p_label >= 0.5"}
DECIDES = "agreed"
SEEDS = range(5, 10)
TEST_SEEDS, TEST_EACH = 1000, 2  # what is added to a seed for the test's drawings; how many there are of each caption
LEAST_AREA, LEAST_REGAINED = 0.97, 0.8
SWAPPED, RECALL, LEAST_PRECISION = 0.05, 0.9, 0.9
_SHAPES = get_variant("shapes").classes


class Drawer:
    """Draws the class that a prompt names, or with a chance of `wrong` another one; both decided by the seed."""

    max_tokens = 77

    def __init__(self, wrong: float) -> None:
        self._wrong = wrong

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Not counted."""
        return [1] * len(prompts)

    def start(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> Callable[[], list[Generated]]:
        """The drawings."""
        made = [Generated(self._pixels(prompt, seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
        return lambda: made

    def _pixels(self, prompt: str, seed: int) -> np.ndarray:
        label = next(info.index for info in _SHAPES if prompt.endswith(f" {info.name}"))
        return draw_array(sample_attributes(seed, "train", drawn(label, seed, self._wrong)))


def drawn(label: int, seed: int, wrong: float) -> int:
    """The class that is drawn."""
    rng = random.Random(seed)
    return (label + rng.randrange(1, len(_SHAPES))) % len(_SHAPES) if rng.random() < wrong else label


def make_run(folder: Path, seed: int, wrong: float, per_class: int = PER_CLASS, each: int = 1) -> Path:
    """A finished run of drawings, `per_class` x `each` of each class."""
    changes = [f"source.limit_per_class={per_class}", f"prompt.images_per_caption={each}", f"seed={seed}"]
    recipe = load_recipe("shapes-basic", changes)
    run = prepare(recipe, folder)
    if not (folder / layout.MANIFEST).exists():
        hfsyn.caption(run.folder, quiet=True)
        generate(run.folder, generator=Drawer(wrong), quiet=True)
        finish(load_run(run.folder))
    return folder


def area(scores: Sequence[float], wrong: Sequence[bool]) -> float:
    """Of the ROC curve: the chance that a wrong label has a lower score than a right one."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(wrong, -np.asarray(scores)))


def drawings(seed: int, out: Path) -> dict[str, Any]:
    """One seed: the area, and accuracies of the three trainings."""
    noisy, clean = make_run(out / "noisy", seed, WRONG), make_run(out / "clean", seed, 0.0)
    test = make_run(out / "test", TEST_SEEDS + seed, 0.0, each=TEST_EACH)
    how: dict[str, Any] = {"config": "shapes", "seed": seed, "device": "cpu", "num_processes": 1, "quiet": True}
    for part in range(PARTS):
        fold = f"data.fold={part}/{PARTS}"
        hfsyn.train(out / "folds" / str(part), train_dataset=str(noisy), overrides=fold, **how)
    hfsyn.score(noisy, f"crossfit:{out / 'folds'}", device="cpu", num_processes=1, quiet=True)
    table = pq.read_table(noisy / layout.SCORES_TABLE)
    rows = StoredRows(noisy).table(["sample_id", "label", "seed"]).to_pylist()
    said = dict(zip(table["sample_id"].to_pylist(), table["p_label"].to_pylist(), strict=True))
    wrong = [drawn(row["label"], row["seed"], WRONG) != row["label"] for row in rows]
    found: dict[str, Any] = {
        "seed": seed,
        "area": area([said[row["sample_id"]] for row in rows], wrong),
        "wrong": sum(wrong) / len(wrong),
    }
    for name, rule in RULES.items():
        chosen = hfsyn.select(noisy, out / name, where=rule, quiet=True)
        left = set(StoredRows(out / name).table(["sample_id"])["sample_id"].to_pylist())
        found[f"share_{name}"] = chosen.kept / chosen.rows
        found[f"wrong_{name}"] = sum(w for w, row in zip(wrong, rows, strict=True) if row["sample_id"] in left) / len(
            left
        )
    for name, run in {"noisy": noisy, "clean": clean, **{name: out / name for name in RULES}}.items():
        budget = PER_CLASS * len(_SHAPES)
        words = {"train_dataset": str(run), "budget": budget, "eval_dataset": str(test), "eval_split": "train"}
        result = hfsyn.train(out / f"trained-{name}", **words, **how)
        found[name] = result["test"]["metrics"]["top1"]["value"]
    return found


def photographs(data: str, model: str) -> dict[str, Any]:
    """Precision where the recall is `RECALL`, and the area, on photographs of which some labels were swapped."""
    images = open_images(f"imagenette={data}", "validation")
    rng = random.Random(0)
    numbers = rng.sample(range(len(images)), round(SWAPPED * len(images)))
    wrong = dict.fromkeys(range(len(images)), False) | dict.fromkeys(numbers, True)
    labels = list(images.wnids)
    for number in numbers:
        labels[number] = rng.choice([wnid for wnid in images.classes if wnid != labels[number]])
    judge = classifier_judge("judge", model, images.names, data, "cpu")
    rows = [{"wnid": wnid, "image": _Bytes(images, number)} for number, wnid in enumerate(labels)]
    said = [row["p_label"] if isinstance(row, Mapping) else 1.0 for row in judge.of(rows)]
    order = sorted(range(len(said)), key=lambda number: said[number])
    hits = np.cumsum([wrong[number] for number in order])
    place = int(np.searchsorted(hits, RECALL * len(numbers)))
    return {
        "photographs": len(images),
        "swapped": len(numbers),
        "area": area(said, list(wrong.values())),
        "looked_at": place + 1,
        "precision": float(hits[place] / (place + 1)),
        "p_label": said[order[place]],
    }


class _Bytes(dict[str, Any]):
    """The stored image of a row, read when it is asked for."""

    def __init__(self, images: Any, number: int) -> None:
        super().__init__()
        self._images, self._number = images, number

    def __bool__(self) -> bool:
        return True

    def get(self, key: str, default: Any = None) -> Any:
        """The bytes."""
        return self._images.images[self._number]


def main() -> int:
    """Print the table, or JSON; 1 if something falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="the first N seeds")
    parser.add_argument("--out", type=Path, help="keep runs and trainings there, and continue")
    parser.add_argument("--data", metavar="DIR", help="ImageNette: photographs instead of drawings")
    parser.add_argument("--judge", metavar="MODEL", help="who judges the photographs")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    started = time.monotonic()
    if words.data:
        found = photographs(words.data, words.judge)
        fails = found["precision"] < LEAST_PRECISION
        text = (
            f"{found['photographs']} photographs, {found['swapped']} labels swapped: area {found['area']:.4f}; of the "
            f"{found['looked_at']} lowest scores, which hold {RECALL:.0%} of these, {found['precision']:.3f} are wrong"
        )
    else:
        with tempfile.TemporaryDirectory() as folder:
            out = words.out or Path(folder)
            rows = [_told(drawings(seed, out / f"seed-{seed}")) for seed in SEEDS[: words.seeds]]
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "seed"}
        lost = mean["clean"] - mean["noisy"]
        regained = {name: (mean[name] - mean["noisy"]) / lost for name in RULES}
        found = {"seeds": rows, "mean": mean, "regained": regained}
        fails = mean["area"] < LEAST_AREA or regained[DECIDES] < LEAST_REGAINED
        told = [(name, rule, regained[name]) for name, rule in RULES.items()]
        text = (
            f"{len(rows)} seeds: area {mean['area']:.4f}; accuracy {mean['noisy']:.4f} with wrong labels, "
            f"{mean['clean']:.4f} without any; regained: "
            + ", ".join(f"{share:.1%} by {rule} ({mean[f'share_{name}']:.0%} kept)" for name, rule, share in told)
        )
    found["seconds"] = round(time.monotonic() - started)
    print(json.dumps(found, indent=1) if words.json else text)
    return int(fails)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
