"""The paper's matrix in miniature: every column of its table is filled, what fails is named, a killed one goes on."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from click.testing import CliRunner
from conftest import processes
from PIL import Image
from timm.models import save_for_hf

from builders.variants import get_variant
from builders.variants.real_labels import real_labels
from hfsyn.cli import cli
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.bench.matrix import CHOOSING, EXAMPLES

pytestmark = pytest.mark.timeout(900)  # twenty seconds where nobody else is at work

TINY = {
    "model": {"name": "test_resnet", "image_size": 16, "channels_last": False},
    "augment": {"scale": [0.8, 1.0], "color_jitter": 0.0},
    "optimise": {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "lr": 0.004, "warmup_epochs": 0},
}
NOT_AN_IMAGE = b"this is not an image"


def classes_of(variant: str) -> list[str]:
    """Four of its classes, of which ImageNet-R has two or more."""
    wnids = [info.wnid for info in get_variant(variant).classes]
    known = {info.wnid for info in get_variant("imagenet-r").classes}
    return sorted(wnids, key=lambda wnid: wnid not in known)[:4]


def draw(folder: Path, wnids: list[str], count: int, seed: int, *, readable: bool = True) -> None:
    """Class folders of coloured noise; those of ILSVRC under names that have ReaL labels."""
    rng = np.random.default_rng(seed)
    for number, wnid in enumerate(wnids):
        (folder / wnid).mkdir(parents=True, exist_ok=True)
        names = [f"{folder.parent.name}-{seed}-{k}" for k in range(count)]
        if folder.parent.name == "ILSVRC":
            names = [file for file, labels in real_labels().items() if wnid in labels][:count]
        for name in names:
            pixels = rng.normal(60 * number, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            if readable:
                Image.fromarray(pixels).save(folder / wnid / f"{Path(name).stem}.JPEG")
            else:
                (folder / wnid / f"{Path(name).stem}.JPEG").write_bytes(NOT_AN_IMAGE)


def miniature(folder: Path, *, variants: list[str], arms: list[str], seeds: list[int]) -> dict[str, Any]:
    """The paper's matrix with folders of noise for its sets, and a tiny network for its own."""
    matrix: dict[str, Any] = yaml.safe_load(EXAMPLES["paper"])
    every = sorted({wnid for variant in variants for wnid in classes_of(variant)})
    for variant in variants:
        draw(folder / "real" / variant / "train", classes_of(variant), 12, 1)
        draw(folder / "real" / variant / "val", classes_of(variant), 4, 2)
        for number, arm in enumerate(arms):
            draw(folder / "runs" / f"{variant}-{arm}" / "train", classes_of(variant), 12, 3 + number)
        for recipe in ("paper", "rsb-a3"):
            lr = 0.004 if recipe == "paper" else 1e-6  # of which nothing is learnt
            fields = {**TINY, "optimise": {**TINY["optimise"], "lr": lr}}
            (folder / f"{recipe}-{variant}.yaml").write_text(yaml.safe_dump(fields))
    sets = {name: name.replace(" ", "-") for name in matrix["tests"] if name != "val"} | {"ImageNet": "ILSVRC"}
    for number, name in enumerate(sets.values()):
        draw(folder / name / "val", every, 3, 20 + number)
    matrix["variants"], matrix["seeds"] = variants, seeds
    matrix["arms"] = {
        name: {"train": [str(folder / arm["train"][0]) if "runs/" in arm["train"][0] else f"{folder}/real/{{variant}}"]}
        for name, arm in matrix["arms"].items()
        if name == "real" or any(arm["train"][0].endswith(f"-{one}") for one in arms)
    }
    matrix["compare"] = [["basic", "real"]]
    matrix["recipes"] = [f"{folder}/paper-{{variant}}.yaml", f"{folder}/rsb-a3-{{variant}}.yaml"]
    matrix["tests"]["val"]["dataset"] = f"{folder}/real/{{variant}}"
    for name, place in sets.items():
        matrix["tests"][name]["dataset"] = str(folder / place)
        if "variants" in matrix["tests"][name]:
            matrix["tests"][name]["variants"] = [v for v in matrix["tests"][name]["variants"] if v in variants]
    real = f"{folder}/real/{{variant}}"
    matrix["membership"]["MIA"] |= {"members": real, "others": real}
    matrix["fidelity"]["CLIP"] |= {"real": real, "evaluation": real, "features": "random:test_resnet", "limit": 3}
    matrix["select_on"] |= {"dataset": real, "share": 0.3}
    published = folder / "published"
    save_for_hf(timm.create_model("test_resnet", num_classes=1000), str(published), safe_serialization=True)
    matrix["baselines"] = [f"local-dir:{published}"]
    return matrix


ARMS = ["basic", "cip-g3"]
MEASURES = {
    *("val", "ImageNet", "ImageNet ReaL", "V2 matched", "V2 threshold", "V2 top", "V2", "Sketch", "R", "A"),
    *(f"MIA: {name}" for name in ("balanced accuracy", "AUC", "TPR at 1 % FPR")),
    *(f"CLIP: {name}" for name in ("Fréchet distance", "precision", "recall", "density", "coverage")),
    *(f"CLIP: copies {name}" for name in ("within", "of real", "of test")),
}


def invoke(*words: str | Path) -> Any:
    return CliRunner().invoke(cli, [*map(str, words)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature with an arm that cannot be trained and a copy of a real image among those of another, after a kill,
    a run that goes on, and its page.
    """
    folder = tmp_path_factory.mktemp("paper")
    matrix = miniature(folder, variants=["imagenet-100"], arms=ARMS, seeds=[0, 1])
    (folder / "m.yaml").write_text(yaml.safe_dump(matrix, sort_keys=False))
    for image in (folder / "runs" / "imagenet-100-cip-g3").rglob("*.JPEG"):
        image.write_bytes(NOT_AN_IMAGE)
    real = min((folder / "real" / "imagenet-100" / "train").glob("*/*.JPEG"))  # among the first three of its class
    copied = folder / "runs" / "imagenet-100-basic" / "train" / real.parent.name
    shutil.copy(real, copied / "copied.JPEG")

    words = ["bench", folder / "m.yaml", "--out", folder / "out", "--num-processes", "1", "--device", "cpu", "-q"]
    started = processes().start(*words)
    first = folder / "out" / "cells" / "imagenet-100" / "real" / "test_resnet" / "recipe-paper-imagenet-100" / "seed-0"
    late = time.monotonic() + 120
    while not (first / "results.json").exists() and not processes().is_over(started) and time.monotonic() < late:
        time.sleep(0.02)
    os.kill(started, signal.SIGKILL)
    processes().wait(started)
    assert (first / "results.json").exists()
    assert not (folder / "out" / "results.csv").exists()
    (folder / "before.json").write_bytes((first / "results.json").read_bytes())

    done = invoke(*words)
    assert isinstance(done.exception, HfsynError)
    assert done.exception.code == ExitCode.PARTIAL
    assert (first / "results.json").read_bytes() == (folder / "before.json").read_bytes()  # it was not done again
    assert invoke("report", folder / "out").exit_code == 0
    return folder / "out"


def test_published_weights_are_tested_on_the_same_sets(whole: Path) -> None:
    (name,) = [arm for arm in table_of(whole) if arm.startswith("local-dir:")]
    cells = table_of(whole)[name]["cells"]
    tested = {name for name in MEASURES if ":" not in name}
    assert {name for name, cell in cells.items() if cell["mean"] is not None} == tested
    assert {cells[name]["note"] for name in MEASURES - tested} == {"not asked"}


def table_of(out: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((out / "summary.json").read_text())["table"]
    assert {column["name"] for column in found["columns"]} == MEASURES
    return {row["arm"]: row for row in found["rows"]}


def test_every_column_is_filled_and_has_its_interval_over_the_seeds(whole: Path) -> None:
    rows = table_of(whole)
    for name, cell in rows["basic"]["cells"].items():
        assert (cell["mean"] is not None, cell["note"]) == (True, None), name
        assert cell["n"] == (1 if name.startswith("CLIP") else 2), name  # one set for both seeds
        assert (cell["low"] is None) == name.startswith("CLIP"), name
    assert {cell["note"] for name, cell in rows["real"]["cells"].items() if name.startswith("CLIP")} == {
        "the real set itself"
    }
    parts = [rows["basic"]["cells"][name]["values"] for name in ("V2 matched", "V2 threshold", "V2 top")]
    assert rows["basic"]["cells"]["V2"]["values"] == pytest.approx(np.mean(parts, axis=0))


def test_a_copy_of_a_real_image_counts_in_the_column_of_copies(whole: Path) -> None:
    assert 0 < table_of(whole)["basic"]["cells"]["CLIP: copies of real"]["mean"] < 0.1


def test_an_arm_that_fails_has_its_reason_in_each_cell_of_the_table(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert {one["cell"].split("/")[1] for one in summary["failed"]} == {"cip-3"}
    assert len(summary["failed"]) == 4
    assert ["CLIP of cip 3" in one["cell"] for one in summary["failed_sets"]] == [True]
    lines = list(csv.DictReader((whole / "results.csv").open()))
    assert {line["arm"] for line in lines if line["status"] == "failed"} == {"cip 3"}
    notes = {name: cell["note"] for name, cell in table_of(whole)["cip 3"]["cells"].items()}
    assert all(note.startswith("failed: ") for note in notes.values())
    assert "can be decoded" in notes["V2"]
    assert "failed" in (whole / "table.tex").read_text()


def test_recipes_are_chosen_on_what_is_held_out_and_the_table_says_which_and_on_what(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    said = "paper-imagenet-100 (of 2, on imagenet-100 train[held 30%])"
    assert [said in text for text in summary["chosen"]] == [True, True]
    assert CHOOSING not in {row["test"] for row in summary["rows"]}
    assert {row["recipe"] for row in summary["rows"]} == {None}
    lines = [line for line in csv.DictReader((whole / "results.csv").open()) if line["test"] == CHOOSING]
    by_recipe = {
        recipe: np.mean([float(line["top1"]) for line in lines if recipe in line["recipe"] and line["arm"] == "basic"])
        for recipe in ("paper", "rsb")
    }
    assert by_recipe["paper"] > by_recipe["rsb"]


def test_what_is_held_out_is_never_trained_on(whole: Path) -> None:
    cells = whole / "cells" / "imagenet-100"
    held = json.loads(next((cells / "real").rglob("seed-0/results.json")).read_text())
    assert held["tests"][CHOOSING]["overlap"] == 0
    assert held["tests"][CHOOSING]["dataset"]["split"] == "train[held 30%]"
    trained = held["training"]["training"]["sets"][0]
    assert trained["images"] + held["tests"][CHOOSING]["n"] == 4 * 12


def test_the_tables_for_papers_have_timms_names_and_booktabs(whole: Path) -> None:
    lines = list(csv.DictReader((whole / "table.csv").open()))
    first = lines[0]
    assert list(first)[:9] == [
        *("model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct", "interpolation")
    ]
    assert float(first["top1"]) + float(first["top1_err"]) == pytest.approx(100)
    assert (first["model"], first["img_size"], first["param_count"]) == ("test_resnet", "16", "0.37")
    assert {line["test"] for line in lines} == {name for name in MEASURES if ":" not in name and "ReaL" not in name}
    tex = (whole / "table.tex").read_text()
    rows = [line for line in tex.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(MEASURES)}
    assert tex.count("{") == tex.count("}")
    assert "TPR at 1 \\% FPR" in tex
    assert "imagenet-100, test\\_resnet" in tex
