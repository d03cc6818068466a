"""What comes back is of use in a notebook: rows, pictures and tables, in which nothing of a stranger's is HTML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import finished_run, run_folder
from PIL import Image

from hfsyn import HfsynError, diff, status, verify
from hfsyn.judging.measures.evaluate import Evaluation
from hfsyn.judging.measures.metrics import wilson
from hfsyn.outlook.forecast import forecast
from hfsyn.pages.html import Html, table
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.run import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("notebook"))


def test_a_run_gives_its_rows_as_a_dataset_and_some_with_images(run: Path) -> None:
    rows = load_run(run).dataset()
    assert len(rows) == 30
    some = load_run(run).samples(12)
    assert len({row["wnid"] for row in some}) == 10
    assert len({row["sample_id"] for row in some}) == 12
    by_id = {row["sample_id"]: row for row in rows}
    for row in some[:2]:
        assert isinstance(row["image"], Image.Image)
        assert np.array_equal(np.asarray(row["image"]), np.asarray(by_id[row["sample_id"]]["image"]))


def test_a_dataset_is_that_of_the_run_that_lies_there_now(tmp_path: Path) -> None:
    first = load_run(finished_run(tmp_path)).dataset()["seed"]
    (tmp_path / "run").rename(tmp_path / "old")
    assert load_run(finished_run(tmp_path, "seed=5")).dataset()["seed"] != first


def test_a_run_without_images_says_so(tmp_path: Path) -> None:
    empty = load_run(run_folder(tmp_path))
    with pytest.raises(HfsynError, match="no finished shard"):
        empty.dataset()
    assert empty.samples() == []
    assert "no finished shard yet" in empty._repr_html_()


def test_results_are_tables(run: Path) -> None:
    assert load_run(run)._repr_html_().count("<img ") == 10
    shown = forecast(load_recipe("shapes-cip", ["source.limit_per_class=2"]))._repr_html_()
    assert "<td" in shown
    assert "20 real images of 10 classes" in shown
    assert "finished" in status(run)._repr_html_()
    assert "verified" in verify(str(run))._repr_html_()
    assert "the same" in diff(str(run), str(run))._repr_html_()


def test_a_table_escapes_whatever_is_not_our_own_html() -> None:
    found = table([{"<b>": "<i>", "list": ["a", "<u>"], "own": Html("<br>")}, {"list": None}], "<title>")
    assert not {"<b><", "<i>", "<u>", "<title>"} & {part for part in ("<b><", "<i>", "<u>", "<title>") if part in found}
    assert "<br>" in found
    assert "–" in found


def test_an_evaluation_is_a_table_of_what_was_measured() -> None:
    top1, none = wilson(90, 100), {"value": None, "low": None, "high": None}
    metrics = {"top1": top1, "top5": none, "ece": wilson(5, 100), "masked": None}
    about = {"model": {"name": "net"}, "dataset": {"reference": "<shapes>", "split": "test"}, "n": 100, "real": None}
    shown = Evaluation(**about, metrics=metrics)._repr_html_()
    assert "90.0 % [82.6, 94.5]" in shown
    assert "&lt;shapes&gt;" in shown
