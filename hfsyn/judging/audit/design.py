"""Which images an audit makes: a fractional factorial design over the classes and the factors.

Of all combinations of levels some are chosen such that each level occurs equally often, and each pair of levels of two
factors as equally as the pairs that are never drawn allow. The design begins row by row with the levels that occurred
least, and is improved by coordinate exchange (Meyer & Nachtsheim, "The coordinate-exchange algorithm for constructing
exact optimal experimental designs", Technometrics 37, 1995): one level of one row is changed at a time, as long as
that makes the counts more even.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from hfsyn.errors import HfsynError

_PASSES, _SLOW = 8, 20_000  # passes of the exchange; designs of more rows get one
_EVEN = 4.0
"""How much more the counts of single levels weigh than those of pairs."""

Allowed = Mapping[tuple[int, int], np.ndarray]
"""Two columns, the first before the second -> which pairs of their levels may occur, bool (levels, levels)."""


def design(sizes: Sequence[int], rows: int, *, allowed: Allowed | None = None, seed: int = 0) -> np.ndarray:
    """The levels of each row, int64 (rows, columns), given how many levels each column has.

    The levels of the first column (the classes) take turns. The same arguments give the same design.

    Raises HfsynError if some row is left with a pair that may not occur.
    """
    return _Design(sizes, rows, dict(allowed or {}), seed).made()


class _Design:
    def __init__(self, sizes: Sequence[int], rows: int, allowed: dict[tuple[int, int], np.ndarray], seed: int) -> None:
        self._sizes, self._rng = sizes, np.random.default_rng(seed)
        self._table = np.zeros((rows, len(sizes)), np.int64)
        self._table[:, 0] = np.arange(rows) % sizes[0]
        self._single = [np.zeros(size) for size in sizes]
        # Both orders of two columns share one table of counts, seen from either side.
        self._pairs: dict[tuple[int, int], np.ndarray] = {}
        self._barred: dict[tuple[int, int], np.ndarray] = {}
        for a, b in combinations(range(len(sizes)), 2):
            counts = np.zeros((sizes[a], sizes[b]))
            barred = np.where(allowed[a, b], 0.0, np.inf) if (a, b) in allowed else np.zeros_like(counts)
            self._pairs |= {(a, b): counts, (b, a): counts.T}
            self._barred |= {(a, b): barred, (b, a): barred.T}

    def made(self) -> np.ndarray:
        columns = range(1, len(self._sizes))
        for row in self._table:
            for column in columns:
                row[column] = self._best(row, column, range(column))
            self._count(row, 1)
        for _ in range(_PASSES if len(self._table) <= _SLOW else 1):
            if not self._improved(columns):
                break
        if any(np.isinf(self._barred[a, b][self._table[:, a], self._table[:, b]]).any() for a, b in self._barred):
            said = "No design without the pairs that `never` bars was found."
            raise HfsynError(said, "Bar fewer pairs.")
        return self._table

    def _improved(self, columns: Sequence[int]) -> bool:
        changed = False
        for number in self._rng.permutation(len(self._table)):
            row = self._table[number]
            for column in columns:
                self._count(row, -1)
                others = [one for one in range(len(row)) if one != column]
                cost = self._cost(row, column, others)
                best = int(cost.argmin())
                if cost[best] < cost[row[column]] - 1e-9:
                    row[column], changed = best, True
                self._count(row, 1)
        return changed

    def _best(self, row: np.ndarray, column: int, others: Sequence[int]) -> int:
        cost = self._cost(row, column, others)
        # Of equally good levels any: always the first would tie the columns together.
        return int(self._rng.choice(np.flatnonzero(cost <= cost.min() + 1e-9)))

    def _cost(self, row: np.ndarray, column: int, others: Sequence[int]) -> np.ndarray:
        """By how much the sum of squared counts, each over its expected value, grows with each level of a column."""
        cost = _EVEN * self._sizes[column] * self._single[column]
        for other in others:
            weight = self._sizes[column] * self._sizes[other]
            cost = (
                cost + weight * self._pairs[column, other][:, row[other]] + self._barred[column, other][:, row[other]]
            )
        return np.asarray(cost)

    def _count(self, row: np.ndarray, by: int) -> None:
        for column, level in enumerate(row):
            self._single[column][level] += by
        for a, b in combinations(range(len(row)), 2):
            self._pairs[a, b][row[a], row[b]] += by
