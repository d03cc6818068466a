"""The base class of the errors that users see, and the one that the builders raise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class HfsynError(Exception):
    """A user's mistake or an outside fault, shown on one line without a traceback.

    Not a ValueError, which pydantic would catch inside a validator, losing the hint.

    Args:
        message: what was wrong, with the value.
        hint: what is allowed, and the command or the edit that fixes it; may be empty.
        code: the exit code of the command: 2 for a mistake, 3 for a missing prerequisite or permission, 4 for work
            that is partly done.
    """

    def __init__(self, message: str, hint: str = "", code: int = 2) -> None:
        super().__init__(message, hint, code)  # all as args, so that the error survives pickling between processes
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return one_line(f"{self.message} {self.hint}".strip())


def one_line(text: str) -> str:
    """The text with line breaks and control characters escaped, and all white space as blanks."""
    if text.isprintable():
        return text
    signs = (" " if c.isspace() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(c if c.isprintable() else sign for c, sign in zip(text, signs, strict=True))


class DataError(HfsynError):
    """Data, or a request for data, that cannot be used as it is."""


def did_you_mean(word: str, known: Iterable[str] | Mapping[str, str], most: int = 1) -> str:
    """`` Did you mean 'steps'?`` with the `most` best matches, to append to a message; empty if there are none.

    A mapping gives the words to show in place of the names, such as a field with the part of the recipe it is in.
    """
    import difflib

    shown = known if isinstance(known, Mapping) else {name: name for name in known}
    by_small = {name.lower(): text for name, text in shown.items()}
    near = difflib.get_close_matches(word[:100].lower(), by_small, n=most)
    return f" Did you mean {' or '.join(repr(by_small[name]) for name in near)}?" if near else ""
