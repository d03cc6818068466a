"""What the levels of the factors do to a classifier's accuracy: tables, an analysis of variance, findings.

Everything here is a pure function of numbers.

- **Tables**: accuracy by level and by pair of levels, each with Wilson's 95 % interval.
- **Effects**: the variance of right and wrong answers that each factor, and each pair of factors beyond the two alone,
  explains. Answers are 0 or 1, so no normal distribution is assumed: p is the share of permutations of the residuals
  of the model without the effect that explain as much (Freedman & Lane, "A nonstochastic interpretation of reported
  significance levels", 1983). Over all effects the false discovery rate is bounded (Benjamini & Hochberg, 1995).
- **Findings**: levels and pairs of levels, of effects that hold, whose images are wrong more often than the images
  elsewhere by more than `LEAST`. The one that chance explains least (binomial tail) is taken; its images are expected
  to be as wrong as they are from then on; and so on until the next one is above Benjamini and Hochberg's line. So
  *heart* is not named for what *red hearts* do, nor ten pairs for what one level does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hfsyn.judging.measures.metrics import Interval, wilson

LEAST = 0.03
"""A finding is only named if its error rate is above that elsewhere by more than this, and not by chance."""
FALSE = 0.05
"""The bound on false discoveries."""
FEWEST = 5  # images of a cell that is looked at
_PERMUTATIONS = 999
_SWEEPS = 30  # of the fit, whose factors are nearly orthogonal

Columns = tuple[int, ...]
"""One column, or two."""


@dataclass(frozen=True)
class Effect:
    """What one factor, or a pair of factors beyond the two alone, explains."""

    columns: Columns
    share: float
    """Of the variance of right and wrong answers."""
    p: float
    q: float
    """p, adjusted for the number of effects."""

    @property
    def holds(self) -> bool:
        """Whether it is a discovery."""
        return self.q <= FALSE


@dataclass(frozen=True, eq=False)
class Found:
    """Images that are wrong more often: those with one of some levels in each of one or two columns."""

    columns: Columns
    levels: tuple[tuple[int, ...], ...]
    """Of each column."""
    here: Interval
    """The accuracy."""
    elsewhere: Interval
    """Of other images with the levels of the first column, or of all others; without those of other findings."""
    n: int
    cost: float
    """What it costs of the accuracy over all images, in shares of 1."""
    mine: np.ndarray
    beside: np.ndarray
    """Which images have it, and which it is compared with; bool (n,)."""


def cell_table(table: np.ndarray, right: np.ndarray, sizes: Sequence[int], columns: Columns) -> list[dict[str, Any]]:
    """``levels``, ``n`` and the accuracy (``value``, ``low``, ``high``) of each level, or pair of levels."""
    code, cells = _coded(table, sizes, columns)
    totals, hits = np.bincount(code, minlength=cells), np.bincount(code[right], minlength=cells)
    places = np.array(np.unravel_index(np.arange(cells), [sizes[c] for c in columns])).T
    return [
        {"levels": levels.tolist(), "n": int(total), **wilson(int(hit), int(total))}
        for levels, total, hit in zip(places, totals, hits, strict=True)
        if total
    ]


def _coded(table: np.ndarray, sizes: Sequence[int], columns: Columns) -> tuple[np.ndarray, int]:
    """The number of each row's cell, and how many cells there are."""
    code = np.zeros(len(table), np.int64)
    for column in columns:
        code = code * sizes[column] + table[:, column]
    return code, math.prod(sizes[column] for column in columns)


# --- the analysis of variance -----------------------------------------------------------------------------------------


def effects(table: np.ndarray, right: np.ndarray, sizes: Sequence[int], *, seed: int = 0) -> list[Effect]:
    """Every factor, and every pair of factors, the largest share first; `table` is int (n, columns), `right` bool."""
    columns = range(len(sizes))
    terms: list[Columns] = [(column,) for column in columns] + list(combinations(columns, 2))
    answers = right.astype(np.float64)
    total = float(((answers - answers.mean()) ** 2).sum()) if len(answers) else 0.0
    if not total:
        return [Effect(term, 0.0, 1.0, 1.0) for term in terms]
    parts = []
    for term in terms:
        others = [column for column in columns if len(term) == 2 or column not in term]
        code, cells = _coded(table, sizes, term)
        counts = np.maximum(np.bincount(code, minlength=cells), 1)
        parts.append((_residuals(answers, table, sizes, others), code, counts))
    explained = np.array([_explained(*part) for part in parts])
    beaten, rng = np.zeros(len(terms)), np.random.default_rng(seed)
    for _ in range(_PERMUTATIONS):
        some = rng.permutation(len(table))
        beaten += np.array([_explained(rest[some], code, counts) for rest, code, counts in parts]) >= explained - 1e-9
    ps = ((1 + beaten) / (1 + _PERMUTATIONS)).tolist()
    found = [Effect(*one) for one in zip(terms, (explained / total).tolist(), ps, adjusted(ps), strict=True)]
    return sorted(found, key=lambda effect: (effect.q, -effect.share))


def _residuals(answers: np.ndarray, table: np.ndarray, sizes: Sequence[int], columns: Sequence[int]) -> np.ndarray:
    """What the factors of some columns leave unexplained, fitted by taking each one's means away in turn."""
    rest = answers - answers.mean()
    for _ in range(_SWEEPS if len(columns) > 1 else 1):
        for column in columns:
            level = table[:, column]
            counts = np.maximum(np.bincount(level, minlength=sizes[column]), 1)
            rest = rest - (np.bincount(level, weights=rest, minlength=sizes[column]) / counts)[level]
    return rest


def _explained(rest: np.ndarray, code: np.ndarray, counts: np.ndarray) -> float:
    """The sum of squares between cells."""
    sums = np.bincount(code, weights=rest, minlength=len(counts))
    return float((sums**2 / counts).sum())


def adjusted(ps: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's q of each p: the smallest rate of false discoveries at which it is one."""
    order = np.argsort(ps)
    ranked = np.asarray(ps)[order] * len(ps) / np.arange(1, len(ps) + 1)
    found = np.empty(len(ps))
    found[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return [float(q) for q in found]


# --- findings ---------------------------------------------------------------------------------------------------------

Cell = tuple[Columns, tuple[int, ...]]


def findings(
    table: np.ndarray,
    right: np.ndarray,
    sizes: Sequence[int],
    holding: Sequence[Effect],
    left_out: frozenset[Cell] = frozenset(),
) -> list[Found]:
    """What to name, the most costly first; only of effects that hold, and without the cells that are left out."""
    cells: dict[Cell, np.ndarray] = {}
    for effect in holding:
        if effect.holds:
            cells |= {
                cell: rows
                for cell, rows in rows_by_cell(table, sizes, effect.columns).items()
                if len(rows) >= FEWEST and cell not in left_out
            }
    return _told(_taken(cells, ~right), table, right, len(sizes))


def rows_by_cell(table: np.ndarray, sizes: Sequence[int], columns: Columns) -> dict[Cell, np.ndarray]:
    """The numbers of the rows in each cell that has any."""
    code, _ = _coded(table, sizes, columns)
    order = np.argsort(code, kind="stable")
    numbers, starts = np.unique(code[order], return_index=True)
    places = np.array(np.unravel_index(numbers, [sizes[c] for c in columns])).T.tolist()
    parts = np.split(order, starts[1:])[: len(places)]  # of no rows there is one part, too
    return {(columns, tuple(place)): rows for place, rows in zip(places, parts, strict=True)}


def _taken(cells: dict[Cell, np.ndarray], wrong: np.ndarray) -> dict[Cell, np.ndarray]:
    """The cells that are named, in turn, and their rows."""
    taken: dict[Cell, np.ndarray] = {}
    expected = np.full(len(wrong), wrong.mean() if len(wrong) else 0.0)
    named = np.zeros(len(wrong), bool)
    while len(taken) < len(cells):
        ps = {
            cell: tail(int(wrong[rows].sum()), len(rows), float(expected[rows].mean()) + LEAST)
            for cell, rows in cells.items()
            if cell not in taken
        }
        best = min(ps, key=lambda cell: (ps[cell], cell))
        if ps[best] > FALSE * (len(taken) + 1) / len(cells):
            break
        taken[best] = cells[best]
        named[cells[best]] = True
        if not named.all():
            expected[~named] = wrong[~named].mean()
        expected[cells[best]] = wrong[cells[best]].mean()
    return taken


def tail(count: int, n: int, p: float) -> float:
    """The probability of `count` or more of `n` if each has probability `p`; 1 if that is no more than is expected."""
    if count <= n * p or p >= 1:
        return 1.0
    choose = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
    term = math.exp(choose + count * math.log(p) + (n - count) * math.log1p(-p))
    total = 0.0
    for k in range(count, n + 1):
        total += term
        term *= (n - k) / (k + 1) * p / (1 - p)
        if term < total * 1e-17:
            break
    return min(1.0, total)


def _told(taken: dict[Cell, np.ndarray], table: np.ndarray, right: np.ndarray, columns: int) -> list[Found]:
    """The cells that were taken, those that share a level put together."""

    def having(cells: Iterable[Cell]) -> np.ndarray:
        found = np.zeros(len(right), bool)
        for cell in cells:
            found[taken[cell]] = True
        return found

    found, named = [], having(taken)
    for cells in _together(list(taken), columns):
        mine = having(cells)
        where = cells[0][0]
        levels = tuple(tuple(sorted({cell[1][place] for cell in cells})) for place in range(len(where)))
        beside = ~named & (np.isin(table[:, where[0]], levels[0]) if len(where) == 2 else True)
        # If everything beside it has a name of its own, it is compared with all that has none.
        beside = beside if beside.any() else (~named if not named.all() else ~mine)
        here, there = (wilson(int(right[rows].sum()), int(rows.sum())) for rows in (mine, beside))
        lost = (there["value"] or 0.0) - here["value"]
        found.append(Found(where, levels, here, there, int(mine.sum()), lost * float(mine.mean()), mine, beside))
    return sorted(found, key=lambda one: (-one.cost, one.columns, one.levels))


def _together(cells: Sequence[Cell], columns: int) -> list[list[Cell]]:
    """Pairs that share a level of one column (the class first), and single levels of one column."""
    left, groups = sorted(cells), []
    while left:
        best: list[Cell] = []
        for column in range(columns):
            for cell in left:
                if column not in cell[0]:
                    continue
                place = cell[0].index(column)
                same = [
                    one for one in left if one[0] == cell[0] and (len(cell[0]) == 1 or one[1][place] == cell[1][place])
                ]
                best = same if len(same) > len(best) else best
        groups.append(best)
        left = [cell for cell in left if cell not in best]
    return groups
