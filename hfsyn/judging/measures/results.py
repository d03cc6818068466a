"""Results of measures: a dict for JSON that is a table in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfsyn.pages.html import table


class Result(dict[str, Any]):
    """What a measure found, with the keys that its function documents."""

    def rows(self) -> list[dict[str, str]]:
        """Its numbers: a ``measure``, its ``value``, and what it ``means``."""
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """What to know before the numbers are used."""
        return []

    def title(self) -> str:
        """What was measured."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self)

    def text(self) -> str:
        """For a terminal."""
        rows = self.rows()
        wide = [max(len(row[key]) for row in rows) for key in ("measure", "value")]
        lines = [f"{row['measure']:{wide[0]}}  {row['value']:{wide[1]}}  {row['means']}".rstrip() for row in rows]
        return "\n".join([self.title(), *lines, *(f"note: {remark}" for remark in self.remarks())])

    def _repr_html_(self) -> str:
        notes = [{"measure": "note", "means": remark} for remark in self.remarks()]
        return table([*self.rows(), *notes], self.title())


def row(measure: str, value: str, means: str = "") -> dict[str, str]:
    """One row of a `Result`."""
    return {"measure": measure, "value": value, "means": means}


def interval(found: Mapping[str, float | None], *, percent: bool = False) -> str:
    """``81.5 % [79.0, 84.0]`` or ``0.512 [0.480, 0.540]``, a value with its 95 % interval; a dash if there is none."""
    if found["value"] is None:
        return "–"
    numbers = [found[key] for key in ("value", "low", "high")]
    value, low, high = ("–" if n is None else f"{100 * n:.1f}" if percent else f"{n:.3f}" for n in numbers)
    return f"{value}{' %' if percent else ''}" + ("" if low == "–" else f" [{low}, {high}]")
