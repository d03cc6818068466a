"""--overwrite: the old run is there whole or gone, whichever process is killed on the way; nobody's work is deleted
under their
hands; and what a process may still be writing is left alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import command, with_fakes
from conftest import ROOT, finished_run, parquet_bytes, run_folder
from fakes import FakeGenerator
from test_damaged_runs import contents

import hfsyn
import hfsyn.images.generate_stage
import hfsyn.runs.prepare

BASIC = ("source.limit_per_class=1", "store.shard_rows=8", "generate.batch_size=4")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("made"), "source.limit_per_class=1")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "here" / "run"))


def build(out: Path, **options: Any) -> None:
    hfsyn.build("shapes-basic", out, overrides=BASIC, num_processes=1, quiet=True, **options)


class KilledError(BaseException):
    """What stands for SIGKILL: nothing is tidied up after it."""


class Killer:
    """Ends what runs here at one of the moments at which it changes something on the disk, and lets nothing follow."""

    moment: int | None = None
    seen = 0
    installed = False
    EVENTS = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"})

    @classmethod
    def hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if cls.moment is None:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+")
        if event in cls.EVENTS or writes:
            cls.seen += 1
            if cls.seen > cls.moment:
                raise KilledError

    @classmethod
    @contextlib.contextmanager
    def at(cls, moment: int) -> Iterator[None]:
        if not cls.installed:
            sys.addaudithook(cls.hook)
            cls.installed = True
        cls.moment, cls.seen = moment, 0
        try:
            yield
        finally:
            cls.moment = None
            # The names that this process has given are those of a process that is gone.
            getattr(sys.modules.get("builders.files"), "_in_hand", set()).clear()


@pytest.mark.parametrize("place", ["folder", "link"])
def test_a_kill_inside_overwrite_leaves_the_old_run_whole_or_room_for_the_new_one(
    made: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fakes(monkeypatch)
    build(tmp_path / "alone")
    new, old = contents(tmp_path / "alone"), contents(made)
    wrong = {}
    for moment in range(1, 48, 4):
        home = tmp_path / f"{place}-{moment}"
        real = Path(shutil.copytree(made, home / "real"))
        out = real
        if place == "link":
            out = home / "link"
            out.symlink_to(real)
        with Killer.at(moment), contextlib.suppress(KilledError):
            build(out, overwrite=True)
        is_run = (out / "recipe.yaml").exists()
        left = {name for name in (contents(real) if real.exists() else {}) if not name.startswith(".")}
        parts = {"plan.parquet", "manifest.json", "rejected.jsonl"}
        if is_run and contents(real) != old and "name: shapes-basic" not in (out / "recipe.yaml").read_text():
            wrong[moment] = "the old run is there in part"
        if not is_run and place == "folder" and left & parts:
            wrong[moment] = f"parts of the old run without its recipe: {sorted(left)}"
        build(out, overwrite=is_run and contents(real) == old)
        if contents(real) != new:
            wrong[moment] = "the second build is not that of a new folder"
        if hidden := [path.name for path in [*home.iterdir(), *real.iterdir()] if ".old." in path.name]:
            wrong[moment] = f"litter: {hidden}"
    assert wrong == {}


def at_work(monkeypatch: pytest.MonkeyPatch, run: Path, **options: Any) -> tuple[threading.Thread, threading.Event]:
    """A build in a thread that waits at its first batch until the event is set."""
    begun, go_on = threading.Event(), threading.Event()

    class Waiting(FakeGenerator):
        def generate(self, *arguments: Any) -> Any:
            begun.set()
            assert go_on.wait(60)
            return super().generate(*arguments)

    monkeypatch.setattr(hfsyn.images.generate_stage, "DiffusersGenerator", lambda *_, **__: Waiting())
    thread = threading.Thread(target=build, args=(run,), kwargs=options)
    thread.start()
    assert begun.wait(60)
    monkeypatch.setattr(hfsyn.images.generate_stage, "DiffusersGenerator", lambda *_, **__: FakeGenerator())
    return thread, go_on


@pytest.mark.parametrize("overwrites", [True, False], ids=["after its own --overwrite", "at work"])
def test_overwrite_is_refused_while_somebody_works_there(
    run: Path, overwrites: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_fakes(monkeypatch)
    build(tmp_path / "alone")
    if not overwrites:
        shutil.rmtree(run)
    thread, go_on = at_work(monkeypatch, run, overwrite=overwrites)
    words = ("build", "shapes-cip", "--limit", "1", "--num-processes", "1", "-q", "--overwrite", "--out", str(run))
    said = command(capsys, *words)
    go_on.set()
    thread.join()
    assert (said.code, said.err.count("\n")) == (3, 1), said
    assert "is at work in" in said.err
    assert contents(run) == contents(tmp_path / "alone")
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_two_overwrites_at_once_end_in_one_clean_run_and_one_refusal(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fakes(monkeypatch)
    build(tmp_path / "alone")
    both = threading.Barrier(2)
    indexed = hfsyn.runs.prepare._indexed

    def together(*arguments: Any, **options: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(10)
        return indexed(*arguments, **options)

    monkeypatch.setattr(hfsyn.runs.prepare, "_indexed", together)
    ends: list[str] = []

    def overwrite() -> None:
        try:
            build(run, overwrite=True)
            ends.append("done")
        except Exception as error:
            ends.append(str(error))

    threads = [threading.Thread(target=overwrite) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("refused" if "Another process" in end or "at work" in end else end for end in ends) == [
        "done",
        "refused",
    ]
    assert contents(run) == contents(tmp_path / "alone")


def test_temporary_files_of_a_process_that_lives_are_left_and_those_of_a_dead_one_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a file system's locks do nothing, and `finish` comes while others still write."""
    with_fakes(monkeypatch)
    run = run_folder(tmp_path, *BASIC, recipe="shapes-basic")
    for stage in ("caption", "generate"):
        assert command(capsys, stage, str(run), "--num-processes", "1", "-q").code == 0
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = "node17.cluster.example"
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    files = {
        who: run / "data" / f".train-00000-of-00002.parquet.{where}.{pid}.0123abcd.tmp"
        for who, where, pid in (("alive", host, os.getppid()), ("gone", host, gone.pid), ("elsewhere", "other", 17))
    }
    for path in files.values():
        path.write_bytes(b"half")
    assert command(capsys, "finish", str(run)).code == 0
    assert {who: path.exists() for who, path in files.items()} == {"alive": True, "gone": False, "elsewhere": True}


@pytest.mark.slow
def test_where_locks_do_nothing_three_processes_make_the_bytes_of_one(tmp_path: Path) -> None:
    alone = run_folder(tmp_path, *BASIC, recipe="shapes-cip", name="alone")
    run = run_folder(tmp_path, *BASIC, recipe="shapes-cip")
    (tmp_path / "sitecustomize.py").write_text("import fcntl\nfcntl.flock = lambda handle, how: None\n")
    driver = ROOT / "tests" / "drive_fakes.py"
    more = f"{driver.read_text()}\n    from hfsyn.runs.finish import finish\n    finish(sys.argv[1])\n"
    (tmp_path / "drive.py").write_text(more)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'tests'}"}

    def start(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "drive.py"), str(folder)],
            env=environment,
            text=True,
            stderr=subprocess.PIPE,
        )

    ends = [(process.communicate()[1], process.returncode) for process in [start(run) for _ in range(3)]]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert start(alone).wait() == 0
    assert parquet_bytes(run) == parquet_bytes(alone)
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.slow
def test_the_processes_of_a_launcher_overwrite_once_and_work_together(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    words = (
        "build",
        "shapes-basic",
        "--limit",
        "2",
        "--set",
        "store.shard_rows=4",
        "--device",
        "cpu",
        "-q",
        "--overwrite",
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--main_process_port",
            "0",
            "-m",
            "hfsyn",
            *words,
            "--out",
            str(run),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert (done.returncode, done.stdout) == (0, f"{run}\n"), done.stderr
    alone = tmp_path / "alone"
    hfsyn.build("shapes-basic", alone, overrides=["source.limit_per_class=2", "store.shard_rows=4"], num_processes=1)
    assert parquet_bytes(run) == parquet_bytes(alone)
