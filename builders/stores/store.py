"""The requests that are made of an object store, each tried again if it fails for a moment.

Nothing is locked or renamed in a store. What it lists may be late; what it gives by name counts.
"""

import contextlib
import errno
import hashlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from builders.errors import DataError, plural
from builders.files import make_folder, owned_name, settle

T = TypeVar("T")
Info = Mapping[str, Any]

ATTEMPTS = 8  # of one request, in a row
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds; each pause doubles the one before
SETTLE = 1.0  # seconds after which a store without conditional writes shows who wrote last
_READERS = 16  # small files that are read at once
_MOST_FILES = 200_000  # under one address; a run of a million images has some 5,000
_VERSION = ("ETag", "etag", "md5Hash", "content_md5", "xet_hash", "mtime", "LastModified", "last_modified", "created")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLIENTS = frozenset({"aiohttp", "botocore", "aiobotocore", "google", "gcsfs", "azure", "httpx", "httpx2", "requests"})
"""Packages whose errors are a store's, and not of this program."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for a file of a copy, which becomes `path` at the end; nothing is sent."""
    make_folder(path.parent)
    temporary = path.with_name(owned_name(path.name, ".tmp"))
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        settle(temporary.name)


def stand_in(path: Path, size: int) -> None:
    """Put a file of this many bytes in a copy that takes no room; see `builders.stores.copies`."""
    with replacing(path) as temporary:
        temporary.touch()
        os.truncate(temporary, size)


class Store:
    """A run in object storage, and its local copy."""

    def __init__(self, address: str, fs: Any, root: str, copy: Path) -> None:
        self.address, self.fs, self.root, self.copy = address, fs, root, copy
        self.token = uuid.uuid4().hex  # tells this process from all others

    def name_of(self, path: Path) -> str:
        """A path in the copy, as the name of a file in the run: ``data/train-00000-of-00010.parquet``."""
        return path.relative_to(self.copy).as_posix()

    @cached_property
    def machine(self) -> str:
        """A word that the processes with this copy have in common, and no others."""
        place = self.copy / ".machine"
        with contextlib.suppress(FileExistsError), replacing(place.with_name(".machine-new")) as temporary:
            temporary.write_text(uuid.uuid4().hex)
            os.link(temporary, place)
        return place.read_text()

    # --- requests -----------------------------------------------------------------------------------------------------

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """The bytes of a file, or a part of them; None if there is no such file."""
        return self._call(f"read {name}", partial(self.fs.cat_file, self._key(name), start, stop), absent=True)

    def write(self, name: str, data: bytes, *, once: bool = False) -> None:
        """Write a small file; with `once` whatever is raised is raised at once."""
        ask = partial(self.fs.pipe_file, self._key(name), data)
        ask() if once else self._call(f"write {name}", ask)

    def put(self, path: Path, name: str) -> None:
        """Send a file."""
        self._call(f"write {name}", partial(self.fs.put_file, str(path), self._key(name)))

    def get(self, name: str, path: Path) -> None:
        """Fetch a file. Raises OSError if it has no room here."""
        self._call(f"read {name}", partial(self.fs.get_file, self._key(name), str(path)))

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        self._call(f"delete {name}", partial(self.fs.rm_file, self._key(name)), absent=True)

    def delete_all(self, names: Sequence[str]) -> None:
        """Delete files, several at once."""
        self._each(self.delete, names)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless it is there, and say whether this was done; `data` is nobody else's.

        Of many who try it, only one is certain to be told so if the store is `exact`.
        """
        if self.exact:
            return self._create(name, data)
        if self.read(name) is not None:
            return False
        self.write(name, data)
        time.sleep(SETTLE)
        return self.read(name) == data

    def _create(self, name: str, data: bytes) -> bool:
        def ask() -> bool:
            try:
                if self._is_local:
                    with self.fs.open(self._key(name), "xb") as handle:
                        handle.write(data)
                else:
                    self.fs.pipe_file(self._key(name), data, mode="create")
            except OSError:
                # It is there; or it was written, and the answer was lost; or the store failed.
                if (found := self.read(name)) is None:
                    raise
                return found == data
            return True

        return bool(self._call(f"write {name}", ask))

    @property
    def _is_local(self) -> bool:
        return "file" in self.fs.protocol

    @cached_property
    def exact(self) -> bool:
        """Whether the store refuses to write what is there already: its client can ask for it, and it does."""
        from fsspec.asyn import AsyncFileSystem
        from fsspec.spec import AbstractFileSystem

        kind = type(self.fs)
        asks = getattr(kind, "_pipe_file", kind.pipe_file)
        if asks in (AbstractFileSystem.pipe_file, AsyncFileSystem._pipe_file) and not self._is_local:
            return False  # fsspec's own looks first, and then writes
        probe = f".locks/probe-{self.token}"
        found = self._create(probe, b"1") and not self._create(probe, b"2")
        self.delete(probe)
        return found

    def listed(self, under: str = "") -> dict[str, Info]:
        """What the store says of its files, by name. One that is new may be missing."""
        place = self._key(under) if under else self.root
        found: dict[str, Info] = self._call("list it", partial(self.fs.find, place, detail=True), absent=True) or {}
        if len(found) > _MOST_FILES:
            raise self.error(f"holds {len(found):,} files and is not a run", "Name another --out.", 2)
        start = len(self.root) + 1
        return {key[start:]: info for key, info in found.items() if info.get("type") != "directory"}

    def _key(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _call(self, doing: str, ask: Callable[[], T], *, absent: bool = False) -> Any:
        """What a request gives, or with `absent` None if there is no such file; tried again after a failure that may
        pass. Raises DataError if it cannot be done (exit code 3), or not now (exit code 4).
        """
        attempt = 0
        while True:
            try:
                self.fs.invalidate_cache()  # other processes write, too
                return ask()
            except Exception as error:
                if absent and isinstance(error, FileNotFoundError):
                    return None
                attempt += 1
                self._judge(error, doing, attempt)
            time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)))

    def error(self, what: str, hint: str, code: int = 3) -> DataError:
        """An error of this store: it ``has lost data/...``."""
        return DataError(f"{self.address} {what}.", hint, code)

    def _judge(self, error: Exception, doing: str, attempt: int) -> None:
        """Return if a request may be tried again; otherwise raise what there is to say."""
        from builders.hub import reason, status_of

        status, number = status_of(error)[0], getattr(error, "errno", None)
        of_client = type(error).__module__.partition(".")[0] in _CLIENTS
        if isinstance(error, DataError) or not (isinstance(error, OSError) or status or of_client):
            raise error
        if doing.startswith("read") and number in _FULL:
            raise OSError(number, os.strerror(number), str(self.copy)) from error
        short = f"{doing}: {reason(error, None).removeprefix('the Hub answers ')}"
        again = "What is finished is kept. Run the same command again to continue."
        if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
            hint = f"Check your login or key, and what it may do there. {again}"
            raise self.error(f"does not let you in ({short})", hint) from error
        if number in _FULL or status in (402, 413, 507):
            raise self.error(f"is full ({short})", f"Make room there. {again}") from error
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or status == 404:
            hint = "Check the address; a bucket is not created here."
            raise self.error(f"is not there, or no longer ({short})", hint) from error
        if attempt == ATTEMPTS or type(error).__name__ == "OfflineModeIsEnabled":
            raise self.error(f"does not answer ({short}; {plural(attempt, 'attempt')})", again, 4) from error
        if attempt == ATTEMPTS // 2:
            print(f"hfsyn: {self.address}: {short}; trying again", file=sys.stderr, flush=True)

    # --- the copy -----------------------------------------------------------------------------------------------------

    def refresh(self, under: str = "") -> None:
        """Bring the copy to what the store has: small files whole, Parquet files as stand-ins, and no others.

        With `under`, a folder of the run, only what is new there is brought.
        """
        there = {name: info for name, info in self.listed(under).items() if not name.startswith(".")}
        if not under:
            kept = (self.name_of(path) for path in self.copy.rglob("*") if path.is_file())
            late = [name for name in kept if name not in there and not name.startswith(".") and "/." not in name]
            for name, info in zip(late, self._each(self._info, late), strict=True):
                if info is None:
                    (self.copy / name).unlink(missing_ok=True)
                else:
                    there[name] = info
        new = {name: _version(info) for name, info in there.items() if not self._has(name, info)}
        self._each(lambda name: self.bring(name, new[name]), list(new))

    def _each(self, ask: Callable[[str], T], names: Sequence[str]) -> list[T]:
        """Ask for each of these files, several at once: the time goes into waiting for answers."""
        with ThreadPoolExecutor(max(1, min(_READERS, len(names))), "store") as pool:
            return list(pool.map(ask, names))

    def _info(self, name: str) -> Info | None:
        found: Info | None = self._call(f"look at {name}", partial(self.fs.info, self._key(name)), absent=True)
        return found

    def _has(self, name: str, info: Info) -> bool:
        """Whether the copy has what the store says of a file; of a Parquet file it has a stand-in then."""
        place, size = self.copy / name, int(info["size"])
        known = place.stat() if place.exists() else None
        if name.endswith(".parquet"):
            if known is None or known.st_size != size:
                stand_in(place, size)
            return True
        return known is not None and (known.st_size, known.st_mtime_ns) == (size, _version(info))

    def bring(self, name: str, version: int | None = None) -> None:
        """Fetch a small file, or have a stand-in for a Parquet file, if the store has it."""
        if name.endswith(".parquet"):
            if (info := self._info(name)) is not None:
                stand_in(self.copy / name, int(info["size"]))
            return
        if (data := self.read(name)) is None:
            return
        with replacing(self.copy / name) as temporary:
            temporary.write_bytes(data)
            if version is not None:
                os.utime(temporary, ns=(version, version))


def _version(info: Info) -> int:
    """A number for what a store says of a file but its size; it is kept as the time of the copied file, in ns."""
    said = next((str(info[key]) for key in _VERSION if info.get(key)), "")
    return int(hashlib.sha256(said.encode()).hexdigest()[:7], 16) * 10**9
