"""The commands of hfsyn that the experiment consists of: each is printed, run, and its processor time is added up."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from builders.files import atomic_text

HERE = Path(__file__).parent
SPENT = "spent.json"


def hfsyn(out: Path, name: str, *words: str | Path) -> str:
    """Run one command and return what it prints; OUT/spent.json adds up its minutes under the name.

    A command that fails ends the program with its exit code: what it said is on the screen.
    """
    said = [str(word) for word in words]
    print(f"$ hfsyn {shlex.join(said)}", file=sys.stderr, flush=True)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "hfsyn", *said],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    spent = read(out / SPENT, {})
    old = spent.get(name, {"cpu_minutes": 0.0, "minutes": 0.0})
    new = {"cpu_minutes": busy / 60, "minutes": (time.monotonic() - began) / 60}
    atomic_text(out / SPENT, json.dumps({**spent, name: {key: old[key] + new[key] for key in old}}, indent=1) + "\n")
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(done.returncode)
    return done.stdout


def read(path: Path, otherwise: Any = None) -> Any:
    """A JSON file, or what stands for one that is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else otherwise


def recipe(out: Path, generator: int | None, *changes: str) -> list[str]:
    """The recipe and its places, as words of a command; `generator` is its number, None the one with random weights."""
    model = out / "fresh" if generator is None else out / f"generator-{generator}" / "pipeline"
    places = [
        f"source.path={out / 'photographs' / 'last'}",
        f"caption.model={out / 'captioner' / 'captioner.py'}:Captioner",
        f"generate.model={model}",
        *changes,
    ]
    return [str(HERE / "photographs.yaml"), *(word for place in places for word in ("--set", place))]
