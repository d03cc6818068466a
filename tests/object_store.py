"""An object store for fsspec that is as bad as they come: no locks, no renames, late listings, requests that fail.

Its files lie in a folder, so that several processes see the same. ``exact://`` refuses to write what is there already
if it is asked to, as S3 does; ``plain://`` has only what fsspec gives to every store, as buckets of the Hub. What else
it does is in the environment variable EMULATED_STORE; see `Settings`.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

VARIABLE = "EMULATED_STORE"
READ: list[tuple[str, int]] = []
"""Name and size of each file that this process has opened, or read a part of."""


@dataclass
class Settings:
    """Where the store is, and how bad."""

    root: str
    fails: float = 0.0  # share of the requests that fail, half of them after they were carried out
    late: float = 0.0  # seconds until a new file is listed
    most: int | None = None  # bytes that it holds
    forbids: str = ""  # names that hold this may not be written

    def use(self) -> Settings:
        """Let this process, and those that it starts, have such a store."""
        os.environ[VARIABLE] = json.dumps(asdict(self))
        for kind in (Plain, Exact):
            fsspec.register_implementation(kind.protocol, kind, clobber=True)
        return self

    def bucket(self, name: str = "bucket") -> Settings:
        """Create a bucket, which the tool does not."""
        (Path(self.root) / name).mkdir(parents=True, exist_ok=True)
        return self

    def files(self, run: str = "bucket/run") -> dict[str, bytes]:
        """What it holds of a run, by name."""
        bucket, _, prefix = run.partition("/")
        places = sorted((Path(self.root) / bucket).iterdir())
        found = {place.name.replace("|", "/"): place.read_bytes() for place in places}
        return {name.removeprefix(f"{prefix}/"): data for name, data in found.items() if name.startswith(f"{prefix}/")}

    def made(self) -> list[tuple[str, str]]:
        """Every file that was written, in order, with the process that wrote it."""
        log = Path(self.root) / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [(name, process) for process, _, name in (line.partition(" ") for line in lines)]


class Plain(AbstractFileSystem):
    """Without conditional writes."""

    protocol = "plain"
    cachable = False
    root_marker = ""

    @property
    def settings(self) -> Settings:
        return Settings(**json.loads(os.environ[VARIABLE]))

    def place(self, path: str) -> Path:
        """Where a file is; its first folder is the bucket, which nobody creates."""
        bucket, _, name = self._strip_protocol(path).partition("/")
        folder = Path(self.settings.root) / bucket
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such bucket", bucket)
        return folder / name.replace("/", "|")

    def request(self) -> Iterator[None]:
        """Fail before what is asked is done, or after it, or not at all."""
        chance = random.random() / max(self.settings.fails, 1e-9)
        kind = random.choice([TimeoutError, ConnectionResetError, lambda text: OSError(errno.EIO, text)])
        if chance < 0.5:
            raise kind("the store has a bad day")
        yield
        if chance < 1:
            raise kind("the answer got lost")

    def store(self, path: str, data: bytes, *, only_new: bool = False) -> None:
        """Put an object: whole or not at all."""
        for _ in self.request():
            place, settings = self.place(path), self.settings
            if settings.forbids and settings.forbids in path:
                raise PermissionError(errno.EACCES, "not with this key")
            held = sum(file.stat().st_size for file in place.parent.iterdir()) if settings.most is not None else 0
            if settings.most is not None and held + len(data) > settings.most:
                raise OSError(errno.ENOSPC, "quota exceeded")
            draft = Path(settings.root) / f"draft-{uuid.uuid4().hex}"
            draft.write_bytes(data)
            try:
                place.hardlink_to(draft) if only_new else draft.rename(place)
            finally:
                draft.unlink(missing_ok=True)
            with (Path(settings.root) / "log").open("a") as log:
                log.write(f"{os.getpid()} {place.name.replace('|', '/')}\n")

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode == "wb":
            return _Upload(self, path)
        for _ in self.request():
            data = self.place(path).read_bytes()
            READ.append((self.place(path).name.rpartition("|")[2], len(data)))
        return io.BytesIO(data)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Of one file, at once."""
        for _ in self.request():
            return self._info(self.place(path))
        raise AssertionError

    def _info(self, place: Path) -> dict[str, Any]:
        if not place.name:
            return {"name": place.parent.name, "size": 0, "type": "directory"}
        found = place.stat()
        name = f"{place.parent.name}/{place.name.replace('|', '/')}"
        return {"name": name, "size": found.st_size, "type": "file", "ETag": f"{found.st_ino}-{found.st_mtime_ns}"}

    def find(self, path: str, maxdepth: Any = None, withdirs: bool = False, detail: bool = False, **_: Any) -> Any:
        """What it lists: nothing that is too new."""
        for _ in self.request():
            start, before, found = self._strip_protocol(path), time.time() - self.settings.late, {}
            for place in sorted(self.place(start.partition("/")[0] + "/").iterdir()):
                try:
                    info = self._info(place)
                    if info["name"].startswith(f"{start}/") and place.stat().st_mtime <= before:
                        found[info["name"]] = info
                except FileNotFoundError:  # deleted meanwhile
                    continue
            return found
        raise AssertionError

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        raise NotImplementedError("the tool should not need it")

    def rm_file(self, path: str) -> None:
        for _ in self.request():
            self.place(path).unlink()

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        raise NotImplementedError("there is no rename")


class Exact(Plain):
    """With conditional writes."""

    protocol = "exact"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Put an object; with the mode ``create`` only where there is none."""
        self.store(path, bytes(value), only_new=mode == "create")


class _Upload(io.BytesIO):
    def __init__(self, store: Plain, path: str) -> None:
        super().__init__()
        self._store, self._path = store, path

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self._store.store(self._path, self.getvalue())
        self.close()
