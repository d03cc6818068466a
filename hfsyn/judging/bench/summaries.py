"""What the cells of a matrix add up to: means with intervals over seeds, paired differences, a table and a CSV file."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfsyn.judging.bench.matrix import Cell, Matrix, cell_tests, cells
from hfsyn.judging.measures.metrics import mean_interval, paired_difference

CSV, SUMMARY = "results.csv", "summary.json"
NOT_RUN = "not run"
"""The error of a cell that nobody has tried yet."""
_MEASURES = ("top1", "top5", "ece")


@dataclass(frozen=True)
class Outcome:
    """A cell and what became of it."""

    cell: Cell
    result: dict[str, Any] | None
    """Its results.json with those of its tests that the matrix asks for; None where it is not trained."""
    error: str | None
    """Why it failed, as a whole or in a test; None where it did not."""
    missing: tuple[str, ...] = ()
    """Tests that are asked for and not there."""


def read_cells(matrix: Matrix, folder: Path) -> list[Outcome]:
    """Every cell of the matrix with what its folder holds."""
    found = []
    for cell in cells(matrix):
        result, error = (_json(folder / cell.folder / name) for name in ("results.json", "error.json"))
        wanted = cell_tests(matrix, cell)
        failed = (error or {}).get("error", NOT_RUN)
        if result is not None and (other := _difference_of(cell, wanted, result)):
            result, failed = None, f"what lies in its folder is another cell's: {other}"
        tests = {name: test for name, test in (result or {}).get("tests", {}).items() if name in wanted}
        missing = tuple(name for name in wanted if name not in tests)
        found.append(
            Outcome(cell, result and {**result, "tests": tests}, failed if missing or result is None else None, missing)
        )
    return found


def _difference_of(cell: Cell, tests: dict[str, tuple[str, str | None]], result: dict[str, Any]) -> str | None:
    """In what a result's own cell is not this one; None where it is this one."""
    there = result.get("cell", {})
    differing = [f"{key} {there.get(key)!r}" for key, value in asdict(cell).items() if there.get(key) != value]
    known = there.get("tests", {})
    differing += [f"{name} {known[name]}" for name, test in tests.items() if name in known and known[name] != [*test]]
    return ", ".join(differing) or None


def _json(path: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def accuracy(test: dict[str, Any], measure: str = "top1") -> float | None:
    """A measure of a test: over the set's own classes where the classifier has more, as is usual for such sets."""
    metrics = test["metrics"]
    found: float | None = (metrics.get("masked") or metrics)[measure]["value"]
    return found


def summarise(matrix: Matrix, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Sum up.

    Returns:
        ``name``, ``cells``, ``failed`` (``cell``, ``error``), ``rows``: one for each test, setting and arm, with
        ``seeds``, ``values`` and ``mean``, ``low``, ``high`` of top-1, ``n`` (images of the test), ``top5``, ``ece``
        (means) and ``all_classes`` (mean top-1 over all outputs, where the set has fewer classes);
        ``differences``: one for each test, setting and pair of arms, ``a`` less ``b`` over the seeds that both have;
        of two arms ``a`` is the one that stands later in the matrix.
    """
    rows, differences = [], []
    settings = list(dict.fromkeys(outcome.cell.setting for outcome in outcomes))
    for name, setting in itertools.product(matrix.tests, settings):
        # In the matrix's order, whichever cells are there: a difference must not change its sign because one failed.
        by_arm: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in matrix.arms}
        for outcome in outcomes:
            test = (outcome.result or {"tests": {}})["tests"].get(name)
            if outcome.cell.setting == setting and test is not None:
                by_arm[outcome.cell.arm][outcome.cell.seed] = test
        where = {"test": name, **dict(zip(("model", "budget", "limit", "share"), setting, strict=True))}
        rows += [{**where, "arm": arm, **_row(tests)} for arm, tests in by_arm.items() if tests]
        differences += [
            {**where, "a": a, "b": b, **_difference(by_arm[a], by_arm[b])}
            for b, a in itertools.combinations(by_arm, 2)
            if set(by_arm[a]) & set(by_arm[b])
        ]
    failed = [{"cell": "/".join(o.cell.folder.parts[1:]), "error": o.error} for o in outcomes if o.error is not None]
    return {
        "name": matrix.name,
        "cells": len(outcomes),
        "failed": failed,
        "tests": list(matrix.tests),
        "arms": list(matrix.arms),
        "rows": rows,
        "differences": differences,
    }


def _row(tests: dict[int, dict[str, Any]]) -> dict[str, Any]:
    values = [accuracy(test) or 0.0 for test in tests.values()]
    extra: dict[str, Any] = {}
    for measure in _MEASURES[1:]:
        known = [v for test in tests.values() if (v := accuracy(test, measure)) is not None]
        extra[measure] = mean_interval(known)["mean"]
    full = [test["metrics"]["top1"]["value"] for test in tests.values() if test["metrics"].get("masked")]
    return {
        "seeds": list(tests),
        "values": values,
        **_within(mean_interval(values)),
        "n": next(iter(tests.values()))["n"],
        **extra,
        "all_classes": mean_interval(full)["mean"],
    }


def _within(found: dict[str, Any]) -> dict[str, Any]:
    """A mean accuracy whose interval ends at 0 and 1: what Student's t puts beyond is not possible."""
    low, high = found["low"], found["high"]
    ends = {"low": None if low is None else max(0.0, low), "high": None if high is None else min(1.0, high)}
    return {**{key: value for key, value in found.items() if key != "n"}, **ends}


def _difference(a: dict[int, dict[str, Any]], b: dict[int, dict[str, Any]]) -> dict[str, Any]:
    seeds = [seed for seed in a if seed in b]
    first, second = ([accuracy(tests[seed]) or 0.0 for seed in seeds] for tests in (a, b))
    found = paired_difference(first, second)
    return {"seeds": seeds, **{key: value for key, value in found.items() if key != "n"}}


def csv_text(matrix: Matrix, outcomes: Sequence[Outcome]) -> str:
    """One line a cell and test, failed ones with their error."""
    names = [
        "arm",
        "model",
        "budget",
        "limit",
        "share",
        "seed",
        "test",
        "n",
        "classes",
        "top1",
        "top1_low",
        "top1_high",
        "top5",
        "ece",
        "top1_all_classes",
        "seconds",
        "status",
        "error",
        "folder",
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        cell = outcome.cell
        start = {
            "arm": cell.arm,
            "model": cell.model,
            "budget": cell.budget,
            "limit": cell.limit,
            "share": cell.share,
            "seed": cell.seed,
            "folder": cell.folder.as_posix(),
        }
        status = "missing" if outcome.error == NOT_RUN else "failed"
        if outcome.result is None:
            writer.writerow({**start, "status": status, "error": outcome.error})
            continue
        for name in outcome.missing:
            writer.writerow({**start, "test": name, "status": status, "error": outcome.error})
        for name, test in outcome.result["tests"].items():
            own = test["metrics"].get("masked") or test["metrics"]
            writer.writerow(
                {
                    **start,
                    "test": name,
                    "n": test["n"],
                    "classes": own["classes"],
                    "top1": own["top1"]["value"],
                    "top1_low": own["top1"]["low"],
                    "top1_high": own["top1"]["high"],
                    "top5": own["top5"]["value"],
                    "ece": own["ece"]["value"],
                    "top1_all_classes": test["metrics"]["top1"]["value"],
                    "seconds": outcome.result["seconds"],
                    "status": "done",
                }
            )
    return out.getvalue()


def table_text(summary: dict[str, Any]) -> str:
    """The table for a terminal: accuracies in percent with their 95 % intervals, then the differences in points."""
    lines = [f"{summary['name']}: top-1 in percent, mean over seeds [95 % interval]"]
    wide = max((len(row["arm"]) for row in summary["rows"]), default=4)
    for where, rows in itertools.groupby(summary["rows"], key=setting_text):
        lines.append(f"  {where}")
        for row in rows:
            seeds = " ".join(f"{100 * value:.1f}" for value in row["values"])
            lines.append(f"    {row['arm']:{wide}}  {interval_text(row)}   n = {row['n']}, seeds: {seeds}")
        for found in summary["differences"]:
            if setting_text(found) == where:
                lines.append(f"    {found['a']} - {found['b']}: {interval_text(found, sign='+')} points")
    for failed in summary["failed"]:
        lines.append(f"  {failed['cell']}: {failed['error']}")
    return "\n".join(lines)


def setting_text(row: dict[str, Any]) -> str:
    """A row's test and setting in words."""
    parts = [f"tested on {row['test']}", row["model"]]
    parts += [f"{row['budget']} images an epoch"] if row["budget"] else []
    parts += [f"{row['limit']} images a class"] if row["limit"] else []
    parts += [f"{100 * row['share']:.0f} % mixed in"] if row["share"] else []
    return ", ".join(parts)


def interval_text(row: dict[str, Any], *, sign: str = "") -> str:
    """``81.5 [79.0, 84.0]`` in percent; without an interval where there is one seed."""
    if row["mean"] is None:
        return "-"
    mean = f"{100 * row['mean']:{sign}.1f}"
    return mean if row["low"] is None else f"{mean} [{100 * row['low']:{sign}.1f}, {100 * row['high']:{sign}.1f}]"
