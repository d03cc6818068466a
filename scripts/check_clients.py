"""Do older and newer `datasets`, pandas, pyarrow, polars and duckdb read what hfsyn publishes?

    python scripts/check_clients.py --environments DIR [--only 2.14.7,5.2] [--json]

Publishes to the Hub of the tests, on loopback: two versions with other rows and other shards, a second configuration,
and captions alone. Then, in an environment for each release of `datasets` that the cards name (made with venv and pip
below DIR, and kept there), loads each by its tag, whole and streamed: the first version, the second, and the first
again out of the same cache. Rows, features and versions are compared with the runs that were published. The downloaded
``data/`` and ``captions/`` are opened as folders by the four readers, and by ``hf://`` as well where a reader takes
Python's file system for it.

Prints a line an environment, or one JSON object. Exits 1 where something differs, 3 where an environment cannot be
made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from builders.runs import layout  # noqa: E402
from hfsyn.cards.facts import TRIED_DATASETS  # noqa: E402

PINS: Mapping[str, Sequence[str]] = {
    "2.14.7": ("pyarrow<15", "numpy<2", "pandas<2.3", "huggingface_hub<0.24"),
    "2.21.0": ("pyarrow<18", "numpy<2", "pandas<2.3", "huggingface_hub<1"),
    "3.6.0": ("pandas<3", "huggingface_hub<1"),
}
"""What a release of `datasets` does not work without, or was not made for."""
READERS = ("pandas", "polars", "duckdb", "pyarrow", "pillow")
REPO = "alice/clients"


@dataclass(frozen=True)
class Load:
    """Something to load, and what must come out."""

    tag: str
    config: str
    run: Path
    what: str = "data"
    version: str = ""
    """As the card's entry says it; that of the tag unless the configuration is older."""

    def job(self) -> dict[str, Any]:
        """What the program in the environment is told."""
        return {"repo": REPO, "tag": self.tag, "config": self.config, "split": "train"}

    def wanted(self) -> dict[str, Any]:
        """Rows, features and version."""
        rows = [
            row for path in sorted((self.run / self.what).glob("*.parquet")) for row in pq.read_table(path).to_pylist()
        ]
        for row in rows:
            if "image" in row:
                row["image"] = hashlib.sha256(row["image"]["bytes"]).hexdigest()
        table = pq.read_schema(next((self.run / self.what).glob("*.parquet")))
        return {"rows": rows, "columns": table.names, "version": self.version or self.tag.removeprefix("v")}


def main() -> int:
    """Publish, then read in every environment; the exit code."""
    given = options()
    names = given.only.split(",") if given.only else list(TRIED_DATASETS)
    if unknown := [name for name in names if name not in TRIED_DATASETS]:
        raise SystemExit(f"--only: {unknown[0]!r} is not one of {', '.join(TRIED_DATASETS)}.")
    found: dict[str, list[str]] = {}
    unmade: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="clients-") as temporary:
        folder = Path(temporary)
        loads = list(runs(folder))
        from hub_server import Hub

        with Hub(folder / "hub") as hub:
            publish(hub, folder, loads)
            for name in names:
                try:
                    python = environment(given.environments / name, name)
                except RuntimeError as error:
                    unmade[name] = str(error)
                    say(f"datasets {name:8} not made: {error}")
                    continue
                found[name] = read(hub, python, folder / f"home-{name}", loads)
                say(f"datasets {name:8} {'the same' if not found[name] else 'DIFFERS: ' + '; '.join(found[name][:5])}")
    if given.json:
        print(json.dumps({"differences": found, "not_made": unmade}, indent=1))
    return 1 if any(found.values()) else 3 if unmade else 0


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environments", type=Path, required=True, metavar="DIR", help="where they are made and kept")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(TRIED_DATASETS)}")
    parser.add_argument("--json", action="store_true", help="every difference, as one JSON object")
    return parser.parse_args()


def say(line: str) -> None:
    """For people."""
    print(line, file=sys.stderr, flush=True)


def runs(folder: Path) -> Iterator[Load]:
    """The runs, in the order in which they are published and loaded."""
    from conftest import finished_run

    first = finished_run(folder, "source.limit_per_class=3", "store.shard_rows=5", name="first")
    second = finished_run(folder, "source.limit_per_class=2", "store.shard_rows=7", "seed=1", name="second")
    other = finished_run(folder, "source.limit_per_class=1", recipe="shapes-basic", name="other")
    yield Load("v1.0.0", "default", first)
    yield Load("v1.1.0", "default", second)
    yield Load("v1.2.0", "basic", other)
    yield Load("v1.3.0", "words", first, layout.CAPTIONS)


def publish(hub: Any, folder: Path, loads: Sequence[Load]) -> None:
    """Publish each as its tag."""
    home = folder / "publisher"
    for load in loads:
        command = ["publish", load.run, REPO, "--version", load.tag.removeprefix("v"), "--config-name", load.config]
        command += ["--what", load.what, "--quiet"]
        done = subprocess.run(
            [sys.executable, "-m", "hfsyn", *map(str, command)],
            cwd=HERE.parent,
            env=hub.env(home=home),
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{load.tag} could not be published: {done.stderr}")


def environment(folder: Path, name: str) -> Path:
    """The Python of the environment with this release of `datasets`, made unless it is there.

    Raises:
        RuntimeError: it cannot be made.
    """
    wanted = [f"datasets=={name}", *PINS.get(name, ()), *READERS]
    mark, python = folder / "made.txt", folder / "bin" / "python"
    if mark.is_file() and mark.read_text().split() == wanted:
        return python
    say(f"datasets {name:8} making {folder}")
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    mark.write_text("\n".join(wanted))
    return python


def read(hub: Any, python: Path, home: Path, loads: Sequence[Load]) -> list[str]:
    """What differs in one environment, a line each."""
    first, second, *others = loads
    newest = [Load(others[-1].tag, load.config, load.run, load.what, load.tag.removeprefix("v")) for load in loads[1:]]
    order = [first, second, first, *others, *newest, first]
    folders = [first, others[-1]]
    job = {"loads": [load.job() for load in order], "folders": [{**f.job(), "what": f.what} for f in folders]}
    done = subprocess.run(
        [str(python), str(HERE / "read_as_client.py")],
        input=json.dumps(job),
        env=hub.env(token=None, home=home),
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return [f"the client ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"]
    got = json.loads(done.stdout.splitlines()[-1])
    return [
        *(
            f"{load.config} at {load.tag} {how}: {fault}"
            for load, each in zip(order, got["loads"], strict=True)
            for how, one in each.items()
            for fault in compared(one, load.wanted())
        ),
        *(
            f"{how} on {load.what}/: {fault}"
            for load, each in zip(folders, got["folders"], strict=True)
            for how, one in each.items()
            for fault in compared_tables(one, load.wanted())
        ),
    ]


def compared(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """What is not as published of something that `datasets` has loaded."""
    if "error" in got:
        yield got["error"]
        return
    for key in ("rows", "columns", "version"):
        if got[key] != wanted[key]:
            yield f"other {key}" + (f" ({got[key]}, not {wanted[key]})" if key != "rows" else f" ({len(got[key])})")
    names = got["label_names"]
    if any(row["class_name"] != names[row["label"]] for row in wanted["rows"]):
        yield f"the labels are named {names}"
    if "image" in got["columns"] and not got["decodes"]:
        yield "the images are not images"


def compared_tables(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """The same of a folder that another reader has opened."""
    key = "sample_id" if "sample_id" in wanted["columns"] else "source_id"
    if "error" in got:
        yield got["error"]
    elif sorted(got["ids"]) != sorted(row[key] for row in wanted["rows"]):
        yield f"{len(got['ids'])} other rows"
    elif got["columns"] != wanted["columns"]:
        yield f"the columns {got['columns']}"


if __name__ == "__main__":
    sys.exit(main())
