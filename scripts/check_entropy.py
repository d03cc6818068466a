#!/usr/bin/env python
"""Whether entropy guidance makes images of which a classifier is less sure, and what it costs, on the built-in models.

    python scripts/check_entropy.py                          a few minutes on one core
    python scripts/check_entropy.py --classifier FOLDER      one that is trained already

A small classifier is trained on drawings (600 of `shapes`); the built-in generator draws the same prompts and seeds
with each weight; the classifier reads the stored levels, in batches of one picture, through its ordinary preprocessing
and not through the tensors of the guidance. Said for each weight: the mean entropy among the ten classes in nats, how
much it is above that of the weight before (paired by image, with its standard error), and how often the classifier
names the class of the prompt. Exit code 1: the mean did not rise with each weight. The settings were chosen on other
seeds than those that are drawn. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from benchmarks import entropy_arms
from benchmarks.budget import Budget
from PIL import Image

from builders.variants import get_variant
from hfsyn import train
from hfsyn.images.generator import DiffusersGenerator
from hfsyn.judging.classifier import open_classifier
from hfsyn.judging.preprocessing import plain_transform
from hfsyn.recipes.recipe import GeneratePart, load_recipe

WEIGHTS = (0.0, 10.0, 30.0, 100.0)
FIRST_SEED = 100_000


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        critic = options.classifier or trained(Path(folder) / "critic")
        part = load_recipe("shapes-cip").generate
        part = part.model_copy(update={"entropy_classifier": critic, "entropy_every": options.every})
        rows = measured(part, options.images)
        costs = entropy_arms.measured(part.model_copy(update={"entropy_weight": 30.0}), "cpu", 5.0, Budget(None))
    print("| weight | entropy | above the weight before | names the class |\n|---|---|---|---|")
    for row in rows:
        gain = "" if row["gain"] is None else f"{row['gain']:+.3f} ± {row['error']:.3f}"
        print(f"| {row['weight']:g} | {row['entropy']:.3f} | {gain} | {row['accuracy']:.1%} |")
    print("\n".join(["", *entropy_arms.lines(costs), ""]))
    rises = all(row["gain"] is None or row["gain"] > 0 for row in rows)
    print(json.dumps({"every": options.every, "images": options.images, "rows": rows, "costs": costs, "rises": rises}))
    sys.exit(0 if rises else 1)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", metavar="MODEL", help="anything that `hfsyn evaluate` opens [trained here]")
    parser.add_argument("--images", type=int, default=200, help="drawn with each weight [200]")
    parser.add_argument("--every", type=int, default=5, help="generate.entropy_every [5]")
    return parser.parse_args()


def trained(folder: Path) -> str:
    """The folder of a classifier of drawings."""
    overrides = ["data.limit_per_class=60", "optimise.epochs=12"]
    train(folder, train_dataset="shapes", config="shapes", overrides=overrides, device="cpu", quiet=True)
    return str(folder)


def measured(part: GeneratePart, images: int) -> list[dict[str, Any]]:
    """A row for each weight."""
    classes = get_variant("shapes").classes
    labels = [classes[number % len(classes)] for number in range(images)]
    prompts, seeds = [f"a photo of a {info.name}" for info in labels], range(FIRST_SEED, FIRST_SEED + images)
    classifier = open_classifier(str(part.entropy_classifier))
    prepare, rows, before = plain_transform(classifier.preprocessing), list[dict[str, Any]](), None
    for weight in WEIGHTS:
        fields = {"entropy_weight": weight, "entropy_classifier": part.entropy_classifier if weight else None}
        by = DiffusersGenerator(part.model_copy(update=fields), None, "cpu", variant="shapes")
        found, right = [], 0
        for start in range(0, images, part.batch_size):
            some = slice(start, min(images, start + part.batch_size))
            for info, image in zip(labels[some], by.generate(prompts[some], seeds[some]), strict=True):
                with torch.inference_mode():
                    logits = classifier.network(prepare(Image.fromarray(image.pixels))[None])[0].double()
                likely = logits.log_softmax(0)
                found.append(float(-(likely.exp() * likely).sum()))
                right += classifier.wnids[int(likely.argmax())] == info.wnid
        gains = None if before is None else np.array(found) - before
        before = np.array(found)
        row: dict[str, Any] = {"weight": weight, "entropy": float(before.mean()), "accuracy": right / images}
        error = 0.0 if gains is None else float(gains.std(ddof=1) / len(gains) ** 0.5)
        rows.append({**row, "gain": None if gains is None else float(gains.mean()), "error": error})
    return rows


if __name__ == "__main__":
    main()
