"""Run folders in object storage: an address in place of a folder, and a local copy of all in it that is small.

``s3://bucket/run``, ``hf://buckets/ME/run`` or any other address of fsspec. Everything works on a local folder, the
*copy*, in which shards of images are stand-ins: files of the right size that take no room, whose bytes are in the store
alone. What `builders.files` writes into a copy goes to the store before it gets its name here, in the order in which it
is written, so that a marker is last in the store too.
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
from builders.files import make_folder
from builders.stores.store import Store, stand_in

SCRATCH = "HFSYN_SCRATCH"
"""The environment variable that names the folder for copies; by default ``~/.cache/hfsyn``."""
AGAIN = ".again"  # in a store: an object for each shard that was made twice
_BUFFER = 1 << 20  # bytes read ahead in a shard of which a few rows are read
_EMPTY = b"\0\0\0\0"  # how a stand-in begins; a Parquet file begins with PAR1


class Copy(PosixPath):
    """A path in a local copy of a run in object storage; in a message it is written as its address."""

    def __format__(self, spec: str) -> str:
        store = store_of(self)
        return format(str(self) if store is None else store.address_of(self), spec)


def is_address(place: object) -> bool:
    """Whether a run folder is named by an address; ``./s3://x`` is a folder on the disk."""
    return isinstance(place, str) and "://" in place and not place.startswith((".", "/", "~"))


def local(place: str | Path) -> Path:
    """The folder of that name, ``~`` being the home folder; of an address its copy, as the store is now.

    Raises DataError for an address that cannot be used.
    """
    if not is_address(place):
        folder = (place if isinstance(place, Path) else Path(place)).expanduser()
        # pyarrow takes a relative path that begins with `s3:` for an address.
        return folder.absolute() if folder.parts and ":" in folder.parts[0] else folder
    store = _opened(str(place))
    store.refresh()
    return store.copy


def store_of(path: Path) -> Store | None:
    """The store whose copy a path lies in; None for a path on the disk."""
    if not _stores:
        return None
    return next((_stores[str(above)] for above in (path, *path.parents) if str(above) in _stores), None)


_stores: dict[str, Store] = {}
"""By the path of its copy."""


def check_address(place: object) -> None:
    """Raise DataError for an address that cannot be one; it does not quote a password."""
    if is_address(place) and (said := _refused(str(place))):
        raise DataError(*said)


def _opened(address: str) -> Store:
    address = address.rstrip("/")
    check_address(address)
    import fsspec

    protocol = address.partition("://")[0]
    try:
        fs, root = fsspec.core.url_to_fs(address, use_listings_cache=False, skip_instance_cache=protocol != "memory")
    except ImportError as error:
        raise DataError(f"{protocol}:// needs a package that is not here: {brief(error)}.", "pip install it.") from None
    except ValueError as error:
        near = did_you_mean(protocol, fsspec.available_protocols())
        said = f"{address} is not an address that fsspec reads: {brief(error)}.{near}"
        raise DataError(said, f"For a folder of that name on the disk: ./{address}") from None
    scratch = Path(os.environ.get(SCRATCH) or "~/.cache/hfsyn").expanduser().absolute()
    name = re.sub(r"[^\w.-]", "_", address.rpartition("/")[2])
    copy = Copy(scratch / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:12]}")
    if str(copy) not in _stores:
        make_folder(copy)
        _stores[str(copy)] = Store(address, fs, str(root).rstrip("/"), copy)
        files.before_rename = _send
    return _stores[str(copy)]


def _refused(address: str) -> tuple[str, str] | None:
    """What is wrong with an address, and what to do; never the part that may be a password."""
    protocol, _, rest = address.partition("://")
    if "@" in rest and ":" in rest.partition("@")[0]:
        said = f"The address {protocol}://*** has a password in it, which would end up in logs."
        return said, "Give it by the environment or fsspec's configuration (~/.config/fsspec), and leave it out here."
    if "?" in rest or "::" in protocol:
        return f"{address.partition('?')[0]} is not a plain address.", "It looks like s3://BUCKET/RUN."
    if protocol == "hf" and not re.match(r"buckets/[^/]+/[^/]+", rest):
        said = f"{address} is not in a bucket of the Hub, and each file of a repository would be a commit of its own."
        return said, "Name one: hf://buckets/USER/BUCKET/RUN. A finished run becomes a dataset by `hfsyn publish`."
    if not rest.strip("/"):
        return f"{address} names no place.", "It looks like s3://BUCKET/RUN."
    return None


def _send(temporary: Path, path: Path) -> None:
    """Send a file that is about to get its name in a copy."""
    store = store_of(path)
    if store is not None and not store.name_of(path).startswith("."):
        store.put(temporary, store.name_of(path))


def is_away(path: Path) -> bool:
    """Whether a file is a stand-in, whose bytes are in the store alone."""
    if store_of(path) is None:
        return False
    try:
        with path.open("rb") as handle:
            return handle.read(len(_EMPTY)) == _EMPTY
    except OSError:
        return False


def present(path: Path) -> Path:
    """The path, with its bytes in the copy; nothing is done for one on the disk."""
    store = store_of(path)
    if store is not None and is_away(path):
        store.fetch(path)
    return path


@contextlib.contextmanager
def borrowed(path: Path) -> Iterator[Path]:
    """As `present`, only while it is needed."""
    away = is_away(path)
    try:
        yield present(path)
    finally:
        if away:
            let_go(path)


def let_go(path: Path) -> None:
    """Put a stand-in in the place of a file that the store has; nothing is done for one on the disk."""
    if store_of(path) is not None and path.exists():
        stand_in(path, path.stat().st_size)


def readable(path: Path) -> Any:
    """What reads a Parquet file: the path, or of a stand-in a file whose reads are requests."""
    store = store_of(path)
    return path if store is None or not is_away(path) else io.BufferedReader(_Remote(store, path), _BUFFER)


def arrived(path: Path) -> bool:
    """Whether a small file is there: asks the store by name, and fetches it."""
    store = store_of(path)
    if store is not None and not path.exists():
        store.bring(store.name_of(path))
    return path.exists()


def note_again(path: Path) -> None:
    """Note in the store that a shard was made here although another job had made it meanwhile."""
    if (store := store_of(path)) is not None:
        store.write(f"{AGAIN}/{path.parent.name}-{path.stem}-{store.token[:8]}", b"")


def remove(path: Path) -> None:
    """Remove a file, if it is there; from a store, too."""
    store = store_of(path)
    if store is not None:
        store.delete([store.name_of(path)])
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
            raise self._store.error(f"has lost {self._name}", "Find what else: hfsyn status", code=4)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
