"""Processes that wait for others who never come: said after a while, and given up."""

from __future__ import annotations

import os
import threading

import pytest

from hfsyn import workers
from hfsyn.errors import ExitCode


def test_others_who_never_come_are_said_and_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    gone = threading.Event()
    monkeypatch.setattr(workers, "leave_at_once", lambda code: (left.append(code), gone.set()))
    monkeypatch.setattr(workers, "PATIENCE", 0.01)
    monkeypatch.setattr(workers, "LIMIT_HERE", 0.02)
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with workers.waiting_for_others(3):
        assert gone.wait(30)
    said = capsys.readouterr().err.splitlines()
    assert left == [ExitCode.PREFLIGHT]
    assert said[0].startswith("hfsyn: Waiting for the other 2 processes at MASTER_ADDR=127.0.0.1 MASTER_PORT=29500")
    assert "unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT." in said[0]
    assert said[1].startswith("Error: After 0 s they have not come.")


def test_who_meets_in_time_hears_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 30.0)
    with workers.waiting_for_others(2):
        pass
    assert capsys.readouterr().err == ""


def test_accelerate_is_not_told_of_processes_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"OMPI_COMM_WORLD_SIZE": "4", "LOCAL_RANK": "3"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with workers.alone():
        assert not variables.keys() & os.environ.keys()
    assert {name: os.environ[name] for name in variables} == variables
