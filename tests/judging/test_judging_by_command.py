"""What judgements go wrong by, each through a command alone: what comes out is what others would get."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image, ImageFilter, ImageOps

from builders.variants import get_variant
from hfsyn.cli import cli

TEN = [info.wnid for info in get_variant("imagenette").classes]
MANY = [info.wnid for info in get_variant("imagenet-1k").classes[:40]]
NET = ("--model", "test_resnet", "--image-size", "32", "--epochs", "1", "--batch-size", "10", "--device", "cpu", "-q")


def run(*words: str | Path) -> Any:
    """A command that must succeed; what it prints."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result


def scene(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A picture that is not like any other: blurred noise with sharp blocks on it."""
    noise = np.random.default_rng(seed)
    rough = Image.fromarray(noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    for _ in range(4):
        left, top = (int(noise.integers(0, side - 30)) for side in size)
        rough.paste(tuple(int(v) for v in noise.integers(0, 256, 3)), (left, top, left + 24, top + 18))
    return rough.filter(ImageFilter.GaussianBlur(0.5))


def folder_of(where: Path, split: str, wnids: list[str], each: int = 2, first: int = 0, names: str = "{}") -> Path:
    for place, wnid in enumerate(wnids):
        (where / split / wnid).mkdir(parents=True)
        for number in range(each):
            picture = scene(1000 * first + 10 * place + number)
            picture.save(where / split / wnid / f"{names.format(number)}.png")
    return where


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of ten classes."""
    place = tmp_path_factory.mktemp("trained")
    run("train", "--train-dataset", folder_of(place / "data", "train", TEN), *NET, "--out", place / "out")
    return place / "out"


@pytest.fixture
def squashing(tmp_path: Path) -> str:
    """A timm folder whose weights are tested at another size, on the whole picture out of shape."""
    network = timm.create_model("test_resnet", num_classes=10)
    network.pretrained_cfg.update({"input_size": (3, 32, 32), "test_input_size": (3, 48, 48), "crop_mode": "squash"})
    labels = {"label_names": TEN}
    timm.models.save_for_hf(network, str(tmp_path / "timm"), model_config=labels, safe_serialization=True)
    return f"local-dir:{tmp_path / 'timm'}"


def test_weights_are_tested_as_their_configuration_says(squashing: str, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", "val", TEN, each=1)
    used = json.loads(run("evaluate", squashing, data, "--json", "--device", "cpu").stdout)["preprocessing"]
    assert used.get("crop_mode") == "squash"
    assert used.get("image_size") == 48


def changed(picture: Image.Image, kind: int) -> Image.Image:
    if kind == 0:
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=50)
        return Image.open(data)
    width, height = picture.size
    box = (width // 10, height // 10, width - width // 10, height - height // 10)
    small = (width // 2, height // 2)
    return [picture, ImageOps.mirror(picture), picture.resize(small), picture.crop(box).resize((width, height))][kind]


def test_changed_copies_are_found_and_pictures_that_are_none_are_not(tmp_path: Path) -> None:
    real = folder_of(tmp_path / "real", "train", TEN, each=2)
    other = folder_of(tmp_path / "other", "train", TEN, each=2, first=7)
    files = sorted(real.rglob("*.png"))
    for number, file in enumerate(files[::2]):
        changed(Image.open(file), number % 4).save(other / "train" / TEN[number] / "copy.png")
    network = ("--features", "random:test_resnet", "--device", "cpu", "--out", tmp_path / "found.json")
    run("fidelity", other, real, *network)
    found = json.loads((tmp_path / "found.json").read_text())["duplicates"]["against_real"]
    assert found["exact"] + found["near"] == len(files[::2])


def test_training_images_are_found_in_the_test_set_whatever_their_files_are_called(tmp_path: Path) -> None:
    train = folder_of(tmp_path / "train", "train", TEN)
    test = folder_of(tmp_path / "test", "val", TEN, names="renamed_{}")
    run("train", "--train-dataset", train, "--eval-dataset", test, *NET, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["test"]["overlap"] == 20


def test_ten_classes_are_tested_on_a_set_of_more(trained: Path, tmp_path: Path) -> None:
    others = [wnid for wnid in MANY if wnid not in TEN][:6]
    data = folder_of(tmp_path / "data", "val", [*TEN[:4], *others])
    found = json.loads(run("evaluate", trained, data, "--json", "--device", "cpu").stdout)
    assert (found["n"], found["dataset"]["classes"]) == (8, 4)


def test_a_file_of_weights_is_tested(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=10)
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "mine.pth")
    data = folder_of(tmp_path / "data", "val", TEN)
    words = ("--checkpoint", tmp_path / "mine.pth", "--classes", "imagenette", "--json", "--device", "cpu")
    assert json.loads(run("evaluate", "test_resnet", data, *words).stdout)["n"] == 20


def test_a_training_outlives_the_folder_that_it_began_from(squashing: str, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", "train", TEN)
    begun = ("--model", squashing, "--pretrained", *NET[2:])
    run("train", "--train-dataset", data, *begun, "--out", tmp_path / "out")
    Path(squashing.removeprefix("local-dir:")).rename(tmp_path / "gone")
    run("evaluate", tmp_path / "out", data, "--split", "train", "--device", "cpu")


def test_batches_of_a_stream_that_is_sorted_by_class_hold_many_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 classes of 60 images in a file; the red of an image is its class, and a network notes what it is shown."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    shown: list[int] = []

    class Watching(torch.nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, num_classes)
            size: Any = {"input_size": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bilinear"}
            self.pretrained_cfg = {**size, "crop_pct": 1.0, "classifier": "fc", "architecture": "watching"}

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                shown.append(len({round(float(red) * 255 / 6) for red in pixels[:, 0].mean((1, 2))}))
            return self.fc(pixels.mean((2, 3)))

    def watching(pretrained: bool = False, num_classes: int = 1000, **more: Any) -> Watching:
        return Watching(num_classes)

    timm.models.register_model(watching)
    buffers = []
    for place in range(len(MANY)):
        data = io.BytesIO()
        Image.new("RGB", (8, 8), (6 * place, 0, 0)).save(data, "PNG")
        buffers += [data.getvalue()] * 60
    labels = [number // 60 for number in range(len(buffers))]
    rows = {"image": [{"bytes": data, "path": None} for data in buffers], "label": labels}
    schema = Features({"image": ImageFeature(), "label": ClassLabel(names=MANY)})
    (tmp_path / "data").mkdir()
    Dataset.from_dict(rows, features=schema).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    plain = [f"augment.{field}" for field in ("color_jitter=0", "flip=0", "scale=[1.0,1.0]", "ratio=[1.0,1.0]")]
    words = [word for field in plain for word in ("--set", field)]
    words += ["--model", "watching", "--epochs", "1", "--budget", "640", "--batch-size", "64", "--device", "cpu", "-q"]
    run("train", "--train-dataset", tmp_path / "data", "--streaming", *words, "--out", tmp_path / "out")
    # Of shuffled rows a batch of 64 would hold 32 of the 40.
    assert len(shown) == 10
    assert np.mean(shown) > 27


def test_a_part_of_a_test_set_is_tested_on_where_that_is_said(tmp_path: Path) -> None:
    train = folder_of(tmp_path / "train", "train", TEN)
    test = folder_of(tmp_path / "test", "val", TEN)
    words = ("--set", "test.limit_per_class=1", *NET, "--out", tmp_path / "out")
    run("train", "--train-dataset", train, "--limit", "2", "--eval-dataset", f"imagenette={test}", *words)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["test"]["n"] == 10


def test_a_test_of_a_single_class_is_refused(trained: Path, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", "val", TEN[:1])
    result = CliRunner().invoke(cli, ["evaluate", str(trained), str(data), "--device", "cpu"])
    assert result.exit_code != 0, result.output
