"""What a comparison found, in words: sentences that follow from the numbers by fixed rules.

For each test, network and variant the pairs of arms that the matrix names are compared (else the last arm with every
other), in the largest setting of a scaling curve. A difference is called one only if its 95 % interval does not include
zero; one seed has no interval, and that is said. If no arm is better than guessing, differences mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfsyn.judging.bench.matrix import SETTING

Row = Mapping[str, Any]
NOTHING_YET = "There is no result yet."
_NEAR = 2  # times chance: below, differences may say more about an early stop than about the images


def verdict(summary: Mapping[str, Any], compare: Sequence[tuple[str, str]] | None = None) -> list[str]:
    """The sentences, the most important one first.

    Args:
        summary: ``tests``, ``arms``, ``rows``, ``differences``, ``failed`` and ``cells``, as of
            `hfsyn.judging.bench.summaries.summarise`.
        compare: pairs of arms; None is the last arm that has a result with every other one, the nearest first.
    """
    compared: list[str] = []
    alone: list[str] = []
    for test in summary["tests"]:
        rows = [row for row in summary["rows"] if row["test"] == test]
        parts = list(dict.fromkeys((row["model"], row.get("variant")) for row in rows))
        for model, variant in parts:
            of_model = [row for row in rows if (row["model"], row.get("variant")) == (model, variant)]
            setting = _setting(of_model[-1])
            place = f"On “{test}”" + (f", trained on {variant}" if len({part[1] for part in parts}) > 1 else "")
            place += f", with {model}" if len({part[0] for part in parts}) > 1 else ""
            place += f", {told}" if len({*map(_setting, of_model)}) > 1 and (told := size_text(of_model[-1])) else ""
            here = [row for row in of_model if _setting(row) == setting]
            pairs = [d for d in summary["differences"] if d["test"] == test and _setting(d) == setting]
            (compared if len(here) > 1 else alone).extend(_sentences(place, here, pairs, compare))
    return [*compared, *alone, *_missing(summary)] or [NOTHING_YET]


def _setting(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in SETTING)


def size_text(row: Row) -> str:
    """How much an arm of this row was trained on, in words; empty if all of it."""
    parts = [f"{row['budget']} images per epoch"] if row["budget"] else []
    parts += [f"{row['limit']} images per class"] if row["limit"] else []
    parts += [f"{100 * row['share']:.0f} % mixed in"] if row["share"] else []
    if row.get("real") is not None:
        parts.append(f"{row['real']} real and {row['synthetic']} synthetic images per class")
    parts += [f"{100 * row['keep']:.0f} % of the images kept"] if row.get("keep") else []
    parts += [f"learning rate {row['lr']:g}"] if row.get("lr") else []
    parts += [f"training recipe {Path(row['recipe']).stem}"] if row.get("recipe") else []
    return ", ".join(parts)


def _sentences(
    place: str, rows: Sequence[Row], differences: Sequence[Row], compare: Sequence[tuple[str, str]] | None
) -> Iterator[str]:
    """About one test, network and setting."""
    if len(rows) == 1:
        if rows[0].get("real") is not None:  # one point of many, about which the exchange rate speaks
            return
        yield f"{place}, “{rows[0]['arm']}” gets {100 * rows[0]['mean']:.1f} % right; no other arm was tested there."
        return
    chance = _chance(rows[0])
    if chance is not None and all(_guesses(row, chance) for row in rows):
        yield f"{place}, no arm is better than guessing ({100 * chance:.1f} %): nothing was learnt that could differ."
        return
    if chance is not None and max(row["mean"] for row in rows) < _NEAR * chance:
        yield f"{place}, no arm is far from guessing ({100 * chance:.1f} %): train longer, or on more images."
    by_arm = {row["arm"]: row for row in rows}
    last = rows[-1]["arm"]
    for a, b in compare or [(last, row["arm"]) for row in reversed(rows[:-1])]:
        if {a, b} <= by_arm.keys():
            found = next((_turned(d, a) for d in differences if {d["a"], d["b"]} == {a, b}), None)
            none = f"“{a}” and “{b}” have no seed in common, and are not compared."
            yield f"{place}, {none if found is None else _compared(found, by_arm[a], by_arm[b])}"
            place = "There"


def _turned(found: Row, a: str) -> Row:
    """A difference as `a` minus the other arm."""
    if found["a"] == a:
        return found
    low, high = (None if found[key] is None else -found[key] for key in ("high", "low"))
    return {**found, "a": a, "b": found["a"], "mean": -found["mean"], "low": low, "high": high}


def _chance(row: Row) -> float | None:
    return 1 / row["classes"] if row.get("classes") else None


def _guesses(row: Row, chance: float) -> bool:
    return bool((row["mean"] if row["low"] is None else row["low"]) <= chance)


def _compared(found: Row, first: Row, second: Row) -> str:
    """One difference in words, from the interval and from the seeds."""
    a, b, mean = f"“{found['a']}”", f"“{found['b']}”", 100 * found["mean"]
    left, right = (dict(zip(row["seeds"], row["values"], strict=True)) for row in (first, second))
    gaps = [left[seed] - right[seed] for seed in found["seeds"]]
    if not any(gaps):
        return f"{a} and {b} are equal in {_seeds(len(gaps))}."
    if found["low"] is None:
        side = "ahead of" if mean > 0 else "behind"
        return f"{a} is {abs(mean):.1f} points {side} {b} with one seed; another seed may turn it round."
    interval = f"{_signed(100 * found['low'])} to {_signed(100 * found['high'])}"
    if found["low"] <= 0 <= found["high"]:
        ahead = sum(gap > 0 for gap in gaps)
        return (
            f"{a} and {b} cannot be told apart: the difference is {_signed(mean)} points, and its 95 % interval, "
            f"{interval}, includes zero; {a} is ahead in {ahead} of {_seeds(len(gaps))}."
        )
    side, same = ("better", sum(gap > 0 for gap in gaps)) if mean > 0 else ("worse", sum(gap < 0 for gap in gaps))
    size = f"{abs(mean):.1f} points (95 % interval {interval})"
    return f"{a} is {side} than {b} by {size}, in {same} of {_seeds(len(gaps))}."


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _missing(summary: Mapping[str, Any]) -> Iterator[str]:
    """Arms without any result, and how many trainings are missing."""
    there = {row["arm"] for row in summary["rows"]}
    absent = [arm for arm in summary["arms"] if arm not in there]
    if absent and there:
        names, have = " and ".join(f"“{arm}”" for arm in absent), "has" if len(absent) == 1 else "have"
        yield f"Nothing is said about {names}, which {have} no result."
    if summary["failed"]:
        yield f"{len(summary['failed'])} of {summary['cells']} trainings are missing or lack a test; see below."
