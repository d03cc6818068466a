"""Captions from real model classes with tiny random weights: which image, which words, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

from builders.drawing import draw, sample_attributes
from builders.variants import ClassInfo
from hfsyn import models
from hfsyn.errors import HfsynError
from hfsyn.making.caption_texts import caption_flags, clean
from hfsyn.making.captioner import TransformersCaptioner
from hfsyn.making.recipe import CaptionPart

FAMILIES = ("blip", "blip2", "vit_gpt2", "git", "llava", "idefics3")
TAKES_PROMPT = tuple(family for family in FAMILIES if family != "vit_gpt2")
PROMPT = "a photo of"
Folders = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The saved tiny model of a family, written when it is first asked for."""
    root = tmp_path_factory.mktemp("captioners")

    def folder(family: str) -> Path:
        path = root / family
        return path if path.is_dir() else getattr(tiny_models, family)(path)

    return folder


def captioner(folder: Path | str, **options: Any) -> TransformersCaptioner:
    return TransformersCaptioner(CaptionPart(model=str(folder), **{"max_new_tokens": 8, **options}), "cpu")


def images() -> list[Image.Image]:
    """Noise of all sizes, so small, narrow and flat that a processor could take their sides for channels."""
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (40, 10), (7, 90), (64, 64), (1, 1), (3, 50), (50, 3), (33, 20)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


# --- which words: a caption is exactly what the model says after the prompt -------------------------------------------


def by_hand(folder: Path, family: str, image: Image.Image, prompt: str | None, steps: int = 8) -> str:
    """One token after the other from the model's own logits: no `generate`, and so nothing to cut off."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = tokenizer(prompt or "", add_special_tokens=False).input_ids
    name, stop = "input_ids", tokenizer.eos_token_id
    extra: dict[str, torch.Tensor] = {}
    if family in ("llava", "idefics3"):
        ask = prompt or "Describe the image in one sentence."
        text = {
            "llava": f"user: <image>{ask}\nassistant: ",
            "idefics3": f"user: <image>{ask}<end_of_utterance>\nAssistant:",
        }[family]
        extra = dict(AutoProcessor.from_pretrained(folder)(images=[image], text=[text], return_tensors="pt"))
        start = extra.pop("input_ids")[0].tolist()
        extra.pop("attention_mask")
    else:
        extra["pixel_values"] = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    if family == "blip":
        start, stop = [model.config.text_config.bos_token_id, *words], tokenizer.sep_token_id
    if family == "blip2":
        start = [tokenizer.convert_tokens_to_ids("<image>")] * 3 + (words if prompt else [tokenizer.bos_token_id])
    if family == "git":
        start, stop = [tokenizer.cls_token_id, *words], tokenizer.sep_token_id
    if family == "vit_gpt2":
        start, name = [tokenizer.eos_token_id], "decoder_input_ids"
    said: list[int] = []
    while len(said) < steps and stop not in said:
        with torch.inference_mode():
            logits = model(**extra, **{name: torch.tensor([[*start, *said]])}).logits
        said.append(int(logits[0, -1].argmax()))
    return clean(tokenizer.decode(said, skip_special_tokens=True))


@pytest.mark.parametrize(
    ("family", "prompt"),
    [*((family, None) for family in FAMILIES), *((family, PROMPT) for family in TAKES_PROMPT)],
)
def test_a_caption_is_what_the_model_says_after_the_prompt(folders: Folders, family: str, prompt: str | None) -> None:
    folder = folders(family)
    captions = captioner(folder, prompt=prompt).caption(images())
    assert captions == [by_hand(folder, family, image, prompt) for image in images()]
    assert len(set(captions)) >= 3, "the images make no difference, so that this test shows nothing"


@pytest.mark.parametrize("model", ["blip", "builtin"])
def test_a_prompt_is_not_said_twice(folders: Folders, model: str) -> None:
    """Asked with the first words of its own caption, a greedy model says the others, and those alone."""
    folder = model if model == "builtin" else folders(model)
    image = draw(sample_attributes(5, "test-captioner", 0)) if model == "builtin" else images()[3]
    words = captioner(folder).caption([image])[0].split()
    asked, rest = " ".join(words[:2]), " ".join(words[2:])
    assert captioner(folder, prompt=asked, max_new_tokens=6).caption([image])[0] == rest
    assert rest


# --- which image ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_has_its_own_caption_whatever_its_companions_are(folders: Folders, family: str, beams: int) -> None:
    one = captioner(folders(family), num_beams=beams)
    together = one.caption(images())
    assert together == [one.caption([image] * len(images()))[-1] for image in images()]
    assert one.caption(images()[::-1]) == together[::-1]
    assert one.caption(images()[:1]) == together[:1]
    again = captioner(folders(family), num_beams=beams)
    assert again.caption(images()) == together


def test_beams_find_other_captions(folders: Folders) -> None:
    greedy, beams = (captioner(folders("blip"), num_beams=n).caption(images()) for n in (1, 4))
    assert greedy != beams


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_on_a_cpu(folders: Folders, dtype: str) -> None:
    for family in ("blip", "blip2", "llava"):
        assert all(isinstance(caption, str) for caption in captioner(folders(family), dtype=dtype).caption(images()))


# --- lengths --------------------------------------------------------------------------------------------------------


def test_the_length_limit_counts_new_tokens_only(folders: Folders) -> None:
    for prompt in (None, "a photo of a photo of a photo of"):
        lengths = [
            len(caption.split())
            for caption in captioner(folders("blip"), prompt=prompt, max_new_tokens=4).caption(images())
        ]
        assert max(lengths) == 4


def test_a_caption_ends_where_the_models_context_does(folders: Folders) -> None:
    # 64 positions, of which the start token takes one.
    longest = max(len(c.split()) for c in captioner(folders("blip"), max_new_tokens=500).caption(images()))
    assert 60 <= longest <= 63


def test_a_prompt_longer_than_the_context_is_refused(folders: Folders) -> None:
    with pytest.raises(HfsynError, match=r"caption\.prompt makes \d+ tokens, .* at most 63\. Shorten it"):
        captioner(folders("blip"), prompt="photo " * 70).caption(images())


def test_the_builtin_captioner_takes_its_recipes_default_length_on_any_image() -> None:
    # Its context is shorter than the default; images unlike its own make it babble.
    captions = captioner("builtin", max_new_tokens=30).caption([*images(), Image.new("RGB", (500, 375))])
    assert len(captions) == len(images()) + 1


# --- what is refused, in one line -----------------------------------------------------------------------------------


def refusal(folder: Path | str, **options: Any) -> HfsynError:
    with pytest.raises(HfsynError) as caught:
        captioner(folder, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(folder) in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_prompt_is_refused_where_a_model_takes_images_only(folders: Folders) -> None:
    assert "caption.prompt is 'a photo of'" in refusal(folders("vit_gpt2"), prompt=PROMPT).message


def test_a_generator_is_no_captioner() -> None:
    assert "is no captioner: it holds a generator" in refusal(models.path("generator")).message


def test_a_model_that_sees_no_images_is_no_captioner(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "cannot be loaded as a captioner" in refusal(tmp_path).message


@pytest.mark.parametrize("damage", ["cut", "garbage", "missing"])
def test_damaged_weights_are_refused(folders: Folders, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(folders("blip"), tmp_path / "copy")
    weights = copy / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        content = weights.read_bytes()
        weights.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\xff" * len(content))
    assert "cannot be loaded as a captioner" in refusal(copy).message


def test_weights_of_another_architecture_are_refused(folders: Folders, tmp_path: Path) -> None:
    """The library would fill the gaps with random numbers, and every caption would be noise."""
    copy = shutil.copytree(folders("blip"), tmp_path / "copy")
    shutil.copy(folders("git") / "model.safetensors", copy / "model.safetensors")
    assert "has no weights for" in refusal(copy).message


def test_loading_and_captioning_say_nothing(folders: Folders, capfd: pytest.CaptureFixture[str]) -> None:
    for family in FAMILIES:
        captioner(folders(family), max_new_tokens=500 if family == "blip" else 8).caption(images())
    assert capfd.readouterr() == ("", "")


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("", ""),
        (" . ", ""),
        ("a dog.", "a dog"),
        (", a dog on\n\ta  mat ; ", "a dog on a mat"),
        ("a dog.\x00\x1b[0m", "a dog. [0m"),
        ("no. 9, a café", "no. 9, a café"),
    ],
)
def test_clean(said: str, kept: str) -> None:
    assert clean(said) == kept


GOLDFISH = ClassInfo("n01443537", 1, "goldfish", ("goldfish", "Carassius auratus"), "an orange fish", "cyprinid")


@pytest.mark.parametrize(
    ("caption", "flags"),
    [
        ("a goldfish in a bowl", ()),
        ("two goldfishes", ()),
        ("three Goldfish", ()),
        ("carassius in a pond", ()),
        ("a fish in a bowl", ("no-class-word",)),
        ("", ("empty",)),
        ("...", ("empty",)),
        ("a goldfish goldfish goldfish", ("repeated",)),
        ("goldfish goldfish", ()),
        ("a goldfish in bowl in bowl in bowl", ("repeated",)),
        ("goldfish red and red and red and", ("repeated",)),
        ("fish one fish two fish three", ("repeated", "no-class-word")),
        ("a goldfish on the left and a snail on the right of the bowl", ()),
    ],
)
def test_caption_flags(caption: str, flags: tuple[str, ...]) -> None:
    assert caption_flags(caption, GOLDFISH) == flags


@pytest.mark.parametrize(
    ("name", "caption", "known"),
    [
        ("church", "two churches on a hill", True),
        ("butterfly", "butterflies on a flower", True),
        ("Chihuahua", "chihuahuas", True),
        ("glass", "a glas", False),
        ("sunglasses", "a man in sunglasses", True),
        ("fire truck", "a red truck", True),
        ("dog", "the dog's bowl", True),
        ("bird of paradise", "a photo of the sea", False),
    ],
)
def test_a_class_word_counts_in_singular_and_plural(name: str, caption: str, known: bool) -> None:
    assert ("no-class-word" not in caption_flags(caption, ClassInfo("n00000001", 0, name, (name,), "", ""))) is known
