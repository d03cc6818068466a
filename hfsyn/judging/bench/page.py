"""The report: one self-contained HTML page; gathers the facts that `templates/` lays out, and writes the plots.

The page shows a bench's folder (or several that lie beside each other) and the run folders that its arms were trained
on. Facts are gathered here; the template formats them, and escapes everything but our own SVG.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from importlib import resources
from os.path import relpath
from pathlib import Path
from typing import Any

from PIL import Image

from builders.files import atomic_text
from builders.runs import layout, run_files
from builders.variants import VARIANTS
from builders.yaml import dump
from hfsyn.errors import HfsynError
from hfsyn.judging.bench import plots
from hfsyn.judging.bench.cells import MATRIX
from hfsyn.judging.bench.matrix import Matrix, load_matrix, place, safe_name
from hfsyn.judging.bench.summaries import Outcome, interval_text, read_cells, setting_text, summarise
from hfsyn.runs.run import load_run
from hfsyn.runs.shards import image_of
from hfsyn.runs.sheets import shared_samples

PAGE, PLOTS = "report.html", "plots"
_SAMPLES = 3  # real images a class
_CLASSES = 12  # classes on a contact sheet
_THUMBNAIL = 96  # pixels; small images stay as they are and are enlarged by the browser


def report(out: str | Path) -> Path:
    """Write ``report.html`` and ``plots/*.png`` into the folder of a bench, or of several; return the page.

    Args:
        out: the folder of a bench, or one with several beside each other.

    Raises:
        HfsynError: there is no bench.
    """
    folder = Path(out).expanduser()
    found = [folder] if (folder / MATRIX).is_file() else sorted(p.parent for p in folder.glob(f"*/{MATRIX}"))
    if not found:
        raise HfsynError(f"There is no bench in {folder}.", "`hfsyn bench MATRIX --out DIR` makes one.")
    # The names of plots begin with the bench's folder if there are several, else with the matrix's name.
    stems = _stems([bench.name for bench in found]) if len(found) > 1 else [None]
    sections = [_section(bench, folder, stem) for bench, stem in zip(found, stems, strict=True)]
    atomic_text(folder / PAGE, _render(sections))
    return folder / PAGE


def _render(sections: Sequence[dict[str, Any]]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "svg": Markup,
        "percent": lambda value: "–" if value is None else f"{100 * value:.1f}",
        "interval": interval_text,
        "points_of": lambda value: f"{100 * value:+.1f}".replace("-", "−"),
        "points": lambda row: interval_text(row, sign="+").replace("-", "−"),
    }
    template = (resources.files("hfsyn.judging.bench.templates") / "page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(sections=sections)


def _stems(names: Sequence[str]) -> list[str | None]:
    """A distinct file name for each folder's name: two of them may differ only in characters that are replaced."""
    stems: list[str | None] = []
    for name in map(safe_name, names):
        free = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
        stems.append(next(stem for stem in free if stem not in stems))
    return stems


def _section(bench: Path, root: Path, stem: str | None) -> dict[str, Any]:
    """All that the page says about one bench."""
    matrix = load_matrix(bench / MATRIX)
    outcomes = read_cells(matrix, bench)
    summary = summarise(matrix, outcomes)
    headline, arms = next(iter(matrix.tests)), list(matrix.arms)
    about = VARIANTS.get(matrix.tests[headline].dataset)
    groups = []
    for where in dict.fromkeys(setting_text(row) for row in summary["rows"]):
        rows = [row for row in summary["rows"] if setting_text(row) == where]
        differences = [row for row in summary["differences"] if setting_text(row) == where]
        groups.append(
            {
                "where": where,
                "headline": rows[0]["test"] == headline,
                "rows": [{**row, "colour": plots.colour_of(arms, row["arm"])} for row in rows],
                "differences": differences,
                # Of the last two arms of the matrix; none if one of them failed, rather than another pair's.
                "difference": next((d for d in differences if [d["b"], d["a"]] == arms[-2:]), None),
            }
        )
    return {
        "name": matrix.name,
        "about": about.title if about else "",
        "groups": groups,
        "failed": summary["failed"],
        "cells": summary["cells"],
        "plots": _plots(matrix, outcomes, summary, root / PLOTS, stem or safe_name(matrix.name)),
        "sheet": _sheet(matrix),
        "runs": _runs(matrix, root),
        "made": _made(matrix, outcomes, root),
    }


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
    found = [
        plots.accuracy_plot(last, arms, where, folder / f"{stem}-accuracy.png"),
        plots.class_plot(by_arm, arms, where, folder / f"{stem}-classes.png"),
    ]
    for axis, values in (("limit", matrix.limits), ("budget", matrix.budgets), ("share", matrix.all_shares)):
        if len([value for value in values if value is not None]) > 1:
            others = [key for key in ("model", "limit", "budget", "share") if key != axis]
            curve = [row for row in rows if row[axis] is not None and all(row[key] == last[0][key] for key in others)]
            found.append(plots.curve_plot(curve, axis, arms, headline, folder / f"{stem}-{axis}.png"))
    return found


def _setting(row: dict[str, Any]) -> tuple[str, int | None, int | None, float]:
    return row["model"], row["budget"], row["limit"], row["share"]


def _run_folders(matrix: Matrix, seed: int) -> dict[str, Path]:
    """The run folder of each arm that was trained on exactly one, which is here."""
    places = {name: Path(place(arm.train[0], seed)).expanduser() for name, arm in matrix.arms.items()}
    return {
        name: path for name, path in places.items() if len(matrix.arms[name].train) == 1 and layout.is_run_folder(path)
    }


def _sheet(matrix: Matrix) -> dict[str, Any] | None:
    """Real images with what each run of the first seed made of them; None if there is nothing to show."""
    arms = _run_folders(matrix, matrix.seeds[0])
    try:
        runs = [load_run(path) for path in arms.values()]
        found = shared_samples(runs, per_class=_SAMPLES, max_classes=_CLASSES) if runs else []
    except (HfsynError, OSError):
        return None  # the source has moved, or the runs are over other images: the page needs no pictures
    classes = []
    for info, samples in found:
        real = [_picture(sample.real, f"real {info.name}", "a real image") for sample in samples]
        lines: list[dict[str, Any]] = [{"arm": "real", "images": real}]
        for number, arm in enumerate(arms):
            rows = [sample.rows[number] for sample in samples]
            made = [
                _picture(image_of(row), f"{arm}: {info.name}, made from: {row['prompt']}", row["prompt"])
                for row in rows
            ]
            lines.append({"arm": arm, "images": made})
        classes.append({"name": info.name, "lines": lines})
    return {"classes": classes, "seed": matrix.seeds[0]} if classes else None


def _picture(image: Image.Image, alt: str, title: str) -> dict[str, Any]:
    kind = "png" if max(image.size) <= _THUMBNAIL else "jpeg"
    shown = image.copy()
    shown.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stored = io.BytesIO()
    shown.save(stored, kind, **({"optimize": True} if kind == "png" else {"quality": 85}))
    data = base64.b64encode(stored.getvalue()).decode()
    return {"src": f"data:image/{kind};base64,{data}", "alt": alt, "title": title, "small": max(image.size) <= 48}


def _runs(matrix: Matrix, root: Path) -> list[dict[str, Any]]:
    """The manifest and the recipe of every finished run that an arm was trained on."""
    found = []
    for seed in matrix.seeds:
        for arm, path in _run_folders(matrix, seed).items():
            manifest = run_files.finished(path)
            if manifest is None:
                continue
            run = load_run(path)
            made = run.recipe.generate
            found.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "manifest": manifest.raw,
                    "fingerprint": run.fingerprint[:12],
                    "recipe": (path / layout.RECIPE).read_text(encoding="utf-8"),
                    "link": relpath(path / layout.RECIPE, root),
                    "generator": f"{made.model}, {made.steps} steps, guidance {made.guidance_scale:g}",
                }
            )
    return found


def _made(matrix: Matrix, outcomes: Sequence[Outcome], root: Path) -> dict[str, Any]:
    """How the numbers were obtained: software, devices, seeds, the training recipe."""
    results = [o.result for o in outcomes if o.result is not None]
    tests = [test for result in results for test in result["tests"].values()]
    software = tests[0].get("software", {}) if tests else {}
    recipe = results[0]["cell"]["config"] if results else {}
    images = {name: test["n"] for result in reversed(results) for name, test in result["tests"].items()}
    here = f"{root.resolve()}/"  # a page may be sent to others, who need not see where it was made
    return {
        "software": ", ".join(f"{name} {version}" for name, version in software.items()),
        "devices": sorted({test["device"] for test in tests if "device" in test}),
        "seeds": ", ".join(map(str, matrix.seeds)),
        "models": ", ".join(matrix.models),
        "seconds": round(sum(result.get("seconds", 0) for result in results)),
        "trainings": len(results),
        "recipe": dump(recipe).replace(here, ""),
        "tests": [
            {"name": name, "dataset": test.dataset.replace(here, ""), "split": test.split or "", "n": images.get(name)}
            for name, test in matrix.tests.items()
        ],
    }
