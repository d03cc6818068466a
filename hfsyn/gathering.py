"""Whether the processes that a launcher's variables speak of are there.

torchrun and accelerate tell each process its place in variables, which outlive them: exported in a shell, or inherited
from a job that has ended. Whoever believes them waits for processes that never come.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from hfsyn.errors import ExitCode, HfsynError, leave_at_once

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")
AGENT = "TORCHELASTIC_USE_AGENT_STORE"
"""Set to ``True`` by a launcher that itself is where its processes meet: it is there before they are."""
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""From which accelerate would conclude that a process is one of several; hfsyn is not started by MPI."""

PATIENCE = 10.0
"""Seconds of waiting for the others, after which it is said."""
LIMIT_HERE, LIMIT = 60.0, 900.0
"""Seconds after which nobody is waited for any more: where the meeting place is on this machine, and elsewhere."""


def place() -> tuple[int, int]:
    """Rank and number of processes, as the variables say; 0 and 1 where there are none.

    Raises:
        HfsynError: they are not numbers, or do not fit each other (exit code 3).
    """
    given = {name: os.environ[name] for name in NUMBERS if name in os.environ}
    for name, value in given.items():
        if not value.isascii() or not value.isdigit():
            raise left_over(f"{name}={value!r} is not a number.")
    rank, world = int(given.get("RANK", 0)), int(given.get("WORLD_SIZE", 1))
    if world > 1 and "RANK" not in given:
        raise left_over(f"WORLD_SIZE={world} is set, and RANK is not.")
    if rank >= world:
        raise left_over(f"RANK={rank} does not fit WORLD_SIZE={given.get('WORLD_SIZE', '1, which is not set')}.")
    if int(given.get("LOCAL_WORLD_SIZE", 1)) < 1:
        raise left_over("LOCAL_WORLD_SIZE=0 is set.")
    return rank, world


def left_over(what: str) -> HfsynError:
    """The error of variables that no launcher can have set for this process."""
    names = [name for name in (*NUMBERS, *MEETING_PLACE, AGENT) if name in os.environ]
    return HfsynError(
        what,
        f"Launchers set this. If none has started this command, it is left over from another job: unset "
        f"{' '.join(names)}. To start several processes: hfsyn ... --num-processes N, or accelerate launch.",
        code=ExitCode.PREFLIGHT,
    )


def check_launcher() -> None:
    """Refuse to be one of several processes of which nobody knows where they meet, or whose launcher is gone.

    Raises:
        HfsynError: naming the variables (exit code 3).
    """
    rank, world = place()
    if world == 1:
        return
    said = f"RANK={rank} and WORLD_SIZE={world} say that this is one of {world} processes"
    if missing := [name for name in MEETING_PLACE if not os.environ.get(name)]:
        raise left_over(f"{said}, and {' and '.join(missing)} that they meet somewhere is not set.")
    host, port = (os.environ[name] for name in MEETING_PLACE)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise left_over(f"MASTER_PORT={port!r} is not a port.")
    if os.environ.get(AGENT) == "True" and not _answers(host, int(port)):
        raise left_over(f"{said}, and their launcher at MASTER_ADDR={host} MASTER_PORT={port} does not answer.")


def _answers(host: str, port: int, tries: int = 3) -> bool:
    for left in reversed(range(tries)):
        try:
            socket.create_connection((host, port), timeout=5).close()
            return True
        except OSError:
            time.sleep(0.5 if left else 0)
    return False


@contextlib.contextmanager
def waiting_for_others(world: int) -> Iterator[None]:
    """While the processes meet: say after a while that they do not, and end this one if they never do.

    Their meeting is a call outside Python that nothing interrupts, so the process is left from another thread.
    """
    met = threading.Event()
    host, port = (os.environ.get(name, "") for name in MEETING_PLACE)
    limit = LIMIT_HERE if os.environ.get(AGENT) != "True" and _is_here(host) else LIMIT

    def watch() -> None:
        if met.wait(PATIENCE):
            return
        missing = left_over(
            f"Waiting for the other {world - 1} processes at MASTER_ADDR={host} MASTER_PORT={port}: some do not come."
        )
        print(f"hfsyn: {missing}", file=sys.stderr, flush=True)
        if not met.wait(limit - PATIENCE):
            print(f"Error: After {limit:.0f} s they have not come. {missing.hint}", file=sys.stderr, flush=True)
            leave_at_once(ExitCode.PREFLIGHT)

    threading.Thread(target=watch, name="gathering", daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _is_here(host: str) -> bool:
    """Whether a host's name or address is this machine's."""
    try:
        address = socket.gethostbyname(host)
        with socket.socket() as listener:
            listener.bind((address, 0))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For accelerate, which believes the variables of MPI and a local rank by itself: nobody else is there."""
    names = (*MPI_SIZES, "LOCAL_RANK")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def processes_asked_for() -> int:
    """The ``--num_processes`` of the command that started this process; 1 where that cannot be read."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return 1
    for i, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            value = value if sign else words[min(i + 1, len(words) - 1)]
            return int(value) if value.isdigit() else 1
    return 1
