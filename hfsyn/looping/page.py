"""The page of a loop: its curve, what each round planned, and pictures of what was drawn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builders.files import atomic_text
from builders.images.decoding import decode_rgb
from hfsyn.errors import HfsynError
from hfsyn.judging.bench.plots import curve_plot
from hfsyn.judging.measures.results import interval
from hfsyn.looping.loop import gain_text
from hfsyn.looping.outlook import Standing, standing
from hfsyn.looping.planning import part_text
from hfsyn.looping.rounds import PLAN, levels_of, round_folder, runs_of
from hfsyn.pages.html import page, picture
from hfsyn.recipes.factor_file import CLASS
from hfsyn.runs.run import load_run
from hfsyn.runs.shards import StoredRows

PAGE, PLOT = "loop.html", "curve.png"
_SHOWN = 16  # pictures of a round
_MOST_LEVELS = 60  # of a factor, or classes: of more the ones that most was drawn of


def write_page(out: str | Path) -> Path:
    """Write the page of a loop, finished or not, and return its path. Raises HfsynError if no round is done yet."""
    found = standing(out)
    if not found.curve:
        raise HfsynError(f"No round of {out} is done yet.", f"`hfsyn status {out}` shows how far it is.")
    rows = [{"arm": one["policy"], **_percent(one)} for one in found.curve]
    plot = curve_plot(rows, "images", found.policies, "the test", found.out / PLOT)
    policies = [{"name": name, "rounds": _rounds(found, name)} for name in found.policies]
    values: dict[str, Any] = {"found": found, "plot": plot, "policies": policies, "tables": _tables(found)}
    filters = {"interval": lambda one: interval(one, percent=True), "gain": gain_text}
    atomic_text(found.out / PAGE, page("hfsyn.looping", filters, **values))
    return found.out / PAGE


def _percent(one: Mapping[str, Any]) -> dict[str, Any]:
    top1 = one["test"]
    return {"images": one["images"], "mean": top1["value"], "low": top1["low"], "high": top1["high"]}


def _rounds(found: Standing, policy: str) -> list[dict[str, Any]]:
    """What a policy planned and drew in each round that is done."""
    rounds = []
    for number in range(found.done(policy)):
        folder = round_folder(found.out, policy, number)
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))["parts"]
        planned = [part_text(part) for part in plan]
        if (folder / "audit").is_dir():
            planned.insert(0, "as many of all kinds alike, for the audit of the last classifier")
        rounds.append({"number": number, "planned": planned, "shown": _shown(folder)})
    return rounds


def _shown(folder: Path) -> list[dict[str, Any]]:
    """Some pictures of a round, evenly spread over its runs."""
    runs, found = runs_of(folder), []
    for run in runs:
        rows = StoredRows(run)
        count = min(len(rows), max(1, _SHOWN // len(runs)))
        lines = rows.read([at * len(rows) // count for at in range(count)], ["image", "prompt"])
        found += [{"image": picture(decode_rgb(one["image"]["bytes"])), "prompt": one["prompt"]} for one in lines]
    return found


def _tables(found: Standing) -> list[dict[str, Any]]:
    """Of each policy but the control a table for each factor: how many images of a level each round drew, and how that
    compares with as many of each.
    """
    tables = []
    for policy in found.policies[:-1] or found.policies:
        numbers = range(found.done(policy))
        counts = [_levels(round_folder(found.out, policy, number)) for number in numbers]
        for factor, levels in counts[-1].items() if counts else ():
            kept = [level for level, _ in sum((c[factor] for c in counts), Counter[str]()).most_common(_MOST_LEVELS)]
            lines = []
            for level in sorted(kept, key=lambda one: (-counts[-1][factor][one], one)):
                cells = [(c[factor][level], c[factor][level] * len(c[factor]) / c[factor].total()) for c in counts]
                lines.append({"level": level, "cells": cells})
            tables.append({"policy": policy, "factor": factor, "lines": lines, "of": len(levels)})
    return tables


def _levels(folder: Path) -> dict[str, Counter[str]]:
    """Factor -> how many images of a round have each level; ``class`` too."""
    found: dict[str, Counter[str]] = {}
    for run in runs_of(folder):
        classes, levels = load_run(run).classes, levels_of(run)
        for line in StoredRows(run).table(["source_id", "wnid"]).to_pylist():
            for name, level in {CLASS: classes[line["wnid"]].name, **levels[line["source_id"]]}.items():
                found.setdefault(name, Counter())[level] += 1
    return found
