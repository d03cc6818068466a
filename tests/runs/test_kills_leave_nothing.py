"""What a command leaves when it is killed while it writes: the same command again ends as if nothing had been."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, finished_run

from hfsyn.cli import main

GONE = 2**22 - 1
"""No process has this id: the highest that Linux gives is below it, and it is given last."""


def run(*arguments: str | Path) -> int:
    """Run a command here; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    return int(ended.value.code or 0)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(".*") if path.name != ".locks")


def begun(folder: Path, *names: str) -> None:
    """Temporary files as a process of this machine leaves them that was killed before it renamed them."""
    import socket

    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.{socket.gethostname()}.{GONE}.0123abcd.tmp").write_bytes(b"half")


def test_an_export_that_was_killed_leaves_nothing_when_it_is_given_again(tmp_path: Path) -> None:
    made = finished_run(tmp_path)
    assert run("export-real", made, "--out", tmp_path / "whole", "-q") == 0
    names = {path.name for path in (tmp_path / "whole" / "data").iterdir()}
    out = tmp_path / "out"
    assert run("export-real", made, "--out", out, "-q") == 0
    (out / "export.json").rename(out / ".export.json")
    first, second, *_ = sorted(names)
    (out / "data" / second).unlink()
    begun(out, f"data/{first}", f"data/{second}", "export.json", ".export.json")
    assert run("export-real", made, "--out", out, "-q") == 0
    assert leftovers(out) == []
    assert {p.name: p.read_bytes() for p in (out / "data").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole" / "data").iterdir()
    }


def test_an_export_that_was_killed_at_its_first_file_is_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = finished_run(tmp_path)
    begun(tmp_path / "out", ".export.json")
    code = run("export-real", made, "--out", tmp_path / "out", "-q")
    assert code == 0, capsys.readouterr().err
    assert leftovers(tmp_path / "out") == []


def test_a_training_that_was_killed_while_it_wrote_leaves_nothing_when_it_is_given_again(tmp_path: Path) -> None:
    made, out = finished_run(tmp_path), tmp_path / "out"
    begun(out, "model.safetensors", "model.json", "results.json", "config.yaml")
    half = out / "checkpoints" / ".step-00000001.tmp"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    command = (
        "train",
        "--train-dataset",
        made,
        "--model",
        "test_resnet",
        "--image-size",
        "32",
        "--epochs",
        "1",
        "--batch-size",
        "10",
        "--device",
        "cpu",
        "--num-processes",
        "1",
        "-q",
        "--out",
        out,
    )
    assert run(*command) == 0
    assert leftovers(out) == []
    begun(out, "results.json")  # and beside a training that is done
    assert run(*command) == 0
    assert leftovers(out) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_command_that_is_killed_at_some_of_its_file_operations_ends_as_if_undisturbed() -> None:
    commands = ["overwrite", "export-real"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "sweep_kills.py"), *commands, "--every", "97", "--from", "29"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
