"""Which process makes which shard.

Processes do not talk to each other. Each claims a shard by an advisory lock (``flock``) that the kernel drops when the
process dies, on any machine that mounts the run folder. Where a file system knows no such locks two processes may make
the same shard; they write the same bytes, so that only time is lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from builders.runs import layout
from hfsyn.runs.shards import is_done

WORK = "work"
"""The lock that every process at work in a run folder shares, and that whoever deletes the run has for itself."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What `flock` says where the file system knows no locks."""
SILENCE = 60.0
"""Seconds of waiting for shards in other hands, after which it is said whose they are."""


@contextlib.contextmanager
def lock(folder: Path, name: str, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold the advisory lock `name` of a run folder; yields False where it is held elsewhere and `wait` is off.

    Any number of processes may have it at once if all of them say `shared`.
    """
    handle = None
    held = True
    try:
        handle = _locked(folder, name, wait=wait, shared=shared)
    except BlockingIOError:
        held = False
    try:
        yield held
    finally:
        if handle is not None:
            handle.close()


def holder(folder: Path, name: str) -> str:
    """Who has held a lock last, as its file says: ``process 17 on HOST``; empty where nobody says."""
    try:
        return (folder / layout.LOCKS / f"{name}.lock").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _locked(folder: Path, name: str, *, wait: bool, shared: bool = False) -> IO[str] | None:
    """The open lock file, with this process's name in it; None where the file system has no locks.

    Raises:
        BlockingIOError: it is held elsewhere.
        OSError: the folder cannot be written to, or is not there any more.
    """
    locks = folder / layout.LOCKS
    locks.mkdir(exist_ok=True)
    handle = (locks / f"{name}.lock").open("a+")
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        handle.close()
        if error.errno not in _NO_LOCKS:
            raise
        print(f"hfsyn: no file locks in {folder} ({error.strerror}); processes may do some work twice", file=sys.stderr)
        return None
    # For people: who holds it. The lock itself is what counts, so a name may outlive its process, and may be missing.
    with contextlib.suppress(OSError):
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
    return handle


class Claim:
    """A shard that this process makes; released when it is written, or given up."""

    def __init__(self, path: Path, handle: IO[str] | None) -> None:
        self.path = path
        self._handle = handle

    def release(self) -> None:
        """Let others have the shard, if it is not finished. May be called twice, and from any thread."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Claims:
    """The unfinished shards of one stage, taken one after the other by whoever is free.

    A shard that another process holds is left to it; when that process dies the lock falls and the shard can be taken
    here. So a stage ends when every shard is finished, without any message between processes.

    Args:
        run: the run folder.
        paths: in the order in which this process prefers them; others may prefer another.
        stage: part of the lock's name.
    """

    def __init__(self, run: Path, paths: Sequence[Path], *, stage: str) -> None:
        self._run, self._stage = run, stage
        self._left = deque(paths)

    def take(self) -> Claim | None:
        """The next free shard, claimed; None where each that is left is in other hands. What is taken and then released
        unfinished is not offered again.
        """
        for _ in range(len(self._left)):
            path = self._left.popleft()
            if is_done(path):
                continue
            try:
                claim = Claim(path, _locked(self._run, self._name(path), wait=False))
            except BlockingIOError:
                self._left.append(path)
                continue
            # It may have been finished between the look and the lock.
            if not is_done(path):
                return claim
            claim.release()
        return None

    @property
    def in_other_hands(self) -> list[Path]:
        """Shards that were not free when they were last looked at."""
        return [path for path in self._left if not is_done(path)]

    def holders(self) -> list[str]:
        """Of the shards in other hands: the name and who holds it, as its lock file says."""
        return [
            f"{path.name} ({holder(self._run, self._name(path)) or 'nobody says who'})" for path in self.in_other_hands
        ]

    def _name(self, path: Path) -> str:
        return f"{self._stage}-{path.stem}"


class Patience:
    """What a process does while all that is left is in other hands: look now and then, and after a while say whose."""

    def __init__(
        self,
        claims: Claims,
        *,
        pause: float = 0.5,
        look: Callable[[], None] = lambda: None,
        silence: float | None = None,
    ) -> None:
        self._claims, self._pause, self._look = claims, pause, look
        self._silence = SILENCE if silence is None else silence
        self._since = time.monotonic()
        self._said: list[str] = []

    def wait(self) -> None:
        """One pause."""
        self._look()
        if time.monotonic() - self._since > self._silence:
            self._since = time.monotonic()
            holders = self._claims.holders()
            if holders and holders != self._said:
                more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
                print(f"hfsyn: still waiting for {', '.join(holders[:3])}{more}", file=sys.stderr, flush=True)
            self._said = holders
        time.sleep(self._pause)
