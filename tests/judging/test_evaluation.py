"""Testing a classifier: labels meet by wnid, nothing is counted twice or missed, every copy is the one it says."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from drawn_tables import NAMES, WNIDS, rows_of, write_table
from safetensors.torch import load_file

from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import (
    Classifier,
    Preprocessing,
    default_workers,
    open_classifier,
    save_classifier,
    start_accelerator,
)
from hfsyn.judging.measures.answers import Predictions, predict
from hfsyn.judging.measures.evaluate import check_counts, evaluate, measure, summary
from hfsyn.judging.sets.image_set import ImageSet, open_images, variant_of_repository
from hfsyn.judging.starting import new_classifier
from hfsyn.judging.train.loop import RunOptions, train
from hfsyn.recipes.training_recipe import load_train_config
from hfsyn.workers import pick_device


class Brightness(torch.nn.Module):
    """Known logits: the class whose number is nearest to ten times the mean pixel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        mean = pixels.mean((1, 2, 3))[:, None] * 10
        return -((mean - torch.arange(self.classes)) ** 2)


def fake(wnids: list[str]) -> Classifier:
    names = tuple(NAMES[WNIDS.index(w)] if w in WNIDS else w for w in wnids)
    return Classifier("fake", Brightness(len(wnids)), tuple(wnids), names, Preprocessing(8, (0, 0, 0), (1, 1, 1)))


def grey_rows(values: list[int]) -> list[tuple[str, bytes]]:
    """An image for each class number: all its pixels are a tenth of it, so that `Brightness` says that number."""
    import io

    from PIL import Image

    rows = []
    for value in values:
        buffer = io.BytesIO()
        grey = round(255 * value / 10)
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(buffer, "PNG")
        rows.append((NAMES[value], buffer.getvalue()))
    return rows


@pytest.fixture
def alone() -> Any:
    return start_accelerator("cpu")


def test_known_logits_give_known_numbers_whatever_the_order_of_the_labels(tmp_path: Path, alone: Any) -> None:
    rows = grey_rows(list(range(10)) * 2)
    straight = write_table(tmp_path / "a.parquet", rows)
    turned = write_table(tmp_path / "b.parquet", rows, names=NAMES[::-1])
    for table in (straight, turned):
        result = measure(fake(WNIDS), open_images(str(table)), alone)
        assert result["metrics"]["top1"]["value"] == 1.0
        assert result["n"] == 20
    # A classifier whose outputs are named the other way round is right about no class: 9 - i is never i.
    wrong = measure(fake(WNIDS[::-1]), open_images(str(straight)), alone)
    assert wrong["metrics"]["top1"]["value"] == 0.0
    assert wrong["metrics"]["per_class"][0]["wnid"] == WNIDS[-1]


def test_a_set_with_some_of_the_classes_gives_both_numbers(tmp_path: Path, alone: Any) -> None:
    # The images are of class 3 by label and look like class 2, which the set has not: the mask leaves 3 nearest.
    rows = [(NAMES[3], image) for _, image in grey_rows([2] * 6)] + grey_rows([8] * 6)
    result = measure(fake(WNIDS), open_images(str(write_table(tmp_path / "part.parquet", rows))), alone)
    assert result["metrics"]["top1"]["value"] == 0.5
    assert result["metrics"]["masked"]["top1"]["value"] == 1.0
    assert result["metrics"]["masked"]["classes"] == 2


def test_classes_that_the_classifier_does_not_know_are_refused_with_the_list(tmp_path: Path, alone: Any) -> None:
    table = write_table(tmp_path / "a.parquet", rows_of(10))
    with pytest.raises(HfsynError, match=f"1 of the 10 classes of .* among the 9 of fake: '{WNIDS[4]} {NAMES[4]}'"):
        measure(fake([w for w in WNIDS if w != WNIDS[4]]), open_images(str(table)), alone)


def test_undecodable_images_are_named_and_not_scored(tmp_path: Path, alone: Any) -> None:
    table = write_table(tmp_path / "a.parquet", grey_rows(list(range(10))), bad={2, 7})
    result = measure(fake(WNIDS), open_images(str(table), "validation"), alone, batch_size=3)
    assert result["n"] == 8
    assert result["metrics"]["top1"]["value"] == 1.0
    assert result["undecodable"] == {
        "count": 2,
        "reasons": {"not an image": 2},
        "first": ["validation/2", "validation/7"],
    }
    with pytest.raises(HfsynError, match="can be decoded"):
        measure(fake(WNIDS), open_images(str(write_table(tmp_path / "b.parquet", rows_of(2), bad={0, 1}))), alone)


def test_a_copy_with_another_number_of_images_is_refused(alone: Any) -> None:
    whole = open_images("shapes")
    check_counts(whole)
    check_counts(open_images("shapes", limit=2))
    short = dataclasses.replace(whole, wnids=whole.wnids[:-10], ids=whole.ids[:-10])
    with pytest.raises(HfsynError, match="has 1990 images, and 2000 are right"):
        check_counts(short)


def test_a_copy_of_a_set_for_tests_alone_must_be_whole_whatever_its_split_is_called(tmp_path: Path) -> None:
    known = get_variant("imagenet-r").classes
    rows = [(info.name, rows_of(1)[0][1]) for info in known[:199]]
    table = write_table(tmp_path / "r.parquet", rows, names=[info.name for info in known])
    for split in (None, "test"):
        part = open_images(f"imagenet-r={table}", split)
        with pytest.raises(HfsynError, match="has 199 of its 200 classes"):
            check_counts(part)
    check_counts(open_images(f"imagenet-r={table}", limit=1))
    whole = write_table(tmp_path / "w.parquet", [*rows, (known[199].name, rows[0][1])], names=[i.name for i in known])
    with pytest.raises(HfsynError, match="has 200 images, and 30000 are right"):
        check_counts(open_images(f"imagenet-r={whole}"))


def test_the_repositories_of_sets_for_tests_alone_are_known() -> None:
    assert variant_of_repository("axiong/imagenet-r") == "imagenet-r"
    assert variant_of_repository("frgfm/imagenette") is None
    assert variant_of_repository("vaishaal/ImageNetV2") is None  # three variants share it


def test_four_classes_have_no_top_5_and_are_summed_up_without_it(tmp_path: Path, alone: Any) -> None:
    table = write_table(tmp_path / "a.parquet", grey_rows([0, 1, 2, 3] * 2))
    said = summary(measure(fake(WNIDS[:4]), open_images(str(table)), alone))
    assert "top-1 1.0000" in said
    assert "top-5" not in said


def test_a_network_that_answers_with_nan_is_refused(tmp_path: Path, alone: Any) -> None:
    class Diverged(Brightness):
        def forward(self, pixels: Any) -> Any:
            found = super().forward(pixels)
            found[-1] = float("nan")
            return found

    table = write_table(tmp_path / "a.parquet", grey_rows([0, 1, 2, 3] * 2))
    with pytest.raises(HfsynError, match="answers with NaN or infinity"):
        measure(replace(fake(WNIDS), network=Diverged(len(WNIDS))), open_images(str(table)), alone)


def test_workers_decode_what_the_process_itself_would(tmp_path: Path, alone: Any) -> None:
    opened = open_images(str(write_table(tmp_path / "a.parquet", rows_of(12), bad={4})))
    one, two = (predict(fake(WNIDS), opened, alone, batch_size=4, num_workers=n) for n in (0, 2))
    assert np.array_equal(one.logits, two.logits)


@pytest.mark.parametrize(("kind", "found"), [("cpu", 0), ("cuda", 4)])
def test_a_gpu_gets_its_share_of_the_cores_to_decode(monkeypatch: pytest.MonkeyPatch, kind: str, found: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    pretended: Any = SimpleNamespace(device=SimpleNamespace(type=kind), num_processes=2)
    assert default_workers(pretended) == found


def test_processes_that_wait_for_a_download_are_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def state(**options: Any) -> Any:
        asked.update(options)
        return SimpleNamespace(num_processes=2, device="cpu")

    monkeypatch.setattr("accelerate.PartialState", state)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    pick_device("cpu")
    assert asked["timeout"] >= timedelta(hours=2)  # NCCL's own is ten minutes


def test_a_saved_classifier_opens_as_it_was_and_says_its_hash(tmp_path: Path) -> None:
    recipe = load_train_config(None, ["data.train=[shapes]", "model.name=test_resnet", "model.image_size=32", "seed=5"])
    made = new_classifier(recipe, WNIDS, dict(zip(WNIDS, NAMES, strict=True)))
    sha256 = save_classifier(made, tmp_path)
    opened = open_classifier(tmp_path)
    assert (opened.sha256, opened.seed, opened.wnids, opened.preprocessing) == (
        sha256,
        5,
        tuple(WNIDS),
        made.preprocessing,
    )
    state = opened.network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in made.network.state_dict().items())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("resnet5O", "Did you mean"),
        ("no/such/folder", "There is no folder"),
        (".", "holds no trained classifier"),
        ("resnet18", "Could not read the weights of resnet18"),
    ],
)
def test_a_classifier_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HfsynError) as error:
        open_classifier(model)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_result_names_what_it_depends_on(tmp_path: Path) -> None:
    recipe = load_train_config(None, ["data.train=[shapes]", "model.name=test_resnet", "model.image_size=32"])
    save_classifier(new_classifier(recipe, WNIDS, dict(zip(WNIDS, NAMES, strict=True))), tmp_path / "model")
    result = evaluate(
        tmp_path / "model", "shapes", limit_per_class=2, out=tmp_path / "r.json", device="cpu", quiet=True
    )
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(result))
    assert len(result["model"]["sha256"]) == len(result["dataset"]["fingerprint"]) == 64
    assert result["dataset"]["reference"] == "shapes"
    assert result["preprocessing"]["image_size"] == 32
    assert result["seed"] == 0
    assert {"torch", "timm", "python"} <= set(result["software"])
    assert result["device"].startswith("1 x cpu")
    assert set(result["metrics"]["top1"]) >= {"value", "low", "high"}


# Two real processes


SIZES = (13, 16, 3)  # batches of 4: an odd one at the end; even shares; fewer batches than processes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes under accelerate make of a job; see drive_judging.py."""
    folder = tmp_path_factory.mktemp("two")
    recipe = load_train_config(None, ["data.train=[shapes]", "model.name=test_resnet", "model.image_size=32"])
    save_classifier(new_classifier(recipe, WNIDS, dict(zip(WNIDS, NAMES, strict=True))), folder / "model")
    tables = {str(n): str(write_table(folder / f"{n}.parquet", rows_of(n), bad={1, n - 1})) for n in SIZES}
    base = {
        "data": {"train": ["shapes"], "limit_per_class": 4},
        "model": {"name": "test_vit", "image_size": 32},
        "augment": {"mixup": 0.2},
        "optimise": {"epochs": 2, "batch_size": 8, "lr": 0.01, "warmup_epochs": 0},
    }
    trainings = {"vit": base, "bn": {**base, "model": {"name": "test_resnet", "image_size": 32}}}
    job = {"model": str(folder / "model"), "tables": tables, "trainings": trainings}
    (folder / "job.json").write_text(json.dumps(job))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--main_process_port",
        "0",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        str(ROOT / "tests" / "drive_judging.py"),
        str(folder),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_two_processes_say_what_one_says_to_the_last_bit(two: Path, alone: Any, size: int) -> None:
    one: Predictions = predict(
        open_classifier(two / "model"), open_images(str(two / f"{size}.parquet")), alone, batch_size=4
    )
    both = np.load(two / f"{size}.npz")
    assert both["processes"] == 2
    assert both["numbers"].tolist() == one.numbers.tolist() == [i for i in range(size) if i not in (1, size - 1)]
    assert np.array_equal(both["logits"], one.logits)
    assert both["labels"].tolist() == one.labels.tolist()
    assert list(both["missing"]) == sorted(one.undecodable)


def test_two_processes_train_a_network_without_batch_norm_as_one_does_but_for_rounding(
    two: Path, tmp_path: Path
) -> None:
    config = json.loads((two / "job.json").read_text())["trainings"]
    for name, tolerance in (("vit", 1e-5), ("bn", None)):
        train(load_train_config(config[name]), tmp_path / name, RunOptions(device="cpu", quiet=True))
        one, both = (load_file(folder / name / "model.safetensors") for folder in (tmp_path, two))
        furthest = max(float((one[key].float() - both[key].float()).abs().max()) for key in one)
        if tolerance is not None:
            assert furthest < tolerance
        else:
            assert furthest > 1e-4  # the stated limit: each process normalises by its own half of a step
    result = json.loads((two / "vit" / "results.json").read_text())
    assert result["training"]["processes"] == 2
    assert result["training"]["images_seen"] == 80


def test_an_answer_among_several_real_labels_is_right_and_images_without_one_do_not_count() -> None:
    from builders.variants.real_labels import real_labels
    from hfsyn.judging.measures.evaluate import real_accuracy

    known = real_labels()
    several = next(name for name, labels in known.items() if len(labels) > 1)
    none = next(name for name, labels in known.items() if not labels)
    single = next(name for name, labels in known.items() if len(labels) == 1)
    files = [several, several, none, single]
    answers = [known[several][0], known[several][1], "n01440764", "n99999999"]
    ids = [f"validation/{name.replace('.JPEG', '_n01440764.JPEG')}" for name in files]
    images = ImageSet("imagenet-1k", "validation", answers, {}, [b""] * 4, ids, None, False, "imagenet-1k")
    found = real_accuracy(ids, answers, images)
    assert found is not None
    assert (found["n"], found["without_label"]) == (3, 1)
    assert found["top1"]["value"] == pytest.approx(2 / 3)
    assert real_accuracy(["validation/cat.jpg"], answers[:1], images) is None
    other = ImageSet("imagenette", "validation", answers, {}, [b""] * 4, ids, None, False, "imagenette")
    assert real_accuracy(ids, answers, other) is None
