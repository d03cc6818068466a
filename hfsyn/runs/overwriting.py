"""A run that gives way to another one: only while nobody works in it, and never in part.

The old run gets another, hidden name before a byte of it is deleted; where that cannot be (a link, a mount point, the
folder that somebody stands in) its files move into a hidden folder inside, the recipe first. So whoever is killed on
the way leaves the old run whole, or room for a new one and something hidden, which the next build removes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from builders.files import is_abandoned, owned_name, remove_abandoned, settle
from builders.runs import layout
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.runs.claims import WORK, holder, lock

Mark = tuple[int, int]

_OLD = "old"


def mark_of(folder: Path) -> Mark | None:
    """What tells the run in a folder from another one that is put in its place; None where there is none."""
    try:
        found = (folder / layout.RECIPE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextlib.contextmanager
def working_in(folder: Path, mark: Mark | None) -> Iterator[None]:
    """Be at work in a run folder, as any number of processes may, so that nobody deletes it meanwhile.

    Raises:
        HfsynError: it is being deleted, or another run is in its place already (exit code 3).
    """
    with lock(folder, WORK, wait=False, shared=True) as held:
        if not held or (mark is not None and mark_of(folder) != mark):
            raise replaced(folder)
        yield


def replaced(folder: Path) -> HfsynError:
    """The error of whoever finds another run where theirs was, or was to be."""
    return HfsynError(
        f"Another process has put a new run into {folder} meanwhile, with --overwrite.",
        "That run was left alone. Leave --overwrite out to share its work.",
        code=ExitCode.PREFLIGHT,
    )


def removable(folder: Path) -> Mark | None:
    """The mark of the run in a folder, which may be removed; None where there is nothing to remove.

    Raises:
        HfsynError: what is there is not ours.
    """
    if not folder.is_dir():
        return None
    alien = layout.strangers(folder)
    if layout.is_run_folder(folder) and not alien:
        return mark_of(folder)
    if alien:
        raise HfsynError(
            f"--overwrite deletes runs of hfsyn only, and {folder} holds {alien[0]}, which is not ours.",
            "Remove it yourself.",
        )
    return None


def put_away(folder: Path, mark: Mark) -> None:
    """Delete the run in a folder, unless somebody works there.

    Raises:
        HfsynError: somebody does, or has put another run in its place (exit code 3).
    """
    with _for_itself(folder) as held:
        if mark_of(folder) != mark:
            raise replaced(folder)
        if not held:
            who = holder(folder, WORK)
            raise HfsynError(
                f"Somebody is at work in {folder}{f' ({who})' if who else ''}, and --overwrite would delete it under "
                "their hands.",
                "Wait until they are done, stop them, or name another --out.",
                code=ExitCode.PREFLIGHT,
            )
        old = _renamed(folder) or _emptied(folder)
        shutil.rmtree(old, ignore_errors=True)
        settle(old.name)
        if old.exists():
            print(f"hfsyn: {old} holds what is left of the old run and could not be removed", file=sys.stderr)


@contextlib.contextmanager
def _for_itself(folder: Path) -> Iterator[bool]:
    """The lock that nobody at work lets anyone have; False, too, where another process has just moved the folder."""
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(lock(folder, WORK, wait=False))
        except FileNotFoundError:
            held = False
        yield held


def _renamed(folder: Path) -> Path | None:
    """The old run under its hidden name beside the folder; None where it cannot have one."""
    if folder.is_symlink() or Path.cwd().is_relative_to(folder.resolve()) or os.path.ismount(folder):
        return None
    old = folder.with_name(owned_name(f"{folder.name}.{_OLD}"))
    try:
        folder.rename(old)
    except OSError:  # the folder above may not be written to
        settle(old.name)
        return None
    return old


def _emptied(folder: Path) -> Path:
    """A hidden folder inside, with all that was in the folder but the locks."""
    old = folder / owned_name(_OLD)
    old.mkdir()
    names = sorted(path.name for path in folder.iterdir() if path.name not in (layout.LOCKS, old.name))
    for name in sorted(names, key=lambda name: name != layout.RECIPE):  # the recipe first: from here on it is not a run
        (folder / name).rename(old / name)
    return old


def clear_remains(folder: Path) -> None:
    """Remove what a process that was killed while it overwrote a run has left of that."""
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
