"""The demo in small: two real runs, three real trainings, the page and results.json; and its command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from hfsyn import showcase
from hfsyn.cli import cli


def test_the_demo_ends_with_a_page_a_picture_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One variant, one seed and one image a class: everything but the numbers' meaning."""
    monkeypatch.setattr(showcase, "LIMITS", {"shapes": 50})
    page = showcase.demo(tmp_path / "demo", limit=1, seeds=[3], num_processes=1, device="cpu", quiet=True)
    text = page.read_text(encoding="utf-8")
    found = json.loads((page.parent / "results.json").read_text())
    assert set(found) == {"shapes", "settings"}
    assert set(found["shapes"]) == {"real", "basic", "cip"}
    for arm, numbers in found["shapes"].items():
        assert len(numbers["seeds"]) == 1
        assert numbers["mean"] == numbers["seeds"][0]
        assert f"{100 * numbers['mean']:.1f}" in text, arm
    assert found["settings"]["n_test"] == {"shapes": 2000}
    assert found["settings"]["images_an_arm"] == {"shapes": 10}
    recipe = (page.parent / "shapes" / "runs" / "cip-3" / "recipe.yaml").read_text()
    assert "seed: 3\n" in recipe  # the generation's seed goes with the classifier's
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
