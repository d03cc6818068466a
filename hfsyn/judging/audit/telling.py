"""What an audit has found, in words: levels, pairs of levels, findings as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfsyn.judging.audit.effects import LEAST, Cell, Found, cell_table
from hfsyn.judging.audit.prompts import Axes
from hfsyn.judging.measures.results import interval
from hfsyn.recipes.factor_file import CLASS

NOTHING = f"Nothing is worse than elsewhere by more than {100 * LEAST:.0f} points and chance."


def table_of(axes: Axes, table: np.ndarray, right: np.ndarray, *columns: int) -> list[dict[str, Any]]:
    """The accuracy of each level, or pair of levels, of some columns."""
    lines = cell_table(table, right, axes.sizes, columns)
    levels = ([axes.levels[c][k] for c, k in zip(columns, line["levels"], strict=True)] for line in lines)
    return [{**line, "levels": some} for line, some in zip(lines, levels, strict=True)]


def cell_text(axes: Axes, cell: Cell) -> str:
    """A level or a pair of levels in words."""
    return words_of(axes, cell[0], tuple((level,) for level in cell[1]))


def words_of(axes: Axes, columns: Sequence[int], levels: Sequence[Sequence[int]]) -> str:
    """``heart with colour red or blue``, ``texture striped``: what some images have in common."""
    parts = []
    for column, some in zip(columns, levels, strict=True):
        named = " or ".join(axes.levels[column][level] for level in some)
        parts.append(named if axes.names[column] == CLASS else f"{axes.names[column]} {named}")
    return " with ".join(parts)


def told(axes: Axes, one: Found) -> dict[str, Any]:
    """A finding as a sentence, and its numbers."""
    what = words_of(axes, one.columns, one.levels)
    one_level = len(one.columns) == 2 and len(one.levels[0]) == 1
    beside = f"{words_of(axes, one.columns[:1], one.levels[:1])} elsewhere" if one_level else "elsewhere"
    here, there = (interval(some, percent=True) for some in (one.here, one.elsewhere))
    return {
        "sentence": f"{what}: {here} right, {beside} {there}",
        "what": what,
        "beside": beside,
        "cost": one.cost,
        "n": one.n,
        "levels": {
            axes.names[c]: [axes.levels[c][level] for level in some]
            for c, some in zip(one.columns, one.levels, strict=True)
        },
        "here": one.here,
        "elsewhere": one.elsewhere,
    }
