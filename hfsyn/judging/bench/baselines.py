"""Networks with published weights, tested beside the arms on the same sets: their numbers are those of timm's tables.

OUT/baselines/MODEL-HASH.json          the result of a test
OUT/baselines/MODEL-HASH.error.json    why it failed; the next run tries it again
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfsyn.judging.bench.columns import made_in, make
from hfsyn.judging.bench.matrix import Cell, Matrix, place, safe_name
from hfsyn.judging.bench.outcomes import Outcome

BASELINES = "baselines"
"""The folder of their results, within the matrix's."""


@dataclass(frozen=True)
class Baseline:
    """One network on one test: a file of `BASELINES`."""

    model: str
    dataset: str
    split: str | None

    @property
    def file(self) -> Path:
        """Its path within the matrix's folder, without the ending."""
        key = hashlib.sha256(f"{self.dataset}\n{self.split}".encode()).hexdigest()[:12]
        return Path(BASELINES, f"{safe_name(self.model)}-{key}")


def baseline_tests(matrix: Matrix, model: str, variant: str | None) -> dict[str, Baseline]:
    """The tests of a network by name: those that are of all arms."""
    return {
        name: Baseline(model, place(test.dataset, matrix.seeds[0], variant), test.split)
        for name, test in matrix.tests.items()
        if test.arms is None and (test.variants is None or variant in test.variants)
    }


def missing_baselines(matrix: Matrix, folder: Path) -> list[Baseline]:
    """Those without a result."""
    wanted = [
        one
        for model in matrix.baselines
        for variant in matrix.variants
        for one in baseline_tests(matrix, model, variant).values()
    ]
    return [one for one in dict.fromkeys(wanted) if made_in(folder / one.file)[0] is None]


def run_baseline(folder: Path, one: Baseline, evaluate: Callable[..., dict[str, Any]]) -> str:
    """Test a network, and write what was found or why it failed; return a one-line summary."""
    found, why = make(folder / one.file, evaluate, one.model, one.dataset, one.split)
    return why if found is None else f"{found['metrics']['top1']['value']:.3f}"


def baseline_outcomes(matrix: Matrix, folder: Path) -> list[Outcome]:
    """The networks as cells of the table, each an arm of its own name."""
    found = []
    for variant in matrix.variants:
        for model in matrix.baselines:
            tests = {name: made_in(folder / one.file) for name, one in baseline_tests(matrix, model, variant).items()}
            there = {name: made for name, (made, _) in tests.items() if made is not None}
            missing = {name: why.removeprefix("failed: ") for name, (made, why) in tests.items() if made is None}
            cell = Cell(model, model, None, None, 0.0, matrix.seeds[0], variant=variant)
            told = "; ".join(f"{name}: {why}" for name, why in missing.items()) or None
            found.append(Outcome(cell, {"tests": there}, told, missing))
    return found
