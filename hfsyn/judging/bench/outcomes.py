"""What became of the cells of a matrix: read from its folder, and chosen among where the matrix says how."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hfsyn.judging.bench.columns import cell_attacks
from hfsyn.judging.bench.matrix import CHOOSING, CHOSEN, Cell, Matrix, cell_tests, cells
from hfsyn.judging.train.model_card import without_paths

RESULTS, ERROR = "results.json", "error.json"
NOT_RUN = "not run"
"""The error of a cell or a column that was not tried yet."""


@dataclass(frozen=True)
class Outcome:
    """A cell and what became of it."""

    cell: Cell
    result: dict[str, Any] | None
    """Its results.json with those of its columns that the matrix asks for; None if it is not trained."""
    error: str | None
    """Why it failed, as a whole or in a column; None if it did not."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Columns that are asked for and not there, and why."""

    def found(self, name: str) -> dict[str, Any] | None:
        """The result of a test or an attack."""
        result = self.result or {}
        found: dict[str, Any] | None = result.get("tests", {}).get(name) or result.get("membership", {}).get(name)
        return found


def read_cells(matrix: Matrix, folder: Path) -> list[Outcome]:
    """Every cell of the matrix with what its folder holds."""
    found = []
    for cell in cells(matrix):
        result, error = (read_json(folder / cell.folder / name) for name in (RESULTS, ERROR))
        wanted: dict[str, Mapping[str, Any]] = {
            "tests": cell_tests(matrix, cell),
            "membership": cell_attacks(matrix, cell),
        }
        failed, named = (error or {}).get("error", NOT_RUN), (error or {}).get("columns", {})
        if result is not None and (other := _difference_of(cell, wanted, result)):
            result, failed, named = None, f"what is in its folder is another cell's: {other}", {}
        there = {
            kind: {name: one for name, one in (result or {}).get(kind, {}).items() if name in asked}
            for kind, asked in wanted.items()
        }
        absent = [name for kind, asked in wanted.items() for name in asked if name not in there[kind]]
        missing = {name: named.get(name, NOT_RUN if result is not None else failed) for name in absent}
        failure = _in_words(missing, failed) if result is not None else failed
        found.append(Outcome(cell, result and {**result, **there}, failure, missing))
    return found


def _in_words(missing: Mapping[str, str], failed: str) -> str | None:
    """Why a trained cell lacks columns."""
    told = [f"{name}: {why}" for name, why in missing.items() if why != NOT_RUN]
    return ("; ".join(told) or failed) if missing else None


def _difference_of(cell: Cell, wanted: Mapping[str, Mapping[str, Any]], result: dict[str, Any]) -> str:
    """How the cell that a result names differs from this one; empty if it does not."""
    there = result.get("cell", {})
    differing = [f"{key} {there.get(key)!r}" for key, value in asdict(cell).items() if there.get(key) != value]
    for kind, asked in wanted.items():
        known = there.get(kind, {})
        for name, one in asked.items():
            if name in known and known[name] != ([*one] if isinstance(one, tuple) else one):
                differing.append(f"{name} {known[name]}")
    return ", ".join(differing)


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if there is none."""
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def own_metrics(test: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a test: over the set's own classes if the classifier has more, as is usual for such sets."""
    found: dict[str, Any] = test["metrics"].get("masked") or test["metrics"]
    return found


def with_means(matrix: Matrix, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with the matrix's means as tests: of each cell that has all of their parts."""
    found = []
    for outcome in outcomes:
        tests, missing = dict((outcome.result or {}).get("tests", {})), dict(outcome.missing)
        for name, parts in matrix.means.items():
            if all(part in tests for part in parts):
                tests[name] = _mean_of([tests[part] for part in parts])
            elif absent := [part for part in parts if part in missing]:
                missing[name] = f"{absent[0]}: {missing[absent[0]]}" if missing[absent[0]] != NOT_RUN else NOT_RUN
        result = None if outcome.result is None else {**outcome.result, "tests": tests}
        found.append(replace(outcome, result=result, missing=missing))
    return found


def _mean_of(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of tests as a test: of their accuracies, each set counted once, however large it is."""
    own = [own_metrics(test) for test in tests]
    means: dict[str, Any] = {}
    for measure in ("top1", "top5", "ece"):
        values = [one[measure]["value"] for one in own]
        means[measure] = {"value": None if None in values else sum(values) / len(values), "low": None, "high": None}
    classes = max(one["classes"] for one in own)
    metrics = {"classes": classes, **means, "per_class": [], "masked": None}
    return {**tests[0], "n": sum(test["n"] for test in tests), "metrics": metrics, "real": None}


@dataclass(frozen=True)
class Choice:
    """The learning rate and training recipe that an arm is reported with."""

    arm: str
    setting: dict[str, Any]  # what arms must agree in, without what is chosen
    lr: float | None
    recipe: str | None
    mean: float  # top-1 on the images on which it was chosen
    seeds: tuple[int, ...]
    among: int
    on: str

    def text(self) -> str:
        """What was chosen, and on what."""
        parts = [Path(self.recipe or "").stem, f"learning rate {self.lr:g}" if self.lr else ""]
        return f"{', '.join(filter(None, parts))} (of {self.among}, on {self.on})"


def chosen(matrix: Matrix, outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Choice]]:
    """The outcomes to report, and how they were chosen: all, and none, if the matrix does not choose.

    Of each arm and setting that is reported the learning rate and training recipe with the best mean top-1 on
    `select_on`, over the seeds that all of them have; of equal ones the first. What is reported has neither any more,
    so that arms are compared each at its best.
    """
    if matrix.select_on is None or len(matrix.lrs) * len(matrix.recipes) < 2:
        return list(outcomes), []
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Outcome]]] = {}
    for outcome in outcomes:
        facts = asdict(outcome.cell)
        pick = tuple(facts.pop(name) for name in CHOSEN)
        facts.pop("seed")
        groups.setdefault(tuple(facts.items()), {}).setdefault(pick, []).append(outcome)
    kept, choices = list[Outcome](), list[Choice]()
    for setting, candidates in groups.items():
        scores = {pick: found for pick, some in candidates.items() if (found := _scores(some))}
        seeds = sorted(set.intersection(*map(set, scores.values()))) if scores else []
        means = {pick: sum(found[seed] for seed in seeds) / len(seeds) for pick, found in scores.items() if seeds}
        if not means:
            kept += map(_unchosen, next(iter(candidates.values())))
            continue
        best = max(means, key=lambda pick: means[pick])
        named = dict(setting)
        dataset, split = cell_tests(matrix, candidates[best][0].cell)[CHOOSING]
        on = without_paths(dataset) + (f" {split}" if split else "")
        lr, recipe = best
        choices.append(Choice(named.pop("arm"), named, lr, recipe, means[best], tuple(seeds), len(candidates), on))
        kept += [replace(one, cell=replace(one.cell, lr=None, recipe=None)) for one in candidates[best]]
    return kept, choices


def _unchosen(outcome: Outcome) -> Outcome:
    """A cell of an arm of which nothing could be chosen: only why is reported."""
    why, result = outcome.missing.get(CHOOSING, NOT_RUN), outcome.result or {}
    told = why if why == NOT_RUN else f"nothing to choose by: {why}"
    there = {name: told for kind in ("tests", "membership") for name in result.get(kind, {})}
    cell = replace(outcome.cell, lr=None, recipe=None)
    return replace(outcome, cell=cell, result=None, missing={**outcome.missing, **there})


def _scores(outcomes: Sequence[Outcome]) -> dict[int, float]:
    """Top-1 on the images on which is chosen, by seed."""
    found = {one.cell.seed: one.found(CHOOSING) for one in outcomes}
    return {seed: own_metrics(test)["top1"]["value"] for seed, test in found.items() if test is not None}
