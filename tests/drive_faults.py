"""Starts commands of hfsyn as processes of their own, with fakes in place of the models, and something happens to them.

Each line of the input is JSON. ``{"arguments": [...], "environment": {...}, "faults": {...}, "log": ..., "said": ...}``
forks a process that has imported everything already; the answer is its ``{"pid": ...}``. ``{"poll": pid}`` answers with
its exit code (negative: the signal), or null while it runs. The file `said` gets its error stream, `log` a
line for each shard that it writes. The faults are

- pause: seconds that each batch takes
- stuck_after, stuck_in: after that many shards `generate` or `write` does not come back from a call outside Python
- grace: seconds in place of `hfsyn.launching.GRACE`
- silence: seconds in place of `hfsyn.runs.claims.SILENCE`
- memory: images that fit into the memory at once
- clock: seconds by which the clock jumps forth and back at every look
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fakes import FakeCaptioner, FakeGenerator
from PIL import Image

import hfsyn.building
import hfsyn.captions.caption_stage
import hfsyn.images.generate_stage
import hfsyn.launching
import hfsyn.runs.claims
import hfsyn.runs.stage
from hfsyn.cli import main
from hfsyn.images.generator import Generated

FAULTS: dict[str, Any] = {}


def stuck() -> None:
    """Wait outside Python, which no signal handler of Python's interrupts."""
    ctypes.CDLL(None).system(b"exec sleep 20 > /dev/null 2>&1")


class Shards:
    """Shards that this process has written."""

    written = 0


class Captioner(FakeCaptioner):
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        time.sleep(FAULTS.get("pause", 0))
        return super().caption(images)


class Generator(FakeGenerator):
    def __init__(self) -> None:
        super().__init__(problem_of=nan_sometimes)

    def start(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> Callable[[], list[Generated]]:
        if size > FAULTS.get("memory", size):
            raise MemoryError(f"there is no memory for {size}")
        if FAULTS.get("stuck_in") == "generate" and Shards.written >= FAULTS["stuck_after"]:
            stuck()
        time.sleep(FAULTS.get("pause", 0))
        return super().start(prompts, seeds, size)


def nan_sometimes(prompt: str, seed: int) -> str | None:
    """NaN for some prompts always, for others at some seeds."""
    return "nan" if sum(prompt.encode()) % 13 == 0 or seed % 7 == 0 else None


write_shard = hfsyn.runs.stage.write_shard


def watched_write(path: Path, *rest: Any) -> Any:
    if FAULTS.get("stuck_in") == "write" and Shards.written >= FAULTS["stuck_after"]:
        stuck()
    with Path(FAULTS["log"]).open("a") as log:
        log.write(f"{path.parent.name}/{path.name}\n")
    Shards.written += 1
    return write_shard(path, *rest)


class Clock:
    """`time.time` as it is where clocks are set by hand."""

    def __init__(self) -> None:
        self._real, self._looks = time.time, 0

    def __call__(self) -> float:
        self._looks += 1
        return self._real() + (-1) ** self._looks * float(FAULTS["clock"])


def live(order: dict[str, Any]) -> None:
    """The child's life."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ.update(order["environment"])
    FAULTS.update(order["faults"], log=order["log"])
    hfsyn.launching.GRACE = FAULTS.get("grace", hfsyn.launching.GRACE)
    hfsyn.runs.claims.SILENCE = FAULTS.get("silence", hfsyn.runs.claims.SILENCE)
    if "clock" in FAULTS:
        time.time = Clock()
    code = 1
    try:
        main(order["arguments"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter that ends: wait for threads
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    texts_of = hfsyn.captions.caption_stage.texts_of
    hfsyn.captions.caption_stage.texts_of = lambda run, **options: texts_of(
        run, **{**options, "captioner": Captioner()}
    )
    hfsyn.images.generate_stage.DiffusersGenerator = lambda *_, **__: Generator()  # type: ignore[assignment, misc]
    hfsyn.images.generate_stage.pick_device = lambda device: "cpu"
    hfsyn.runs.stage.write_shard = watched_write
    answers = os.fdopen(os.dup(1), "w")
    orders = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for line in orders:
        asked = json.loads(line)
        if "poll" in asked:
            gone, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if gone else None}
        else:
            pid = os.fork()
            if pid == 0:
                live(asked)
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)
