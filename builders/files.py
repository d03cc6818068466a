"""Names of files as text, atomic writes, and the removal of temporary files that killed processes leave behind.

Files are written to a temporary file in the same folder, flushed to the disk, and renamed. The temporary name contains
its owner (``.NAME.HOST.PID.RANDOM.tmp``): files of processes that may still be running are never removed.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache
from glob import escape
from pathlib import Path

from builders.errors import ODD, HfsynError, and_more, percent_encoded

ABANDONED_AFTER = 86_400.0  # seconds after which temporary files of other machines count as abandoned

_OWNED = re.compile(r"(?P<whose>\..+)\.(?P<pid>\d+)\.[0-9a-f]{8}(\.tmp)?")
_ERRNO = re.compile(r"\[errno (\d+)\]|\(os error (\d+)\)", re.IGNORECASE)
_in_hand: set[str] = set()
"""Temporary names that this process uses; an earlier one may have had the same process id, as in containers."""

before_rename: Callable[[Path, Path], None] | None = None
"""Called with each file that `atomic_write` has filled, and its place: `builders.stores` sends it."""

_ESCAPE = "(?:25|7F|[01][0-9A-F]|[89A-F][0-9A-F])"
_TO_ESCAPE = re.compile(f"[{ODD}]|%(?={_ESCAPE})")
_ESCAPED = re.compile(f"%({_ESCAPE[3:-1]})".encode())

_LITTER = frozenset({"@eadir", "#recycle", "__macosx", "$recycle.bin", "system volume information", "lost+found"})
_LITTER |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_ROOTED = re.compile(r"^(~|[A-Za-z]:)?[\\/].*[\\/]")


def as_text(name: str) -> str:
    """A name or relative path as UTF-8 text on one line, for ids and tables; `as_path` is its inverse.

    Each byte of a control character, or that is not UTF-8, becomes % and two hex digits; so does a % that would be
    ambiguous.
    """
    return _TO_ESCAPE.sub(percent_encoded, name)


def as_path(text: str) -> str:
    """The name or path for which `as_text` gave this text."""
    if "%" not in text:
        return text
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), os.fsencode(text)))


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or created by a system, as .DS_Store, Thumbs.db and Synology's @eaDir."""
    return name.startswith(".") or name.casefold() in _LITTER


def below(path: str, folder: os.PathLike[str] | None = None) -> str:
    """A path as it may be published: relative to the folder if it lies there; of other absolute paths the last name."""
    if folder is not None and path.startswith(f"{os.fspath(folder)}/"):
        return path[len(os.fspath(folder)) + 1 :]
    return _ROOTED.sub("", path)


def owned_name(name: str, suffix: str = "") -> str:
    """A hidden temporary name for `name` that contains the process, short enough for any file system."""
    stem = name.encode()[:100].decode(errors="ignore")
    made = f".{stem}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}{suffix}"
    _in_hand.add(made)
    return made


def is_owned_name(name: str) -> bool:
    """Whether a name is from `owned_name`, in any process."""
    return _OWNED.fullmatch(name) is not None


def _host() -> str:
    return socket.gethostname()[:60].replace("/", "_") or "host"


def settle(name: str) -> None:
    """The file with this `owned_name` has been renamed or removed."""
    _in_hand.discard(name)


def is_abandoned(path: Path) -> bool:
    """Whether the process of a file with an `owned_name` is gone, or the file is a day old."""
    found = _OWNED.fullmatch(path.name)
    try:
        # The time when the inode changed, which neither a copy nor `touch` can set.
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
    except OSError:  # another user's process
        pass
    return age > ABANDONED_AFTER


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove those of these files and folders that are abandoned."""
    for path in filter(is_abandoned, paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_own_folder(folder: Path, ours: Collection[str], what: str) -> None:
    """Refuse a place where a folder of these names cannot be, or that holds other things; hidden files do not count.
    `what` needs the folder, in messages: "a training".
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise HfsynError(f"{path} is a file, and {what} needs a folder.", "Choose another: --out DIR.")
    strangers = sorted(path.name for path in folder.glob("*") if path.name not in ours and path.name[0] != ".")
    if strangers:
        said = f"{folder} holds other things ({', '.join(strangers[:3])}{and_more(len(strangers), 3)})."
        raise HfsynError(said, "Choose an empty or new folder: --out DIR.")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; raises OSError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except RecursionError:  # pathlib is recursive
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(folder)) from None


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it to `path`.

    Abandoned temporary files of `path` are removed. Raises OSError, with its errno, for an error of the disk, whichever
    library wrote.
    """
    make_folder(path.parent)
    remove_abandoned(path.parent.glob(f".{escape(path.name)}.*.tmp"))
    temporary = path.with_name(owned_name(path.name, ".tmp"))
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        if before_rename is not None:
            before_rename(temporary, path)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the folder may be gone
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
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(folder)


@contextlib.contextmanager
def room_beside(path: Path) -> Iterator[Path]:
    """A hidden temporary folder beside `path`; abandoned ones are removed."""
    remove_abandoned(path.parent.glob(f".{escape(path.name)}.*.tmp"))
    room = path.with_name(owned_name(path.name, ".tmp"))
    room.mkdir()
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        settle(room.name)


def atomic_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    atomic_write(path, lambda temporary: temporary.write_bytes(text.encode()))


def disk_error(error: BaseException | None, path: Path | None = None) -> OSError | None:
    """The OSError that an error is, or that caused it; None if there is none.

    Libraries in other languages state its number only in the message.
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
    """As `sha256_of`, read once per process unless the file changes."""
    found = path.stat()
    return _digest(str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=256)
def _digest(path: str, size: int, mtime_ns: int, inode: int) -> str:
    return sha256_of(Path(path))
