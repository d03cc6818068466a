"""How the process of a command begins and ends, with which exit code; our errors are `builders.errors.HfsynError`."""

import contextlib
import gc
import os
import sys
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

from builders.errors import HfsynError
from builders.files import make_folder

__all__ = ["ExitCode", "HfsynError", "begin_command", "begin_work", "leave_at_once", "make_out"]
_UNTIL_WORK = 10**6
"""New objects before Python looks for garbage, until the work begins. Its own 700 are for programs with few imports:
torch and what stands on it make half a million objects that stay, and looking through them takes a fifth of the start.
"""
_THRESHOLDS = gc.get_threshold()


class ExitCode(IntEnum):
    """What a command's exit code means."""

    OK = 0
    DIFFERS = 1
    USAGE = 2
    PREFLIGHT = 3
    PARTIAL = 4
    INTERRUPTED = 130
    TERMINATED = 143


def make_out(folder: Path) -> None:
    """Make the folder that --out names, and its parents. Raises HfsynError, with exit code 3, if that fails."""
    try:
        make_folder(folder)
    except OSError as error:
        said = f"The folder {folder} cannot be created: {error.strerror}."
        raise HfsynError(said, "Name another --out.", ExitCode.PREFLIGHT) from None


def begin_command() -> None:
    """Called by a process that is one command: import without looking for garbage, until `begin_work`."""
    gc.set_threshold(_UNTIL_WORK)


def begin_work() -> None:
    """Look for garbage again, but not among what is there already; nothing where `begin_command` was not called."""
    if gc.get_threshold()[0] == _UNTIL_WORK:
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)


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
