"""The demo in small: two real runs, three real trainings, the page and results.json; and its command."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from hfsyn import showcase
from hfsyn.cli import cli


def test_the_demo_ends_with_a_page_a_picture_and_results(tmp_path: Path) -> None:
    """One seed and one image per class: everything but the numbers' meaning."""
    page = showcase.demo(tmp_path / "demo", limit=1, seeds=[3], num_processes=1, device="cpu", quiet=True)
    text = page.read_text(encoding="utf-8")
    found = json.loads((page.parent / "results.json").read_text())
    assert set(found) == {"tests", "settings"}
    assert text.count("told beforehand: ") == 2  # captions, and captions across classes
    assert {test["dataset"] for test in found["tests"].values()} == {"shapes-context", "shapes"}
    for name, test in found["tests"].items():
        assert (test["n"], test["chance"]) == (2000, 0.1)
        assert set(test["arms"]) == {"real", "class names", "captions", "captions across classes"}
        for arm, numbers in test["arms"].items():
            assert len(numbers["seeds"]) == 1
            assert numbers["mean"] == numbers["seeds"][0]
            assert f"{100 * numbers['mean']:.1f}" in text, (name, arm)
        means = {arm: numbers["mean"] for arm, numbers in test["arms"].items()}
        difference = test["differences"]["captions - class names"]
        assert difference["mean"] == pytest.approx(means["captions"] - means["class names"])
    assert found["settings"]["images_per_arm"] == 10
    runs = page.parent / "runs"
    recipes = {arm: (runs / f"{arm}-3" / "recipe.yaml").read_text() for arm in ("captions", "captions-across-classes")}
    assert all("seed: 3\n" in recipe for recipe in recipes.values())  # generation and classifier have one seed
    across, own = (pq.read_table(runs / f"{arm}-3" / "data") for arm in reversed(recipes))
    whose = dict(zip(own["source_id"].to_pylist(), own["caption"].to_pylist(), strict=True))
    for row in across.drop_columns(["image"]).to_pylist():
        told = whose[row["caption_source_id"]]  # captions are made once
        assert row["caption"].split()[-3:] == told.split()[-3:]
    with Image.open(page.parent / "preview" / "contact_sheet.png") as picture:
        assert picture.size[1] > 10 * 112
        assert len(picture.convert("RGB").getcolors(10**7)) > 500
    before = page.stat().st_mtime_ns, (page.parent / "results.json").read_bytes()
    again = showcase.demo(tmp_path / "demo", limit=1, seeds=[3], num_processes=1, device="cpu", quiet=True)
    assert again.stat().st_mtime_ns > before[0]
    assert (page.parent / "results.json").read_bytes() == before[1]


def test_the_command_prints_the_page_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fake(out: str, **options: object) -> Path:
        asked.update(options)
        return Path(out) / "report.html"

    monkeypatch.setattr(showcase, "demo", fake)
    done = CliRunner().invoke(cli, ["demo", "--out", "d", "--limit", "3", "--num-processes", "2", "-q"])
    assert done.stdout.splitlines()[-1] == "d/report.html"
    assert asked == {"limit": 3, "full": False, "num_processes": 2, "device": None, "overwrite": False, "quiet": True}
