"""A fixed part of scripts/check_exactness.py: no grey level and no text differs from the libraries' own."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import check_exactness

EVERY = {"schedulers": 48, "families": 13, "img2img": 60, "loras": 20, "captions": 19, "texts": 5}
"""One case of so many."""


@pytest.mark.parametrize("group", check_exactness.GROUPS)
def test_images_and_texts_are_those_of_the_libraries_in_one_setting_of_many(group: str) -> None:
    lines = check_exactness.check([group], every=EVERY[group], say=lambda line: None)
    assert [told for line in lines for told in line.differ] == []
    assert sum(line.cases - len(line.refused) for line in lines) >= 2


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import hfsyn.images.generator

    options = hfsyn.images.generator.call_options
    monkeypatch.setattr(hfsyn.images.generator, "call_options", lambda *given: {**options(*given), "eta": 1.0})
    (line,) = check_exactness.check(["schedulers"], "DDIMParallelScheduler", every=2, say=lambda line: None)
    assert line.differ
    assert line.most > 3


def test_a_caption_that_differs_and_a_case_that_fails_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfsyn.captions.captioner import TransformersCaptioner

    caption = TransformersCaptioner.caption
    monkeypatch.setattr(TransformersCaptioner, "caption", lambda self, images: caption(self, images[::-1]))
    (line,) = check_exactness.check(["captions"], "vit_gpt2", every=4, say=lambda line: None)
    assert line.most > 0

    def broken(*_: Any) -> None:
        raise KeyError("anything")

    monkeypatch.setattr(TransformersCaptioner, "caption", broken)
    (line,) = check_exactness.check(["captions"], "vit_gpt2", every=4, say=lambda line: None)
    assert "KeyError" in line.differ[0]
