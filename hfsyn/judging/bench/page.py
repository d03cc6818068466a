"""The report: one self-contained HTML page; gathers the facts that `templates/` lays out, and writes the plots.

The page shows a bench's folder (or several that lie beside each other) and the run folders that its arms were trained
on. Facts are gathered here; the template formats them, and escapes everything but our own SVG.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builders.errors import near_path
from builders.files import atomic_text
from builders.variants import VARIANTS
from builders.yaml import dump
from hfsyn.errors import HfsynError
from hfsyn.judging.bench import arms as trained_on
from hfsyn.judging.bench import plots
from hfsyn.judging.bench.cells import MATRIX
from hfsyn.judging.bench.matrix import SETTING, Matrix, load_matrix, safe_name
from hfsyn.judging.bench.outcomes import Outcome, chosen, read_cells
from hfsyn.judging.bench.summaries import interval_text, setting_text, summarise
from hfsyn.judging.bench.table import csv_text, latex_text, text_of, where_text
from hfsyn.judging.train.model_card import without_paths
from hfsyn.pages.html import page

PAGE, PLOTS = "report.html", "plots"
_GREY = "#888888"  # of networks with published weights
CSV_TABLE, TEX_TABLE = "table.csv", "table.tex"


def write_page(out: str | Path, into: Path | None = None) -> Path:
    """Write ``report.html``, ``table.csv``, ``table.tex`` and ``plots/*.png`` of a bench, or of several (whose tables
    and plots have names that begin with those of the benches); return the page.

    Args:
        out: the folder of a bench, or one with several beside each other.
        into: a folder for what others may see: without photographs that are not ours, and without paths of this
            machine. None is `out`, with both.

    Raises:
        HfsynError: there is no bench.
    """
    folder = Path(out).expanduser()
    found = [folder] if (folder / MATRIX).is_file() else sorted(p.parent for p in folder.glob(f"*/{MATRIX}"))
    if not found:
        said = f"There is no bench in {folder}.{near_path(folder)}"
        raise HfsynError(said, "`hfsyn bench MATRIX --out DIR` makes one.")
    # The names of plots begin with the bench's folder if there are several, else with the matrix's name.
    stems = _stems([bench.name for bench in found]) if len(found) > 1 else [None]
    root, public = into or folder, into is not None
    sections = [_section(bench, root, stem, public) for bench, stem in zip(found, stems, strict=True)]
    atomic_text(root / PAGE, _render(sections))
    return root / PAGE


def _render(sections: Sequence[dict[str, Any]]) -> str:
    filters: dict[str, Any] = {
        "percent": lambda value: "–" if value is None else f"{100 * value:.1f}",
        "interval": interval_text,
        "points": lambda row: interval_text(row, sign="+").replace("-", "−"),
    }
    return page("hfsyn.judging.bench.templates", filters, sections=sections)


def _stems(names: Sequence[str]) -> list[str | None]:
    """A distinct file name for each folder's name: two of them may differ only in characters that are replaced."""
    stems: list[str | None] = []
    for name in map(safe_name, names):
        free = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
        stems.append(next(stem for stem in free if stem not in stems))
    return stems


def _section(bench: Path, root: Path, stem: str | None, public: bool) -> dict[str, Any]:
    """All that the page says about one bench; see `write_page`."""
    matrix = load_matrix(bench / MATRIX)
    every = read_cells(matrix, bench)
    summary = summarise(matrix, every, bench)
    summary = without_paths(summary) if public else summary
    outcomes, _ = chosen(matrix, every)
    headline, arms = next(iter(matrix.tests)), list(matrix.arms)
    variant = VARIANTS.get(matrix.tests[headline].dataset)
    groups = []
    for where in dict.fromkeys(setting_text(row) for row in summary["rows"]):
        rows = [row for row in summary["rows"] if setting_text(row) == where]
        groups.append(
            {
                "where": where,
                "headline": rows[0]["test"] == headline,
                "rows": [{**row, "colour": plots.colour_of(arms, row["arm"])} for row in rows],
                "differences": [row for row in summary["differences"] if setting_text(row) == where],
            }
        )
    described = {arm: trained_on.about(matrix, arm) for arm in arms}
    told = trained_on.told_beforehand(matrix)
    mains = _main_groups(groups)
    figures = [_figures(matrix, summary, rows) for rows in [one["rows"] for one in mains] or [[]]]
    return {
        "name": matrix.name,
        "about": variant.title if variant else "",
        "verdict": summary["verdict"],
        "wheres": [_place_of(one["rows"][0]) for one in mains],
        "chances": [1 / one["rows"][0]["classes"] for one in mains],
        "chosen": summary["chosen"],
        "table": _table(summary["table"], arms),
        "files": _table_files(matrix.name, summary, root, stem),
        "arms": [
            {
                "name": arm,
                "colour": plots.colour_of(arms, arm),
                "about": about,
                "figures": [some.get(arm, ("no result", "")) for some in figures],
                "told": told.get(arm),
            }
            for arm, about in described.items()
        ],
        "told": bool(told),
        "captioned": any("{c}" in about for about in described.values()),
        "groups": groups,
        "grids": _grids(matrix, summary["rows"]),
        "exchange": summary.get("exchange", ()),
        "failed": summary["failed"],
        "failed_sets": summary["failed_sets"],
        "cells": summary["cells"],
        "plots": _plots(matrix, outcomes, summary, root / PLOTS, stem or safe_name(matrix.name)),
        "sheet": trained_on.sheet(matrix, public),
        "runs": trained_on.runs(matrix, None if public else root),
        "made": _made(matrix, outcomes, bench, public),
    }


def _main_groups(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last group of the headline of each variant: the largest setting of a scaling curve."""
    found = {group["rows"][0]["variant"]: group for group in groups if group["headline"]}
    return list(found.values())


def _table_files(name: str, summary: dict[str, Any], root: Path, stem: str | None) -> tuple[str, str]:
    """Write the table as CSV and as LaTeX; return the files' names."""
    prefix = "" if stem is None else f"{stem}-"
    comma, tex = f"{prefix}{CSV_TABLE}", f"{prefix}{TEX_TABLE}"
    atomic_text(root / comma, csv_text(summary["table"], [*summary["rows"], *summary["baselines"]]))
    atomic_text(root / tex, latex_text(name, summary["table"]))
    return comma, tex


def _table(found: dict[str, Any], arms: Sequence[str]) -> dict[str, Any]:
    """The table as the page shows it: blocks of rows, one for each setting."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        cells = [
            {"head": head["name"], "note": cell["note"] or "", "shown": text_of(head, cell)}
            for head in found["columns"]
            for cell in [row["cells"][head["name"]]]
        ]
        colour = plots.colour_of(arms, row["arm"]) if row["arm"] in arms else _GREY
        line = {"arm": row["arm"], "colour": colour, "chosen": row["chosen"], "cells": cells}
        blocks.setdefault(where_text(row), []).append(line)
    return {"heads": found["columns"], "blocks": [{"where": w, "rows": rows} for w, rows in blocks.items()]}


def _place_of(row: dict[str, Any]) -> str:
    """A row's test and setting in words, but for the numbers of images that a grid shows side by side."""
    return setting_text({**row, "real": None})


def _figures(matrix: Matrix, summary: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """The figure of each arm and its interval: its exchange rate where that is the question, else its accuracy."""
    if matrix.real is None:
        return {row["arm"]: (f"{100 * row['mean']:.1f}\u00a0%", _ends(row, 100)) for row in rows}
    headline = next(iter(matrix.tests))
    rates = [rate for rate in summary["exchange"] if rate["test"] == headline]
    return {
        rate["arm"]: (f"{rate['rate']:.1f} for one real image" if rate["rate"] else "no exchange rate", _ends(rate, 1))
        for rate in rates
    }


def _ends(row: dict[str, Any], scale: float) -> str:
    return "" if row["low"] is None else f"{scale * row['low']:.1f} to {scale * row['high']:.1f}"


def _grids(matrix: Matrix, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracies over the numbers of real and of synthetic images: a table for each test, arm and other setting."""
    found: list[dict[str, Any]] = []
    if matrix.real is None:
        return found
    for where in dict.fromkeys(map(_place_of, rows)):
        here = [row for row in rows if _place_of(row) == where]
        for arm in matrix.arms:
            cells = {(r["real"], r["synthetic"]): r for r in here if r["arm"] == arm or not r["synthetic"]}
            lines = [
                {"real": real, "cells": [cells.get((real, number)) for number in matrix.synthetic or ()]}
                for real in matrix.real.numbers
                if any(key[0] == real for key in cells)
            ]
            found.append({"where": where, "arm": arm, "synthetic": matrix.synthetic, "lines": lines})
    return found


def _plots(
    matrix: Matrix, outcomes: Sequence[Outcome], summary: dict[str, Any], folder: Path, stem: str
) -> list[plots.Plot]:
    headline, arms = next(iter(matrix.tests)), list(matrix.arms)
    rows = [row for row in summary["rows"] if row["test"] == headline]
    if not rows:
        return []
    # The last setting stands for all if a plot can show only one: it is the largest of a scaling curve.
    setting = _setting(rows[-1])
    last = [row for row in rows if _setting(row) == setting]
    where = setting_text(last[0]).removeprefix("tested on ")
    tests: dict[str, list[Any]] = {arm: [] for arm in arms}
    for outcome in outcomes:
        if outcome.result is not None and outcome.cell.setting == setting and headline in outcome.result["tests"]:
            tests[outcome.cell.arm].append(outcome.result["tests"][headline])
    by_arm = {arm: plots.mean_by_class(found) for arm, found in tests.items() if found}

    def named(test: str, variant: str | None = last[0]["variant"]) -> str:
        return "Accuracy by arm" + (f": {test}" if len(matrix.tests) > 1 else "") + (f", {variant}" if variant else "")

    found = []
    if matrix.real is None or len(last) > 1:  # one arm at one point of a grid says nothing
        found = [
            plots.accuracy_plot(last, arms, where, folder / f"{stem}-accuracy.png", named(headline)),
            plots.class_plot(by_arm, arms, where, folder / f"{stem}-classes.png"),
        ]
    for variant in list(dict.fromkeys(row["variant"] for row in rows))[:-1]:
        others = [row for row in rows if row["variant"] == variant]
        others = [row for row in others if _setting(row) == _setting(others[-1])]
        png = folder / f"{stem}-accuracy-{safe_name(variant)}.png"
        found.append(plots.accuracy_plot(others, arms, _place_of(others[0]), png, named(headline, variant)))
    for number, test in enumerate(list(matrix.tests)[1:], start=2):
        others = [row for row in summary["rows"] if row["test"] == test and _setting(row) == setting]
        if len(others) > 1:
            there, png = (
                setting_text(others[0]).removeprefix("tested on "),
                folder / f"{stem}-accuracy-test-{number}.png",
            )
            found.insert(number - 1, plots.accuracy_plot(others, arms, there, png, named(test)))
    shares = (("share", matrix.all_shares), ("keep", matrix.keep.shares if matrix.keep else ()))
    for axis, values in (("limit", matrix.limits), ("budget", matrix.budgets), *shares):
        if len([value for value in values if value is not None]) > 1:
            others = [key for key in SETTING if key != axis]
            curve = [
                row for row in rows if row.get(axis) is not None and all(row[key] == last[0][key] for key in others)
            ]
            found.append(plots.curve_plot(curve, axis, arms, headline, folder / f"{stem}-{axis}.png"))
    for arm in arms if matrix.real else ():
        grid = [r for r in rows if r["arm"] == arm or not r["synthetic"]]
        if len({r["real"] for r in grid}) > 1 and len({r["synthetic"] for r in grid}) > 1:
            name = f"{stem}-exchange-{safe_name(arm)}"
            found.append(plots.mixture_plot(grid, arm, headline, folder / f"{name}-curves.png"))
            found.append(plots.exchange_plot(grid, arm, headline, folder / f"{name}.png", plots.colour_of(arms, arm)))
    return found


def _setting(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in SETTING)


def _made(matrix: Matrix, outcomes: Sequence[Outcome], root: Path, public: bool) -> dict[str, Any]:
    """How the numbers were obtained: software, devices, seeds, the training recipe."""
    results = [o.result for o in outcomes if o.result is not None]
    tests = [test for result in results for test in result["tests"].values()]
    software = tests[0].get("software", {}) if tests else {}
    recipe = results[0]["cell"]["config"] if results else {}
    images = {name: test["n"] for result in reversed(results) for name, test in result["tests"].items()}
    here = f"{root.resolve()}/"  # a page may be sent to others, who need not see where it was made
    recipe = without_paths(recipe) if public else recipe
    named = {name: without_paths(test.dataset) if public else test.dataset for name, test in matrix.tests.items()}
    return {
        "software": ", ".join(f"{name} {version}" for name, version in software.items()),
        "devices": sorted({test["device"] for test in tests if "device" in test}),
        "seeds": ", ".join(map(str, matrix.seeds)),
        "models": ", ".join(matrix.models),
        "seconds": round(sum(result.get("seconds", 0) for result in results)),
        "trainings": len(results),
        "recipe": dump(recipe).replace(here, ""),
        "tests": [
            {"name": name, "dataset": named[name].replace(here, ""), "split": test.split or "", "n": images.get(name)}
            for name, test in matrix.tests.items()
        ],
    }
