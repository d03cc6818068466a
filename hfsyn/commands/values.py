"""What the value of an option or argument must be, whichever it is: a text that says something, or a number."""

from __future__ import annotations

import math
from typing import Any

import click
from click.types import IntParamType, StringParamType

from builders.yaml import NOT_TEXT

MOST = 10**9
"""What a number of an option may be at most, where it says nothing itself."""
_MOST_LETTERS = 20_000


class Word(click.ParamType):  # type: ignore[type-arg]  # which it takes from click 8.2 on
    """A text that a file name, a field or a tokenizer takes; a message never repeats it, since it may be a token.

    Args:
        empty: whether it may say nothing.
    """

    name = "text"

    def __init__(self, *, empty: bool = False) -> None:
        self.empty = empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text, or click's complaint."""
        text = str(value)
        if not text.strip() and not self.empty:
            self.fail("it is empty: leave it out, or name something.", param, ctx)
        if found := NOT_TEXT.search(text):
            self.fail(f"it holds the character {ord(found[0]):#04x}, which is no part of a text.", param, ctx)
        if len(text) > _MOST_LETTERS:
            self.fail(f"it has {len(text):,} letters, and at most {_MOST_LETTERS:,} are read.", param, ctx)
        return value


class Whole(click.IntRange):
    """A whole number in a range, which is bounded whatever it says."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or click's complaint."""
        found = super().convert(value, param, ctx)
        if self.max is None and abs(found) > MOST:
            self.fail(f"{str(value)[:40]} is too large: at most {MOST:,}.", param, ctx)
        return found


class Finite(click.FloatRange):
    """A number in a range; ``nan`` and ``inf`` are not in any, though Python reads them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or click's complaint."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{str(value)[:40]!r} is not a finite number.", param, ctx)
        return found


def strict(command: click.Command) -> click.Command:
    """The command and those below it, their plain texts and whole numbers checked as `Word` and `Whole` do."""
    for param in command.params:
        kind = param.type
        if isinstance(kind, StringParamType | click.Path):
            param.type = Word()
        elif isinstance(kind, IntParamType) and not isinstance(kind, Whole):
            bounds = (kind.min, kind.max) if isinstance(kind, click.IntRange) else (None, None)
            param.type = Whole(*bounds)
    for below in getattr(command, "commands", {}).values():
        strict(below)
    return command
