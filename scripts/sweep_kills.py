"""Kill a command at every one of its file operations, give it again, and compare with a run that nothing disturbed.

    python scripts/sweep_kills.py                             all commands, every operation
    python scripts/sweep_kills.py build finish --every 5      every fifth of two
    python scripts/sweep_kills.py --only build:37             one point alone, with what it leaves

An operation is an opening for writing, a renaming, a removal, a folder made or removed, a flush to the disk, a lock, or
a file that a library writes natively; a point lies before each of them, and after those that take their time. The
process gets SIGKILL there. Then the same command runs to its end, and its folders must hold what an undisturbed run
leaves: the same files with the same bytes (times that were measured aside), and nothing else.

Publications are killed at each request as well; `sweep_publishing.py` says what must hold then.

Everything is imported once, and each process is a fork. Captions and images come from fakes, which need no time; the
classifier that is trained is a real one, tiny. Exit code 1 where a point ends in something else.
"""

from __future__ import annotations

import argparse
import builtins
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep_publishing import PUBLISHING, Place, PublishSweep, Reader

SMALL = (
    "--set",
    "store.shard_rows=4",
    "--set",
    "generate.batch_size=2",
    "--set",
    "generate.steps=1",
    "--num-processes",
    "1",
)
BUILD = ("build", "shapes-cip", "--limit", "1", *SMALL, "--quiet", "--out", "run")
TRAIN = (
    "train",
    "--train-dataset",
    "source/data",
    "--eval-dataset",
    "source/data",
    "--model",
    "test_resnet",
    "--image-size",
    "32",
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--checkpoint-steps",
    "1",
    "--device",
    "cpu",
    "--num-processes",
    "1",
    "--num-workers",
    "0",
    "--quiet",
    "--out",
    "out",
)
LOOP = ("loop", "loop.yaml", "--num-processes", "1", "--device", "cpu", "--quiet", "--out", "out")
LOOP_FILE = """\
recipe: shapes-basic
factors: shapes
train:
  model: {name: test_resnet, image_size: 32, channels_last: false}
  optimise: {epochs: 1, batch_size: 4, warmup_epochs: 0}
policy: [uncertain, not-learned-early]
images: 10
rounds: 1
candidates: 2
steer: {dataset: shapes, split: test, limit: 1}
test: {dataset: shapes, split: "train[held 5%]", limit: 1}
"""
COMMANDS: dict[str, tuple[Sequence[str], ...]] = {
    "build": (BUILD,),
    "overwrite": ((*BUILD, "--set", "seed=1"), (*BUILD, "--overwrite")),
    "finish": (BUILD, ("finish", "run", "--quiet")),
    "export-real": (BUILD, ("export-real", "run", "--quiet", "--out", "out")),
    "train": (BUILD, TRAIN),
    "loop": (LOOP,),
}
"""What makes the state before, and last the command that is killed."""
SECONDS = 120
"""After which a process counts as stuck."""
MEASURED = frozenset({"seconds", "cpu_seconds", "images_per_second", "history", "tally"})
"""Keys of JSON files that hold times and restarts, which no two runs share."""


@dataclass(frozen=True)
class Operation:
    """One file operation of a command."""

    name: str
    path: str
    """Below the folder that the command works in."""

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


class Watch:
    """Counts the file operations below a folder, and ends the process at one of them."""

    def __init__(self, root: Path, deadly: int | None) -> None:
        self.root, self.deadly = f"{root}/", deadly
        self.seen: list[Operation] = []
        self._lock = threading.Lock()
        self._inside = threading.local()

    def meet(self, name: str, place: Any) -> None:
        path = self._below(place)
        if path is None or getattr(self._inside, "native", False):
            return
        with self._lock:
            self.seen.append(Operation(name, path))
            if self.deadly == len(self.seen):
                os.kill(os.getpid(), signal.SIGKILL)

    def _below(self, place: Any) -> str | None:
        try:
            if isinstance(place, int):
                place = Path(f"/proc/self/fd/{place}").readlink()
            path = str(Path(os.fsdecode(place)).absolute())
        except (OSError, TypeError, ValueError):
            return None
        return path.removeprefix(self.root) if path.startswith(self.root) else None

    def start(self) -> None:
        """From now on; nothing takes it back."""
        sys.addaudithook(self._hear)
        builtins.open = io.open = self._after_opening(io.open)  # type: ignore[assignment]
        os.open = self._after_opening(os.open)  # type: ignore[assignment]
        os.fsync = self._around("fsync", os.fsync)
        import accelerate.utils.other
        import pyarrow.parquet
        import safetensors.torch
        import torch

        pyarrow.parquet.write_table = self._around("write", pyarrow.parquet.write_table, 1)
        save = self._around("write", safetensors.torch.save_file, 1)
        safetensors.torch.save_file = accelerate.utils.other.safe_save_file = save
        torch.save = self._around("write", torch.save, 1)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if _writes(mode, flags):
                self.meet("open", path)
        elif event in ("os.rename", "os.link", "os.symlink"):
            self.meet(event[3:], arguments[1])
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            path, folder = arguments[0], arguments[-1]
            if isinstance(folder, int) and folder >= 0 and isinstance(path, str | bytes) and event != "os.truncate":
                path = Path(f"/proc/self/fd/{folder}").readlink() / os.fsdecode(path)  # as rmtree removes
            self.meet(event[3:], path)
        elif event in ("fcntl.flock", "fcntl.lockf"):
            self.meet("lock", arguments[0])

    def _after_opening(self, opening: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, *rest: Any, **options: Any) -> Any:
            found = opening(file, *rest, **options)
            mode = options.get("mode", rest[0] if rest else "r")
            if _writes(mode if isinstance(mode, str) else None, mode if isinstance(mode, int) else 0):
                self.meet("opened", file)
            return found

        return opened

    def _around(self, name: str, function: Callable[..., Any], at: int = 0) -> Callable[..., Any]:
        """A point before and after; what Python opens in between is part of it."""

        def called(*arguments: Any, **options: Any) -> Any:
            place = arguments[at] if len(arguments) > at else next(iter(options.values()), None)
            place = place if isinstance(place, int | str | os.PathLike) else getattr(place, "name", None)
            self.meet(name, place)
            self._inside.native = True
            try:
                return function(*arguments, **options)
            finally:
                self._inside.native = False
                self.meet(f"{name} done", place)

        return called


def _writes(mode: str | None, flags: int) -> bool:
    if isinstance(mode, str):
        return any(sign in mode for sign in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


class Captioner:
    """Says what no model needs to be loaded for."""

    def caption(self, images: Sequence[Any]) -> list[str]:
        return [f"a picture of {image.width} by {image.height}" for image in images]


class Generator:
    """Images that follow from prompt and seed."""

    max_tokens = 77

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        return [len(prompt.split()) + 2 for prompt in prompts]

    def start(self, prompts: Sequence[str], seeds: Sequence[int], size: int, **_: Any) -> Callable[[], list[Any]]:
        import numpy as np

        from hfsyn.images.generator import Generated

        made = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            key = int.from_bytes(hashlib.sha256(f"{prompt}|{seed}".encode()).digest()[:8], "big")
            made.append(Generated(np.random.default_rng(key).integers(0, 256, (8, 8, 3), dtype=np.uint8), None))
        return lambda: made


def prepare_process() -> None:
    """Import what the commands need, and put the fakes in place. Nothing here starts a thread."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
        CUDA_VISIBLE_DEVICES="",
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    )
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import timm  # noqa: F401
    import torch

    import hfsyn.building
    import hfsyn.captions.caption_stage
    import hfsyn.cli
    import hfsyn.exporting
    import hfsyn.images.generate_stage
    import hfsyn.judging.train.loop
    import hfsyn.runs.finish

    torch.set_num_threads(1)
    texts_of = hfsyn.captions.caption_stage.texts_of
    hfsyn.captions.caption_stage.texts_of = lambda run, **more: texts_of(run, **{**more, "captioner": Captioner()})
    hfsyn.images.generate_stage.DiffusersGenerator = lambda *_, **__: Generator()  # type: ignore[assignment, misc]
    hfsyn.images.generate_stage.pick_device = lambda device: "cpu"


def forked(
    arguments: Sequence[str], folder: Path, report: Path, deadly: int | None = None, *, watched: bool = True
) -> int:
    """Run a command in `folder` in a process of its own; its exit code, negative for a signal.

    The operations go to `report`, one a line, if it comes to its end; what it says goes to ``report.said``.
    """
    pid = os.fork()
    if pid == 0:
        _live(arguments, folder, report, deadly if watched else 0)
    ending = time.monotonic() + SECONDS
    while True:
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > ending:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -1000
        time.sleep(0.005)


def _live(arguments: Sequence[str], folder: Path, report: Path, deadly: int | None) -> None:
    """The child's life: `deadly` None only counts, 0 does not even that."""
    import datasets

    from hfsyn.cli import main

    code = 1
    try:
        said = os.open(f"{report}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(folder)
        home = folder.parent / "home"
        os.environ["HOME"] = str(home)
        datasets.config.HF_DATASETS_CACHE = home / "datasets"
        watch = Watch(folder, deadly)
        if deadly != 0:
            watch.start()
        try:
            main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        if deadly is None:
            report.write_text("".join(f"{operation}\n" for operation in list(watch.seen)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def picture(folder: Path) -> dict[str, str]:
    """Every file and folder with the hash of what it holds, measured times aside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[f"{name}/"] = ""
        elif "/.locks/" in name or ("/checkpoints/" in name and path.suffix != ".safetensors"):
            found[name] = ""  # who worked there last; pickles, in which equal states have different bytes
        elif path.name == "hours.json":
            found[name] = ""
        elif path.suffix == ".json":
            found[name] = hashlib.sha256(json.dumps(_lasting(json.loads(path.read_text()))).encode()).hexdigest()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in MEASURED}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """What is not as in an undisturbed run, in words."""
    return [
        *(f"left over: {name}" for name in found if name not in wanted),
        *(f"missing: {name}" for name in wanted if name not in found),
        *(f"other bytes: {name}" for name in wanted if name in found and found[name] != wanted[name]),
    ]


class Sweep:
    """One command: its state before, its operations, and what an undisturbed run leaves."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder / name
        *before, self.command = COMMANDS[name]
        self._before = self._folder / "before"
        (self._before / "work").mkdir(parents=True)
        for arguments in before:
            self._must(forked(arguments, self._before / "work", self._folder / "setup", watched=False), "setup")
        if name == "loop":
            (self._before / "work" / "loop.yaml").write_text(LOOP_FILE)
        if name == "finish":
            (self._before / "work" / "run" / "manifest.json").unlink()
        if name == "train":
            (self._before / "work" / "run").rename(self._before / "work" / "source")
        report = self._folder / "operations"
        self._must(forked(self.command, self._room(), report), "operations")
        self.operations = report.read_text().splitlines()
        self.wanted = picture(self._folder / "room" / "work")
        self._must(forked(self.command, self._room(), report, watched=False), "again")
        if other := differences(picture(self._folder / "room" / "work"), self.wanted):
            raise SystemExit(f"Two undisturbed runs of {name} differ: {other}")

    def _must(self, code: int, what: str) -> None:
        if code:
            said = "".join(path.read_text() for path in self._folder.glob("*.said"))
            raise SystemExit(f"{self.name}, {what}: exit code {code}\n{said}")

    def _room(self) -> Path:
        """A fresh copy of the state before."""
        room = self._folder / "room"
        shutil.rmtree(room, ignore_errors=True)
        shutil.copytree(self._before, room)
        return room / "work"

    def point(self, number: int) -> list[str]:
        """Kill at an operation (from 1), run again; what is not as it should be."""
        work, report = self._room(), self._folder / "killed"
        code = forked(self.command, work, report, number)
        if code != -signal.SIGKILL:
            return [f"was to be killed, and ended with {code}"]
        left = [path.relative_to(work).as_posix() for path in sorted(work.rglob("*"))]
        code = forked(self.command, work, self._folder / "second", watched=False)
        found = differences(picture(work), self.wanted)
        if code:
            said = Path(f"{self._folder / 'second'}.said").read_text().strip().splitlines()
            found.insert(0, f"the same command again ends with {code}: {said[-1] if said else ''}")
        if found and len(left) < 40:
            found.append(f"the kill left: {', '.join(left)}")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*COMMANDS, *PUBLISHING)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"Of {', '.join(known)}. Default: all.")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="Only every N-th point.")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="K", help="Begin with point K.")
    parser.add_argument("--only", metavar="COMMAND:POINT", help="One point alone.")
    parser.add_argument("--list", action="store_true", help="Name the points, and kill nothing.")
    given = parser.parse_args()
    names = [given.only.partition(":")[0]] if given.only else given.commands or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{unknown[0]} is not one of {', '.join(known)}")
    names.sort(key=PUBLISHING.__contains__)  # they start threads, after which nothing should be forked from here
    if names[0] in COMMANDS:
        prepare_process()
    bad = total = 0
    hub: Place | None = None
    with tempfile.TemporaryDirectory(prefix="sweep-") as temporary:
        for name in names:
            began, place = time.monotonic(), Path(temporary)
            if name in PUBLISHING and hub is None:
                hub = Place(place / "publishing")
                reader = Reader(hub.hub, hub.room / "runs", place)
            sweep = Sweep(name, place) if hub is None else PublishSweep(name, hub)
            points = range(given.first, len(sweep.operations) + 1, given.every)
            if given.only:
                points = range(int(given.only.partition(":")[2]), int(given.only.partition(":")[2]) + 1)
            wrong = 0
            for number in points:
                if given.list:
                    print(f"{name}:{number}  {sweep.operations[number - 1]}")
                    continue
                total += 1
                if found := sweep.point(number):
                    wrong += 1
                    print(f"{name}:{number}  {sweep.operations[number - 1]}")
                    print("".join(f"    {line}\n" for line in found[:8]), end="", flush=True)
            bad += wrong
            took = time.monotonic() - began
            print(f"{name:12} {len(points):4} of {len(sweep.operations)} points, {wrong} bad, {took:.0f} s", flush=True)
        if hub is not None:
            read = reader.close()
            bad += read["neither"] + (not given.list and not (read["first"] and read["second"]))
            print(f"a reader that streamed main meanwhile got: {dict(read)}", flush=True)
            hub.close()
    print(f"{total} points, {bad} bad")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
