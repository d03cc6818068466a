"""The exchange rate: how many synthetic images per class are worth one more real image per class.

Accuracy with r real images alone, averaged over seeds and made monotone, says which number of real images any mixture
of r real and s synthetic ones is equal to. The gains in real images are fitted by s / rate. Its interval is Student's t
from leaving out one seed at a time (the jackknife): resampled with replacement, three seeds gave intervals that held a
known rate 7 times of 10 in place of 19 of 20. It does not hold what lies between the numbers that were tried (1 to 2 %
of the rate in tests with a known one). If the curves do not cross, or the interval includes no gain at all, there is no
rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hfsyn.judging.bench.matrix import SETTING
from hfsyn.judging.measures.metrics import paired_difference, student_quantile

_GRID = 1001
Seeds = Mapping[int, float]
"""Accuracy by seed."""


def exchange_rates(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rate of each test, arm and setting.

    Args:
        rows: of a summary of a matrix with the axes `real` and `synthetic`.

    Returns:
        For each ``test``, ``model``, ``budget``, ``lr``, ``recipe`` and ``arm``: ``rate`` (synthetic images per real
        one), ``low`` and ``high`` of its 95 % interval, all None if there is none, and ``why``; ``equal``: how many
        real images each mixture is equal to; ``best``: for each number of real images the number of synthetic ones with
        the highest accuracy, their ``share``, and the accuracy that they add.
    """
    axes = [key for key in ("test", *SETTING) if key not in ("real", "synthetic")]
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["real"] is not None:
            groups.setdefault(tuple(row[key] for key in axes), []).append(row)
    found = []
    for setting, group in groups.items():
        # Without synthetic images one arm stands for all.
        alone = {row["real"]: _by_seed(row) for row in group if not row["synthetic"]}
        for arm in dict.fromkeys(row["arm"] for row in group if row["synthetic"]):
            mixed = {(row["real"], row["synthetic"]): _by_seed(row) for row in group if row["arm"] == arm}
            mixed = {key: seeds for key, seeds in mixed.items() if key[1]}
            where = dict(zip(axes, setting, strict=True))
            found.append({**where, "arm": arm, **rate_of(alone, mixed, 1 / group[0]["classes"])})
    return found


def _by_seed(row: Mapping[str, Any]) -> dict[int, float]:
    return dict(zip(row["seeds"], row["values"], strict=True))


def rate_of(alone: Mapping[int, Seeds], mixed: Mapping[tuple[int, int], Seeds], chance: float) -> dict[str, Any]:
    """The rate of one arm; see `exchange_rates`.

    Args:
        alone: accuracies by number of real images.
        mixed: by numbers of real and of synthetic images.
        chance: the accuracy without any image.
    """
    best = [_best(real, alone, mixed) for real in sorted(alone)]
    none = {"rate": None, "low": None, "high": None, "equal": [], "best": [one for one in best if one]}
    seeds = sorted(set.intersection(*(set(one) for one in (*alone.values(), *mixed.values())))) if alone else []
    if len(alone) < 2 or not mixed or not seeds:
        return {**none, "why": "it takes two numbers of real images alone, and mixtures, with a seed in common"}
    least, most = min(alone), max(alone)
    rise = paired_difference([alone[most][s] for s in seeds], [alone[least][s] for s in seeds])
    equal = _equal(alone, mixed, chance, seeds)
    none["equal"] = [{"real": r, "synthetic": s, "is": None if e is None else r + e} for (r, s), e in equal.items()]
    if rise["low"] is None or rise["low"] <= 0:
        return {**none, "why": f"more real images do not clearly help here, from {least} to {most} per class"}
    worth = _worth(equal)
    if worth is None:
        return {**none, "why": f"no mixture is as good as some number of real images between {least} and {most}"}
    others = [_worth(_equal(alone, mixed, chance, [s for s in seeds if s != seed])) for seed in seeds]
    known = [other for other in others if other is not None]
    spread = sum((other - float(np.mean(known))) ** 2 for other in known) * (len(seeds) - 1) / len(seeds)
    half = student_quantile(len(seeds) - 1) * math.sqrt(spread)
    if len(known) < len(seeds) or worth <= half:
        return {**none, "why": "the interval of what synthetic images add includes nothing"}
    return {**none, "rate": 1 / worth, "low": 1 / (worth + half), "high": 1 / (worth - half), "why": ""}


def _equal(
    alone: Mapping[int, Seeds], mixed: Mapping[tuple[int, int], Seeds], chance: float, seeds: Sequence[int]
) -> dict[tuple[int, int], float | None]:
    """How many more real images each mixture is worth; None beyond the largest number that was tried."""
    numbers = sorted({0, *alone})
    means = [float(np.mean([alone[n][s] for s in seeds])) if n in alone else chance for n in numbers]
    curve = _rising(means)
    # Between the numbers that were tried, the curve bends: straight lines would overrate what mixtures are worth.
    grid = np.linspace(0, numbers[-1], _GRID)
    bent = _smooth(np.sqrt(numbers), curve, np.sqrt(grid))
    found: dict[tuple[int, int], float | None] = {}
    for (real, synthetic), accuracies in mixed.items():
        mean = float(np.mean([accuracies[seed] for seed in seeds]))
        inside = curve[0] < mean < curve[-1]
        found[real, synthetic] = float(np.interp(mean, bent, grid)) - real if inside else None
    return found


def _rising(values: Sequence[float]) -> list[float]:
    """The nearest values, in least squares, that never fall: neighbours that do are averaged."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while blocks and blocks[-1][0] >= mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    return [mean for mean, size in blocks for _ in range(size)]


def _smooth(x: Any, y: Any, at: Any) -> Any:
    """A monotone curve through points, at other places: the cubic of Fritsch and Butland (doi:10.1137/0905021)."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    widths, rises = np.diff(x), np.diff(y) / np.diff(x)
    slopes = np.concatenate([rises[:1], np.zeros(len(x) - 2), rises[-1:]])
    left, right = 2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = (left + right) / (left / rises[:-1] + right / rises[1:])
    slopes[1:-1] = np.where(rises[:-1] * rises[1:] > 0, inner, 0)
    for end, near in ((0, 1), (-1, -2)) if len(rises) > 1 else ():
        both = widths[end] + widths[near]
        slope = ((widths[end] + both) * rises[end] - widths[end] * rises[near]) / both
        slopes[end] = min(max(slope, 0), 3 * rises[end])  # nowhere does the curve fall
    piece = np.clip(np.searchsorted(x, at, "right") - 1, 0, len(widths) - 1)
    width, t = widths[piece], (at - x[piece]) / widths[piece]
    begin = (1 + 2 * t) * (1 - t) ** 2 * y[piece] + t * (1 - t) ** 2 * width * slopes[piece]
    return begin + t**2 * (3 - 2 * t) * y[piece + 1] + t**2 * (t - 1) * width * slopes[piece + 1]


def _worth(equal: Mapping[tuple[int, int], float | None]) -> float | None:
    """What one synthetic image is worth in real ones: the least squares fit of the gains."""
    known = [(synthetic, gain) for (_, synthetic), gain in equal.items() if gain is not None]
    return sum(s * gain for s, gain in known) / sum(s * s for s, _ in known) if known else None


def _best(real: int, alone: Mapping[int, Seeds], mixed: Mapping[tuple[int, int], Seeds]) -> dict[str, Any] | None:
    """Where accuracy turns: the number of synthetic images beside these real ones that gives the highest."""
    choices = {0: alone[real], **{s: seeds for (r, s), seeds in mixed.items() if r == real}}
    if len(choices) < 2:
        return None
    best = max(choices, key=lambda synthetic: float(np.mean(list(choices[synthetic].values()))))
    shared = [seed for seed in choices[best] if seed in alone[real]]
    added = paired_difference([choices[best][s] for s in shared], [alone[real][s] for s in shared])
    share = best / (real + best) if best else 0.0
    return {
        "real": real,
        "synthetic": best,
        "share": share,
        "added": {key: added[key] for key in ("mean", "low", "high")},
    }


def rate_sentence(found: Mapping[str, Any]) -> str:
    """A rate in words."""
    place = f"On “{found['test']}” it is not measurable here how many images of “{found['arm']}” a real one is worth"
    if found["rate"] is None:
        return f"{place}: {found['why']}."
    return (
        f"On “{found['test']}”, {found['rate']:.1f} images of “{found['arm']}” are worth one more real image "
        f"(95 % interval {found['low']:.1f} to {found['high']:.1f})."
    )
