"""Whatever the disk refuses is one line with exit code 3, what is finished is kept, and the same command continues."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from command import Said, command, with_fakes
from conftest import finished_run
from fakes import FakeGenerator
from test_damaged_runs import contents

import hfsyn.images.generate_stage

SMALL = ("--limit", "1", "--set", "store.shard_rows=8", "--set", "generate.batch_size=4", "--num-processes", "1", "-q")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("made"), "source.limit_per_class=1")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """The same run, of which nothing but recipe, index and captions is left."""
    return Path(
        shutil.copytree(
            made,
            tmp_path / "run",
            ignore=shutil.ignore_patterns("data", "preview", "rejected.jsonl", "README.md", "manifest.json", "plan.*"),
        )
    )


def one_line(said: Said, words: str) -> bool:
    return said.code == 3 and said.err.count("\n") == 1 and words in said.err and "Traceback" not in said.err


NUMBERS = (
    errno.EFBIG,
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENOENT,
)


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_a_refusal_of_the_disk_is_one_line_in_every_command_that_writes(
    run: Path,
    made: Path,
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_fakes(monkeypatch)
    monkeypatch.chdir(tmp_path)
    uncaptioned = Path(shutil.copytree(run, tmp_path / "uncaptioned", ignore=shutil.ignore_patterns("captions")))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "/mnt/file")

    commands = {
        "build": ("build", "shapes-cip", *SMALL, "--out", str(tmp_path / "new")),
        "caption": ("caption", str(uncaptioned), "--num-processes", "1", "-q"),
        "generate": ("generate", str(run), "--num-processes", "1", "-q"),
        "export-real": ("export-real", str(made), "-q", "--out", str(tmp_path / "real")),
    }
    before = contents(run)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        said = {name: command(capsys, *words) for name, words in commands.items()}
    assert {name: found for name, found in said.items() if not one_line(found, os.strerror(number))} == {}
    assert contents(run) == before
    assert command(capsys, "build", "shapes-cip", *SMALL, "--out", str(run)).code == 0
    assert contents(run) == contents(made)


def test_a_limit_on_the_size_of_files_is_one_line(
    run: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Met in pyarrow, which says it in its own words, in the thread that writes."""
    with_fakes(monkeypatch)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        said = command(capsys, "generate", str(run), "--num-processes", "1", "-q")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert one_line(said, os.strerror(errno.EFBIG)), said
    assert not list(run.rglob(".*.tmp"))
    assert command(capsys, "build", "shapes-cip", *SMALL, "--out", str(run)).code == 0
    assert contents(run) == contents(made)


def test_a_run_folder_that_is_removed_meanwhile_is_one_line_and_does_not_come_back_in_part(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_fakes(monkeypatch)

    class Removing(FakeGenerator):
        def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Any:
            shutil.rmtree(run, ignore_errors=True)
            return super().generate(prompts, seeds)

    monkeypatch.setattr(hfsyn.images.generate_stage, "DiffusersGenerator", lambda *_, **__: Removing())
    said = command(capsys, "generate", str(run), "--num-processes", "1", "-q")
    assert one_line(said, "No such file or directory"), said
    assert not run.exists()


def a_file(folder: Path) -> Path:
    path = folder / "file"
    path.write_text("mine")
    return path


@pytest.mark.parametrize(
    "words",
    [
        lambda folder: ("build", "shapes-cip", *SMALL, "--out", str(folder / ("n" * 300))),
        lambda folder: ("build", "shapes-cip", *SMALL, "--out", str(a_file(folder) / "run")),
        lambda folder: ("status", str(folder / ("n" * 300))),
        lambda folder: ("verify", str(folder / ("n" * 300))),
        lambda folder: ("recipes", "new", "n" * 300),
        lambda folder: ("demo", "--out", str(a_file(folder) / "demo"), "--num-processes", "1", "-q"),
        lambda folder: ("report", str(folder / ("n" * 300))),
    ],
    ids=["build-long", "build-file", "status", "verify", "recipes-new", "demo", "report"],
)
def test_a_place_that_cannot_be_is_one_line(
    words: Callable[[Path], tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = command(capsys, *words(tmp_path))
    assert (said.code in (2, 3), said.err.count("\n")) == (True, 1), said


def test_a_name_that_leaves_no_room_for_more_can_still_be_written(tmp_path: Path) -> None:
    from builders.files import atomic_text

    path = tmp_path / f"{'n' * 250}.json"
    with contextlib.suppress(OSError):
        atomic_text(path, "whole")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [(path.name, "whole")]


@pytest.mark.slow
def test_what_the_disk_refuses_a_worker_process_is_one_line_a_file_and_ends_the_command_with_its_code(
    tmp_path: Path,
) -> None:
    words = ("build", "shapes-basic", "--limit", "8", "--set", "store.shard_rows=40", "--device", "cpu", "-q")
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "hfsyn", *words, "--num-processes", "2", "--out", str(run)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY)),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 3, done
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()
    assert len(set(said)) == len(said) <= 3, said
    assert all("File too large" in line for line in said[:-1])
