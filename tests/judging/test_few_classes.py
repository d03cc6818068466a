"""Networks of ten and of a hundred classes on the sets of the paper: numbers that are known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import hfsyn
from builders.errors import HfsynError
from builders.variants import get_variant

NETWORK = "two_answers"
SETS = {
    "imagenet-v2-matched-frequency": "imagenetv2-matched-frequency-format-val",
    "imagenet-v2-threshold-0.7": "imagenetv2-threshold0.7-format-val",
    "imagenet-v2-top-images": "imagenetv2-top-images-format-val",
    "imagenet-sketch": "sketch",
    "imagenet-r": "imagenet-r",
    "imagenet-a": "imagenet-a",
    "imagenet-1k": "val",
}


class TwoAnswers(torch.nn.Module):
    """An image's red says what it answers first, its green what it answers next: logits of 10 and 5, else 0."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc = torch.nn.Linear(1, num_classes)
        self.pretrained_cfg = {"classifier": "fc", "input_size": (3, 16, 16), "architecture": NETWORK}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        first, second = (pixels[:, :2].mean((2, 3)) * 255 / 2).round().long().T
        one_hot = torch.nn.functional.one_hot
        return 10.0 * one_hot(first, self.num_classes) + 5.0 * one_hot(second, self.num_classes)


@pytest.fixture(scope="module", autouse=True)
def _network() -> Any:
    def two_answers(pretrained: bool = False, num_classes: int | None = 1000, **more: Any) -> TwoAnswers:
        return TwoAnswers(num_classes or 1000)

    timm.models.register_model(two_answers)
    yield
    timm.models._registry._model_entrypoints.pop(NETWORK)


def pictures(folder: Path, variant: str, trained_on: str) -> tuple[str, int, int, int]:
    """A set with the classes that the network has too, but for one if it has all of them, and three that it lacks.

    Of each class that both have there are four images, of which the network answers two rightly. On the third its first
    answer is a class that the set does not have, its second is right; on the fourth it is wrong twice. Returns the
    dataset, how many classes both have, and how many classes and images the set has.
    """
    outputs = [info.wnid for info in get_variant(trained_on).classes]
    both = [wnid for wnid in outputs if wnid in get_variant(variant).by_wnid]
    both = both[:-1] if len(both) == len(outputs) else both
    absent = outputs.index(next(wnid for wnid in outputs if wnid not in both))
    others = [info.wnid for info in get_variant(variant).classes if info.wnid not in outputs][:3]
    place = {info.wnid: info.index for info in get_variant(variant).classes}
    for wnid in (*both, *others):
        name = str(place[wnid]) if get_variant(variant).numbered_folders else wnid
        inner = folder / SETS[variant] / name
        inner.mkdir(parents=True)
        mine = outputs.index(wnid) if wnid in both else 0
        wrong = outputs.index(both[both.index(wnid) - 1]) if wnid in both else 0
        answers = [(mine, wrong), (mine, wrong), (absent, mine), (wrong, absent)]
        for number, (first, second) in enumerate(answers if wnid in both else answers[:2]):
            Image.new("RGB", (16, 16), (2 * first, 2 * second, 0)).save(inner / f"{number}.png")
    return f"{variant}={folder}", len(both), len(both) + 3, 4 * len(both) + 6


PAIRS = [(trained_on, variant) for trained_on in ("imagenette", "imagenet-100") for variant in SETS]
ONE = ("imagenette", "imagenet-r")
"""Of Imagenette's ten classes ImageNet-R has the parachute alone; of Imagewoof's it has three."""


@pytest.mark.parametrize(("trained_on", "variant"), [*(pair for pair in PAIRS if pair != ONE), ("imagewoof", ONE[1])])
def test_the_numbers_on_each_set_are_those_known_beforehand(tmp_path: Path, trained_on: str, variant: str) -> None:
    count = len(get_variant(trained_on).classes)
    save_file(TwoAnswers(count).state_dict(), tmp_path / "w.safetensors")
    data, both, classes, images = pictures(tmp_path / "data", variant, trained_on)
    found = hfsyn.evaluate(
        NETWORK,
        data,
        limit=4,
        checkpoint=tmp_path / "w.safetensors",
        classes=trained_on,
        image_size=16,
        crop_pct=1.0,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        device="cpu",
        quiet=True,
    )
    assert found["dataset"]["variant"] == variant
    assert found["dataset"]["part_of"] == {"classes": classes, "images": images}
    assert (found["n"], found["dataset"]["classes"]) == (4 * both, both)
    metrics = found["metrics"]
    # Among all that the network could say, two of four are right; without what the set does not have, three of four.
    assert metrics["top1"]["value"] == 0.5
    assert metrics["masked"]["classes"] == both
    assert metrics["masked"]["top1"]["value"] == 0.75
    assert both >= 2


def test_a_set_that_has_one_of_its_classes_gives_no_number(tmp_path: Path) -> None:
    save_file(TwoAnswers(10).state_dict(), tmp_path / "w.safetensors")
    data = pictures(tmp_path / "data", ONE[1], ONE[0])[0]
    with pytest.raises(HfsynError, match=r"parachute is the only one of the 4 classes .* no answer is wrong"):
        hfsyn.evaluate(NETWORK, data, limit=4, checkpoint=tmp_path / "w.safetensors", classes=ONE[0], device="cpu")
