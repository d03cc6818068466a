"""Run folders in object storage: an address in place of a folder, and a local copy of all in it that is small.

``s3://bucket/run``, ``hf://buckets/ME/runs/cip`` or any other address of fsspec. Everything works on a local folder,
the *copy*, in which shards of images are stand-ins: files of the right size that take no room, whose bytes are in the
store alone. What `builders.files` writes into a copy goes to the store before it gets its name here, in the order in
which it is written, so that a marker is last in the store too.
"""

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Any

from builders import files
from builders.errors import DataError, brief, did_you_mean
from builders.files import make_folder, sha256_of
from builders.stores.store import Store, replacing, stand_in

SCRATCH = "HFSYN_SCRATCH"
"""The environment variable that names the folder for copies; by default ``~/.cache/hfsyn``."""
_BUFFER = 1 << 20  # bytes read ahead in a shard of which a few rows are read
_EMPTY = b"\0\0\0\0"  # how a stand-in begins; a Parquet file begins with PAR1
_stores: dict[str, Store] = {}
"""By the path of its copy."""


class Copy(PosixPath):
    """A path in a copy; in a message it is written as its address."""

    def __format__(self, spec: str) -> str:
        store = store_of(self)
        return format(str(self) if store is None else f"{store.address}/{store.name_of(self)}".removesuffix("/."), spec)


def is_address(place: object) -> bool:
    """Whether a run folder is named by an address; ``./s3://x`` is a folder on the disk."""
    return isinstance(place, str) and "://" in place and not place.startswith((".", "/", "~"))


def local(place: str | Path) -> Path:
    """The folder of that name, ``~`` being the home folder; of an address its copy, as the store is now.

    Raises DataError for an address that cannot be used.
    """
    if is_address(place):
        store = _opened(str(place).rstrip("/"))
        store.refresh()
        return store.copy
    folder = (place if isinstance(place, Path) else Path(place)).expanduser()
    # pyarrow takes a relative path that begins with `s3:` for an address.
    return folder.absolute() if folder.parts and ":" in folder.parts[0] else folder


def on_disk(out: str | Path, option: str = "--out") -> Path:
    """The path of what is written on a disk; ``~`` is the home folder. Raises DataError for an address."""
    if is_address(out):
        said = f"{option} {str(out).partition('?')[0]} is in object storage, and this is written on a disk."
        raise DataError(said, "Name a folder here, and copy it there afterwards: hf buckets sync, aws s3 sync, ...")
    return Path(out).expanduser()


def store_of(path: Path) -> Store | None:
    """The store whose copy a path lies in; None for a path on the disk."""
    return next((_stores[str(up)] for up in (path, *path.parents) if str(up) in _stores), None) if _stores else None


def _opened(address: str) -> Store:
    check_address(address)
    import fsspec

    protocol = address.partition("://")[0]
    options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
    try:
        fs, root = fsspec.core.url_to_fs(address, use_listings_cache=False, **options)
    except ImportError as error:
        raise DataError(f"{protocol}:// needs a package that is not here: {brief(error)}.", "pip install it.") from None
    except ValueError as error:
        said = f"{address} is not an address: {brief(error)}.{did_you_mean(protocol, fsspec.available_protocols())}"
        raise DataError(said, f"A folder of that name on the disk is ./{address}") from None
    scratch = Path(os.environ.get(SCRATCH) or "~/.cache/hfsyn").expanduser().absolute()
    name = re.sub(r"[^\w.-]", "_", address.rpartition("/")[2])
    copy = Copy(scratch / f"{name}-{hashlib.sha256(f'{protocol}://{root}'.encode()).hexdigest()[:12]}")
    if str(copy) not in _stores:
        make_folder(copy)
        _stores[str(copy)] = Store(address, fs, str(root).rstrip("/"), copy)
        files.before_rename = _send
    return _stores[str(copy)]


def check_address(place: object) -> None:
    """Raise DataError for an address that cannot be one; a password in it is not repeated."""
    if not is_address(place):
        return
    protocol, _, rest = str(place).partition("://")
    looks = "It looks like s3://BUCKET/RUN or hf://buckets/USER/BUCKET/RUN."
    if ":" in rest.partition("@")[0] and "@" in rest:
        said = f"The address {protocol}://*** holds a password, which would end up in logs."
        raise DataError(said, "Give it by the environment or in ~/.config/fsspec, and leave it out here.")
    if "?" in rest or "::" in protocol or not rest.strip("/"):
        raise DataError(f"{str(place).partition('?')[0]} is not the address of a folder.", looks)
    if protocol == "hf" and not re.match(r"buckets/[^/]+/[^/]", rest):
        said = f"{place} is not in a bucket of the Hub, and in a repository each file would be a commit of its own."
        raise DataError(said, f"{looks} A finished run becomes a dataset by `hfsyn publish`.")


def _send(temporary: Path, path: Path) -> None:
    """Send a file that is about to get its name in a copy."""
    if (store := store_of(path)) is not None and not store.name_of(path).startswith("."):
        store.put(temporary, store.name_of(path))


def is_away(path: Path) -> bool:
    """Whether a file is a stand-in, whose bytes are in the store alone."""
    if store_of(path) is None or not path.exists():
        return False
    with path.open("rb") as handle:
        return handle.read(len(_EMPTY)) == _EMPTY


def present(path: Path) -> Path:
    """The path, with its bytes here. Like what follows, it does nothing for a path on the disk."""
    if is_away(path) and (store := store_of(path)) is not None:
        with replacing(path) as temporary:
            store.get(store.name_of(path), temporary)
    return path


@contextlib.contextmanager
def borrowed(path: Path, sha256: str = "") -> Iterator[Path]:
    """As `present`, only while it is needed. Raises DataError if what was fetched has another hash (exit code 3)."""
    away = is_away(path)
    try:
        present(path)
        if away and sha256 not in ("", sha256_of(path)):
            hint = "Delete its sidecar and manifest.json there, and run the same `hfsyn build` again."
            raise DataError(f"{path} has other bytes than its sidecar states.", hint, 3)
        yield path
    finally:
        if away:
            let_go(path)


def let_go(path: Path) -> None:
    """Put a stand-in in the place of a file that the store has."""
    if store_of(path) is not None:
        stand_in(path, path.stat().st_size)


def readable(path: Path) -> Any:
    """What pyarrow reads: the path, or of a stand-in a file whose reads are requests."""
    if is_away(path) and (store := store_of(path)) is not None:
        return io.BufferedReader(_Remote(store, path), _BUFFER)
    return path


def arrived(path: Path) -> bool:
    """Whether a file is there: asks the store by name; a small one is fetched, a Parquet file gets a stand-in."""
    if not path.exists() and (store := store_of(path)) is not None:
        store.bring(store.name_of(path))
    return path.exists()


def remove(path: Path) -> None:
    """Remove a file, if it is there; from a store, too."""
    if (store := store_of(path)) is not None:
        store.delete(store.name_of(path))
    path.unlink(missing_ok=True)


class _Remote(io.RawIOBase):
    """A file in a store, read in parts."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store, self._name, self._size, self._at = store, store.name_of(path), path.stat().st_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        data = self._store.read(self._name, self._at, stop) if stop > self._at else b""
        if data is None:
            raise self._store.error(f"has lost {self._name}", "Find what else: hfsyn status", 4)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
