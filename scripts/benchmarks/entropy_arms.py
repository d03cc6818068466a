"""What entropy guidance costs: seconds an image and memory, beside the same generator without it, in one run."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.budget import Budget
from builders.variants import get_variant
from hfsyn.images.generator import DiffusersGenerator
from hfsyn.images.tuning import release_memory
from hfsyn.judging.classifier import Classifier, create_network, save_classifier
from hfsyn.judging.preprocessing import of_training
from hfsyn.recipes.recipe import GeneratePart

ARMS: dict[str, dict[str, Any]] = {
    "plain": {"entropy_weight": 0.0, "entropy_classifier": None},
    "one step in 5": {"entropy_every": 5},
    "every step": {"entropy_every": 1},
}
LEAST_ROUNDS = 3


def untrained(folder: Path, name: str) -> str:
    """The folder of a classifier of drawings with random weights, which costs what a trained one costs."""
    classes = get_variant("shapes").classes
    network = create_network(name, len(classes), {}, None)
    wnids, names = tuple(info.wnid for info in classes), tuple(info.name for info in classes)
    save_classifier(Classifier(name, network, wnids, names, of_training(network)), folder)
    return str(folder)


def measured(part: GeneratePart, device: str, seconds: float, budget: Budget) -> dict[str, dict[str, float]]:
    """Of each arm: `seconds_per_image` (median), `peak_gb`, and `ratio` to plain with its `low` and `high`, by pairs of
    turns in the same round. `part` is guided.
    """
    generators = {
        name: DiffusersGenerator(part.model_copy(update=fields), None, device, variant="shapes")
        for name, fields in ARMS.items()
    }
    size = part.batch_size
    prompts = [f"a photo of a {info.name}" for info in get_variant("shapes").classes]
    turns: dict[str, list[float]] = {name: [] for name in ARMS}
    peaks = dict.fromkeys(ARMS, 0.0)
    on_gpu, began, number = device.startswith("cuda"), time.perf_counter(), -1  # the first round only warms up
    while number < LEAST_ROUNDS or (time.perf_counter() - began < seconds * len(ARMS) and budget.left() > 0):
        for name in ARMS if number % 2 else reversed(ARMS):
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            turn = time.perf_counter()
            generators[name].generate([prompts[i % len(prompts)] for i in range(size)], range(size))
            if number >= 0:
                turns[name].append((time.perf_counter() - turn) / size)
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0)
        number += 1
    found = {}
    for name, times in turns.items():
        ratios = [mine / plain for mine, plain in zip(times, turns["plain"], strict=True)]
        figures = {"seconds_per_image": statistics.median(times), "peak_gb": peaks[name]}
        found[name] = figures | {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    generators.clear()
    release_memory()
    return found


def lines(arms: dict[str, dict[str, float]]) -> list[str]:
    """For people."""
    return [
        f"entropy guidance, {name}: {arm['seconds_per_image']:.4f} s an image, {arm['ratio']:.2f} times plain "
        f"[{arm['low']:.2f}, {arm['high']:.2f}], {arm['peak_gb']:.1f} GB"
        for name, arm in arms.items()
    ]
