"""What comes from the Hub is data: no pickle is read unless it is allowed, and no code of a repository ever runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file

from hfsyn.captions.captioner import TransformersCaptioner
from hfsyn.errors import HfsynError
from hfsyn.images.generator import DiffusersGenerator
from hfsyn.recipes.recipe import CaptionPart, GeneratePart

PICTURE = Image.new("RGB", (32, 32), (200, 30, 30))


class Bomb:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def as_pickle(weights: Path) -> Path:
    """The same weights as a pickle, in place of the safetensors."""
    names = {
        "model.safetensors": "pytorch_model.bin",
        "diffusion_pytorch_model.safetensors": "diffusion_pytorch_model.bin",
    }
    target = weights.with_name(names[weights.name])
    torch.save(load_file(weights), target)
    weights.unlink()
    return target


@pytest.fixture
def blip(tmp_path: Path) -> Path:
    return tiny_models.blip(tmp_path / "blip")


@pytest.fixture
def diffusion(tmp_path: Path) -> Path:
    return Path(tiny_models.stable_diffusion(tmp_path / "sd"))


def caption_part(folder: Path) -> CaptionPart:
    return CaptionPart(model=str(folder), max_new_tokens=4)


def generate_part(folder: Path) -> GeneratePart:
    return GeneratePart(model=str(folder), steps=1, batch_size=1, dtype="float32")


def test_a_captioner_of_pickles_is_refused_unless_it_is_allowed(blip: Path) -> None:
    safe = TransformersCaptioner(caption_part(blip), "cpu").caption([PICTURE])
    as_pickle(blip / "model.safetensors")
    with pytest.raises(HfsynError, match=r"as pickles alone, which run code.*--allow-pickle-weights"):
        TransformersCaptioner(caption_part(blip), "cpu")
    assert TransformersCaptioner(caption_part(blip), "cpu", allow_pickle=True).caption([PICTURE]) == safe


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_generator_with_one_pickle_is_refused_unless_it_is_allowed(diffusion: Path, part: str) -> None:
    (weights,) = (diffusion / part).glob("*.safetensors")
    as_pickle(weights)
    with pytest.raises(HfsynError, match=r"as pickles alone, which run code.*--allow-pickle-weights"):
        DiffusersGenerator(generate_part(diffusion), None, "cpu")
    drawn = DiffusersGenerator(generate_part(diffusion), None, "cpu", allow_pickle=True).generate(["a cat"], [1])
    assert drawn[0].pixels.shape[-1] == 3


def test_a_pickle_beside_the_safetensors_is_not_even_opened(blip: Path, tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "ran"), blip / "pytorch_model.bin")
    TransformersCaptioner(caption_part(blip), "cpu")
    assert not (tmp_path / "ran").exists()


MARKING = "from pathlib import Path\nPath({mark!r}).touch()\nclass Model: pass\nclass Config: pass\n"


def test_a_captioner_that_brings_its_own_code_is_refused_and_the_code_does_not_run(blip: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    config = json.loads((blip / "config.json").read_text())
    config |= {
        "model_type": "ours",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"},
    }
    (blip / "config.json").write_text(json.dumps(config))
    (blip / "code.py").write_text(MARKING.format(mark=str(mark)))
    with pytest.raises(HfsynError, match="brings code of its own, and hfsyn runs no code from the Hub"):
        TransformersCaptioner(caption_part(blip), "cpu")
    assert not mark.exists()


def test_a_pipeline_that_brings_its_own_code_is_refused_and_the_code_does_not_run(
    diffusion: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    index = json.loads((diffusion / "model_index.json").read_text())
    index["unet"] = ["code", "Model"]
    (diffusion / "model_index.json").write_text(json.dumps(index))
    for place in (diffusion, diffusion / "unet"):
        shutil.copy(_code(tmp_path, mark), place / "code.py")
    with pytest.raises(HfsynError) as caught:
        DiffusersGenerator(generate_part(diffusion), None, "cpu")
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def _code(tmp_path: Path, mark: Path) -> Path:
    path = tmp_path / "code.py"
    path.write_text(MARKING.format(mark=str(mark)))
    return path
