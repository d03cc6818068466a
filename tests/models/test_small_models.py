"""The shipped captioner and generator: loadable, small, documented, and about as good as their cards say."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline
from PIL import Image
from transformers import AutoProcessor, BlipForConditionalGeneration, BlipProcessor

from builders.sources.drawing import (
    _BACKGROUND_RGB,
    _COLOUR_RGB,
    SHAPES,
    Drawing,
    caption_of,
    draw,
    draw_array,
    parse_caption,
    sample_attributes,
)
from hfsyn.models.finding import locate

Pixels = npt.NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def captioner() -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    folder = Path(locate("builtin", "captioner"))
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def generator() -> StableDiffusionPipeline:
    pipeline = AutoPipelineForText2Image.from_pretrained(
        Path(locate("builtin", "generator")), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fresh(count: int) -> list[Drawing]:
    """Drawings that no model and no variant has."""
    return [sample_attributes(77, "tests", index) for index in range(count)]


def generate(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int = 0) -> list[Image.Image]:
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    return pipeline(
        prompts, num_inference_steps=12, guidance_scale=2.5, width=32, height=32, generator=generators
    ).images


# --- a judge that needs no training: compare the painted area with what the drawing functions paint -----------------


def painted(image: Pixels, colour: str, background: str) -> npt.NDArray[np.bool_]:
    """Pixels nearer to the shape's colour than to the background's, cut to their bounding box, as 16 x 16."""
    front, back = (np.array(rgb, np.float32) for rgb in (_COLOUR_RGB[colour], _BACKGROUND_RGB[background]))
    mask = np.linalg.norm(image - front, axis=-1) < 0.8 * np.linalg.norm(image - back, axis=-1)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((16, 16), bool)
    box = Image.fromarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return np.asarray(box.resize((16, 16)))


@cache
def templates() -> list[tuple[str, npt.NDArray[np.bool_]]]:
    drawings = [sample_attributes(78, "templates", index) for index in range(400)]
    return [(one.shape, painted(draw_array(one).astype(np.float32), one.colour, one.background)) for one in drawings]


def shape_of(image: Image.Image, colour: str, background: str) -> str:
    mask = painted(np.asarray(image, np.float32), colour, background)
    return max(templates(), key=lambda known: (mask & known[1]).sum() / max((mask | known[1]).sum(), 1))[0]


def test_the_templates_can_judge() -> None:
    right = [shape_of(draw(one), one.colour, one.background) == one.shape for one in fresh(100)]
    assert np.mean(right) >= 0.9


# --- the models -----------------------------------------------------------------------------------------------------


def test_the_captioner_says_what_drawings_show(captioner: tuple[BlipForConditionalGeneration, BlipProcessor]) -> None:
    model, processor = captioner
    drawings = fresh(60)
    inputs = processor(images=[draw(one) for one in drawings], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=30, num_beams=1, do_sample=False)
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    right = [parse_caption(text) == parse_caption(caption_of(one)) for text, one in zip(texts, drawings, strict=True)]
    assert np.mean(right) >= 0.9, [text for text, good in zip(texts, right, strict=True) if not good]


def test_the_captioner_takes_any_image_and_any_prompt(
    captioner: tuple[BlipForConditionalGeneration, BlipProcessor],
) -> None:
    model, processor = captioner
    image = Image.effect_noise((80, 50), 60).convert("RGB")
    inputs = processor(images=image, text="a photograph of Zürich", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=30)
    assert isinstance(processor.decode(tokens[0], skip_special_tokens=True), str)


def test_the_generator_draws_what_captions_say(generator: StableDiffusionPipeline) -> None:
    drawings = fresh(30)
    images = generate(generator, [f"a photo of {one.shape}, {caption_of(one)}" for one in drawings])
    assert {(image.mode, image.size) for image in images} == {("RGB", (32, 32))}
    right = [
        shape_of(image, one.colour, one.background) == one.shape for image, one in zip(images, drawings, strict=True)
    ]
    assert np.mean(right) >= 0.75


def test_the_generator_knows_the_class_names(generator: StableDiffusionPipeline) -> None:
    images = generate(generator, [f"a photo of {shape}" for shape in SHAPES] * 2)
    # Colours are the model's own choice here, so that only flatness can be told without a judge.
    assert all(np.asarray(image, np.float32).std() > 10 for image in images)


def test_the_generator_repeats_itself_for_a_seed_and_varies_with_it(generator: StableDiffusionPipeline) -> None:
    prompts = ["a photo of star, a red star on a plain blue background"] * 2
    once, again, other = (generate(generator, prompts, seed) for seed in (5, 5, 50))
    assert [image.tobytes() for image in once] == [image.tobytes() for image in again]
    assert once[0].tobytes() not in (once[1].tobytes(), other[0].tobytes())


def test_every_text_is_encoded(generator: StableDiffusionPipeline) -> None:
    tokenizer = generator.tokenizer
    assert tokenizer.model_max_length == generator.text_encoder.config.max_position_embeddings
    for word in (*SHAPES, "background", "striped", "photo"):
        assert len(tokenizer(word).input_ids) == 3, word
    text = "Goldfish, Carassius auratus: naïve 金魚 №9"
    numbers = tokenizer(text).input_ids[1:-1]
    assert tokenizer.unk_token_id not in numbers
    assert tokenizer.decode(numbers).replace(" ", "") == text.lower().replace(" ", "")
    assert len(generate(generator, [text, ""])) == 2


def test_saved_settings_need_no_choice(generator: StableDiffusionPipeline) -> None:
    assert generator.safety_checker is None
    assert type(generator.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert generator.scheduler.config.prediction_type == "v_prediction"
    assert generator.scheduler.config.timestep_spacing == "trailing"


def test_everything_together_is_small_and_safe() -> None:
    files = [
        file
        for kind in ("captioner", "generator")
        for file in Path(locate("builtin", kind)).rglob("*")
        if file.is_file()
    ]
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md", ".txt"}


@pytest.mark.parametrize("kind", ["captioner", "generator"])
def test_the_cards_say_how_and_how_good(kind: str) -> None:
    card = (Path(locate("builtin", kind)) / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "license:" in card
    assert "train_small_models.py" in card
    assert re.search(r"seed \d", card)
    table = [line for line in card.splitlines() if re.match(r"\| .+ \| \d+ \| \d\.\d+ \|", line)]
    assert table, "no measured row with its n"
