"""Blocks of a card: the parts between two marks that hfsyn writes again, within the text of a person.

    <!-- hfsyn:begin config=cip -->
    ...
    <!-- hfsyn:end config=cip -->

A mark has its own line. A beginning whose end is not the next mark is not a block: what follows is a person's text, so
that a lost mark never costs a word of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ORDER = ("intro", "progress", "config", "use", "made", "licence", "again", "changelog", "citation")
"""The order of new blocks; those of a configuration are named `config=NAME` and `made=NAME`.
Existing blocks stay where they are."""

NOTE = "Kept up to date by hfsyn: what is changed between these two marks is overwritten, what is outside stays."

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_MARK = re.compile(r"[ \t]*<!--[ \t]*hfsyn:(begin|end)[ \t]+([^\s<>]+)[ \t]*-->[ \t]*")


@dataclass(slots=True)
class Segment:
    """A stretch of a card: a block with its name, a lone mark (named and orphaned), or a person's text (no name)."""

    key: str | None
    text: str
    orphan: bool = False


def wrap(key: str, text: str) -> str:
    """A block with its marks, with `\\n` line ends."""
    return f"<!-- hfsyn:begin {key} -->\n<!-- {NOTE} -->\n\n{text.strip()}\n\n<!-- hfsyn:end {key} -->\n"


def parse(body: str) -> list[Segment]:
    """Cut a card's body into segments; their texts together are the body again."""
    lines = _LINE.findall(body)
    found = ((number, _MARK.fullmatch(line.rstrip("\r\n"))) for number, line in enumerate(lines))
    marks = [(number, mark[1], mark[2]) for number, mark in found if mark]
    segments: list[Segment] = []
    done = 0
    for i, (number, side, key) in enumerate(marks):
        if number < done:
            continue
        segments.append(Segment(None, "".join(lines[done:number])))
        following = marks[i + 1] if i + 1 < len(marks) else None
        whole = side == "begin" and following is not None and following[1:] == ("end", key)
        done = following[0] + 1 if whole and following else number + 1
        segments.append(Segment(key, "".join(lines[number:done]), orphan=not whole))
    segments.append(Segment(None, "".join(lines[done:])))
    return [segment for segment in segments if segment.text]


def blocks(body: str) -> dict[str, str]:
    """The blocks of a card by name."""
    found: dict[str, str] = {}
    for segment in parse(body):
        if segment.key and not segment.orphan:
            found.setdefault(segment.key, segment.text)
    return found


def merge(body: str, new: Mapping[str, str | None], newline: str) -> str:
    """Replace, add (in `ORDER`) or remove (None) blocks of a card's body; all else stays as it is, byte for byte.

    `new` has the texts within the marks, with `\\n` line ends, by the name of the block; they get this `newline`.
    """
    segments = parse(body)
    for key, text in new.items():
        wrapped = None if text is None else wrap(key, text).replace("\n", newline)
        segments = _placed(segments, key, wrapped, newline)
    return "".join(segment.text for segment in segments)


def _placed(segments: list[Segment], key: str, text: str | None, newline: str) -> list[Segment]:
    """The segments with the one block replaced, added or removed; copies and lone marks of it go."""
    result: list[Segment] = []
    there = False
    for segment in segments:
        if segment.key != key:
            result.append(segment)
        elif text is not None and not there and not segment.orphan:
            result.append(Segment(key, text))
            there = True
        elif len(result) > 1 and result[-2].key and result[-1].text == newline:
            result.pop()  # the blank line that came with the block
    if text is None or there:
        return result
    before = [i for i, segment in enumerate(result) if _rank(segment) <= _rank(Segment(key, ""))]
    if before:
        _end_line(result[before[-1]], newline)
        result[before[-1] + 1 : before[-1] + 1] = [Segment(None, newline), Segment(key, text)]
    elif after := [i for i, segment in enumerate(result) if segment.key and not segment.orphan]:
        result[after[0] : after[0]] = [Segment(key, text), Segment(None, newline)]
    else:
        if result:
            _end_line(result[-1], newline)
            result.append(Segment(None, newline))
        result.append(Segment(key, text))
    return result


def _rank(segment: Segment) -> float:
    """Place in `ORDER`; infinite for what is not a block of ours."""
    name = (segment.key or "").partition("=")[0]
    return ORDER.index(name) if name in ORDER and not segment.orphan else float("inf")


def _end_line(segment: Segment, newline: str) -> None:
    """Give the last line of a segment the end that it lacks at the end of a file."""
    if not segment.text.endswith(("\n", "\r")):
        segment.text += newline
