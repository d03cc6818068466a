"""The one error that a user of hfsyn is meant to read.

A message has three parts: what was wrong, with its value; what is allowed; what to do about it. The first two are
``message``, the last is ``hint``. `builders` cannot import this module and raises `builders.errors.DataError`, which
has the same two attributes; the command line prints both alike.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code means."""

    OK = 0
    DIFFERS = 1
    USAGE = 2
    PREFLIGHT = 3
    PARTIAL = 4
    INTERRUPTED = 130
    TERMINATED = 143


def first_line(error: BaseException) -> str:
    """What another library's error says, without its full stop; the error's kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class HfsynError(Exception):
    """A user's mistake or an outside fault, said in one line and never shown with a traceback.

    Args:
        message: what was wrong, with the value, and what is allowed.
        hint: the command or the edit that puts it right; may be empty.
        code: the exit code of a command that ends with this error.
    """

    def __init__(self, message: str, hint: str = "", *, code: ExitCode = ExitCode.USAGE) -> None:
        self.message = message
        self.hint = hint
        self.code = code
        super().__init__(f"{message} {hint}".strip())
