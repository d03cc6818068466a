"""The run folder's names: what is ours, and what is somebody else's and must never be deleted."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import finished_run

from builders.runs import layout
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.prepare import prepare


def test_nothing_that_a_run_writes_is_strange(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    assert (folder / "preview" / "samples.png").exists()
    (folder / "data" / ".DS_Store").touch()
    (folder / "data" / ".train-00000-of-00004.parquet.host.1.tmp").touch()
    (folder / "sidecars" / "data" / ".train-00000-of-00004.json.host.1.tmp").touch()
    (folder / "captions" / "train-00000-of-00004.json").touch()  # where they were up to format 2
    assert layout.strangers(folder) == []


@pytest.mark.parametrize(
    "name",
    [
        "mine.txt",
        "data/holiday.jpg",
        "data/notes.json",
        "sidecars/mine.json",
        "sidecars/data/mine.json",
        "sidecars/captions/train-00000-of-00004.parquet",
        "sidecars/more/train-00000-of-00004.json",
        "data/more/x.parquet",
        "captions/mine.csv",
        "preview/mine.png",
        ".git/HEAD",
        "data/.dvc/config",
    ],
)
def test_a_file_of_somebody_elses_in_a_run_is_never_deleted(tmp_path: Path, name: str) -> None:
    folder = finished_run(tmp_path)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(HfsynError, match=r"which is not ours"):
        prepare(load_recipe("shapes-basic"), folder, overwrite=True)
    assert (folder / name).read_text() == "mine"
    assert [name.startswith(found) for found in layout.strangers(folder)] == [True]
