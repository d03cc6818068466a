"""A fixed part of scripts/fuzz_inputs.py: nothing that a person may write ends in a traceback."""

from __future__ import annotations

import math
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import fuzz_cases
import fuzz_inputs


@pytest.mark.parametrize("kind", fuzz_cases.KINDS)
def test_what_nobody_meant_to_write_is_taken_or_refused_in_a_line_that_says_where(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzz_inputs.fuzz(20, 8 if kind == "captions" else 25, kind) == 0, capsys.readouterr().out


def test_a_seed_makes_the_same_cases_again() -> None:
    sound = [name for name in fuzz_cases.KINDS if name != "command"]
    kept = dict.fromkeys(sound, 0)
    for kind in sound:
        for number in range(60):
            kept[kind] += fuzz_inputs.case_of(21, number, kind) == fuzz_inputs.case_of(21, number, kind)
    assert set(kept.values()) == {60}  # the same seed makes the same cases
    assert fuzz_inputs.infinite({"a": [1.0, (math.inf,)]})
    assert not fuzz_inputs.infinite({"a": [1.0, "inf"]})


def test_a_command_that_breaks_is_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("captions_file")

    monkeypatch.setattr("hfsyn.judging.bench.matrix.load_matrix", broken)
    assert fuzz_inputs.fuzz(20, 3, "matrix") == 3
    assert "traceback" in capsys.readouterr().out
