"""Captions of an earlier run: taken as soon as all of them are there."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import run_folder
from fakes import FakeCaptioner

from builders.errors import DataError
from hfsyn.captions.caption_stage import caption


def captions_of(folder: Path) -> list[str]:
    files = sorted((folder / "captions").glob("*.parquet"))
    return [text for file in files for text in pq.read_table(file, columns=["caption"])["caption"].to_pylist()]


def test_captions_of_a_run_that_has_no_images_yet_are_taken(tmp_path: Path) -> None:
    first = run_folder(tmp_path, name="first")
    caption(first, captioner=FakeCaptioner(), quiet=True, shards="0:1")
    second = run_folder(tmp_path, "generate.steps=7", name="second")
    with pytest.raises(DataError, match="Is it finished"):
        caption(second, quiet=True, captions=str(first))
    caption(first, captioner=FakeCaptioner(), quiet=True)
    assert not (first / "manifest.json").exists()
    caption(second, quiet=True, captions=str(first))
    assert captions_of(second) == captions_of(first)
    assert len(captions_of(second)) == 30
