"""Captions from real model classes with tiny random weights: which image, which words, and what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

from builders.sources.drawing import draw, sample_attributes
from builders.variants import ClassInfo, get_variant
from hfsyn.captions.captioner import TransformersCaptioner
from hfsyn.captions.texts import caption_flags, clean
from hfsyn.captions.token_drawing import DrawEach, ready
from hfsyn.errors import HfsynError
from hfsyn.models.finding import locate
from hfsyn.recipes.recipe import CaptionPart

FAMILIES = ("blip", "blip2", "vit_gpt2", "git", "florence2", "llava", "idefics3", "smolvlm", "qwen2_vl")
CHATS = {
    "llava": "user: <image>{}\nassistant: ",
    "idefics3": "user: <image>{}<end_of_utterance>\nAssistant:",
    "smolvlm": "user: <image>{}<end_of_utterance>\nAssistant:",
    "qwen2_vl": "user: <|vision_start|><|image_pad|><|vision_end|>{}\nassistant: ",
}
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
    places = None
    if family in CHATS or family == "florence2":
        ask = prompt or ("<CAPTION>" if family == "florence2" else "Describe the image in one sentence.")
        text = CHATS.get(family, "{}").format(ask)
        extra = dict(AutoProcessor.from_pretrained(folder)(images=[image], text=[text], return_tensors="pt"))
        start = extra["input_ids"][0].tolist()
        if family == "florence2":
            start, name = [tokenizer.eos_token_id], "decoder_input_ids"
        else:
            places = extra.pop("mm_token_type_ids", None)
            extra = {key: value for key, value in extra.items() if value.shape != extra["input_ids"].shape}
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
    if family == "florence2":  # the last token that it may say must be the one that ends
        steps -= 1
    said: list[int] = []
    while len(said) < steps and stop not in said:
        if places is not None:
            extra["mm_token_type_ids"] = torch.nn.functional.pad(places, (0, len(said)))
        with torch.inference_mode():
            logits = model(**extra, **{name: torch.tensor([[*start, *said]])}).logits
        said.append(int(logits[0, -1].argmax()))
    return clean(tokenizer.decode(said, skip_special_tokens=True))


@pytest.mark.parametrize(
    ("family", "prompt"), [*((family, None) for family in FAMILIES), *((family, PROMPT) for family in TAKES_PROMPT)]
)
def test_a_caption_is_what_the_model_says_after_the_prompt(folders: Folders, family: str, prompt: str | None) -> None:
    folder = folders(family)
    captions = captioner(folder, prompt=prompt).caption(images()[:4])
    assert captions == [by_hand(folder, family, image, prompt) for image in images()[:4]]
    assert len(set(captions)) >= 2, "the images make no difference, so that this test shows nothing"


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
    one, few = captioner(folders(family), num_beams=beams), images()[:5]
    together = one.caption(few)
    assert together == [one.caption([image] * len(few))[-1] for image in few]
    assert one.caption(few[::-1]) == together[::-1]
    assert one.caption(few[:1]) == together[:1]
    again = captioner(folders(family), num_beams=beams)
    assert again.caption(few) == together


def test_each_image_has_its_own_chance(folders: Folders) -> None:
    """Texts that are drawn at random depend on the image and its seed alone: not on companions, order or batch."""
    seeds = [3**n for n in range(8)]
    for family in ("blip", "blip2", "vit_gpt2", "florence2", "qwen2_vl"):
        one = captioner(folders(family), top_p=0.9, temperature=1.5)
        drawn = one.caption(images(), seeds=seeds)
        assert len(set(drawn)) == 8
        for number in (1, 3, 6):
            alone = one.caption([images()[number]] * 4, seeds=[1, 2, seeds[number], 10])
            assert alone[2] == drawn[number]
        assert one.caption(images()[::-1], seeds=seeds[::-1]) == drawn[::-1]
        assert one.caption(images(), seeds=[seed + 1 for seed in seeds]) != drawn
        assert captioner(folders(family), temperature=1e-4).caption(images(), seeds=seeds) == captioner(
            folders(family)
        ).caption(images())


def test_a_recipe_that_draws_needs_a_seed_for_each_image(folders: Folders) -> None:
    with pytest.raises(ValueError, match="needs a seed for each row"):
        captioner(folders("blip"), top_p=0.5).caption(images())


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (0.75, 1.0), (1.0, 2.0), (0.2, 0.5)])
def test_tokens_are_drawn_as_often_as_their_probabilities_say(top_p: float, temperature: float) -> None:
    rows = 8000
    probabilities = torch.tensor([0.1, 0.4, 0.0, 0.2, 0.3], dtype=torch.float64)
    sharp = probabilities ** (1 / temperature)
    sharp /= sharp.sum()
    order = sorted(range(5), key=lambda token: -float(sharp[token]))
    kept, total = [], 0.0
    for token in order:
        if total < top_p - 1e-12:
            kept.append(token)
        total += float(sharp[token])
    expected = torch.zeros(5, dtype=torch.float64)
    expected[kept] = sharp[kept] / sharp[kept].sum()
    draw = DrawEach(range(rows), top_p=top_p, temperature=temperature)
    scores = probabilities.log().float().expand(rows, 5)
    picked = torch.bincount(draw(None, scores).argmax(1), minlength=5) / rows
    assert (picked - expected).abs().max() < 5 * (0.25 / rows) ** 0.5
    assert picked[expected == 0].sum() == 0
    again = DrawEach(range(rows), top_p=top_p, temperature=temperature)
    assert torch.equal(again(None, scores), DrawEach(range(rows), top_p=top_p, temperature=temperature)(None, scores))


def test_beams_find_other_captions(folders: Folders) -> None:
    greedy, beams = (captioner(folders("blip"), num_beams=n).caption(images()) for n in (1, 4))
    assert greedy != beams


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_on_a_cpu(folders: Folders, dtype: str) -> None:
    for family in ("blip", "blip2", "git", "vit_gpt2", "florence2", "llava"):
        assert all(isinstance(caption, str) for caption in captioner(folders(family), dtype=dtype).caption(images()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_prepared_is_what_the_device_takes(folders: Folders, dtype: str) -> None:
    """In the model's own dtype, so that nothing is cast on the main thread; and ids stay whole numbers."""
    for family in ("blip", "blip2", "qwen2_vl"):
        one = captioner(folders(family), prompt=PROMPT, dtype=dtype)
        taken: dict[str, torch.Tensor] = {}

        def generate(taken: dict[str, Any] = taken, **inputs: Any) -> torch.Tensor:
            taken |= {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            return torch.zeros(2, 1, dtype=torch.long)

        made: list[dict[str, torch.Tensor]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one._model, "generate", generate)
            patch.setattr(
                "hfsyn.captions.captioner.ready",
                lambda *given, made=made, **how: made.append(ready(*given, **how)) or made[-1],
            )
            answer = one.ask([one.look(image) for image in images()[3:5]])
            prepared = made[-1]
            answer()
        assert set(prepared) == set(taken)
        for name, value in prepared.items():
            assert value is taken[name], "another tensor was made when the model was asked"
            assert value.dtype == (one._model.dtype if name == "pixel_values" else torch.long), name


@pytest.mark.parametrize("family", [*FAMILIES, "paligemma"])
def test_what_a_model_sees_of_an_image_is_what_its_processor_makes_of_the_picture(
    folders: Folders, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it gets the picture itself, or a tensor that was copied from it in strips."""
    one = captioner(folders(family), prompt="caption en" if family == "paligemma" else None)
    assert one._takes_pixels == (family not in CHATS)
    monkeypatch.setattr("hfsyn.captions.captioner._STRIP", 1000)
    chance = np.random.default_rng(0)
    for height, width in ((57, 83), (90, 41), (3, 300), (200, 3), (64, 64), (50, 1)):
        image = Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8))
        try:
            wanted = one._inputs.of(image, None)
        except Exception:
            with pytest.raises(Exception):  # noqa: B017, PT011 (each processor has its own)
                one.look(image)
            continue
        seen = one.look(image)
        assert seen.keys() == wanted.keys()
        assert all(torch.equal(seen[name], wanted[name]) for name in wanted), (height, width)


def test_an_image_is_closed_before_the_processor_copies_it_or_else_left_open(folders: Folders) -> None:
    one, image = captioner(folders("blip")), images()[0]
    wanted, opened = one.look(image), []
    processor = one._inputs.processor

    def processed(*given: Any, **how: Any) -> Any:
        with contextlib.suppress(ValueError):  # of a closed image
            opened.append(image.getpixel((0, 0)))
        return processor(*given, **how)

    one._inputs.processor = processed
    one.look(image)
    assert len(opened) == 1
    seen = one.look(image, close=True)
    assert len(opened) == 1
    assert torch.equal(seen["pixel_values"], wanted["pixel_values"])


def test_inputs_for_a_gpu_are_pinned_with_that_gpu_as_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which each thread has its own."""
    current: list[str] = ["cuda:0"]
    pinned: list[tuple[str, torch.dtype]] = []

    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[None]:
        current.append(str(device))
        yield
        current.pop()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append((current[-1], tensor.dtype))
        return tensor

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    model = SimpleNamespace(device=torch.device("cuda:3"), dtype=torch.bfloat16)
    inputs = {"pixel_values": torch.zeros(2, 3), "input_ids": torch.zeros(2, 1, dtype=torch.long), "sizes": [1]}
    assert list(ready(model, inputs)) == ["pixel_values", "input_ids"]
    assert pinned == [("cuda:3", torch.bfloat16), ("cuda:3", torch.long)]
    model.device = torch.device("cpu")
    ready(model, inputs)
    assert len(pinned) == 2


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [family for family in TAKES_PROMPT if family != "florence2"])
def test_a_prompt_may_name_the_class_of_each_image(folders: Folders, family: str) -> None:
    """Names of several lengths stand in one batch, and each image is asked its own question."""
    classes = [get_variant("imagenet-1k").classes[n] for n in (0, 1, 2, 6, 0, 291, 291, 800)]
    one = captioner(folders(family), prompt="a {c} is {c}")
    asked = one.caption(images(), classes)
    for number in (1, 3, 7):
        name = classes[number].name
        alone = captioner(folders(family), prompt=f"a {name} is {name}").caption([images()[number]])
        assert alone == [asked[number]]
    assert one.caption(images()[::-1], classes[::-1]) == asked[::-1]
    with pytest.raises(ValueError, match="needs the classes"):
        one.caption(images())


def test_florence_is_given_a_task(folders: Folders) -> None:
    """And its answer is what its own processor makes of it."""
    from transformers import AutoProcessor, Florence2ForConditionalGeneration

    folder = folders("florence2")
    plain = captioner(folder).caption(images())
    assert captioner(folder, prompt="<CAPTION>").caption(images()) == plain
    detailed = captioner(folder, prompt="<DETAILED_CAPTION>").caption(images())
    assert detailed != plain
    processor, model = (kind.from_pretrained(folder) for kind in (AutoProcessor, Florence2ForConditionalGeneration))
    for image, text in zip(images(), detailed, strict=True):
        inputs = processor(images=image, text="<DETAILED_CAPTION>", return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=8, num_beams=1, do_sample=False)
        said = processor.batch_decode(tokens, skip_special_tokens=False)[0].replace("<pad>", "")
        task = processor.post_process_generation(text=said, task="<DETAILED_CAPTION>", image_size=image.size)
        assert clean(task["<DETAILED_CAPTION>"]) == text


@pytest.mark.parametrize("prompt", ["<OD>", "<CAPTION> a dog", "<caption>"])
def test_a_task_whose_answer_is_no_caption_is_refused(folders: Folders, prompt: str) -> None:
    assert f"caption.prompt is {prompt!r}" in refusal(folders("florence2"), prompt=prompt).message


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
    assert "is not a captioner: it holds a generator" in refusal(Path(locate("builtin", "generator"))).message


def test_a_model_that_sees_no_images_is_no_captioner(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
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
    words = "has no loadable weights of its captioner" if damage == "missing" else "cannot be loaded as a captioner"
    assert words in refusal(copy).message


def test_weights_of_another_architecture_are_refused(folders: Folders, tmp_path: Path) -> None:
    """The library would fill the gaps with random numbers, and every caption would be noise."""
    copy = shutil.copytree(folders("blip"), tmp_path / "copy")
    shutil.copy(folders("git") / "model.safetensors", copy / "model.safetensors")
    assert "has no weights for" in refusal(copy).message


@pytest.mark.slow
def test_every_family_comes_from_a_hub_and_says_the_same_as_from_its_folder(folders: Folders, tmp_path: Path) -> None:
    """Through the real clients, at a commit, all in one process."""
    import test_text_writer  # here, as the client imports this file, and what that one imports turns the Hub off
    from hub_client import Client
    from hub_server import Hub

    code = """
import json
from test_captioner import captioner, images
from builders.variants import get_variant
from hfsyn.recipes.recipe import CaptionPart
from hfsyn.captions.text_writer import TextWriter
import torch
torch.set_num_threads(1)
result = {}
for model, revision in json.loads(MODELS).items():
    one = captioner(model, revision=revision)
    alone = [one.caption([image] * 8)[5] for image in images()[:2]]
    result[model] = [one.caption(images()), one.caption(images()), alone]
classes = get_variant("imagenet-1k").classes[100:106]
for model, (strategy, part) in json.loads(WRITERS).items():
    one = TextWriter(CaptionPart(**part), strategy, "cpu")
    alone = [one.write([info] * 3, [1, 2, seed])[2] for info, seed in zip(classes[:2], SEEDS)]
    result[model] = [one.write(classes, SEEDS), one.write(classes, SEEDS), alone]
"""
    with Hub(tmp_path / "hub") as hub, Client(hub, tmp_path) as client:
        commits = {}
        for family in (*FAMILIES, *test_text_writer.FAMILIES):
            files = {path.name: path.read_bytes() for path in folders(family).iterdir()}
            commits[f"alice/{family}"] = hub.add_repo("model", f"alice/{family}", files=files)
            hub.add_commit("model", f"alice/{family}", {"config.json": b"{}"})  # the newest is spoilt
        models = {f"alice/{family}": commits[f"alice/{family}"] for family in FAMILIES}
        drawn = {"max_new_tokens": 8, "top_p": 0.9, "temperature": 1.5}  # as `test_text_writer.writer` has it
        writers = {
            f"alice/{family}": (strategy, {"model": f"alice/{family}", "revision": commits[f"alice/{family}"], **drawn})
            for family, strategy in test_text_writer.FAMILIES.items()
        }
        given = f"MODELS, WRITERS = {json.dumps(models)!r}, {json.dumps(writers)!r}; SEEDS = {test_text_writer.SEEDS}"
        said = client.python(f"{given}\n{code}")
    for family, strategy in test_text_writer.FAMILIES.items():
        texts = test_text_writer.writer(folders(family), strategy).write(
            test_text_writer.CLASSES, test_text_writer.SEEDS
        )
        assert said[f"alice/{family}"] == [texts, texts, texts[:2]]
    for family in FAMILIES:
        mine = captioner(folders(family)).caption(images())
        assert said[f"alice/{family}"] == [mine, mine, mine[:2]]
        assert any(mine)


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
