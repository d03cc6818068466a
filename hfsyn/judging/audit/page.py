"""The page of an audit: findings with their images, what each factor does, and the accuracy of each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from builders.files import atomic_text
from builders.images.decoding import decode_rgb
from hfsyn.judging.audit.answers import Judged
from hfsyn.judging.audit.telling import NOTHING
from hfsyn.judging.measures.results import interval
from hfsyn.pages.html import page, picture
from hfsyn.runs.scores import ID
from hfsyn.runs.shards import StoredRows

_WRONG, _RIGHT = 8, 4  # images of a finding: wrong ones, and right ones from elsewhere
_MOST_CELLS = 600  # of a table of pairs; of a larger one the worst lines are shown
_WORST = 25


def write_page(
    path: Path, found: Mapping[str, Any], judged: Judged, masks: Sequence[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Write the page of an audit.

    Args:
        path: of the page.
        found: the result.
        judged: the images that count.
        masks: of each finding its images, and those that it is compared with.
    """
    stored = {run: StoredRows(run) for run, _ in dict.fromkeys(judged.places)}
    number_of = {
        (run, one): number
        for run, rows in stored.items()
        for number, one in enumerate(rows.table([ID])[ID].to_pylist())
    }

    def line_of(number: int) -> dict[str, Any]:
        place = judged.places[number]
        return stored[place[0]].read([number_of[place]], ["image", "prompt", ID])[0]

    def shown(numbers: np.ndarray) -> list[dict[str, Any]]:
        lines = map(line_of, numbers)
        return [
            {"image": picture(decode_rgb(line["image"]["bytes"])), "prompt": line["prompt"], "called": judged.called[n]}
            for n, line in zip(numbers, lines, strict=True)
        ]

    cards = [
        {
            **one,
            "wrong": shown(np.flatnonzero(mine & ~judged.right)[:_WRONG]),
            "good": shown(np.flatnonzero(beside & judged.right)[:_RIGHT]),
        }
        for one, (mine, beside) in zip(found["findings"], masks, strict=True)
    ]
    filters = {"percent": lambda value: "–" if value is None else f"{100 * value:.0f}", "interval": _interval}
    tables = [_table(name, lines) for name, lines in found["pairs"].items()]
    atomic_text(
        path, page("hfsyn.judging.audit", filters, found=dict(found), cards=cards, tables=tables, nothing=NOTHING)
    )


def _interval(one: Mapping[str, Any]) -> str:
    return interval(one, percent=True)


def _table(name: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table of pairs as a grid; a large one as the worst of its lines."""
    firsts, seconds = (list(dict.fromkeys(line["levels"][k] for line in lines)) for k in (0, 1))
    if len(firsts) * len(seconds) > _MOST_CELLS:
        return {"name": name, "worst": sorted(lines, key=lambda line: line["high"])[:_WORST], "heads": [], "grid": []}
    by_levels = {tuple(line["levels"]): line for line in lines}
    grid = [(first, [by_levels.get((first, second)) for second in seconds]) for first in firsts]
    return {"name": name, "worst": [], "heads": seconds, "grid": grid}
