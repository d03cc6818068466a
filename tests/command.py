"""A command of hfsyn carried out in this process: no seconds for starting another one."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from fakes import FakeCaptioner, FakeGenerator

import hfsyn.captions.caption_stage
import hfsyn.images.generate_stage
from hfsyn.cli import main


class Said(NamedTuple):
    """How a command ended."""

    code: int | str
    """Its exit code; of what would have been a traceback, the error's name and text."""
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], *words: object) -> Said:
    """Run ``hfsyn WORDS``."""
    capsys.readouterr()
    code: int | str = "returned"
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except Exception as error:
        code = f"{type(error).__name__}: {error}"[:200]
    out, err = capsys.readouterr()
    return Said(code, out, err)


def with_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put fakes in place of the models of every command."""
    texts_of = hfsyn.captions.caption_stage.texts_of

    def faked(run: Any, **options: Any) -> Any:
        return texts_of(run, **{**options, "captioner": FakeCaptioner()})

    monkeypatch.setattr(hfsyn.captions.caption_stage, "texts_of", faked)
    monkeypatch.setattr(hfsyn.images.generate_stage, "DiffusersGenerator", lambda *_, **__: FakeGenerator())
