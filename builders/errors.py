"""The one base of the errors that a user is meant to read, and the kind that the builders raise."""

from __future__ import annotations

from collections.abc import Iterable


class HfsynError(Exception):
    """A user's mistake or an outside fault, said in one line and never shown with a traceback.

    Not a ValueError, which pydantic would catch inside a validator and rob of its hint.

    Args:
        message: what was wrong, with the value.
        hint: what is allowed, and the command or the edit that puts it right; may be empty.
        code: the exit code of a command that ends with this error: 2 for a mistake, 3 for what must be there or
            allowed first, 4 for work that is done in part.
    """

    def __init__(self, message: str, hint: str = "", code: int = 2) -> None:
        super().__init__(message, hint, code)  # all as args, so that the error survives pickling between processes
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        """Message and hint in one line, whatever signs the names in it have."""
        return one_line(f"{self.message} {self.hint}".strip())


def one_line(text: str) -> str:
    """The text with signs that would break a line or steer a terminal as escapes, and every kind of space as one."""
    if text.isprintable():
        return text
    signs = (" " if c.isspace() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(c if c.isprintable() else sign for c, sign in zip(text, signs, strict=True))


class DataError(HfsynError):
    """Data, or a request for data, that cannot be used as it is."""


def did_you_mean(word: str, known: Iterable[str], most: int = 1, *, before: str = "") -> str:
    """`` Did you mean 'steps'?``, to be put behind a message; empty where nothing known is near.

    Args:
        word: what was written.
        known: what is there.
        most: how many are named.
        before: what stands before each name, such as the part that a field is in.
    """
    import difflib

    by_small = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word[:100].lower(), by_small, n=most)
    return f" Did you mean {' or '.join(repr(before + by_small[name]) for name in near)}?" if near else ""
