"""The README's tables of what was measured on GPUs: from kept figures, of true sizes only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import gpu_figures


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_figures, "KEPT", tmp_path / "kept")
    return tmp_path / "kept"


def run_of(**changes: Any) -> dict[str, Any]:
    arms = {
        "plain": {"images_per_second": 2.0, "share_of_ceiling": 0.2},
        "ours": {"images_per_second": 3.0, "share_of_ceiling": 0.3},
    }
    part = {
        "steps": 50,
        "arms": arms,
        "void": False,
        "ratios": {"ours / plain": {"ratio": 1.5, "low": 1.4, "high": 1.6}},
    }
    head = {"device": "cuda (A CARD)", "torch": "2.11", "date": "2026-11-28", "tiny": False, "captions": None}
    return {**head, "images": [part], **changes}


def kept_from(folder: Path, *runs: dict[str, Any]) -> None:
    for number, run in enumerate(runs):
        file = folder / f"{number}.json"
        file.write_text(json.dumps(run))
        gpu_figures.keep(file)


def cells(rows: Any) -> dict[str, str]:
    return {str(next(iter(row.values()))): str(list(row.values())[-1]) for row in rows}


def test_without_figures_every_cell_is_open() -> None:
    assert set(cells(gpu_figures.speed()).values()) == {"open"}
    assert set(cells(gpu_figures.memory()).values()) == {"open"}
    assert "measured" in gpu_figures.speed()[0]


def test_figures_stand_beside_the_name_of_their_card(tmp_path: Path) -> None:
    kept_from(tmp_path, run_of())
    assert list(gpu_figures.speed()[0])[-1] == "measured on one A CARD, torch 2.11, 2026-11-28"
    found = cells(gpu_figures.speed())
    assert found["images per second"] == "3.00 at 50 steps"
    assert found["over `pipe(prompts)` in the same batches, half precision"] == "1.50 x (1.40 to 1.60) at 50 steps"
    assert found["share of what a large matrix product reaches"] == "30.0 % at 50 steps"
    assert found["over the official code (one prompt per call)"] == "open"


def test_what_one_run_had_no_time_for_comes_from_the_next_on_the_same_card_alone(tmp_path: Path) -> None:
    more = run_of()["images"][0] | {"steps": 20, "psnr_db": 45.04}
    kept_from(tmp_path, run_of(), run_of(images=[more]))
    found = cells(gpu_figures.speed())
    assert found["images per second"] == "3.00 at 50 steps, 3.00 at 20 steps"
    assert found["PSNR of 16 images against float32"] == "45.0 dB at 20 steps"
    kept_from(tmp_path, run_of(device="cuda:0 (ANOTHER)", images=[more]))
    assert cells(gpu_figures.speed())["images per second"] == "3.00 at 20 steps"


def test_a_void_run_gives_no_ratio(tmp_path: Path) -> None:
    part = run_of()["images"][0] | {"void": True}
    kept_from(tmp_path, run_of(images=[part]))
    assert "void" in cells(gpu_figures.speed())["over `pipe(prompts)` in the same batches, half precision"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"images": [], "tiny": true, "device": "cpu"}', '{"models": [], "device": "cuda"}']
)
def test_other_files_and_figures_of_tiny_models_are_refused(tmp_path: Path, kept: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        gpu_figures.keep(file)
    assert not kept.exists()


def test_what_is_kept_in_the_project_was_measured_on_true_sizes() -> None:
    for file in (ROOT / "scripts" / "figures").glob("gpu_*.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        for run in found.get("runs", [found]):
            assert run["tiny"] is False
            assert "NVIDIA" in run["device"]
