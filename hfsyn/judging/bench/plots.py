"""Plots of a bench, each as inline SVG that follows the page's colours and as a PNG file.

Plots are narrow (about 350 pixels), so that their text is readable on a phone without zooming.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from builders.files import atomic_write
from hfsyn.judging.measures.metrics import mean_interval

COLOURS = ("#4c84d6", "#d9812c", "#2f9e77", "#b765c2", "#c2566b", "#7d8a3c")
"""Of the arms, in the matrix's order; each stands out on white and on near-black."""
MOST_CLASSES = 20
"""Rows of the plot by class."""
_WIDTH, _LETTERS = 3.7, 50  # inches, at 96 pixels each; letters on a line
# Stand-ins that are replaced by the page's own colours in the SVG.
_INK, _LINE = "#010203", "#040506"


@dataclass(frozen=True)
class Plot:
    """A plot as it is shown on the page, and its PNG file."""

    png: Path
    title: str
    svg: str


Draw = Callable[[Any, str, str], None]
"""``draw(axes, ink, line)``: `ink` and `line` are the colours of text and of lines."""


def _render(png: Path, title: str, alt: str, height: float, draw: Draw) -> Plot:
    """Draw a plot twice: as SVG text, and as a PNG file on white. `alt` describes it in words."""
    import matplotlib as mpl

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": png.stem,
        "text.parse_math": False,
        "font.size": 9,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
    }
    with mpl.rc_context(settings):
        text = io.StringIO()
        _figure(height, draw, _INK, _LINE).savefig(text, format="svg", transparent=True, metadata={"Date": None})
        figure = _figure(height, draw, "#202124", "#d5d8dc")
        atomic_write(png, lambda path: figure.savefig(path, format="png", dpi=200, facecolor="white"))
    return Plot(png, title, _inline(text.getvalue(), alt))


def _figure(height: float, draw: Draw, ink: str, line: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.tick_params(colors=ink, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(line)
    draw(axes, ink, line)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(ink)
    return figure


def _inline(svg: str, alt: str) -> str:
    """The <svg> element alone, in the page's colours, scaled by the page, with a description for screen readers."""
    from html import escape

    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor").replace(_LINE, "var(--line)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", svg)  # the page's own font
    head = re.search(r'<svg[^>]*viewBox="([^"]+)"[^>]*>', svg, flags=re.DOTALL)
    assert head is not None  # matplotlib always writes one
    width = float(head[1].split()[2]) * 96 / 72
    opened = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{head[1]}" '
        f'style="max-width:{width:.0f}px" role="img" aria-label="{escape(alt)}">'
    )
    return opened + svg[head.end() :].strip()


def accuracy_plot(
    rows: Sequence[Mapping[str, Any]], arms: Sequence[str], where: str, png: Path, title: str = "Accuracy by arm"
) -> Plot:
    """Each arm's mean with its interval, and a dot for each seed."""
    shown = [row for arm in arms for row in rows if row["arm"] == arm]

    def draw(axes: Any, ink: str, line: str) -> None:
        for y, row in enumerate(shown):
            colour, mean = colour_of(arms, row["arm"]), 100 * row["mean"]
            if row["low"] is not None:
                axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=colour, linewidth=7, alpha=0.35)
            axes.plot([100 * v for v in row["values"]], [y] * len(row["values"]), "o", color=colour, markersize=3.5)
            axes.plot([mean], [y], "|", color=ink, markersize=17, markeredgewidth=2)
            axes.text(mean, y - 0.3, f"{mean:.1f}", color=ink, ha="center", va="bottom", fontsize=9)
        axes.set_yticks(range(len(shown)), [row["arm"] for row in shown])
        axes.set_ylim(len(shown) - 0.5, -0.75)
        ends = [row["low"] for row in shown if row["low"] is not None]
        _percent_axis(axes, line, min([*ends, *(min(row["values"]) for row in shown)]))

    told = "; ".join(f"{row['arm']} {100 * row['mean']:.1f} %" for row in shown)
    alt = f"Accuracy on {where}: {told}. Bars are 95 % intervals, dots are seeds."
    return _render(png, title, alt, 0.7 + 0.42 * len(shown), draw)


def exchange_plot(rows: Sequence[Mapping[str, Any]], arm: str, test: str, png: Path, colour: str) -> Plot:
    """Lines of equal accuracy over the numbers of real and synthetic images of an arm; dots are what was measured."""
    means = {(row["real"], row["synthetic"]): row["mean"] for row in rows}
    reals, synthetics = (sorted({key[i] for key in means}) for i in (0, 1))
    grid = np.array([[100 * means.get((real, number), np.nan) for real in reals] for number in synthetics])

    def draw(axes: Any, ink: str, line: str) -> None:
        lines = axes.contour(reals, synthetics, np.ma.masked_invalid(grid), levels=6, colors=[colour])
        axes.clabel(lines, fmt=lambda value: f"{value:.0f} %", fontsize=8, colors=[ink])
        axes.plot(*zip(*means, strict=True), ".", color=ink, markersize=5, clip_on=False)
        axes.set_xticks(reals, [str(number) for number in reals])
        axes.set_yticks(synthetics, [str(number) for number in synthetics])
        axes.set_xlabel("real images per class")
        axes.set_ylabel(f"images of “{arm}” per class")

    told = "; ".join(f"{real} real and {made} synthetic {100 * mean:.1f} %" for (real, made), mean in means.items())
    return _render(
        png, f"Lines of equal accuracy: {arm}", f"Accuracy on {test} by images per class: {told}.", 3.2, draw
    )


def mixture_plot(rows: Sequence[Mapping[str, Any]], arm: str, test: str, png: Path) -> Plot:
    """Accuracy against the number of real images, one line for each number of an arm's images, with intervals."""
    numbers = sorted({row["synthetic"] for row in rows})
    points = {n: sorted((row for row in rows if row["synthetic"] == n), key=lambda row: row["real"]) for n in numbers}
    names = [f"with {n}" if n else f"without “{arm}”" for n in numbers]

    def draw(axes: Any, ink: str, line: str) -> None:
        for name, found in zip(names, points.values(), strict=True):
            colour, x = colour_of(names, name), [row["real"] for row in found]
            axes.plot(x, [100 * row["mean"] for row in found], "o-", color=colour, markersize=4, label=name)
            _intervals(axes, x, found, colour)
        ticks = sorted({row["real"] for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("real images per class")
        _accuracy_axis(axes, line)
        _legend(axes, ink)

    told = "; ".join(
        f"{name}, {row['real']} real {100 * row['mean']:.1f} %"
        for name, found in zip(names, points.values(), strict=True)
        for row in found
    )
    title = f"Real images beside those of “{arm}”"
    return _render(png, title, f"Accuracy on {test}: {told}. Bars are 95 % intervals.", 3.2, draw)


def class_plot(by_arm: Mapping[str, Sequence[Mapping[str, Any]]], arms: Sequence[str], where: str, png: Path) -> Plot:
    """Accuracy of each class (mean over seeds) by arm, largest gap first; of many classes those with the largest gaps.

    `by_arm` holds ``{"name", "top1"}`` for each class, in one order for all arms.
    """
    shown = [arm for arm in arms if arm in by_arm]
    names = [row["name"] for row in by_arm[shown[0]]]
    values = np.array([[row["top1"] for row in by_arm[arm]] for arm in shown])
    spread = values.max(0) - values.min(0)
    chosen = np.argsort(-spread, kind="stable")[:MOST_CLASSES].tolist()

    def draw(axes: Any, ink: str, line: str) -> None:
        for y, i in enumerate(chosen):
            axes.plot([100 * values[:, i].min(), 100 * values[:, i].max()], [y, y], color=line, linewidth=2, zorder=1)
            for arm, value in zip(shown, values[:, i], strict=True):
                label = arm if y == 0 else None
                axes.plot([100 * value], [y], "o", color=colour_of(arms, arm), markersize=6, label=label)
        short = [names[i] if len(names[i]) <= 18 else names[i][:17] + "…" for i in chosen]
        axes.set_yticks(range(len(chosen)), short)
        axes.set_ylim(len(chosen) - 0.5, -0.6)
        _percent_axis(axes, line, float(values[:, chosen].min()))
        _legend(axes, ink)

    lowest = {arm: min(by_arm[arm], key=lambda row: row["top1"]) for arm in shown}
    told = "; ".join(f"{arm} lowest on {row['name']} ({100 * row['top1']:.0f} %)" for arm, row in lowest.items())
    few = f"; {len(chosen)} of {len(names)} classes" if len(chosen) < len(names) else ""
    title = f"Accuracy by class, largest gap first{few}"
    return _render(png, title, f"{title}, on {where}: {told}.", 0.9 + 0.24 * len(chosen), draw)


def curve_plot(rows: Sequence[Mapping[str, Any]], axis: str, arms: Sequence[str], where: str, png: Path) -> Plot:
    """Accuracy against `axis` (``budget``, ``limit``, ``images``, ``share`` or ``keep``), one line an arm, with
    intervals.
    """
    label, title = {
        "images": ("images in all", "Round by round"),
        "budget": ("images per epoch", "With more images per epoch"),
        "limit": ("different images per class", "With more images per class"),
        "share": ("real images mixed in, %", "With real images mixed in"),
        "keep": ("images kept, %", "With a part of the images"),
    }[axis]
    points = {arm: sorted((row for row in rows if row["arm"] == arm), key=lambda row: row[axis]) for arm in arms}

    def draw(axes: Any, ink: str, line: str) -> None:
        for arm in arms:
            x = [100 * row[axis] if axis in ("share", "keep") else row[axis] for row in points[arm]]
            y, colour = [100 * row["mean"] for row in points[arm]], colour_of(arms, arm)
            if axis == "images":  # of several policies at the same places: beside each other
                x = [at * (1 + 0.03 * (list(arms).index(arm) - (len(arms) - 1) / 2)) for at in x]
            axes.plot(x, y, "o-", color=colour, markersize=4, label=arm)
            _intervals(axes, x, points[arm], colour)
        axes.set_xlabel(label)
        _accuracy_axis(axes, line)
        if axis not in ("share", "keep"):
            axes.set_xscale("log")
            ticks = sorted({row[axis] for row in rows})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
        _legend(axes, ink)

    told = "; ".join(f"{arm} reaches {100 * found[-1]['mean']:.1f} %" for arm, found in points.items() if found)
    return _render(png, title, f"{title}, on {where}: {told}.", 2.9, draw)


def mean_by_class(tests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``name`` and mean ``top1`` over seeds of each class that was tested."""
    tables = [(test["metrics"].get("masked") or test["metrics"])["per_class"] for test in tests]
    found = []
    for rows in zip(*tables, strict=True):
        values = [row["top1"]["value"] for row in rows if row["top1"]["value"] is not None]
        if values:
            found.append({"name": rows[0]["name"], "top1": mean_interval(values)["mean"]})
    return found


def colour_of(arms: Sequence[str], arm: str) -> str:
    """An arm's colour, the same in every plot."""
    return COLOURS[list(arms).index(arm) % len(COLOURS)]


def _intervals(axes: Any, x: Sequence[float], rows: Sequence[Mapping[str, Any]], colour: str) -> None:
    for place, row in zip(x, rows, strict=True):
        if row["low"] is not None:
            axes.plot([place, place], [100 * row["low"], 100 * row["high"]], color=colour, linewidth=5, alpha=0.3)


def _accuracy_axis(axes: Any, line: str) -> None:
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y", color=line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylim(0, 100)


def _percent_axis(axes: Any, line: str, lowest: float) -> None:
    """From a round number below the lowest value (0 to 1) to 100 %: dots, unlike bars, need no zero."""
    start = next((s for s in (80, 50) if 100 * lowest > s + 2), 0)
    ticks = range(start, 101, {80: 5, 50: 10, 0: 25}[start])
    axes.set_xlim(start - 0.01 * (100 - start), 100 + 0.02 * (100 - start))
    axes.set_xticks(list(ticks), [str(tick) for tick in ticks[:-1]] + ["100 %"])
    if start:
        axes.set_xlabel(f"the axis begins at {start} %, not at 0")
    axes.grid(axis="x", color=line, linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: Any, ink: str) -> None:
    """The arms above the plot, in as many columns as their names leave room for."""
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, min(len(names), _LETTERS // (max(map(len, names), default=0) + 5)))
    spacing = {"handletextpad": 0.3, "columnspacing": 1.0, "borderaxespad": 0.1}
    where = {"loc": "outside upper left", "ncols": columns}
    axes.figure.legend(handles, names, frameon=False, labelcolor=ink, **where, **spacing)
