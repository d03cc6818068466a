"""The table of a matrix: a row for each setting and arm, a column for each test and measure; as CSV and LaTeX, too.

The CSV has the columns of timm's own tables first, with its names and its roundings, so that lines of its
``results-imagenet.csv`` can stand below ours.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hfsyn.judging.bench.columns import Column, columns, comparison, read_comparison
from hfsyn.judging.bench.matrix import SETTING, Matrix
from hfsyn.judging.bench.outcomes import NOT_RUN, Choice, Outcome, own_metrics
from hfsyn.judging.bench.verdict import size_text
from hfsyn.judging.measures.metrics import mean_interval

NOT_ASKED = "not asked"
TIMM = ("model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct", "interpolation")
"""The columns of timm's tables of results: percent with three decimals, parameters in millions with two."""


def table(matrix: Matrix, outcomes: Sequence[Outcome], folder: Path, choices: Sequence[Choice]) -> dict[str, Any]:
    """The table.

    Args:
        matrix: the matrix.
        outcomes: what is reported, with its means.
        folder: the matrix's, for the comparisons of sets.
        choices: how learning rates and training recipes were chosen.

    Returns:
        ``columns`` (the fields of `Column`) and ``rows``: the setting, ``arm``, ``chosen`` (in words; None), ``timm``
        (what timm's tables say of a network) and ``cells``, by column: ``mean``, ``low``, ``high`` over the ``values``,
        one for each seed (of sets: one for each set), their ``n``, and ``note``, why there are none or fewer.
    """
    heads = _with_real_labels(columns(matrix), outcomes)
    groups: dict[tuple[Any, ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.cell.setting, outcome.cell.arm), []).append(outcome)
    rows = []
    for (setting, arm), some in groups.items():
        where = dict(zip(SETTING, setting, strict=True))
        said = [c.text() for c in choices if c.arm == arm and all(where[k] == v for k, v in c.setting.items())]
        cells = {column.name: _cell(matrix, column, some, folder) for column in heads}
        rows.append({**where, "arm": arm, "chosen": said[0] if said else None, "timm": _timm(some), "cells": cells})
    return {"columns": [asdict(column) for column in heads], "rows": rows}


def _with_real_labels(heads: Sequence[Column], outcomes: Sequence[Outcome]) -> list[Column]:
    """The columns, each test that has ReaL labels followed by its accuracy by these."""
    found = []
    for head in heads:
        found.append(head)
        if any((outcome.found(head.of) or {}).get("real") for outcome in outcomes):
            about = "top-1 accuracy by ReaL labels"
            found.append(replace(head, name=f"{head.name} ReaL", measure="real.top1.value", about=about))
    return found


def _cell(matrix: Matrix, column: Column, outcomes: Sequence[Outcome], folder: Path) -> dict[str, Any]:
    values: list[float] = []
    notes: dict[str, list[int]] = {}
    if column.of in matrix.fidelity:
        made = {one.file: one for o in outcomes if (one := comparison(matrix, column.of, o.cell)) is not None}
        for number, one in enumerate(made.values()):
            found, why = read_comparison(folder, one)
            _take(column, found, why or "", number, values, notes)
    else:
        for outcome in outcomes:
            found, why = outcome.found(column.of), outcome.missing.get(column.of)
            if found is not None or why is not None:
                told = NOT_RUN if why == NOT_RUN else f"failed: {why}"
                _take(column, found, told, outcome.cell.seed, values, notes)
    spread = mean_interval(values)
    if column.kind != "number" and spread["low"] is not None:  # Student's t may reach beyond 0 and 1
        spread |= {"low": max(0.0, spread["low"]), "high": min(1.0, spread["high"])}
    note = "; ".join(notes) if not values else "; ".join(f"{why} (seed {_list(of)})" for why, of in notes.items())
    return {**spread, "values": values, "note": note or (None if values else NOT_ASKED)}


def _take(column: Column, found: Any, why: str, of: int, values: list[float], notes: dict[str, list[int]]) -> None:
    if found is None:
        notes.setdefault(why, []).append(of)
    elif (value := _value(column, found)) is not None:
        values.append(value)
    else:
        notes.setdefault("there is no such number", []).append(of)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _value(column: Column, found: Mapping[str, Any]) -> float | None:
    if column.measure == "top1":
        return float(own_metrics(dict(found))["top1"]["value"])
    value = column.read(found)
    return None if value is None else value / found["images"]["synthetic"] if column.kind == "share" else value


def _timm(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What timm's tables say of a network beside its accuracy, from any test of it."""
    test: dict[str, Any] = next((test for one in outcomes for test in (one.result or {}).get("tests", {}).values()), {})
    prepared, model = test.get("preprocessing", {}), test.get("model", {})
    count = model.get("parameters")
    return {
        "model": outcomes[0].cell.model,
        "img_size": prepared.get("image_size"),
        "param_count": None if count is None else round(count / 1e6, 2),
        "crop_pct": prepared.get("crop"),
        "interpolation": prepared.get("interpolation"),
    }


def csv_text(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each test of each row of the table: timm's columns, then ours.

    Args:
        found: a `table`.
        rows: those of the summary, which have top-5, the number of images and the intervals of each test.
    """
    others = [column for column in found["columns"] if column["measure"] != "top1"]
    mine = ["test", "arm", "variant", "lr", "recipe", "chosen", "seeds", "images", "classes", "top1_low", "top1_high"]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*TIMM, *mine, *(column["name"] for column in others)], lineterminator="\n")
    writer.writeheader()
    for line in found["rows"]:
        about = {name: line[name] for name in ("arm", "variant", "lr", "recipe", "chosen")}
        about |= {column["name"]: _number(column, line["cells"][column["name"]]) for column in others}
        for row in rows:
            if row["arm"] == line["arm"] and all(row[name] == line[name] for name in SETTING):
                writer.writerow({**line["timm"], **about, **_tested(row)})
    return out.getvalue()


def _tested(row: Mapping[str, Any]) -> dict[str, Any]:
    top1, top5 = 100 * row["mean"], None if row["top5"] is None else 100 * row["top5"]
    ends = {f"top1_{end}": None if row[end] is None else f"{100 * row[end]:.3f}" for end in ("low", "high")}
    return {
        "test": row["test"],
        "top1": f"{top1:.3f}",
        "top1_err": f"{100 - top1:.3f}",
        "top5": None if top5 is None else f"{top5:.3f}",
        "top5_err": None if top5 is None else f"{100 - top5:.3f}",
        "seeds": " ".join(map(str, row["seeds"])),
        "images": row["n"],
        "classes": row["classes"],
        **ends,
    }


def _number(column: Mapping[str, Any], cell: Mapping[str, Any]) -> str | None:
    if cell["mean"] is None:
        return cell["note"]
    return f"{100 * cell['mean']:.3f}" if column["kind"] in ("percent", "share") else f"{cell['mean']:.6g}"


def text_of(column: Mapping[str, Any], cell: Mapping[str, Any], *, dash: str = "–") -> tuple[str, str]:
    """A cell's number and its interval, for people: percent with one decimal, other numbers with three digits.

    Without a number it is a dash if it was not asked for, and else what is the matter.
    """
    if cell["mean"] is None:
        note = cell["note"]
        return ("failed" if note.startswith("failed") else dash if note == NOT_ASKED else note), ""
    one = (lambda v: f"{100 * v:.1f}") if column["kind"] in ("percent", "share") else (lambda v: f"{v:.3g}")
    ends = "" if cell["low"] is None else f"[{one(cell['low'])}, {one(cell['high'])}]"
    return one(cell["mean"]), ends


_SPECIAL = {ord(c): f"\\{c}" for c in "&%$#_{}"} | {
    ord("\\"): r"\textbackslash{}",
    ord("~"): r"\textasciitilde{}",
    ord("^"): r"\textasciicircum{}",
}


def latex_escaped(text: str) -> str:
    """A text as LaTeX shows it."""
    return text.translate(_SPECIAL)


def latex_text(name: str, found: Mapping[str, Any]) -> str:
    """The table for LaTeX with booktabs: a block of rows for each setting, intervals below the numbers, then notes."""
    heads = found["columns"]
    notes: list[str] = []
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        f"\\caption{{{latex_escaped(name)}: means over seeds with 95\\,\\% intervals (Student's t); accuracies in"
        " percent.}",
        "\\begin{tabular}{l" + "r" * len(heads) + "}",
        "\\toprule",
        " & ".join(["", *(_latex_head(head["name"]) for head in heads)]) + r" \\",
    ]
    block = None
    for row in found["rows"]:
        where = where_text(row)
        if where != block:
            block = where
            lines.append("\\midrule")
            if where:
                lines.append(f"\\multicolumn{{{len(heads) + 1}}}{{l}}{{\\emph{{{latex_escaped(where)}}}}} \\\\")
        cells = [_latex_cell(head, row["cells"][head["name"]], notes) for head in heads]
        mark = _mark(notes, f"chosen: {row['chosen']}") if row["chosen"] else ""
        lines.append(" & ".join([latex_escaped(row["arm"]) + mark, *(first for first, _ in cells)]) + r" \\")
        if any(second for _, second in cells):
            lines.append(" & ".join(["", *(second for _, second in cells)]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"\\par\\footnotesize $^{{{number}}}$ {latex_escaped(note)}" for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, "\\end{table}", ""])


def _latex_head(name: str) -> str:
    column, sign, measure = name.partition(": ")
    if not sign:
        return latex_escaped(name)
    return f"\\shortstack{{{latex_escaped(column)}\\\\{latex_escaped(measure)}}}"


def _latex_cell(head: Mapping[str, Any], cell: Mapping[str, Any], notes: list[str]) -> tuple[str, str]:
    number, ends = text_of(head, cell, dash="--")
    note = cell["note"] if cell["note"] not in (None, NOT_ASKED) else ""
    shown = "--" if cell["mean"] is None and note else latex_escaped(number) if number != "--" else number
    return shown + (_mark(notes, note) if note else ""), f"{{\\scriptsize {ends}}}" if ends else ""


def _mark(notes: list[str], note: str) -> str:
    if note not in notes:
        notes.append(note)
    return f"$^{{{notes.index(note) + 1}}}$"


def where_text(row: Mapping[str, Any]) -> str:
    """The setting of a row of the table in words."""
    return ", ".join(filter(None, (row["variant"] or "", row["model"], size_text(row))))
