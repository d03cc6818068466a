"""Files that are there whole or not at all, and what a process that was killed leaves beside them.

What is written goes to a temporary file in the same folder, is flushed to the disk, and then gets its name. The
temporary name says whose it is (``.NAME.HOST.PID.RANDOM.tmp``): a file of somebody who may still be at work is never
removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from glob import escape
from pathlib import Path

from builders.errors import HfsynError

ABANDONED_AFTER = 86_400.0
"""Seconds after which what another machine has begun counts as left over: nobody writes one file for a day."""

_OWNED = re.compile(r"(?P<whose>\..+)\.(?P<pid>\d+)\.[0-9a-f]{8}(\.tmp)?")
_ERRNO = re.compile(r"\[errno (\d+)\]|\(os error (\d+)\)", re.IGNORECASE)
_in_hand: set[str] = set()
"""Names that this process has given and that are not settled. Where process ids start again, as in containers, another
one may have had the same."""


def owned_name(name: str, suffix: str = "") -> str:
    """A hidden name beside `name` that says which process has made it; short enough for any file system."""
    stem = name.encode()[:100].decode(errors="ignore")
    made = f".{stem}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}{suffix}"
    _in_hand.add(made)
    return made


def is_owned_name(name: str) -> bool:
    """Whether a name is one that `owned_name` gave, to any process."""
    return _OWNED.fullmatch(name) is not None


def _host() -> str:
    """This machine's name as names of files have it; it may have dots."""
    return socket.gethostname()[:60].replace("/", "_") or "host"


def settle(name: str) -> None:
    """What this process has given an `owned_name` has got its own, or is gone."""
    _in_hand.discard(name)


def is_abandoned(path: Path) -> bool:
    """Whether nobody is at work on what has an `owned_name`: its process is gone, or it is a day old."""
    found = _OWNED.fullmatch(path.name)
    try:
        # When its inode was last changed, which no copy of a file and no `touch` can set.
        age = time.time() - path.stat(follow_symlinks=False).st_ctime
    except OSError:
        return False
    if found is None or not found["whose"].endswith(f".{_host()}"):
        return age > ABANDONED_AFTER
    if int(found["pid"]) == os.getpid():
        return path.name not in _in_hand
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        pass
    return age > ABANDONED_AFTER


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove those files and folders that processes which are gone have left."""
    for path in paths:
        if not is_abandoned(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there yet.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except RecursionError:  # pathlib makes each above the other by a call of its own
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(folder)) from None


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then give it its name.

    What a process that was killed while it wrote the same file has left goes.

    Raises:
        OSError: the disk refuses; whatever library wrote, with the number of the error.
    """
    make_folder(path.parent)
    remove_abandoned(path.parent.glob(f".{escape(path.name)}.*.tmp"))
    temporary = path.with_name(owned_name(path.name, ".tmp"))
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the folder may be gone: the first error is the one to tell
            temporary.unlink(missing_ok=True)
        if isinstance(error, Exception) and (told := disk_error(error, path)) is not None:
            raise told from error
        raise
    finally:
        settle(temporary.name)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know no such thing
            raise
    finally:
        os.close(folder)


@contextlib.contextmanager
def room_beside(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, for what is moved from there to its place; it goes at the end.

    What a process that was killed in the same work has left goes, too.
    """
    remove_abandoned(path.parent.glob(f".{escape(path.name)}.*.tmp"))
    room = path.with_name(owned_name(path.name, ".tmp"))
    room.mkdir()
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        settle(room.name)


def atomic_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(path, write)


def disk_error(error: BaseException | None, path: Path | None = None) -> OSError | None:
    """The error of the operating system that an error is or was raised from; None where there is none.

    Libraries that are not written in Python say its number in their text alone.
    """
    while error is not None and not isinstance(error, HfsynError):
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := _ERRNO.search(str(error))) is not None:
            number = int(found[1] or found[2])
        if number is not None and number in errno.errorcode:
            place = getattr(error, "filename", None) or path
            return OSError(number, os.strerror(number), *([str(place)] if place is not None else []))
        error = error.__cause__
    return None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(path: Path) -> str:
    """As `sha256_of`, read once a process for as long as the file stays the one that it is."""
    found = path.stat()
    return _digest(str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=256)
def _digest(path: str, size: int, mtime_ns: int, inode: int) -> str:
    return sha256_of(Path(path))
