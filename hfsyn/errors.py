"""Exit codes, and how another library's error is said; the error that ours share is `builders.errors.HfsynError`."""

from __future__ import annotations

from enum import IntEnum

from builders.errors import HfsynError

__all__ = ["ExitCode", "HfsynError", "first_line"]


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
