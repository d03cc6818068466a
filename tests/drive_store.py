"""Jobs that share a run in an object store, with fakes in place of the models, and are killed at any moment.

``python tests/drive_store.py --rounds 20 --kills 20`` compares what two of them leave behind with a run on the disk.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from conftest import finished_run
from drive_fakes import SlowCaptioner, SlowGenerator
from object_store import Settings

from builders.stores import copies, store
from hfsyn.captions.caption_stage import caption
from hfsyn.images.generate_stage import generate
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs import leases
from hfsyn.runs.finish import finish
from hfsyn.runs.prepare import prepare

SMALL = ("source.limit_per_class=12", "store.shard_rows=4", "generate.batch_size=4")


def hasten() -> None:
    """What takes minutes, so that a busy network is not taken for a dead process, takes a moment here."""
    leases.LEASE, leases.RENEW, leases.PAUSE = 1.5, 0.3, 0.1
    store.FIRST_PAUSE, store.SETTLE = 0.01, 0.05


def job(address: str) -> None:
    """What one job does, from the beginning to the end."""
    run = prepare(load_recipe("shapes-cip", SMALL), address)
    caption(run, captioner=SlowCaptioner(), quiet=True)
    generate(run, generator=SlowGenerator(), quiet=True)
    finish(run)


def begin(address: str, scratch: Path) -> int:
    """Start a job on a machine whose disk is `scratch`, and return its process."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        os.environ[copies.SCRATCH] = str(scratch)
        random.seed()
        job(address)
        code = 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def kill_and_restart(address: str, folder: Path, *, kills: int, jobs: int = 2, pause: float = 0.3) -> tuple[int, int]:
    """Run jobs until all have ended, killing one of them every now and then; return the numbers of processes and of
    those that were killed.
    """
    machines = {begin(address, folder / f"machine-{number}"): folder / f"machine-{number}" for number in range(jobs)}
    begun, killed = jobs, 0
    while machines:
        time.sleep(random.uniform(0, 2 * pause) if killed < kills else 0.05)
        if killed < kills:
            victim = random.choice(list(machines))
            os.kill(victim, signal.SIGKILL)
        while machines and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            scratch = machines.pop(ended[0])
            killed += os.waitstatus_to_exitcode(ended[1]) == -signal.SIGKILL
            if os.waitstatus_to_exitcode(ended[1]) != 0:
                begun += 1  # on the same machine, or on another one
                scratch = scratch if random.random() < 0.5 else folder / f"machine-{begun}"
                machines[begin(address, scratch)] = scratch
        if begun > 10 * (kills + jobs):
            raise RuntimeError("the jobs do not end")
    return begun, killed


def as_published(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Of the files of a run those that do not say how it was made."""
    return {name: data for name, data in files.items() if not name.startswith((".", "sidecars/"))}


def on_disk(folder: Path) -> dict[str, bytes]:
    """Those of a run folder."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return as_published({name: (folder / name).read_bytes() for name in names})


def made_again(settings: Settings) -> tuple[int, int]:
    """How many shards were made more often than once, in all; and how many of them were finished more often."""
    shards = {(name, process) for name, process in settings.made() if "train-" in name and name.endswith(".parquet")}
    marks = {(name, process) for name, process in settings.made() if "/sidecars/" in name}
    return tuple(
        sum(Counter(name for name, _ in found).values()) - len({n for n, _ in found}) for found in (shards, marks)
    )


def round_of(kind: str, alone: dict[str, bytes], *, kills: int, fails: float = 0.03) -> dict[str, int]:
    """Two jobs in a new store, and what is counted of them."""
    with tempfile.TemporaryDirectory(prefix="hfsyn-store-") as name:
        folder = Path(name)
        settings = Settings(str(folder / "store"), fails=fails, late=0.5).bucket().use()
        processes, killed = kill_and_restart(f"{kind}://bucket/run", folder, kills=kills)
        there = as_published(settings.files())
        different = [name for name in there.keys() | alone.keys() if there.get(name) != alone.get(name)]
        assert not different, f"not as on the disk: {different}"
        again, finished = made_again(settings)
        if kind == "exact":
            assert again <= killed, f"{again} shards were made again, and {killed} processes were killed"
        counted = {"processes": processes, "killed": killed, "shards made again": again}
        return {**counted, "shards finished again": finished}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kind", choices=["exact", "plain"], nargs="*", default=["exact", "plain"])
    asked = parser.parse_args(words)
    hasten()
    with tempfile.TemporaryDirectory(prefix="hfsyn-disk-") as name:
        alone = on_disk(finished_run(Path(name), *SMALL))
    for kind in asked.kind:
        for number in range(asked.rounds):
            begun = time.monotonic()
            counted = round_of(kind, alone, kills=asked.kills)
            said = ", ".join(f"{count} {what}" for what, count in counted.items())
            print(f"{kind} {number + 1}: the same bytes; {said}; {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
