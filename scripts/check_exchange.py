#!/usr/bin/env python
"""Whether the exchange rate that `hfsyn bench` states is right where it is known: sets with planted wrong labels.

    python scripts/check_exchange.py                   # both learners, about an hour on two cores
    python scripts/check_exchange.py --only edges      # minutes
    python scripts/check_exchange.py --json

The "synthetic" images are new drawings of the variant `shapes`, a share of whose labels is wrong: any of the nine
others alike. What such an image is worth is known in three ways that share no code with `hfsyn.judging.bench.exchange`:

- **by a formula**, for a learner that averages: a label's expectation shrinks by a = 1 - p K / (K - 1) with K classes,
  so that r right images and s with wrong labels at share p teach as much as (r + a s)^2 / (r + s) right ones;
- **by measuring** the same learner many times: accuracy of right images alone at many numbers, averaged over many
  seeds, says which number a mixture is equal to (`reference`). The rate is the least squares fit through zero, as the
  rate of a matrix is, over the mixtures within the matrix's numbers. Expected from the formula, at 10, 20 and 30 %
  wrong labels: 1.27, 1.67 and 2.31 (network, which has no mixtures with 80: 1.27, 1.67 and 2.36);
- where all labels are drawn by chance (`WORTHLESS`) an image is worth nothing, and on a test whose labels are drawn by
  chance no image helps: for both the matrix must say that there is no rate.

Two learners. **edges**: ridge regression of the classes on the strength of edges at 16 x 16 places, which takes
milliseconds, so that whole matrices are repeated `MATRICES` times and the share of the 95 % intervals that hold the
measured rate is stated: for 3 seeds, as in the shipped matrix, and for 5. **network**: `hfsyn bench` itself with a
network and a training recipe, once, against the mean of other seeds (`NETWORK_REFERENCE`).

All settings below were written down before the first run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders.sources.drawing import ShapesSource, draw, png_of
from builders.variants import get_variant
from hfsyn.judging.bench.exchange import rate_of

SHARES = (0.1, 0.2, 0.3)  # of wrong labels
WORTHLESS = 0.9  # with ten classes: labels say nothing about their images
REAL, SYNTHETIC = (5, 10, 20, 40), (20, 40, 80)  # images per class, as in the shipped matrix
DENSE = (2, 3, 5, 7, 10, 14, 20, 28, 40, 56)  # right images alone, for the measured rate
CLASSES, CHANCE = 10, 0.1
POOL = 2000  # drawings per class that the learner `edges` draws its images from
TESTED = 2000
RIDGE = 1.0
MATRICES = 40  # repetitions of a whole matrix
SEEDS = (3, 5)  # in each of them
REFERENCE = 200  # seeds of the measured rate
NETWORK_REAL, NETWORK_SYNTHETIC = (0, 5, 10, 20, 40), (20, 40)
NETWORK_DENSE = (5, 7, 10, 14, 20, 28, 40, 56)
NETWORK_SEEDS, NETWORK_REFERENCE = (0, 1, 2), range(100, 104)
NETWORK_BUDGET = 300  # images an epoch shows

Curve = Mapping[int, float]
"""Accuracy by number of right images per class."""
Mixtures = Mapping[tuple[int, int], float]
"""Accuracy by numbers of right images and of others."""


def by_formula(share: float, real: Iterable[int] = (0, *REAL), synthetic: Iterable[int] = SYNTHETIC) -> float:
    """The rate for a learner that averages."""
    kept, synthetic, most = 1 - share * CLASSES / (CLASSES - 1), tuple(synthetic), max(real := tuple(real))
    equal = {(r, s): (r + kept * s) ** 2 / (r + s) for r in real for s in synthetic}
    return fitted({key: value - key[0] for key, value in equal.items() if value < most})


def fitted(gains: Mapping[tuple[int, int], float]) -> float:
    """Images that are worth a right one, from how many right ones each mixture gains: least squares through zero."""
    return sum(s * s for _, s in gains) / sum(s * gain for (_, s), gain in gains.items())


def reference(alone: Curve, mixed: Mixtures, most: int) -> float:
    """The measured rate: from accuracies at many numbers, each a mean over many seeds.

    Straight lines over the logarithm of the number of images, which is nearly what the curve is at these distances.
    """
    numbers = sorted(alone)
    heights = np.maximum.accumulate([alone[n] for n in numbers])
    gains = {}
    for (real, synthetic), accuracy in mixed.items():
        if heights[0] < accuracy < alone[most]:
            equal = math.exp(np.interp(accuracy, heights, np.log(numbers)))
            gains[real, synthetic] = equal - real
    return fitted(gains)


# --- the learner `edges` ----------------------------------------------------------------------------------------------


def edges(drawings: Iterable[Any]) -> np.ndarray:
    """The strength of edges at 16 x 16 places of each drawing, at unit length."""
    pixels = np.stack([np.asarray(draw(one).convert("RGB"), dtype=np.float32) for one in drawings])
    down, right = np.zeros_like(pixels), np.zeros_like(pixels)
    down[:, 1:-1] = pixels[:, 2:] - pixels[:, :-2]
    right[:, :, 1:-1] = pixels[:, :, 2:] - pixels[:, :, :-2]
    strength = np.hypot(down, right).max(-1)
    found = strength.reshape(len(pixels), 16, 2, 16, 2).mean((2, 4)).reshape(len(pixels), -1)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class Edges:
    """The learner, with its pool of drawings and its test."""

    def __init__(self, pool: int = POOL, tested: int = TESTED) -> None:
        source, test = ShapesSource(), ShapesSource(split="test")
        self._size = pool
        self._pool = edges(source.drawing(number) for number in range(CLASSES * pool))
        self._mean = self._pool.mean(0)
        self._test = edges(test.drawing(number) for number in range(tested)) - self._mean
        self._labels = np.arange(tested) % CLASSES
        self._by_chance = np.random.default_rng(0).integers(0, CLASSES, tested)

    def images(self, seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Right images and others of one seed: class x number x values; the label is the class."""
        draw = np.random.default_rng([seed, round(1000 * share)])
        right = np.stack([self._some(draw, np.full(max(DENSE), k)) for k in range(CLASSES)])
        other = []
        for label in range(CLASSES):
            wrong = draw.random(max(SYNTHETIC)) < share
            shown = np.where(wrong, (label + draw.integers(1, CLASSES, max(SYNTHETIC))) % CLASSES, label)
            other.append(self._some(draw, shown))
        return right, np.stack(other)

    def _some(self, draw: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """A drawing of each of these classes, none twice."""
        return self._pool[CLASSES * draw.choice(self._size, len(classes), replace=False) + classes]

    def accuracy(self, *images: np.ndarray, by_chance: bool = False) -> float:
        """After training on the images."""
        values = np.concatenate([one.reshape(-1, one.shape[-1]) for one in images])
        labels = np.concatenate([np.repeat(np.arange(CLASSES), one.shape[1]) for one in images])
        centred, wanted = values - self._mean, np.eye(CLASSES, dtype=np.float32)[labels] - np.float32(1 / CLASSES)
        ridge = RIDGE * np.eye(centred.shape[1], dtype=np.float32)
        weights = np.linalg.solve(centred.T @ centred + ridge, centred.T @ wanted)
        answers = (self._test @ weights).argmax(1)
        return float((answers == (self._by_chance if by_chance else self._labels)).mean())

    def measured(self, share: float, seeds: Sequence[int]) -> float:
        """The rate from many seeds."""
        alone: dict[int, list[float]] = {}
        mixed: dict[tuple[int, int], list[float]] = {}
        for seed in seeds:
            right, other = self.images(seed, share)
            for n in DENSE:
                alone.setdefault(n, []).append(self.accuracy(right[:, :n]))
            for r in (0, *REAL):
                for s in SYNTHETIC:
                    mixed.setdefault((r, s), []).append(self.accuracy(right[:, :r], other[:, :s]))
        means = {n: float(np.mean(values)) for n, values in alone.items()}
        return reference(means, {key: float(np.mean(values)) for key, values in mixed.items()}, max(REAL))

    def matrix(self, share: float, seeds: Sequence[int], *, by_chance: bool = False) -> dict[str, Any]:
        """What the code under test says of one matrix."""
        alone: dict[int, dict[int, float]] = {n: {} for n in REAL}
        mixed: dict[tuple[int, int], dict[int, float]] = {(r, s): {} for r in (0, *REAL) for s in SYNTHETIC}
        for seed in seeds:
            right, other = self.images(seed, share)
            for n in REAL:
                alone[n][seed] = self.accuracy(right[:, :n], by_chance=by_chance)
            for (r, s), found in mixed.items():
                found[seed] = self.accuracy(right[:, :r], other[:, :s], by_chance=by_chance)
        return rate_of(alone, mixed, CHANCE)


@dataclass
class Line:
    """One line of the report."""

    learner: str
    share: float
    seeds: int
    formula: float | None
    measured: float | None
    """None where there is no rate, and the matrix must say so."""
    found: list[tuple[float, float, float] | None]
    """Rate and interval that each matrix states; None where it states none."""

    @property
    def holding(self) -> int:
        """How many are right: intervals that hold the measured rate, or none stated where there is none."""
        if self.measured is None:
            return sum(one is None for one in self.found)
        return sum(one is not None and one[1] <= self.measured <= one[2] for one in self.found)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "holding": self.holding}

    def text(self) -> str:
        """For people."""
        of = f"{self.learner:8} {self.share:4.0%} wrong, {self.seeds} seeds:"
        if self.measured is None:
            return f"{of} no rate; {self.holding} of {len(self.found)} matrices say so"
        there = [one for one in self.found if one is not None]
        said = f"known {self.measured:.2f} (formula {self.formula:.2f})"
        if len(self.found) == 1:
            stated = "none stated" if not there else "stated {:.2f} ({:.2f} to {:.2f})".format(*there[0])
            return f"{of} {said}, {stated}"
        middle = f"median stated {np.median([one[0] for one in there]):.2f}, " if there else ""
        width = f"median width {np.median([one[2] - one[1] for one in there]):.2f}, " if there else ""
        none = len(self.found) - len(there)
        return f"{of} {said}, {middle}{width}{none} without a rate, {self.holding} of {len(self.found)} intervals hold"


def _stated(found: Mapping[str, Any]) -> tuple[float, float, float] | None:
    return None if found["rate"] is None else (found["rate"], found["low"], found["high"])


def check_edges(
    learner: Edges, matrices: int = MATRICES, seeds: Sequence[int] = SEEDS, of_reference: int = REFERENCE
) -> list[Line]:
    """Matrices of the fast learner, repeated."""
    lines = []
    for share, flat in [(share, False) for share in (*SHARES, WORTHLESS)] + [(SHARES[0], True)]:
        none = flat or share == WORTHLESS
        known = None if none else learner.measured(share, range(10**6, 10**6 + of_reference))
        for count in seeds:
            groups = [range(1000 * number, 1000 * number + count) for number in range(matrices)]
            stated = [_stated(learner.matrix(share, some, by_chance=flat)) for some in groups]
            formula = None if none else by_formula(share)
            lines.append(Line("flat" if flat else "edges", share, count, formula, known, stated))
    return lines


# --- the network ------------------------------------------------------------------------------------------------------


def _write_set(folder: Path, seed: int, share: float, number: int) -> None:
    """Drawings in a folder for each label; with share 0 all labels are right."""
    source, draw = ShapesSource(seed=2 * seed + 10**6 + bool(share)), np.random.default_rng([seed, round(1000 * share)])
    for label, info in enumerate(get_variant("shapes").classes):
        (folder / info.wnid).mkdir(parents=True)
        for one in range(number):
            wrong = draw.random() < share
            shown = (label + int(draw.integers(1, CLASSES))) % CLASSES if wrong else label
            drawing = source.drawing(CLASSES * (label * number + one) + shown)
            (folder / info.wnid / f"{one:04d}.png").write_bytes(png_of(drawing))


def _bench(folder: Path, name: str, seeds: Sequence[int], real: Sequence[int], synthetic: Sequence[int]) -> Any:
    from hfsyn.judging.bench.cells import bench

    for seed in seeds:
        for share in (0.0, *SHARES):
            if not (place := folder / f"{share:g}-{seed}").exists():
                _write_set(place, seed, share, max(*NETWORK_DENSE, *NETWORK_SYNTHETIC))
    arms = {f"wrong {share:g}": {"train": [f"shapes={folder}/{share:g}-{{seed}}"]} for share in SHARES}
    matrix = {
        "name": name,
        "config": "shapes",
        "arms": arms,
        "models": ["test_resnet"],
        "seeds": list(seeds),
        "real": {"dataset": f"shapes={folder}/0-{{seed}}", "numbers": list(real)},
        "synthetic": list(synthetic),
        "budgets": [NETWORK_BUDGET],
        "tests": {"drawings": {"dataset": "shapes", "split": "test"}},
    }
    return bench(matrix, folder / name)


def check_network(folder: Path) -> list[Line]:
    """One matrix of `hfsyn bench`, whose reference is made by the same trainings with other seeds."""
    stated = _bench(folder, "matrix", NETWORK_SEEDS, NETWORK_REAL, (0, *NETWORK_SYNTHETIC))["exchange"]
    alone = _bench(folder, "alone", NETWORK_REFERENCE, NETWORK_DENSE, (0,))["rows"]
    mixed = _bench(folder, "mixed", NETWORK_REFERENCE, NETWORK_REAL, NETWORK_SYNTHETIC)["rows"]
    curve = {row["real"]: row["mean"] for row in alone}
    lines = []
    for share in SHARES:
        arm = f"wrong {share:g}"
        known = reference(
            curve, {(row["real"], row["synthetic"]): row["mean"] for row in mixed if row["arm"] == arm}, max(REAL)
        )
        found = [_stated(rate) for rate in stated if rate["arm"] == arm]
        formula = by_formula(share, NETWORK_REAL, NETWORK_SYNTHETIC)
        lines.append(Line("network", share, len(NETWORK_SEEDS), formula, known, found))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("edges", "network"), help="one learner")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the trainings here; run again, it continues")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the lines")
    options = parser.parse_args()
    started = time.monotonic()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="hfsyn-exchange-") as temporary:
        if options.only != "network":
            lines += check_edges(Edges())
        if options.only != "edges":
            lines += check_network((options.out or Path(temporary)).resolve())
    seconds = round(time.monotonic() - started)
    if options.json:
        print(json.dumps({"lines": [line.as_dict() for line in lines], "seconds": seconds}, indent=1))
    else:
        print("\n".join([*(line.text() for line in lines), f"{seconds} s"]))


if __name__ == "__main__":
    main()
