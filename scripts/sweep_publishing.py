"""The part of `sweep_kills.py` about publishing: a kill before and after each request, and at each file operation.

Two versions are published one after the other, the second with another number of shards, to the Hub of the tests on
loopback: each in one commit (`publish`), each by a pull request of many commits (`publish-pull`), or from a run that is
at work (`publish-watch`). After a kill the same commands run to their end. Then tags and main hold what an undisturbed
publication leaves, no branch and no pull request is left, and every commit that main ever had is one version, whole.
Another process streams main all the while, without naming a version: it must get the rows of one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
REPO = "alice/shapes"
PUBLISHING = ("publish", "publish-pull", "publish-watch")

LIFE = """
import sys
sys.path.insert(0, {scripts!r})
from sweep_publishing import live
live({name!r}, {folder!r}, {report!r}, {deadly!r})
"""


READER = """
import json
import time
from datasets import load_dataset
while True:
    try:
        rows = load_dataset({repo!r}, split="train", streaming=True).select_columns({columns!r})
        said = [[row[name] for name in {columns!r}] for row in rows]
    except Exception as error:
        said = type(error).__name__
        time.sleep(0.05)
    print(json.dumps(said), flush=True)
"""
COLUMNS = ["sample_id", "seed"]


def live(name: str, folder: str, report: str, deadly: int | None) -> None:
    """The child's life: publish both versions; `deadly` None only counts, 0 does not even that."""
    import httpx2
    from sweep_kills import Watch

    import builders.hub
    import hfsyn.hub.repo as hub
    import hfsyn.publishing.publication as publication
    import hfsyn.publishing.reading_back
    from hfsyn.publishing.publication import publish
    from hfsyn.publishing.watching import watch

    builders.hub.FIRST_PAUSE, hfsyn.publishing.reading_back._READERS = 0.0, 1
    if name == "publish-pull":
        hub.FILES_A_COMMIT = publication.FILES_A_COMMIT = 6
    place = Path(folder)
    seen = Watch(place, deadly)
    if deadly != 0:
        ask = httpx2.Client.send

        def send(client: Any, request: Any, **options: Any) -> Any:
            seen.meet("ask", place / f"{request.method} {request.url.path.strip('/').replace('/', ':')}")
            try:
                return ask(client, request, **options)
            finally:
                seen.meet("answered", place / f"{request.method} {request.url.path.strip('/').replace('/', ':')}")

        httpx2.Client.send = send  # type: ignore[method-assign]
        sys.addaudithook(seen._hear)
    for run, version in (("first", "1.0.0"), ("second", "1.1.0")):
        if name == "publish-watch":
            at_work = At(place / "work" / run, place / "runs" / run)
            watch(at_work.folder, REPO, version, quiet=True, interval=0, sleep=at_work.go_on)
        else:
            publish(place / "runs" / run, REPO, version, quiet=True)
    if deadly is None:
        Path(report).write_text("".join(f"{operation}\n" for operation in list(seen.seen)))


class At:
    """A run at work: its shards are finished one after the other, whenever the publisher pauses."""

    def __init__(self, folder: Path, whole: Path) -> None:
        from builders.runs import layout

        self.folder, self._whole = folder, whole
        shards = [*layout.finished_shards(whole / layout.CAPTIONS), *layout.finished_shards(whole / layout.DATA)]
        self._shards = [(layout.sidecar_of(shard), shard) for shard in shards]
        if not folder.exists():
            late = {path for pair in self._shards for path in pair} | {whole / layout.MANIFEST}
            half = folder.with_name(f"{folder.name}.half")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(whole, half, ignore=lambda at, names: [n for n in names if Path(at) / n in late])
            half.rename(folder)

    def go_on(self, seconds: float) -> None:
        from builders.runs import layout

        for mark, shard in self._shards:
            if not (self.folder / mark.relative_to(self._whole)).exists():
                self._bring(shard)
                self._bring(mark)
                return
        self._bring(self._whole / layout.MANIFEST)

    def _bring(self, file: Path) -> None:
        """A file of the whole run, at once, as a run at work writes it."""
        there = self.folder / file.relative_to(self._whole)
        there.parent.mkdir(parents=True, exist_ok=True)
        half = there.with_name(f".{there.name}.half")
        shutil.copy(file, half)
        half.rename(there)


class Place:
    """Two runs, a Hub, and a process that has imported everything and starts others; for all ways of publishing."""

    def __init__(self, folder: Path) -> None:
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        from conftest import finished_run
        from hub_client import Forks
        from hub_server import Hub

        self.room, self.report = folder / "client", folder / "operations"
        (self.room / "runs").mkdir(parents=True)
        few = "source.limit_per_class=1"
        finished_run(self.room / "runs", few, "store.shard_rows=4", name="first")
        finished_run(self.room / "runs", few, "store.shard_rows=6", "seed=1", name="second")
        self.hub = Hub(folder / "hub")
        self.hub.__enter__()
        self.forks = Forks(self.hub, self.room)

    def close(self) -> None:
        """End both processes."""
        self.forks.close()
        self.hub.__exit__(None, None, None)


class Reader:
    """A process that streams main all the time, whatever happens there."""

    def __init__(self, hub: Any, runs: Path, folder: Path) -> None:
        self._versions = {self._digest(self._rows(runs / run)): run for run in ("first", "second")}
        self._said = folder / "read"
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-c", READER.format(repo=REPO, columns=COLUMNS)],
                env=hub.env(home=folder / "reader") | {"PYTHONPATH": str(ROOT)},
                stdout=said,
                stderr=subprocess.DEVNULL,
            )

    @staticmethod
    def _rows(run: Path) -> list[list[Any]]:
        tables = [pq.read_table(shard, columns=COLUMNS) for shard in sorted((run / "data").glob("*.parquet"))]
        return [[row[name] for name in COLUMNS] for table in tables for row in table.to_pylist()]

    @staticmethod
    def _digest(rows: list[list[Any]]) -> str:
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def close(self) -> Counter[str]:
        """End it; how often it got each version, ``neither``, or an error, by its name."""
        self._process.kill()
        self._process.wait()
        whole = [line for line in self._said.read_text().splitlines(keepends=True) if line.endswith("\n")]
        found = [json.loads(line) for line in whole]
        return Counter(
            one if isinstance(one, str) else self._versions.get(self._digest(one), "neither") for one in found
        )


class PublishSweep:
    """One way of publishing, as `sweep_kills.Sweep`."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self._room, self._report = name, place.room, place.report
        self._hub, self._forks = place.hub, place.forks
        self._fresh()
        if said := self._life(None):
            raise SystemExit(f"{name}: {said}")
        self.operations = self._report.read_text().splitlines()
        self._wanted = self._state()

    def _life(self, deadly: int | None) -> str:
        order = {"scripts": str(ROOT / "scripts"), "name": self.name, "folder": str(self._room)}
        code = LIFE.format(**order, report=str(self._report), deadly=deadly)
        ended = self._forks.wait(self._forks.start_python(code))
        return "" if ended.code == 0 else f"exit code {ended.code}: {ended.err.strip()[-300:]}"

    def _fresh(self) -> None:
        from hub_store import Store

        old, self._hub.store = self._hub.store.root, Store(self._hub.store.root.with_name(f"hub-{uuid.uuid4().hex}"))
        shutil.rmtree(old)
        self._hub.reset()
        for place in (self._room / "hf", self._room / "work"):
            shutil.rmtree(place, ignore_errors=True)

    def _state(self) -> dict[str, Any]:
        """Every file of every ref, and how pull requests are that are not over."""
        refs = {ref for ref in self._hub.refs("dataset", REPO) if not ref.startswith("refs/pr/")}
        requests = self._hub.store.repos["dataset", REPO].requests
        left = [number for number, pull in requests.items() if pull.status in ("open", "draft")]
        return {ref: self._hub.files("dataset", REPO, ref) for ref in refs} | {"pull requests": left}

    def _mixed(self) -> list[str]:
        """Commits of main that are not a version."""
        repo = self._hub.store.repos.get(("dataset", REPO))
        if repo is None:
            return []
        whole = [repo.commits[repo.tags[tag]].files for tag in ("v1.0.0", "v1.1.0") if tag in repo.tags]
        start = repo.history(repo.branches["main"])[-1]
        return [
            f"main was neither: {len(repo.commits[oid].files)} files, {repo.commits[oid].title}"
            for oid in repo.history(repo.branches["main"])
            if repo.commits[oid].files not in whole and oid != start
        ]

    def point(self, number: int) -> list[str]:
        """Kill at an operation (from 1), publish again; what is not as it should be."""
        self._fresh()
        said = self._life(number)
        if said and not said.startswith(f"exit code {-signal.SIGKILL}:"):
            return [f"was to be killed, and ended with {said}"]
        if said := self._life(0):
            return [f"the same command again ends with {said}"]
        found, wanted = self._state(), self._wanted
        return [
            *(f"{ref} is left or missing" for ref in found.keys() ^ wanted.keys()),
            *(f"{ref} holds other files" for ref in found.keys() & wanted.keys() if found[ref] != wanted[ref]),
            *self._mixed(),
        ]
