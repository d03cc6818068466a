"""The requests that are made of an object store, each tried again if it fails for a moment.

Nothing is locked or renamed in a store. What it lists may be late; what it gives by name counts.
"""

import contextlib
import errno
import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from builders.errors import DataError
from builders.files import make_folder, owned_name, settle

T = TypeVar("T")

ATTEMPTS = 8  # of one request, in a row
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds; each pause doubles the one before
SETTLE = 1.0  # seconds after which a store without conditional writes shows who wrote last
_READERS = 16  # small files that are read at once: the time goes into waiting for answers
_MOST_FILES = 200_000  # listed under an address; a run of a million images has some 5,000
_NAME = ".store.json"  # in a copy: the address, and a word that tells it from copies on other machines

_VERSION = ("ETag", "etag", "md5Hash", "content_md5", "xet_hash", "mtime", "LastModified", "last_modified", "created")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for a file of a copy, which becomes `path` at the end; nothing is sent."""
    temporary = path.with_name(owned_name(path.name, ".tmp"))
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        settle(temporary.name)


def stand_in(path: Path, size: int) -> None:
    """Write a stand-in of this many bytes."""
    make_folder(path.parent)
    with replacing(path) as temporary:
        temporary.touch()
        os.truncate(temporary, size)


class Store:
    """A run in object storage: the requests that are made of it, each tried again if it fails for a moment."""

    def __init__(self, address: str, fs: Any, root: str, copy: Path) -> None:
        self.address, self.fs, self.root, self.copy = address, fs, root, copy
        self.token = uuid.uuid4().hex  # tells this process from all others

    def name_of(self, path: Path) -> str:
        """A path in the copy, as the name of a file in the run: ``data/train-00000-of-00010.parquet``."""
        return Path(path).relative_to(self.copy).as_posix()

    def address_of(self, path: Path) -> str:
        """The address of a path in the copy."""
        name = self.name_of(path)
        return self.address if name == "." else f"{self.address}/{name}"

    def error(self, what: str, hint: str, code: int = 3) -> DataError:
        """An error of this store: it ``has lost data/...``."""
        return DataError(f"{self.address} {what}.", hint, code=code)

    @cached_property
    def machine(self) -> str:
        """A word that the processes which share this copy have in common, and no others."""
        place = self.copy / _NAME
        if not place.exists():
            with replacing(place) as temporary:
                temporary.write_text(json.dumps({"address": self.address, "copy": uuid.uuid4().hex}))
        return str(json.loads(place.read_text())["copy"])

    # --- requests -----------------------------------------------------------------------------------------------------

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """The bytes of a file, or a part of them; None if there is no such file."""

        def ask() -> bytes | None:
            self.fs.invalidate_cache(self._key(name))
            with contextlib.suppress(FileNotFoundError):
                return bytes(self.fs.cat_file(self._key(name), start=start, end=stop))
            return None

        return self._call(f"read {name}", ask)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self._writing(name, lambda: self.fs.pipe_file(self._key(name), data))

    def put(self, path: Path, name: str) -> None:
        """Send a file."""
        self._writing(name, lambda: self.fs.put_file(str(path), self._key(name)))

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless it is there, and say whether this was done; `data` is nobody else's.

        It is certain that only one of many is told so if the store is `exact`.
        """
        if not self.exact:
            if self.read(name) is not None:
                return False
            self.write(name, data)
            time.sleep(SETTLE)
            return self.read(name) == data
        return self._create(name, data)

    def _create(self, name: str, data: bytes) -> bool:
        def ask() -> bool:
            try:
                self.fs.pipe_file(self._key(name), data, mode="create")
            except OSError:
                # It is there; or it was written, and the answer was lost; or the store failed.
                if (found := self.read(name)) is None:
                    raise
                return found == data
            return True

        return self._writing(name, ask)

    @cached_property
    def exact(self) -> bool:
        """Whether the store refuses to write what is there already, if asked to: its client can ask, and it does."""
        from fsspec.asyn import AsyncFileSystem
        from fsspec.spec import AbstractFileSystem

        kind = type(self.fs)
        asks = getattr(kind, "_pipe_file", kind.pipe_file)
        if asks in (AbstractFileSystem.pipe_file, AsyncFileSystem._pipe_file):
            return False  # fsspec's own looks first and then writes
        probe = f".locks/probe-{self.token}"
        found = self._create(probe, b"1") and not self._create(probe, b"2")
        self.delete([probe])
        return found

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, if they are there."""
        for name in names:

            def ask(key: str = self._key(name)) -> None:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(key)

            self._call(f"delete {name}", ask)

    def listed(self, under: str = "") -> dict[str, Mapping[str, Any]]:
        """What the store says of its files, by name. A file that is new may be missing."""

        def ask() -> dict[str, Mapping[str, Any]]:
            self.fs.invalidate_cache()
            place = self._key(under) if under else self.root
            try:
                found: dict[str, Mapping[str, Any]] = self.fs.find(place, detail=True)
            except FileNotFoundError:
                return {}
            if len(found) > _MOST_FILES:
                raise self.error(f"holds {len(found):,} files and is not a run", "Name another --out.", code=2)
            start = len(self.root) + 1
            return {key[start:]: info for key, info in found.items() if info.get("type") != "directory"}

        return self._call(f"list {under or 'it'}", ask)

    def _key(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _writing(self, name: str, ask: Callable[[], T]) -> T:
        self._folder_of(name)
        return self._call(f"write {name}", ask)

    def _folder_of(self, name: str) -> None:
        """Make the folder of a file, where a store has folders at all."""
        if getattr(self.fs, "protocol", ()) and "file" in self.fs.protocol:
            self.fs.makedirs(self._key(name).rpartition("/")[0], exist_ok=True)

    def _call(self, doing: str, ask: Callable[[], T]) -> T:
        """What a request gives; tried again after a failure that may pass. Raises DataError if it cannot be done (exit
        code 3), or not now (exit code 4).
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return ask()
            except Exception as error:
                self._look_at(error, doing, attempt)
            time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)))
        raise AssertionError("the last attempt raises")

    def _look_at(self, error: Exception, doing: str, attempt: int) -> None:
        """Return if a request may be tried again; otherwise raise what there is to say."""
        from builders.hub import reason, status_of

        status, _ = status_of(error)
        known = isinstance(error, OSError | EOFError) or status or _is_of_client(error)
        if isinstance(error, DataError) or not known:
            raise error
        short = reason(error, None).removeprefix("the Hub answers ")
        again = "What is finished is kept. Run the same command again to continue."
        if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
            hint = f"Check its credentials and their rights. {again}"
            raise self.error(f"does not let you {doing} ({short})", hint) from error
        if isinstance(error, OSError) and (error.errno in _FULL or status in (402, 413, 507)):
            raise self.error(f"is full: {doing} failed ({short})", f"Make room there. {again}") from error
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or status == 404:
            hint = "Check the address. A bucket is not created here: create it first."
            raise self.error(f"is not there, or no longer: {doing} failed ({short})", hint) from error
        if attempt == ATTEMPTS:
            raise self.error(f"does not answer: {doing} failed ({short}; {attempt} attempts)", again, 4) from error
        if attempt == ATTEMPTS // 2:
            print(f"hfsyn: {self.address}: {doing}: {short}; trying again", file=sys.stderr, flush=True)

    # --- the copy -----------------------------------------------------------------------------------------------------

    def refresh(self, under: str = "") -> None:
        """Bring the copy to what the store has: small files whole, Parquet files as stand-ins, and no others.

        With `under`, a folder of the run, only what is new there is brought.
        """
        there = {name: info for name, info in self.listed(under).items() if not name.startswith(".")}
        late = [name for name in self._kept() if name not in there] if not under else []
        with ThreadPoolExecutor(_READERS, "store") as pool:
            for name, found in zip(late, pool.map(lambda name: self._info(name), late), strict=True):
                if found is not None:
                    there[name] = found
                else:
                    (self.copy / name).unlink(missing_ok=True)
            for name, info in there.items():
                place = self.copy / name
                if name.endswith(".parquet") and not (place.exists() and place.stat().st_size == info["size"]):
                    stand_in(place, int(info["size"]))
            changed = [name for name, info in there.items() if not self._is_same(name, info)]
            list(pool.map(lambda name: self.bring(name, there[name]), changed))

    def _kept(self) -> list[str]:
        """The names of the files in the copy."""
        found = (Path(folder) / name for folder, _, names in os.walk(self.copy) for name in names)
        return [name for name in map(self.name_of, found) if not name.startswith(".") and "/." not in name]

    def _info(self, name: str) -> Mapping[str, Any] | None:
        def ask() -> Mapping[str, Any] | None:
            with contextlib.suppress(FileNotFoundError):
                found: Mapping[str, Any] = self.fs.info(self._key(name))
                return found
            return None

        return self._call(f"look at {name}", ask)

    def _is_same(self, name: str, info: Mapping[str, Any]) -> bool:
        """Whether the copy has this version of a small file; of a Parquet file only the size is known."""
        place = self.copy / name
        if name.endswith(".parquet"):
            return True
        try:
            return place.stat().st_mtime_ns == _version(info) and place.stat().st_size == info["size"]
        except FileNotFoundError:
            return False

    def bring(self, name: str, info: Mapping[str, Any] | None = None) -> None:
        """Fetch a small file, if the store has it."""
        if (data := self.read(name)) is None:
            return
        make_folder((self.copy / name).parent)
        with replacing(self.copy / name) as temporary:
            temporary.write_bytes(data)
            if info is not None:
                os.utime(temporary, ns=(_version(info), _version(info)))

    def fetch(self, path: Path) -> None:
        """Fetch the bytes of a stand-in. Raises OSError if they have no room here."""
        name = self.name_of(path)

        def ask() -> None:
            try:
                self.fs.get_file(self._key(name), str(temporary))
            except OSError as error:
                if error.errno in _FULL:
                    raise _NoRoom(OSError(error.errno, os.strerror(error.errno), str(temporary))) from None
                raise

        with replacing(path) as temporary:
            try:
                self._call(f"read {name}", ask)
            except _NoRoom as error:
                raise error.args[0] from None


class _NoRoom(Exception):
    """The disk of the copy is full, not the store."""


def _is_of_client(error: Exception) -> bool:
    """Whether an error is of a library that speaks to stores, and not of this program."""
    kinds = ("aiohttp", "botocore", "aiobotocore", "google", "gcsfs", "azure", "httpx", "httpx2", "requests", "urllib3")
    return type(error).__module__.partition(".")[0] in kinds


def _version(info: Mapping[str, Any]) -> int:
    """A number for the version of a file, from what a store says of it; it is kept as the time of the copied file."""
    said = next((str(info[key]) for key in _VERSION if info.get(key)), "")
    return int(hashlib.sha256(f"{info['size']} {said}".encode()).hexdigest()[:7], 16) * 10**9
