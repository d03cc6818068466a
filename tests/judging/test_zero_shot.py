"""Zero-shot classifiers: a CLIP is told the classes by their names, and answers as transformers' own does."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

import hfsyn
from builders.errors import HfsynError
from hfsyn.judging.classifier import open_classifier
from hfsyn.judging.preprocessing import Overrides, Preprocessing, plain_transform
from hfsyn.judging.zero_shot import templates_of

NAMES = {"n01440764": "tench", "n02979186": "cassette player", "n03028079": "church"}


@pytest.fixture(scope="module", params=["clip", "siglip"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return getattr(tiny_models, request.param)(tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.clip(tmp_path_factory.mktemp("models") / "clip")


def pictures() -> list[Image.Image]:
    noise, sizes = np.random.default_rng(4), ((61, 97), (33, 21), (16, 16))
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def own(model: Path) -> tuple[Any, torch.Tensor, Any]:
    """transformers' own model, the pixels of its own image processor, and a function that makes tokens."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    pixels = AutoImageProcessor.from_pretrained(model)(images=pictures(), return_tensors="pt")["pixel_values"]
    long = {"padding": "max_length", "max_length": 64, "truncation": True}
    padding: dict[str, Any] = long if model.name == "siglip" else {"padding": True}
    tokenizer = AutoTokenizer.from_pretrained(model)
    return (
        AutoModel.from_pretrained(model).eval(),
        pixels,
        lambda texts: tokenizer(texts, return_tensors="pt", **padding),
    )


def test_logits_are_those_of_transformers_to_the_bit(model: Path) -> None:
    theirs, pixels, tokens = own(model)
    found = open_classifier(f"clip:{model}", among=NAMES, templates="a photo of a {c}.")
    ours = torch.stack([plain_transform(found.preprocessing)(picture) for picture in pictures()])
    assert torch.equal(ours, pixels)
    with torch.inference_mode():
        inputs = tokens([f"a photo of a {name}." for name in NAMES.values()])
        assert torch.equal(found.network(ours), theirs(**inputs, pixel_values=pixels).logits_per_image)


def test_a_class_of_80_templates_is_the_mean_of_its_texts_as_clips_authors_take_it(clip: Path) -> None:
    theirs, pixels, tokens = own(clip)
    texts = templates_of("imagenet")
    assert len(set(texts)) == 80
    found = open_classifier(f"clip:{clip}", among=NAMES)
    assert (found.wnids, found.options) == (tuple(NAMES), {"templates": "imagenet"})
    with torch.inference_mode():
        columns = []
        for name in NAMES.values():
            each = theirs.get_text_features(**tokens([text.replace("{c}", name) for text in texts])).pooler_output
            mean = (each / each.norm(dim=-1, keepdim=True)).mean(0)
            columns.append(mean / mean.norm())
        image = theirs.get_image_features(pixel_values=pixels).pooler_output
        image = image / image.norm(dim=-1, keepdim=True)
        expected = image @ torch.stack(columns, 1) * theirs.logit_scale.exp()
        logits = found.network(pixels)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert logits.std() > 0.1  # the classes differ


def test_its_preparation_survives_json(clip: Path) -> None:
    preparation = open_classifier(f"clip:{clip}", among=NAMES).preprocessing
    again = Preprocessing.read(json.loads(json.dumps(vars(preparation))))
    assert again == preparation
    assert preparation.extent == (tiny_models.SIDE, tiny_models.SIDE)
    picture = pictures()[0]
    assert torch.equal(plain_transform(again)(picture), plain_transform(preparation)(picture))


def folder_of(where: Path, wnids: list[str]) -> str:
    noise = np.random.default_rng(1)
    for wnid in wnids:
        (where / "val" / wnid).mkdir(parents=True)
        for number in range(4):
            data = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(data, "PNG")
            (where / "val" / wnid / f"{number}.png").write_bytes(data.getvalue())
    return f"imagenette={where}"


def test_it_is_tested_among_the_sets_own_classes_or_those_of_a_variant(clip: Path, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", sorted(NAMES))
    alone = hfsyn.evaluate(f"clip:{clip}", data, templates="a photo of a {c}", quiet=True)
    assert (alone["model"]["classes"], alone["n"], alone["metrics"]["masked"]) == (3, 12, None)
    assert alone["model"]["source"] == f"clip:{clip}"
    assert alone["preprocessing"]["processor"]["image_processor_type"].startswith("CLIPImageProcessor")
    ten = hfsyn.evaluate(f"clip:{clip}", data, classes="imagenette", templates="a photo of a {c}", quiet=True)
    assert (ten["model"]["classes"], ten["metrics"]["masked"]["classes"]) == (10, 3)
    # Among the three the answers are the same; among ten it may be wrong more often.
    assert ten["metrics"]["masked"]["top1"] == alone["metrics"]["top1"]
    assert ten["metrics"]["top1"]["value"] <= alone["metrics"]["top1"]["value"]


def test_membership_and_fidelity_take_one_too(clip: Path, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "a", sorted(NAMES))
    other = folder_of(tmp_path / "b", sorted(NAMES))
    for path in (tmp_path / "b").rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    attack = hfsyn.membership(f"clip:{clip}", data, other, members_split="validation")
    assert attack["model"]["classes"] == 3
    near = hfsyn.fidelity(data, other, features=f"clip:{clip}")
    assert (near["features"]["dimension"], near["features"]["name"]) == (16, "clip")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"templates": "a photo"}, r"'a photo' has no \{c\}"),
        ({"checkpoint": "w.pth"}, "has weights of its own"),
        ({"overrides": Overrides(image_size=32)}, "--image-size is for networks of timm"),
        ({"among": None}, "must be told which classes"),
    ],
)
def test_what_makes_no_sense_for_one_is_refused(clip: Path, words: dict[str, Any], said: str) -> None:
    with pytest.raises(HfsynError, match=said):
        open_classifier(f"clip:{clip}", **{"among": NAMES, **words})


def test_templates_are_for_zero_shot_classifiers_only() -> None:
    with pytest.raises(HfsynError, match="--templates is for zero-shot classifiers, which resnet18 is not"):
        open_classifier("resnet18", templates="a photo of a {c}")


def test_a_file_holds_templates_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a drawing of a {c}\n\na {c} at night\n")
    assert templates_of(str(tmp_path / "mine.txt")) == ("a drawing of a {c}", "a {c} at night")


def test_pickles_are_read_only_if_allowed(clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = shutil.copytree(clip, tmp_path / "clip")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(HfsynError, match="pickles alone") as refused:
        open_classifier(f"clip:{folder}", among=NAMES)
    assert "--allow-pickle-weights" in refused.value.hint
    allowed, plain = (
        open_classifier(f"clip:{folder}", among=NAMES, allow_pickle=True),
        open_classifier(f"clip:{clip}", among=NAMES),
    )
    assert allowed.sha256 == plain.sha256


def test_a_model_of_another_kind_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="no zero-shot classifier at '/nowhere'"):
        open_classifier("clip:/nowhere", among=NAMES)
    blip = tiny_models.blip(tmp_path / "blip")
    with pytest.raises(HfsynError, match=r"weights of .* are missing for a BlipModel"):
        open_classifier(f"clip:{blip}", among=NAMES)
