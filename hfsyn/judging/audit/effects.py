"""What the levels of the factors do to a classifier's accuracy: tables, an analysis of variance, findings.

Everything here is a pure function of numbers.

- **Tables**: accuracy by level and by pair of levels, each with Wilson's 95 % interval.
- **Effects**: the variance of right and wrong answers that each factor, and each pair of factors beyond the two alone,
  explains. Answers are 0 or 1, so no normal distribution is assumed: p is the share of permutations of the residuals
  of the model without the effect that explain as much (Freedman & Lane, "A nonstochastic interpretation of reported
  significance levels", 1983), and what they explain on average is not counted as explained. Over all effects the false
  discovery rate is bounded (Benjamini & Hochberg, 1995).
- **Suspects**: pairs of levels, and then levels, whose images are wrong more often than is expected: of a pair, more
  often than its two levels explain each for itself, without its own images: it is not suspected for a hard class.
  The one that chance explains least (binomial tail) is taken; its images are expected to be as wrong as they are from
  then on; and so on while chance explains less than `SCREEN`. So *heart* is not suspected for what *red hearts* do,
  nor ten pairs for what one does. A level most of whose pairs with one other factor were taken is taken before all
  pairs.
- **Findings**: suspects that are wrong more often than all that is not suspected by more than `LEAST`, pairs also more
  often than their levels explain, taken in the same way until the next one is above Benjamini and Hochberg's line.
  Where each suspect has new images of its own, only these count. They are independent of why it was suspected, so the
  line counts the suspects alone, and the accuracy that is stated is not the worst of many. Otherwise the line counts
  all cells that were looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hfsyn.judging.measures.metrics import Interval, wilson

LEAST = 0.1
"""A finding is only named if its error rate is above what is expected by more than this, and not by chance."""
FALSE = 0.05
"""The bound on false discoveries."""
SCREEN = 0.1
"""A cell is suspected if chance explains it with a smaller probability."""
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
        rest = _residuals(answers, table, sizes, others)
        # Of a pair what its columns explain does not count, also not of residuals that were permuted.
        sums = [(1, term), *((-1, (column,)) for column in (term if len(term) == 2 else ()))]
        parts.append((rest, [(sign, *_counted(table, sizes, some)) for sign, some in sums]))
    explained = np.array([_explained(*part) for part in parts])
    beaten, chance, rng = np.zeros(len(terms)), np.zeros(len(terms)), np.random.default_rng(seed)
    for _ in range(_PERMUTATIONS):
        some = rng.permutation(len(table))
        now = np.array([_explained(rest[some], sums) for rest, sums in parts])
        beaten += now >= explained - 1e-9
        chance += now / _PERMUTATIONS
    ps = ((1 + beaten) / (1 + _PERMUTATIONS)).tolist()
    shares = np.maximum((explained - chance) / total, 0.0).tolist()
    found = [Effect(*one) for one in zip(terms, shares, ps, adjusted(ps), strict=True)]
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


def _counted(table: np.ndarray, sizes: Sequence[int], columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's cell, and how many rows each has, at least 1."""
    code, cells = _coded(table, sizes, columns)
    return code, np.maximum(np.bincount(code, minlength=cells), 1)


def _explained(rest: np.ndarray, sums: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> float:
    """Sums of squares between cells, added with their signs."""
    squares = (sign * (np.bincount(code, weights=rest, minlength=len(n)) ** 2 / n).sum() for sign, code, n in sums)
    return float(sum(squares))


def adjusted(ps: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's q of each p: the smallest rate of false discoveries at which it is one."""
    order = np.argsort(ps)
    ranked = np.asarray(ps)[order] * len(ps) / np.arange(1, len(ps) + 1)
    found = np.empty(len(ps))
    found[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return [float(q) for q in found]


# --- suspects and findings --------------------------------------------------------------------------------------------

Cell = tuple[Columns, tuple[int, ...]]


def suspects(
    table: np.ndarray, right: np.ndarray, sizes: Sequence[int], left_out: frozenset[Cell] = frozenset()
) -> tuple[list[Cell], int]:
    """The cells that are wrong more often than is expected, the least likely by chance first, and of how many; without
    those that are left out.
    """
    columns = range(len(sizes))
    cells = {
        cell: rows
        for term in [*((c,) for c in columns), *combinations(columns, 2)]
        for cell, rows in rows_by_cell(table, sizes, term).items()
        if len(rows) >= FEWEST and cell not in left_out
    }
    told = Told(table, ~right, sizes, np.ones(len(table), bool))
    taken = _taken(cells, told, lambda number: SCREEN)
    if wide := [level for level in cells if len(level[0]) == 1 and _covered(level, len(cells[level]), taken)]:
        taken = _taken(cells, told, lambda number: SCREEN, first=wide)
    return list(taken), len(cells)


def _covered(level: Cell, images: int, taken: Mapping[Cell, np.ndarray]) -> bool:
    """Whether most images of a level are in pairs with the levels of one other factor that were taken."""
    of_level = [cell for cell in taken if len(cell[0]) == 2 and set(_levels(level)) < set(_levels(cell))]
    counts = [sum(len(taken[cell]) for cell in of_level if cell[0] == term) for term in {cell[0] for cell in of_level}]
    return max(counts, default=0) > images / 2


def findings(
    table: np.ndarray,
    right: np.ndarray,
    sizes: Sequence[int],
    suspected: Sequence[Cell],
    *,
    drawn: np.ndarray | None = None,
    looked_at: int = 0,
) -> list[Found]:
    """Those of the suspects that are worse indeed, the most costly first.

    Args:
        table: the levels of each image, int (n, columns).
        right: whether it was right, bool (n,).
        sizes: how many levels each column has.
        suspected: see `suspects`.
        drawn: of each image the number of the suspect for which it was made, int (n,); -1 for those of the design. None
            if there are no others: then the suspects are judged by the images that made them suspicious.
        looked_at: how many cells there were, of which these are suspected.
    """
    design = np.ones(len(table), bool) if drawn is None else drawn < 0
    every = {cell: rows_by_cell(table, sizes, cell[0])[cell] for cell in suspected}
    of_design = {cell: rows[design[rows]] for cell, rows in every.items()}
    cells, number = of_design, looked_at
    if drawn is not None:
        cells, number = {cell: np.flatnonzero(drawn == k) for k, cell in enumerate(suspected)}, len(suspected)
    trusted = design.copy()
    trusted[_joined(of_design.values())] = False
    base = float((~right)[trusted if trusted.any() else design].mean()) if len(right) else 0.0
    taken = _taken(
        {cell: rows for cell, rows in cells.items() if len(rows)},
        Told(table, ~right, sizes, design),
        lambda named: FALSE * (named + 1) / max(number, 1),
        base=base,
        every=every,
    )
    return _told(taken, of_design, table, right, design)


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    """All row numbers of some cells."""
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _levels(cell: Cell) -> list[tuple[int, int]]:
    """Column and level of a cell, one or two."""
    return list(zip(*cell, strict=True))


def rows_by_cell(table: np.ndarray, sizes: Sequence[int], columns: Columns) -> dict[Cell, np.ndarray]:
    """The numbers of the rows in each cell that has any."""
    code, _ = _coded(table, sizes, columns)
    order = np.argsort(code, kind="stable")
    numbers, starts = np.unique(code[order], return_index=True)
    places = np.array(np.unravel_index(numbers, [sizes[c] for c in columns])).T.tolist()
    parts = np.split(order, starts[1:])[: len(places)]  # of no rows there is one part, too
    return {(columns, tuple(place)): rows for place, rows in zip(places, parts, strict=True)}


@dataclass(frozen=True, eq=False)
class Told:
    """The answers that say what is expected."""

    table: np.ndarray
    wrong: np.ndarray
    sizes: Sequence[int]
    design: np.ndarray
    """Which images are of the design, from which rates are taken; bool (n,)."""

    def expected(self, named: np.ndarray) -> Callable[[Cell, np.ndarray], float]:
        """The error rate that is expected of a cell, given its rows, from images of the design that are not its own and
        have no name: of a level that of all, and of a pair that of its two levels, each for itself.
        """
        free = self.design & ~named
        wrong = self.wrong[free].astype(np.float64)
        counts = [
            (np.bincount(level, minlength=size), np.bincount(level, weights=wrong, minlength=size))
            for level, size in zip(self.table[free].T, self.sizes, strict=True)
        ]

        def rate(cell: Cell, rows: np.ndarray) -> float:
            own = rows[free[rows]]
            n, mistakes = len(own), int(self.wrong[own].sum())
            base = (wrong.sum() - mistakes) / max(1, len(wrong) - n)
            if len(cell[0]) == 1:
                return float(base)
            left = [(counts[c][0][level] - n, counts[c][1][level] - mistakes) for c, level in _levels(cell)]
            return float(max(sum(k / m if m else base for m, k in left) - base, 0.0))

        return rate


def _taken(
    cells: Mapping[Cell, np.ndarray],
    told: Told,
    line: Callable[[int], float],
    *,
    base: float | None = None,
    first: Sequence[Cell] = (),
    every: Mapping[Cell, np.ndarray] | None = None,
) -> dict[Cell, np.ndarray]:
    """The cells that are taken, in turn, and their rows; pairs first, since what a level does is seen without them.

    `line` is the largest p by how many were taken before. With `base`, the error rate of what is not suspected, a cell
    must be worse by `LEAST` than that and than what is expected. Those of `first` are taken before all others. `every`
    has all rows with the levels of a cell, also those that do not count for it.
    """
    taken: dict[Cell, np.ndarray] = {}
    wrong, named, rates = told.wrong, np.zeros(len(told.wrong), bool), np.zeros(len(told.wrong))
    rows_of = every or cells

    def take(cell: Cell) -> None:
        taken[cell] = cells[cell]
        named[rows_of[cell]] = True
        rates[rows_of[cell]] = wrong[cells[cell]].mean()  # which is expected of them from now on

    def chance(cell: Cell, expected: Callable[[Cell, np.ndarray], float]) -> float:
        rows = cells[cell]
        rate = expected(cell, rows_of[cell])
        rate = float(np.where(named[rows], rates[rows], rate if base is None else max(rate, base)).mean())
        # Of few images no rate is known to be 0: no single mistake makes a suspect.
        rate = (rate * len(rows) + 0.5) / (len(rows) + 1) if base is None else rate + LEAST
        return tail(int(wrong[rows].sum()), len(rows), rate)

    for cell in first:
        take(cell)
    for columns in (2, 1):
        while left := [cell for cell in cells if len(cell[0]) == columns and cell not in taken]:
            expected = told.expected(named)
            ps = {cell: chance(cell, expected) for cell in left}
            best = min(ps, key=lambda cell: (ps[cell], cell))
            if ps[best] > line(len(taken)):
                break
            take(best)
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


def _told(
    taken: Mapping[Cell, np.ndarray],
    of_design: Mapping[Cell, np.ndarray],
    table: np.ndarray,
    right: np.ndarray,
    design: np.ndarray,
) -> list[Found]:
    """The cells that were taken, those that share a level put together."""

    def having(rows: Mapping[Cell, np.ndarray], cells: Iterable[Cell]) -> np.ndarray:
        found = np.zeros(len(right), bool)
        found[_joined(rows[cell] for cell in cells)] = True
        return found

    found, named = [], having(of_design, taken)
    for cells in _together(list(taken), table.shape[1]):
        mine = having(taken, cells)
        where = cells[0][0]
        levels = tuple(tuple(sorted({cell[1][place] for cell in cells})) for place in range(len(where)))
        beside = design & ~named & (np.isin(table[:, where[0]], levels[0]) if len(where) == 2 else True)
        # If everything beside it has a name of its own, it is compared with all that has none.
        beside = beside if beside.any() else design & (~named if (design & ~named).any() else ~mine)
        here, there = (wilson(int(right[rows].sum()), int(rows.sum())) for rows in (mine, beside))
        share = having(of_design, cells).sum() / max(1, design.sum())
        lost = (there["value"] or 0.0) - here["value"]
        found.append(Found(where, levels, here, there, int(mine.sum()), float(lost * share), mine, beside))
    return sorted(found, key=lambda one: (-one.cost, one.columns, one.levels))


def _together(cells: Sequence[Cell], columns: int) -> list[list[Cell]]:
    """Pairs of one class, other pairs that share a level of one column, and single levels of one column."""
    left, groups = sorted(cells), []
    while left:
        best: list[Cell] = []
        for column in range(columns):
            for cell in left:
                if column not in cell[0] or (len(cell[0]) == 2 and cell[0][0] == 0 and column):
                    continue
                place = cell[0].index(column)
                same = [
                    one for one in left if one[0] == cell[0] and (len(cell[0]) == 1 or one[1][place] == cell[1][place])
                ]
                best = same if len(same) > len(best) else best
        groups.append(best)
        left = [cell for cell in left if cell not in best]
    return groups
