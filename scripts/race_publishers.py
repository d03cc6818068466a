"""Publish while others write to the same dataset, in random order, and look what every version gives to a reader.

    python scripts/race_publishers.py                      # 50 schedules
    python scripts/race_publishers.py --schedules 5 --seed 3
    python scripts/race_publishers.py --only 17            # one of them again

Against the Hub of the tests, on loopback. In every second schedule two publishers work at once, and it is drawn which
of them gets its next request answered; in the others a person uploads, renames and deletes files and edits the card
between any two requests of one publisher. All of it follows from the seed.

A version must be what its manifests say. For each tag and each configuration of ours that its card names, the files
that `datasets` itself finds are compared with the manifest at that commit, by name, order and content; in every fifth
schedule all rows are loaded too. A publisher must end with exit code 0 and its own run under its tag, or refuse in one
line.

Prints a line a schedule and, last, one JSON object. Exits 1 where anything is not so.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import finished_run  # noqa: E402
from hub_client import Client, Ended, Forks  # noqa: E402
from hub_server import Entry, Hub  # noqa: E402
from hub_store import Store  # noqa: E402

from builders.runs import layout  # noqa: E402
from hfsyn.publishing.contents import contents  # noqa: E402
from hfsyn.runs.run import load_run  # noqa: E402

REPO = "alice/shapes"
PATIENCE = 20.0
"""Seconds after which a request is let through although its turn has not come: somebody waits for something else."""

CHILD = """
import functools, time
import builders.hub, hfsyn.hub.repo as hub, hfsyn.publishing.publication as publication
import hfsyn.publishing.reading_back as back
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.utils import _http
from hfsyn.cli import main
def factory():
    client = _http.default_client_factory()
    client.headers["X-Client"] = {name!r}
    return client
set_client_factory(factory)
hub.FILES_A_COMMIT = publication.FILES_A_COMMIT = {most}
back._READERS, builders.hub.FIRST_PAUSE = 1, 0.0
main({command!r})
"""


@dataclass
class Turns:
    """Lets one request through at a time: who is next is drawn as soon as everybody who is at work asks."""

    draw: random.Random
    at_work: set[str]
    waiting: dict[str, list[object]] = field(default_factory=dict)
    turn: object | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def before(self, entry: Entry) -> None:
        ticket = object()
        with self.changed:
            self.waiting.setdefault(entry.client or min(self.at_work, default=""), []).append(ticket)
            self._next()
            self.changed.wait_for(lambda: self.turn is ticket, PATIENCE)
            for tickets in self.waiting.values():
                if ticket in tickets:
                    tickets.remove(ticket)
            self.turn = None
            self._next()

    def over(self, name: str) -> None:
        """Somebody has ended."""
        with self.changed:
            self.at_work.discard(name)
            self._next()

    def _next(self) -> None:
        asking = [name for name in sorted(self.at_work) if self.waiting.get(name)]
        if self.turn is None and asking and len(asking) == len(self.at_work):
            self.turn = self.waiting[self.draw.choice(asking)][0]
            self.changed.notify_all()


class Person:
    """Somebody who writes to the repository by hand, at random moments."""

    def __init__(self, hub: Hub, draw: random.Random, shard: bytes, most: int) -> None:
        self.hub, self.draw, self.shard, self.left = hub, draw, shard, most
        self.done: list[str] = []

    def before(self, entry: Entry) -> None:
        if self.left and ("dataset", REPO) in self.hub.store.repos and self.draw.random() < 0.12:
            self.left -= 1
            self.act()

    def act(self) -> None:
        name = self.draw.choice(["upload", "upload", "rename", "delete", "card", "card", "card"])
        files = self.hub.files("dataset", REPO)
        change: dict[str, bytes | None] | None = getattr(self, f"_{name}")(files)
        if change:
            self.hub.add_commit("dataset", REPO, change)
            self.done += [f"{name} {', '.join(change)}"]

    def _upload(self, files: dict[str, bytes]) -> dict[str, bytes | None]:
        count = self.draw.choice([2, 4])
        names = ("mine", "mine-of-{n:05d}", "00000-of-00009", "00000-of-{n:05d}", "x-of-{n:05d}")
        top = self.draw.choice(["", "", "", "basic/"])
        return {f"{top}data/train-{self.draw.choice(names).format(n=count)}.parquet": self.shard}

    def _pick(self, files: dict[str, bytes]) -> str | None:
        there = sorted(set(files) - {".gitattributes", layout.CARD})
        return self.draw.choice(there) if there else None

    def _rename(self, files: dict[str, bytes]) -> dict[str, bytes | None] | None:
        if (path := self._pick(files)) is None:
            return None
        name = path.rpartition("/")[2]
        to = self.draw.choice([f"kept/{name}", path.replace("train-", "train-old-"), f"data/{name}"])
        return {path: None, to: files[path]} if to not in files else None

    def _delete(self, files: dict[str, bytes]) -> dict[str, bytes | None] | None:
        return None if (path := self._pick(files)) is None else {path: None}

    def _card(self, files: dict[str, bytes]) -> dict[str, bytes | None] | None:
        if layout.CARD not in files:
            return {layout.CARD: b"---\nlicense: mit\n---\nMine.\n"}
        import yaml

        text = files[layout.CARD].decode()
        edits: list[Callable[[dict[str, Any]], Any]] = [
            lambda card: card.pop("configs", None),
            lambda card: card.pop("dataset_info", None),
            lambda card: card.update(license="cc-by-4.0"),
            lambda card: card.setdefault("configs", []).append({"config_name": "mine", "data_files": "kept/*.parquet"}),
            lambda card: card.setdefault("configs", []).insert(0, {"config_name": "csv", "data_files": "kept/a.csv"}),
            lambda card: [e.update(data_files="**/*.parquet") for e in card.get("configs", [])[:1]],
            lambda card: [
                e["data_files"].append({"split": "test", "path": "data/test-*.parquet"})
                for e in card.get("configs", [])[:1]
                if isinstance(e.get("data_files"), list)
            ],
        ]
        kind = self.draw.randrange(len(edits) + 4)
        if kind >= len(edits):
            texts = [f"{text}\nA word of mine.\n", "Mine alone.\n", f"---\nconfigs: 3\n---\n{text}", None]
            new = texts[kind - len(edits)]
            return {layout.CARD: None if new is None else new.encode()}
        parts = text.split("---\n", 2)
        card = yaml.safe_load(parts[1]) if len(parts) == 3 else {}
        if not isinstance(card, dict):
            return None
        edits[kind](card)
        return {layout.CARD: f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n{parts[-1]}".encode()}


class Races:
    """A Hub, runs to publish, and repositories to begin with."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.hub = folder, hub
        names = {"large": (), "small": ("source.limit_per_class=1",), "other": ("seed=1",)}
        self.runs = {name: finished_run(folder, *more, name=name) for name, more in names.items()}
        self.shard = next(layout.finished_shards(self.runs["small"] / layout.DATA)).read_bytes()
        self.files = {
            (name, config): {path: file.sha256 for path, file in contents(load_run(run), config).items()}
            for name, run in self.runs.items()
            for config in ("default", "basic")
        }

    def publication(self, draw: random.Random, version: str) -> tuple[str, str, list[str]]:
        run, config = draw.choice(sorted(self.runs)), draw.choice(["default", "default", "basic"])
        more = ["--config-name", config, *(["--set-default"] if draw.random() < 0.3 else [])]
        return run, config, ["publish", str(self.runs[run]), REPO, "--version", version, *more, "--into", "--quiet"]

    def run(self, number: int, seed: int, forks: Forks, reader: Client, *, whole: bool) -> dict[str, Any]:
        draw = random.Random(f"{seed}/{number}")
        hub = self.hub
        hub.before = None
        hub.store = Store(self.folder / f"hub-{number}")
        for version in [f"0.{minor}.0" for minor in range(draw.randrange(3))]:
            _, _, command = self.publication(draw, version)
            forks.wait(forks.start_python(CHILD.format(name="", most=1000, command=command)))
        two = number % 2 == 0
        jobs = [(name, *self.publication(draw, f"1.{minor}.0")) for minor, name in enumerate("ab"[: 1 + two])]
        person = Person(hub, draw, self.shard, most=draw.randint(1, 5))
        turns = Turns(draw, {name for name, *_ in jobs})
        hub.before = turns.before if two else person.before
        running = {
            name: forks.start_python(CHILD.format(name=name, most=draw.choice([4, 1000]), command=command))
            for name, _, _, command in jobs
        }
        ended: dict[str, Ended] = {}
        while len(ended) < len(running):
            for name, pid in running.items():
                if name not in ended and forks.is_over(pid):
                    ended[name] = forks.wait(pid)
                    turns.over(name)
            time.sleep(0.002)
        hub.before = None
        found = [problem for name, *job in jobs for problem in self.ended_badly(ended[name], *job)]
        found += self.unlike(reader, whole=whole)
        return {
            "schedule": number,
            "publishers": len(jobs),
            "codes": [ended[name].code for name, *_ in jobs],
            "person": person.done,
            "tags": sorted(self.tags()),
            "problems": found,
        }

    def tags(self) -> dict[str, str]:
        repo = self.hub.store.repos.get(("dataset", REPO))
        return dict(repo.tags) if repo is not None else {}

    def ended_badly(self, ended: Ended, run: str, config: str, command: list[str]) -> list[str]:
        version = command[command.index("--version") + 1]
        last = ended.err.strip().rpartition("\n")[2]  # lines before it tell of requests that were made again
        if ended.code not in (0, 2, 3, 4) or "Traceback" in ended.err or (ended.code and last[:6] != "Error:"):
            return [f"exit code {ended.code}: {ended.err[-600:]}"]
        if ended.code:
            return []
        if f"v{version}" not in self.tags():
            return [f"{version} ended well, but left no tag"]
        there = self.hub.store.repos["dataset", REPO]
        files = there.commits[there.tags[f"v{version}"]].files
        wrong = [
            path for path, sha in self.files[run, config].items() if path not in files or files[path].sha256 != sha
        ]
        return [f"{version} is not its run: {wrong[0]}"] if wrong else []

    def unlike(self, reader: Client, *, whole: bool) -> list[str]:
        """Where a tag gives other rows than its manifests say."""
        found = []
        for tag, commit in self.tags().items():
            files = self.hub.store.repos["dataset", REPO].commits[commit].files
            texts = self.hub.files("dataset", REPO, tag)
            for config in ("default", "basic"):
                path = f"{layout.config_prefix(config)}{layout.MANIFEST}"
                if path not in texts or f"{layout.config_prefix(config)}{layout.RECIPE}" not in texts:
                    continue
                manifest = json.loads(texts[path])
                got = reader.python(READ.format(repo=REPO, config=config, tag=tag, whole=whole))
                if got is None:  # the card does not offer it
                    continue
                wanted = [(f"{layout.config_prefix(config)}{e['file']}", e["sha256"]) for e in manifest["shards"]]
                if isinstance(got, str):
                    found.append(f"{tag}, {config}: {got}")
                elif [(name, files[name].sha256) for name in got["files"]] != wanted:
                    found.append(f"{tag}, {config}: datasets finds {got['files']}")
                elif whole and got["rows"] != manifest["rows"]:
                    found.append(f"{tag}, {config}: {got['rows']} rows, and its manifest says {manifest['rows']}")
        return found


READ = """
from datasets import load_dataset, load_dataset_builder
import tempfile
try:
    with tempfile.TemporaryDirectory() as cache:
        opened = load_dataset_builder({repo!r}, {config!r}, revision={tag!r}, cache_dir=cache)
        names = [name.partition("@")[2].partition("/")[2] for name in opened.config.data_files["train"]]
        result = {{"files": names}}
        if {whole}:
            result["rows"] = len(load_dataset({repo!r}, {config!r}, revision={tag!r}, cache_dir=cache)["train"])
except Exception as error:
    said = f"{{type(error).__name__}}: {{error}}"
    result = None if "BuilderConfig" in said and "not found" in said else said[:300]
"""


def main() -> int:
    """Run the schedules; 1 where anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this schedule alone, with all that happened")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="races-"))
    began, results = time.monotonic(), []
    (folder / "forks").mkdir()
    (folder / "reader").mkdir()
    with Hub(folder / "hub") as hub:
        races, forks = Races(folder, hub), Forks(hub, folder / "forks")
        with Client(hub, folder / "reader") as reader:
            for number in range(given.schedules) if given.only is None else [given.only]:
                results.append(races.run(number, given.seed, forks, reader, whole=number % 10 in (0, 5)))
                last = results[-1]
                who = "two publishers " if last["publishers"] == 2 else "beside a person"
                said = "; ".join(last["problems"]) or "ok"
                print(f"{number:3}  {who}  codes {last['codes']}  {len(last['person'])} deeds  {said}", flush=True)
                if given.only is not None:
                    print(json.dumps(last, indent=1))
                shutil.rmtree(folder / f"hub-{number}", ignore_errors=True)
        forks.close()
    shutil.rmtree(folder, ignore_errors=True)
    bad = [result["schedule"] for result in results if result["problems"]]
    codes = Counter(code for result in results for code in result["codes"])
    figures = {
        "schedules": len(results),
        "bad": bad,
        "codes": {str(code): count for code, count in sorted(codes.items())},
        "deeds": sum(len(result["person"]) for result in results),
        "tags": sum(len(result["tags"]) for result in results),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(figures))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
