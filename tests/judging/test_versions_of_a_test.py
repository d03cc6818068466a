"""ImageNet-C, one test in many versions, and ObjectNet, whose folders may stand for several classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hfsyn
from builders.errors import HfsynError
from builders.variants import get_variant
from hfsyn.judging import classifier
from hfsyn.judging.preprocessing import Preprocessing
from hfsyn.judging.sets.image_set import open_images

THOUSAND = get_variant("imagenet-1k").classes
PLACE = {info.wnid: info.index for info in THOUSAND}
NAMED = {info.name: info.wnid for info in THOUSAND}


class ByColour(torch.nn.Module):
    """Answers with the class that red and green say: 200 times the one and the other, in steps of two grey levels."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        red, green, blue = (pixels.mean((2, 3)) * 255 / 2).round().long().T
        second = torch.nn.functional.one_hot(blue, 1000) * 2.0
        return torch.nn.functional.one_hot(red * 100 + green, 1000) * 5.0 + second


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Preprocessing(8, (0, 0, 0), (1, 1, 1), crop=1.0)
    wnids, names = tuple(info.wnid for info in THOUSAND), tuple(info.name for info in THOUSAND)
    fake = classifier.Classifier("by-colour", ByColour(), wnids, names, plain)
    monkeypatch.setattr("hfsyn.judging.measures.evaluate.open_classifier", lambda model, **more: fake)


def picture(file: Path, answer: str, size: int = 8) -> None:
    red, green = divmod(PLACE[answer], 100)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (2 * red, 2 * green, 0)).save(file)


WNIDS = [info.wnid for info in THOUSAND[:4]]


def corrupted(folder: Path, rights: dict[str, int]) -> str:
    """In each version four images of four classes, of which `rights` says how many are answered rightly."""
    for group, right in rights.items():
        for number, wnid in enumerate(WNIDS):
            answer = wnid if number < right else THOUSAND[500].wnid
            picture(folder / group / wnid / "ILSVRC2012_val_00000001.png", answer)
    return f"imagenet-c={folder}"


def test_each_corruption_and_severity_has_a_number_and_the_mean_counts_them_alike(tmp_path: Path) -> None:
    data = corrupted(tmp_path, {"snow/1": 4, "noise/gaussian_noise/3": 1, "speckle_noise/1": 0})
    picture(tmp_path / "noise" / "gaussian_noise" / "3" / WNIDS[0] / "another.png", THOUSAND[500].wnid)
    found = hfsyn.evaluate("by-colour", data, quiet=True)
    assert (found["n"], found["dataset"]["split"]) == (9, "test")
    top1 = found["groups"]["top1"]
    assert {name: one["value"] for name, one in top1.items()} == {"gaussian_noise/3": 0.2, "snow/1": 1.0}
    assert found["groups"]["mean"] == pytest.approx(0.6)
    assert "mean over 2 versions" in found.text()


def test_one_version_is_tested_by_its_name_also_one_that_is_not_of_the_fifteen(tmp_path: Path) -> None:
    data = corrupted(tmp_path, {"snow/1": 4, "speckle_noise/2": 3})
    assert hfsyn.evaluate("by-colour", f"{data}#snow/1", quiet=True)["metrics"]["top1"]["value"] == 1.0
    assert hfsyn.evaluate("by-colour", f"{data}#speckle_noise/2", quiet=True)["metrics"]["top1"]["value"] == 0.75
    with pytest.raises(HfsynError, match="has no folder fog/1"):
        hfsyn.evaluate("by-colour", f"{data}#fog/1", quiet=True)


def test_what_is_not_there_is_counted_and_a_limit_holds_in_each_version(tmp_path: Path) -> None:
    data = corrupted(tmp_path, {"snow/1": 4, "fog/2": 4})
    for group in ("snow/1", "fog/2"):
        picture(tmp_path / group / WNIDS[0] / "another.png", WNIDS[0])
    opened = open_images(data, limit=1)
    assert list(opened.groups or ()) == ["snow/1"] * 4 + ["fog/2"] * 4
    assert len(set(opened.ids)) == 8
    assert [n for reason, n in opened.left_out.items() if reason.startswith("version that is not there")] == [73]
    with pytest.raises(HfsynError, match=r"has no folder gaussian_noise/1 or any other of imagenet-c"):
        open_images(f"imagenet-c={tmp_path / 'snow'}")


def test_all_versions_of_the_right_size_are_complete_and_others_are_refused(tmp_path: Path) -> None:
    data = corrupted(tmp_path, dict.fromkeys(get_variant("imagenet-c").groups, 1))
    with pytest.raises(HfsynError, match="imagenet-c has 4 of its 1000 classes"):
        hfsyn.evaluate("by-colour", data, quiet=True)
    found = hfsyn.evaluate("by-colour", data, limit=5, quiet=True)
    assert (found["n"], found["groups"]["mean"], len(found["groups"]["top1"])) == (300, 0.25, 75)


def at_home(folder: Path, answers: dict[str, list[str]]) -> str:
    for name, answered in answers.items():
        for number, answer in enumerate(answered):
            file = folder / "objectnet-1.0" / "images" / name / f"{number}.png"
            picture(file, NAMED[answer], size=12)
            inner = Image.open(file).convert("RGB").resize((8, 8))
            framed = Image.new("RGB", (12, 12), "red")
            framed.paste(inner, (2, 2))
            framed.save(file)
    return f"objectnet={folder}"


def test_any_class_that_a_folder_stands_for_is_right_and_the_border_is_cut_off(tmp_path: Path) -> None:
    answers = {
        "alarm_clock": ["analog clock", "digital clock", "wall clock"],
        "banana": ["banana", "lemon"],
        "chair": ["folding chair", "rocking chair"],
        "air_freshener": ["banana"],
    }
    found = hfsyn.evaluate("by-colour", at_home(tmp_path, answers), limit=9, quiet=True)
    assert (found["n"], found["dataset"]["classes"]) == (7, 3)
    assert found["metrics"]["top1"]["value"] == pytest.approx(5 / 7)
    # Two clocks, a banana and three chairs; among these alone the two others have no favourite.
    assert found["metrics"]["masked"]["classes"] == 6
    left = found["dataset"]["left_out"]
    assert [count for reason, count in left.items() if reason.startswith("class folder that is not one of")] == [1]
    border = np.asarray(open_images(f"objectnet={tmp_path}").picture(0))
    assert border.shape == (8, 8, 3)
    assert not (border == (255, 0, 0)).all(2).any()


@pytest.mark.parametrize("below", ["", "objectnet-1.0", "objectnet-1.0/images"])
def test_objectnet_is_found_wherever_its_folder_is_pointed_at(tmp_path: Path, below: str) -> None:
    at_home(tmp_path, {"banana": ["banana"], "broom": ["broom"], "air_freshener": ["banana"]})
    assert len(open_images(f"objectnet={tmp_path / below}")) == 2


def test_its_folders_are_those_that_its_authors_map() -> None:
    objectnet = get_variant("objectnet")
    assert (len(objectnet.classes), len(objectnet.label_ids)) == (113, 113)
    classes = set(objectnet.label_ids.values()).union(*objectnet.also_right.values())
    assert len(classes) == 125
    assert classes <= PLACE.keys()
