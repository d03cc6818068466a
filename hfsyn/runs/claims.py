"""Who works in a run folder: locks, the shards that each process claims, and a run that gives way to another.

Processes do not talk to each other. Each claims a shard by an advisory lock (``flock``) that the kernel drops when the
process dies, on any machine that mounts the run folder. Where a file system has no such locks, two processes may make
the same shard; they write the same bytes, so that only time is lost. A run in object storage is claimed there, too; see
`hfsyn.runs.leases`.

A run is overwritten only while no process works in it. It gets another, hidden name before a byte of it is deleted;
if it cannot be renamed (a link, a mount point, the current folder) its files move into a hidden folder inside, the
recipe first. A process that is killed on the way leaves either the whole old run, or room for a new one and something
hidden, which the next build removes.
"""

import contextlib
import errno
import fcntl
import os
import random
import shutil
import socket
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from builders.errors import and_more
from builders.files import is_abandoned, owned_name, remove_abandoned, settle
from builders.runs import layout
from builders.stores.copies import store_of
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.runs import leases
from hfsyn.runs.shards import arrived, is_done

WORK = "work"
"""The lock that every process at work in a run folder shares, and that a process holds alone to delete the run."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""The errors of `flock` on a file system without locks."""
PAUSE = 0.5  # seconds between two looks at shards that other processes hold
SILENCE = 60.0  # seconds of waiting for other processes, after which they are named
_OLD = "old"

Mark = tuple[int, int]


@contextlib.contextmanager
def lock(folder: Path, name: str, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold the advisory lock `name` of a run folder; yields False if it is held elsewhere and `wait` is off.

    Any number of processes may have it at once if all of them say `shared`.
    """
    with contextlib.ExitStack() as stack:
        held = True
        try:
            stack.enter_context(_locked(folder, name, wait=wait, shared=shared))
        except BlockingIOError:
            held = False
        if held and not shared and (store := store_of(folder)) is not None:
            store.refresh()  # another process may have written something
        yield held


def _locked(folder: Path, name: str, *, wait: bool, shared: bool = False) -> contextlib.ExitStack:
    """A lock, on the disk and of a run in object storage there, too. BlockingIOError if it is held elsewhere."""
    handle = _flocked(folder, name, wait=wait, shared=shared)
    with contextlib.ExitStack() as stack:
        stack.enter_context(handle or contextlib.nullcontext())
        if not shared and (there := leases.leases_of(folder)) is not None:
            while (lease := there.take(name, alone=handle is not None)) is None:
                if not wait:
                    raise BlockingIOError(name)
                time.sleep(leases.PAUSE)
            stack.callback(lease.release)
        return stack.pop_all()


def _flocked(folder: Path, name: str, *, wait: bool, shared: bool) -> IO[str] | None:
    """The open lock file, with this process's name in it; None if the file system has no locks. BlockingIOError
    if it is held elsewhere.
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
    # For people only: a name may outlive its process, and may be missing.
    with contextlib.suppress(OSError):
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
    return handle


def _holder(folder: Path, name: str) -> str:
    """The last process to hold a lock, from its file: ``process 17 on HOST``; empty if it does not say."""
    if (there := leases.leases_of(folder)) is not None and (who := there.holder(name)):
        return who
    try:
        return (folder / layout.LOCKS / f"{name}.lock").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


class Claim:
    """A shard that this process makes; released when it is written, or given up."""

    def __init__(self, path: Path, held: contextlib.ExitStack) -> None:
        self.path = path
        self._held = held

    def release(self) -> None:
        """Let others have the shard, if it is not finished. May be called twice, and from any thread."""
        self._held.close()


class Claims:
    """The unfinished shards of one stage in a run folder, in the order in which this process prefers them.

    A shard that another process holds is left to it; when that process dies, its lock is dropped and the shard can be
    taken here. So a stage ends when every shard is finished, without any message between processes.
    """

    def __init__(self, run: Path, paths: Sequence[Path], *, stage: str) -> None:
        self._run, self._stage = run, stage
        self._left = deque(paths)
        self._store = store_of(run)
        if self._store is not None and paths:
            self._left.rotate(random.randrange(len(paths)))  # so that two jobs begin at different places

    def take(self) -> Claim | None:
        """The next free shard, claimed; None if other processes hold all that are left. What is taken and then
        released unfinished is not offered again.
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
            if not arrived(path):
                return claim
            claim.release()
        return None

    @property
    def held_elsewhere(self) -> list[Path]:
        """Shards that were not free when they were last looked at."""
        return [path for path in self._left if not is_done(path)]

    def each(
        self, *, before_waiting: Callable[[], None] = lambda: None, look: Callable[[], None] = lambda: None
    ) -> Iterator[Claim]:
        """Take one shard after another, until the others have finished or given up what they hold. `before_waiting` is
        called whenever no shard is free, `look` before each pause.
        """
        since, said = time.monotonic(), list[str]()
        while True:
            while (claim := self.take()) is not None:
                yield claim
            before_waiting()
            if not (held := self.held_elsewhere):
                return
            look()
            if time.monotonic() - since > SILENCE:
                since = time.monotonic()
                holders = [f"{path.name} ({_holder(self._run, self._name(path)) or 'unknown'})" for path in held]
                if holders != said:
                    shown = ", ".join(holders[:3]) + and_more(len(holders), 3)
                    print(f"hfsyn: still waiting for {shown}", file=sys.stderr, flush=True)
                said = holders
            time.sleep(PAUSE if self._store is None else leases.PAUSE)
            if self._store is not None:
                self._store.refresh(layout.sidecar_of(held[0]).parent.relative_to(self._run).as_posix())

    def _name(self, path: Path) -> str:
        return f"{self._stage}-{path.stem}"


def mark_of(folder: Path) -> Mark | None:
    """What tells the run in a folder from another one that is put in its place; None if there is none."""
    try:
        if store_of(folder) is not None:  # its copy of the recipe may be replaced by the same bytes
            return 0, zlib.crc32((folder / layout.RECIPE).read_bytes())
        found = (folder / layout.RECIPE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextlib.contextmanager
def working_in(folder: Path, mark: Mark | None) -> Iterator[None]:
    """Be at work in a run folder, as any number of processes may, so that it is not deleted meanwhile; refuses if it
    is being deleted, or another run is in its place already.
    """
    with lock(folder, WORK, wait=False, shared=True) as held:
        if not held or (mark is not None and mark_of(folder) != mark):
            raise replaced(folder)
        yield


def replaced(folder: Path) -> HfsynError:
    """The error if another run is in a folder than there was."""
    return HfsynError(
        f"Another process has put a new run into {folder} meanwhile, with --overwrite.",
        "That run was left alone. Leave --overwrite out to share its work.",
        code=ExitCode.PREFLIGHT,
    )


def removable(folder: Path) -> Mark | None:
    """The mark of the run in a folder, if there is one; refuses a folder with files that are not ours."""
    if not folder.is_dir():
        return None
    if alien := layout.strangers(folder):
        said = f"--overwrite deletes runs of hfsyn only, and {folder} holds {alien[0]}, which is not ours."
        raise HfsynError(said, "Remove it yourself.")
    return mark_of(folder) if layout.is_run_folder(folder) else None


def put_away(folder: Path, mark: Mark) -> None:
    """Delete the run in a folder; refuses if a process works there, or has put another run in its place."""
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(lock(folder, WORK, wait=False))
        except FileNotFoundError:  # another process has just moved the folder
            held = False
        if mark_of(folder) != mark:
            raise replaced(folder)
        if not held:
            who = _holder(folder, WORK)
            raise HfsynError(
                f"Another process{f' ({who})' if who else ''} is at work in {folder}, and --overwrite would delete "
                "the run under it.",
                "Wait until it is done, stop it, or name another --out.",
                code=ExitCode.PREFLIGHT,
            )
        old = _renamed(folder) or _emptied(folder)
        shutil.rmtree(old, ignore_errors=True)
        settle(old.name)
        if old.exists():
            print(f"hfsyn: {old} holds what is left of the old run and could not be removed", file=sys.stderr)


def _renamed(folder: Path) -> Path | None:
    """The old run under its hidden name beside the folder; None if it cannot have one."""
    if folder.is_symlink() or Path.cwd().is_relative_to(folder.resolve()) or os.path.ismount(folder):
        return None
    old = folder.with_name(owned_name(f"{folder.name}.{_OLD}"))
    try:
        folder.rename(old)
    except OSError:  # the folder above may not be writable
        settle(old.name)
        return None
    return old


def _emptied(folder: Path) -> Path:
    """A hidden folder inside, with everything that was in the folder but the locks."""
    old = folder / owned_name(_OLD)
    old.mkdir()
    names = sorted(path.name for path in folder.iterdir() if path.name not in (layout.LOCKS, old.name))
    for name in sorted(names, key=lambda name: name != layout.RECIPE):  # without its recipe it is not a run any more
        (folder / name).rename(old / name)
    return old


def clear_remains(folder: Path) -> None:
    """Remove what a process that was killed while it overwrote a run has left behind."""
    inside = [path for path in _hidden(folder, f".{_OLD}.") if is_abandoned(path)]
    if inside and not layout.is_run_folder(folder):  # the rest of the old run was still to be moved
        for name in layout.KNOWN - {layout.LOCKS}:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    remove_abandoned(inside)
    if folder.name:
        remove_abandoned(_hidden(folder.parent, f".{folder.name}.{_OLD}."))


def _hidden(folder: Path, start: str) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.name.startswith(start) and path.is_dir()]
    except OSError:
        return []
