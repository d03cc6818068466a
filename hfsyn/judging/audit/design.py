"""Which images an audit makes: a fractional factorial design over the classes and the factors.

Of all combinations of levels some are chosen such that each level occurs about equally often, and so does each pair of
levels of two factors that may occur. The rows are made one after the other, and in each a factor gets the level that
occurred least so far, alone and together with the levels that the row has already: as tests of pairs are chosen (Cohen
et al., "The AETG system", IEEE Transactions on Software Engineering 23, 1997), but for equal counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from hfsyn.errors import HfsynError

_TRIES = 50  # orders in which the factors of a row are gone through, if pairs that may not occur leave no level
_EVEN = 4.0
"""How much more the counts of single levels weigh than those of pairs."""

Allowed = Mapping[tuple[int, int], np.ndarray]
"""Two columns, the first before the second -> which pairs of their levels may occur, bool (levels, levels)."""


def design(sizes: Sequence[int], rows: int, *, allowed: Allowed | None = None, seed: int = 0) -> np.ndarray:
    """The levels of each row, int64 (rows, columns), given how many levels each column has.

    The levels of the first column (the classes) take turns. The same arguments give the same design.

    Raises HfsynError if no row without a pair that may not occur is found.
    """
    rng, columns = np.random.default_rng(seed), range(len(sizes))
    single = [np.zeros(size) for size in sizes]
    pairs, barred = _tables(sizes, allowed or {})

    def level_of(column: int, row: Mapping[int, int]) -> int | None:
        """The level of a column that makes the counts most even, given the levels of others; None if there is none."""
        cost = _EVEN * sizes[column] * single[column]
        for other, level in row.items():
            weight = sizes[column] * sizes[other]
            cost = cost + weight * pairs[column, other][:, level] + barred[column, other][:, level]
        # Of equally good levels any: always the first would tie the columns together.
        best = np.flatnonzero(cost <= cost.min() + 1e-9)
        return None if np.isinf(cost.min()) else int(rng.choice(best))

    table = np.zeros((rows, len(sizes)), np.int64)
    for number in range(rows):
        for attempt in range(_TRIES):
            order = list(columns[1:]) if attempt == 0 else rng.permutation(columns[1:]).tolist()
            row = {0: number % sizes[0]}
            while order and (level := level_of(order[0], row)) is not None:
                row[order.pop(0)] = level
            if not order:
                break
        else:
            raise HfsynError("No design without the pairs that `never` bars was found.", "Bar fewer pairs.")
        for column, level in row.items():
            table[number, column] = level
            single[column][level] += 1
        for a, b in combinations(columns, 2):
            pairs[a, b][row[a], row[b]] += 1
    return table


_Tables = dict[tuple[int, int], np.ndarray]


def _tables(sizes: Sequence[int], allowed: Allowed) -> tuple[_Tables, _Tables]:
    """How often each pair of levels has occurred, and infinity for those that may not; seen from either column."""
    pairs: _Tables = {}
    barred: _Tables = {}
    for a, b in combinations(range(len(sizes)), 2):
        counts = np.zeros((sizes[a], sizes[b]))
        never = np.where(allowed[a, b], 0.0, np.inf) if (a, b) in allowed else np.zeros_like(counts)
        pairs |= {(a, b): counts, (b, a): counts.T}
        barred |= {(a, b): never, (b, a): never.T}
    return pairs, barred
