"""Exit codes, and leaving a process with one; the error that ours share is `builders.errors.HfsynError`."""

import contextlib
import os
import sys
from enum import IntEnum
from typing import NoReturn

from builders.errors import HfsynError

__all__ = ["ExitCode", "HfsynError", "leave_at_once"]


class ExitCode(IntEnum):
    """What a command's exit code means."""

    OK = 0
    DIFFERS = 1
    USAGE = 2
    PREFLIGHT = 3
    PARTIAL = 4
    INTERRUPTED = 130
    TERMINATED = 143


def leave_at_once(code: int) -> NoReturn:
    """End this process without taking Python down in order; for one that was told to end in the middle of its work.

    Threads may still be at a kernel or a connection. Python ends such a thread when it comes back from there, by
    unwinding it through C++ that allows no unwinding, and the process aborts: "terminate called without an active
    exception" in place of the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
