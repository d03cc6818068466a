"""Rules of a selection: which rows a condition keeps, and which of those each class keeps; and why the others go."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from builders.errors import did_you_mean, quoted
from builders.runs import layout
from hfsyn.errors import HfsynError
from hfsyn.rules import order_of
from hfsyn.runs.condition import judged

IDS = ("sample_id", "source_id", "wnid")
"""What a rule needs of each row, beside the columns that it names."""


@dataclass(frozen=True)
class Rule:
    """What decides which rows stay. There is no default for any of it."""

    where: str | None = None
    per_class: int | None = None
    by: str | None = None
    """A column, of which the largest values go first; with a minus before it, the smallest."""

    @property
    def column(self) -> str | None:
        """The column that `by` names."""
        return self.by.removeprefix("-") if self.by else None

    def text(self) -> str:
        """In one line."""
        return "; ".join(filter(None, (self.where, self.limit())))

    def limit(self) -> str:
        """How many of a class stay, in words; empty if all may."""
        if self.per_class is None:
            return ""
        which = "smallest" if str(self.by).startswith("-") else "largest"
        return f"at most {self.per_class} of each class" + (f", by the {which} {self.column}" if self.column else "")


@dataclass(frozen=True)
class Kept:
    """Which rows a rule keeps."""

    reasons: Sequence[str | None]
    """Of each row why it goes; None if it stays."""
    spare: Sequence[bool]
    """Whether another image of the same real one, which the rule likes better, stays too."""
    columns: Sequence[str]
    """The columns that the rule looks at."""


def apply(rule: Rule, rows: pa.Table) -> Kept:
    """Apply a rule to rows that have the columns of `IDS` and those that it names.

    A class that keeps fewer images than there are takes the best one of each real image first, and then, where these
    do not suffice, the second best, and so on. Raises HfsynError as `judged`, and if there is no such column.
    """
    reasons: list[str | None] = [None] * rows.num_rows
    columns: list[str] = []
    if rule.where is not None:
        found = judged(rule.where, rows)
        columns += found.columns
        for number, (part, unknown) in enumerate(zip(found.failing, found.unknown, strict=True)):
            if part is not None:
                how = "is unknown: a value is missing" if unknown else "does not hold"
                reasons[number] = f"{found.parts[part]} {how}"
    wanted = _values(rule, rows)
    columns += [rule.column] if rule.column and rule.column not in columns else []
    spare = _spare(rows, [reason is None for reason in reasons], wanted)
    if rule.per_class is not None:
        ids, wnids = rows["sample_id"].to_pylist(), rows["wnid"].to_pylist()
        of_class: dict[str, list[int]] = defaultdict(list)
        for number, reason in enumerate(reasons):
            if reason is None:
                of_class[wnids[number]].append(number)
        for numbers in of_class.values():
            numbers.sort(key=lambda n: (spare[n], wanted[n], order_of(ids[n])))
            for number in numbers[rule.per_class :]:
                reasons[number] = rule.limit()
    return Kept(reasons, [bool(rank) for rank in spare], columns)


def check_number(column: str, rows: pa.Table, option: str) -> None:
    """Refuse a column that is not there, or holds no numbers, which `option` has named."""
    if column not in rows.column_names:
        raise HfsynError(
            f"There is no column {column[:80]!r}.{did_you_mean(column, rows.column_names)}",
            f"There are: {quoted(rows.column_names, 40)}.",
        )
    kind = rows.schema.field(column).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        said = f"{column} is not a number, and cannot put images in an order."
        raise HfsynError(said, f"Name another column: {option} COLUMN")


def _values(rule: Rule, rows: pa.Table) -> Sequence[tuple[bool, float]]:
    """What rows are sorted by: those without a value last."""
    if rule.column is None:
        return [(False, 0.0)] * rows.num_rows
    check_number(rule.column, rows, "--by")
    sign = 1 if str(rule.by).startswith("-") else -1
    return [(value is None, 0.0 if value is None else sign * value) for value in rows[rule.column].to_pylist()]


def _spare(rows: pa.Table, stays: Sequence[bool], wanted: Sequence[tuple[bool, float]]) -> list[int]:
    """Of each row that stays how many others of its real image go before it."""
    ids = rows["sample_id"].to_pylist()
    seen: Counter[str] = Counter()
    rank = [0] * len(ids)
    sources = rows["source_id"].to_pylist()
    for number in sorted((n for n, stay in enumerate(stays) if stay), key=lambda n: (wanted[n], order_of(ids[n]))):
        rank[number] = seen[sources[number]]
        seen[sources[number]] += 1
    return rank


def by_class(rows: pa.Table, kept: Kept, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of each class how many rows there are, stay and go, for people and JSON."""
    found = {wnid: {"wnid": wnid, "class": names[wnid], "rows": 0, "kept": 0, "spare": 0} for wnid in names}
    for wnid, reason, spare in zip(rows["wnid"].to_pylist(), kept.reasons, kept.spare, strict=True):
        entry: dict[str, Any] = found[wnid]
        entry["rows"] += 1
        if reason is None:
            entry["kept"] += 1
            entry["spare"] += spare
    return list(found.values())


def selection_of(folder: Path) -> dict[str, Any] | None:
    """What the marker in a run folder says of the selection that it is; None if it is not one."""
    mark = layout.sidecar_of(folder / layout.SELECTION)
    if not mark.exists():
        return None
    try:
        return checked_selection(json.loads(mark.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise HfsynError(f"{mark} is not the marker of a selection ({error}).", "Select again, elsewhere.") from None


def checked_selection(found: Any) -> dict[str, Any]:
    """What a marker or a manifest says of a selection. Raises ValueError, TypeError or KeyError if it says nothing."""
    rule = Rule(**found["rule"])
    if not isinstance(rule.where, str | None) or not isinstance(rule.by, str | None):
        raise TypeError("its rule is of the wrong kind")
    if rule.per_class is not None and (type(rule.per_class) is not int or rule.per_class < 1):
        raise TypeError("its number per class is of the wrong kind")
    columns = found.get("columns", {})
    if not isinstance(columns, dict) or not all(isinstance(kind, str) for kind in columns.values()):
        raise TypeError("its columns are of the wrong kind")
    if not isinstance(found["table"], str) or not isinstance(found["parent"], dict):
        raise TypeError("its table or parent is of the wrong kind")
    return dict(found)
