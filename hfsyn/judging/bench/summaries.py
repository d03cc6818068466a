"""A matrix's cells summed up: means and intervals over seeds, paired differences; as CSV, JSON and terminal text."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from builders.files import atomic_text
from hfsyn.judging.bench.baselines import baseline_outcomes
from hfsyn.judging.bench.columns import comparisons, read_comparison
from hfsyn.judging.bench.exchange import exchange_rates, rate_sentence
from hfsyn.judging.bench.matrix import SETTING, Cell, Matrix
from hfsyn.judging.bench.outcomes import NOT_RUN, Choice, Outcome, chosen, own_metrics, read_cells, with_means
from hfsyn.judging.bench.table import table
from hfsyn.judging.bench.verdict import NOTHING_YET, size_text, verdict
from hfsyn.judging.measures.metrics import mean_interval, paired_difference

CSV, SUMMARY = "results.csv", "summary.json"
_TEST_COLUMNS = ("test", "n", "classes", "top1", "top1_low", "top1_high", "top5", "ece", "top1_all_classes")


def sum_up(matrix: Matrix, folder: Path, *, quiet: bool) -> dict[str, Any]:
    """Write ``results.csv`` and ``summary.json`` into a matrix's folder; return what the latter holds."""
    outcomes = read_cells(matrix, folder)
    summary = summarise(matrix, outcomes, folder)
    atomic_text(folder / CSV, _csv_text(with_means(matrix, outcomes)))
    atomic_text(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    if not quiet:
        print(_table_text(summary), file=sys.stderr)
    return summary


def summarise(matrix: Matrix, outcomes: Sequence[Outcome], folder: Path) -> dict[str, Any]:
    """Sum up the outcomes of a matrix in its folder.

    Returns:
        ``name``, ``verdict`` (sentences), ``cells``, ``failed`` (``cell``, ``error``), ``failed_sets`` (likewise, of
        comparisons of sets and of published networks), ``chosen`` (sentences: which learning rates and training
        recipes, and on what), ``table``, see `hfsyn.judging.bench.table`, ``baselines`` (rows of published networks);
        ``rows``: one for each test or mean of some, setting and arm, with ``seeds``, ``values`` and ``mean``, ``low``,
        ``high`` of top-1, ``n`` (test images), ``classes``, ``top5``, ``ece`` (means) and ``all_classes`` (mean top-1
        over all outputs, if the set has fewer classes);
        ``differences``: one for each test, setting and pair of arms, ``a`` minus ``b`` over the seeds that both have;
        of two arms ``a`` is the one that comes later in the matrix; with the axes `real` and `synthetic` also
        ``exchange``, see `exchange_rates`. Where `select_on` chooses, all but ``failed`` is of what was chosen.
    """
    failed = [{"cell": "/".join(o.cell.folder.parts[1:]), "error": o.error} for o in outcomes if o.error is not None]
    count = len(outcomes)
    some, choices = chosen(matrix, outcomes)
    outcomes = with_means(matrix, some)
    published = with_means(matrix, baseline_outcomes(matrix, folder))
    rows, differences = [], []
    settings = list(dict.fromkeys(outcome.cell.setting for outcome in outcomes))
    tests = [*matrix.tests, *matrix.means]
    for name, setting in itertools.product(tests, settings):
        # In the matrix's order, whichever cells are there: a difference must not change its sign because one failed.
        by_arm: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in matrix.arms}
        for outcome in outcomes:
            test = (outcome.result or {"tests": {}})["tests"].get(name)
            if outcome.cell.setting == setting and test is not None:
                by_arm[outcome.cell.arm][outcome.cell.seed] = test
        where = {"test": name, **dict(zip(SETTING, setting, strict=True))}
        rows += [{**where, "arm": arm, **_row(tests)} for arm, tests in by_arm.items() if tests]
        differences += [
            {**where, "a": a, "b": b, **_difference(by_arm[a], by_arm[b])}
            for b, a in itertools.combinations(by_arm, 2)
            if set(by_arm[a]) & set(by_arm[b])
        ]
    found = {
        "name": matrix.name,
        "cells": count,
        "failed": failed,
        "failed_sets": [*_failed_sets(matrix, folder), *_failed_baselines(published)],
        "chosen": [_choice_text(choice) for choice in choices],
        "table": table(matrix, [*outcomes, *published], folder, choices),
        "baselines": [
            {"test": name, **dict(zip(SETTING, one.cell.setting, strict=True)), "arm": one.cell.arm, **_row({0: test})}
            for one in published
            for name, test in (one.result or {"tests": {}})["tests"].items()
        ],
        "tests": tests,
        "arms": list(matrix.arms),
        "rows": rows,
        "differences": differences,
    }
    if matrix.real is None:
        return {**found, "verdict": verdict(found, matrix.compare)}
    rates = exchange_rates(rows)
    others = [said for said in verdict(found, matrix.compare) if not rates or said != NOTHING_YET]
    return {**found, "exchange": rates, "verdict": [*map(rate_sentence, rates), *others]}


def _choice_text(choice: Choice) -> str:
    where = ", ".join(filter(None, (choice.setting["variant"] or "", choice.setting["model"])))
    return f"{choice.arm} ({where}): {choice.text()}, {100 * choice.mean:.1f} % right there"


def _failed_sets(matrix: Matrix, folder: Path) -> list[dict[str, str]]:
    found = []
    for name, one in comparisons(matrix).items():
        made, why = read_comparison(folder, one)
        if made is None:
            found.append({"cell": f"{one.column} of {one.arm} ({name})", "error": str(why).removeprefix("failed: ")})
    return found


def _failed_baselines(published: Sequence[Outcome]) -> list[dict[str, str]]:
    return [{"cell": f"published {one.cell.arm}", "error": one.error} for one in published if one.error is not None]


def _row(tests: dict[int, dict[str, Any]]) -> dict[str, Any]:
    own = [own_metrics(test) for test in tests.values()]
    means = {
        measure: mean_interval([found[measure]["value"] for found in own if found[measure]["value"] is not None])
        for measure in ("top1", "top5", "ece")
    }
    # Student's t may reach beyond 0 and 1, which no accuracy does.
    top1, low, high = means["top1"], means["top1"]["low"], means["top1"]["high"]
    full = [test["metrics"]["top1"]["value"] for test in tests.values() if test["metrics"].get("masked")]
    return {
        "seeds": list(tests),
        "values": [found["top1"]["value"] for found in own],
        "mean": top1["mean"],
        "low": None if low is None else max(0.0, low),
        "high": None if high is None else min(1.0, high),
        "sd": top1["sd"],
        "n": next(iter(tests.values()))["n"],
        "classes": own[0]["classes"],
        "top5": means["top5"]["mean"],
        "ece": means["ece"]["mean"],
        "all_classes": mean_interval(full)["mean"],
    }


def _difference(a: dict[int, dict[str, Any]], b: dict[int, dict[str, Any]]) -> dict[str, Any]:
    seeds = [seed for seed in a if seed in b]
    found = paired_difference(*([own_metrics(tests[seed])["top1"]["value"] for seed in seeds] for tests in (a, b)))
    return {"seeds": seeds, **{key: value for key, value in found.items() if key != "n"}}


def _csv_text(outcomes: Sequence[Outcome]) -> str:
    """One line a cell and test, failed ones with their error."""
    cell_columns = [field.name for field in fields(Cell)]
    out = io.StringIO()
    columns = [*cell_columns, *_TEST_COLUMNS, "seconds", "status", "error", "folder"]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        start = {**asdict(outcome.cell), "folder": outcome.cell.folder.as_posix()}
        if outcome.result is None:
            writer.writerow({**start, **_status(str(outcome.error))})
            continue
        writer.writerows({**start, "test": name, **_status(why)} for name, why in outcome.missing.items())
        for name, test in outcome.result["tests"].items():
            own = own_metrics(test)
            top1, top5, ece = own["top1"], own["top5"]["value"], own["ece"]["value"]
            all_classes = test["metrics"]["top1"]["value"]
            values = (name, test["n"], own["classes"], top1["value"], top1["low"], top1["high"], top5, ece, all_classes)
            tested = dict(zip(_TEST_COLUMNS, values, strict=True))
            writer.writerow({**start, **tested, "seconds": outcome.result["seconds"], "status": "done"})
    return out.getvalue()


def _status(why: str) -> dict[str, str]:
    return {"status": "missing" if why == NOT_RUN else "failed", "error": why}


def _table_text(summary: dict[str, Any]) -> str:
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
    lines += [f"  {sentence}" for sentence in summary["verdict"]]
    return "\n".join([*lines, *(f"  {failed['cell']}: {failed['error']}" for failed in summary["failed"])])


def setting_text(row: dict[str, Any]) -> str:
    """A row's test and setting in words."""
    return ", ".join(filter(None, (f"tested on {row['test']}", row["variant"] or "", row["model"], size_text(row))))


def interval_text(row: dict[str, Any], *, sign: str = "") -> str:
    """``81.5 [79.0, 84.0]`` in percent; without an interval if there is one seed."""
    if row["mean"] is None:
        return "-"
    mean = f"{100 * row['mean']:{sign}.1f}"
    return mean if row["low"] is None else f"{mean} [{100 * row['low']:{sign}.1f}, {100 * row['high']:{sign}.1f}]"
