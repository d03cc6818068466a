"""A launcher's variables that outlived it: one line with their names, at once, and nobody is waited for."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from command import command, with_fakes
from conftest import run_folder

import hfsyn.images.generate_stage

AGENT = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, "unset RANK WORLD_SIZE."),
        ({"RANK": "0", "WORLD_SIZE": "8"}, "unset RANK WORLD_SIZE."),
        ({"WORLD_SIZE": "4"}, "unset WORLD_SIZE."),
        ({"RANK": "3"}, "unset RANK."),
        ({"RANK": "eight", "WORLD_SIZE": "8"}, "RANK='eight' is not a number."),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE='' is not a number."),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1' is not a number."),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK='x' is not a number."),
        ({"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1"}, "unset RANK WORLD_SIZE MASTER_ADDR."),
        ({"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "http"}, "MASTER_PORT='http'"),
        (
            {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "FREE"}
            | AGENT,
            "unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT TORCHELASTIC_USE_AGENT_STORE.",
        ),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_variables_of_another_job_are_named_and_nothing_is_begun(
    variables: dict[str, str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_fakes(monkeypatch)
    monkeypatch.setattr(
        hfsyn.images.generate_stage, "pick_device", lambda device: "cpu"
    )  # where they would be waited for
    for name, value in variables.items():
        monkeypatch.setenv(name, free_port() if value == "FREE" else value)
    said = command(capsys, "build", "shapes-basic", "--limit", "1", "-q", "--out", str(tmp_path / "run"))
    assert (said.code, said.err.count("\n")) == (3, 1), said
    assert named in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "17"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "PMI_SIZE": "4", "PMI_RANK": "2"},
        {"MASTER_ADDR": "gone", "MASTER_PORT": "29500"},
    ],
    ids=lambda value: " ".join(value),
)
def test_variables_that_do_not_make_this_one_of_several_are_no_matter(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_fakes(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = run_folder(tmp_path, "source.limit_per_class=1", recipe="shapes-basic")
    words = ("build", str(run / "recipe.yaml"), "-q", "--num-processes", "1", "--out", str(run))
    assert command(capsys, *words).code == 0
