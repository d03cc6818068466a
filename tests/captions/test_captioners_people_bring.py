"""Captioners and language models as people have them: what is passed on, what is refused, and when."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_models
import torch
from command import command
from fakes import FakeCaptioner, FakeGenerator
from PIL import Image
from safetensors.torch import load_file, save_file

from builders.sources.new_class_map import new_variant
from hfsyn.captions.caption_stage import caption
from hfsyn.captions.captioner import TransformersCaptioner
from hfsyn.captions.texts import clean
from hfsyn.images.generate_stage import generate
from hfsyn.recipes.recipe import CaptionPart, load_recipe
from hfsyn.runs.finish import finish
from hfsyn.runs.prepare import prepare

Folders = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The saved tiny model of a family, written when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> Path:
        name, _, cache = family.partition("-")
        path = root / family
        more = {"cache": cache} if cache else {}
        return path if path.is_dir() else getattr(tiny_models, name)(path, **more)

    return folder


PICTURES = {"a": (16, 16), "b": (40, 12), "c": (9, 30), "d": (64, 64), "e": (33, 20)}


def photographs(root: Path, pictures: dict[str, tuple[int, int]] = PICTURES) -> Path:
    """A folder of noise in one class, each picture of its own noise whatever the others are."""
    (root / "tench").mkdir(parents=True)
    for name, (width, height) in pictures.items():
        noise = np.random.default_rng(ord(name[0])).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "tench" / f"{name}.png")
    return root


def run_of(tmp_path: Path, photos: Path, *fields: str, name: str = "run") -> Path:
    """A prepared run over a folder of photographs."""
    map_of = tmp_path / f"{name}.yaml"
    new_variant("fish", str(photos), out=map_of)
    small = ("caption.max_new_tokens=6", "caption.batch_size=3", "caption.dtype=float32", "generate.batch_size=4")
    return prepare(load_recipe("shapes-cip", [f"source.variant={map_of}", *small, *fields]), tmp_path / name).folder


def captions_of(run: Path) -> dict[str, str]:
    """Caption by the picture's name."""
    rows = [row for path in sorted((run / "captions").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {Path(row["source_id"]).stem: row["caption"] for row in rows}


def rejected_of(run: Path) -> dict[str, str]:
    """Reason by the picture's name, in the order of the sidecars."""
    from builders.runs.layout import load_sidecar, sidecar_of

    lines = [
        line
        for path in sorted((run / "captions").glob("*.parquet"))
        for line in load_sidecar(sidecar_of(path)).rejected
    ]
    return {Path(line["id"]).stem: line["reason"] for line in lines}


def finished(run: Path) -> tuple[dict[str, Any], str]:
    """Manifest and card of a run whose images are drawn by a fake."""
    generate(run, generator=FakeGenerator(), quiet=True)
    finish(run)
    return json.loads((run / "manifest.json").read_text()), (run / "README.md").read_text()


# --- what the processor gives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["paligemma", "paligemma-static"])
def test_segments_reach_the_model_whatever_its_cache(
    folders: Folders, family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    photos = photographs(tmp_path / "photos")
    run = run_of(tmp_path, photos, f"caption.model={folders(family)}", "caption.prompt=caption en")
    assert command(capsys, "caption", run, "--device", "cpu", "--num-processes", 1, "-q").code == 0
    processor = AutoProcessor.from_pretrained(folders(family))
    model = AutoModelForImageTextToText.from_pretrained(folders(family)).eval()
    expected = {}
    for path in sorted((photos / "tench").iterdir()):
        inputs = processor(images=[Image.open(path)], text=["caption en"], return_tensors="pt")
        inputs.pop("labels", None)
        out = model.generate(**inputs, max_new_tokens=6, num_beams=1, do_sample=False)
        said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        expected[path.stem] = clean(said)
    assert captions_of(run) == expected
    assert len(set(expected.values())) >= 3


def test_settings_of_a_checkpoint_that_ask_for_other_answers_change_nothing(folders: Folders, tmp_path: Path) -> None:
    plain = TransformersCaptioner(CaptionPart(model=str(folders("blip")), max_new_tokens=6, num_beams=3), "cpu")
    copy = shutil.copytree(folders("blip"), tmp_path / "copy")
    settings = json.loads((copy / "generation_config.json").read_text())
    settings |= {"num_return_sequences": 2, "num_beams": 2, "return_dict_in_generate": True, "output_scores": True}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green")]
    asking = TransformersCaptioner(CaptionPart(model=str(copy), max_new_tokens=6, num_beams=3), "cpu")
    assert asking.caption(pictures) == plain.caption(pictures)


def with_template_in_the_tokenizer(model: Path, copy: Path, template: str | None = None) -> Path:
    """A copy of a chat model whose template, or another one, is its tokenizer's alone."""
    shutil.copytree(model, copy)
    own = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["chat_template"] = own if template is None else template
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    return copy


def test_a_chat_template_is_looked_up_in_the_tokenizer_too(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = photographs(tmp_path / "photos", {"a": (16, 16), "b": (40, 12)})
    said = []
    for model in (folders("llava"), with_template_in_the_tokenizer(folders("llava"), tmp_path / "copy")):
        run = run_of(tmp_path, photos, f"caption.model={model}", name=f"run-{model.name}")
        assert command(capsys, "caption", run, "--device", "cpu", "--num-processes", 1, "-q").code == 0
        said.append(captions_of(run))
    assert said[0] == said[1]
    assert all(said[0].values())


# --- what is refused at once ---------------------------------------------------------------------------------------


def test_a_model_that_needs_a_prompt_asks_for_caption_prompt_before_anything_is_read(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, photographs(tmp_path / "photos"), f"caption.model={folders('paligemma')}")
    shutil.rmtree(tmp_path / "photos")  # nothing is looked for there
    ended = command(capsys, "caption", run, "--device", "cpu", "--num-processes", 1, "-q")
    assert ended.code == 2
    assert "caption.prompt is null. Set caption.prompt" in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not list((run / "captions").glob("*"))


TEXT_ONLY = "{% for m in messages %}{{ m['content'] + '.' }}{% endfor %}"
PLACE = "{{ '<image>' if c.type == 'image' }}"
NO_TEXT = f"{{% for m in messages %}}{{% for c in m.content %}}{PLACE}{{% endfor %}}{{% endfor %}}"


@pytest.mark.parametrize(
    ("template", "fields", "words"),
    [
        (TEXT_ONLY, {}, ("caption.prompt is null", "with <image> in the image's place")),
        (NO_TEXT, {"prompt": "a photo"}, ("caption.prompt is 'a photo'", "takes images only")),
        (NO_TEXT, {}, ()),
        (TEXT_ONLY, {"prompt": "<image>\na photo of"}, ()),
        (TEXT_ONLY, {"prompt": "a photo of"}, ("fails as a captioner in a first try", "<image> tokens")),
    ],
)
def test_a_prompt_that_a_template_cannot_place_is_refused(
    folders: Folders, tmp_path: Path, template: str, fields: dict[str, str], words: Sequence[str]
) -> None:
    model = with_template_in_the_tokenizer(folders("llava"), tmp_path / "copy", template)
    said = refusal(lambda: TransformersCaptioner(CaptionPart(model=str(model), **fields), "cpu"))
    assert bool(said) == bool(words)
    assert all(word in said for word in words), said


def refusal(call: Callable[[], Any]) -> str:
    """The one line that a user reads; empty where nothing is refused."""
    from hfsyn.errors import HfsynError

    said = ""
    try:
        call()
    except HfsynError as error:
        said = str(error)
    assert "\n" not in said
    return said


def test_a_model_that_draws_random_numbers_of_its_own_is_refused(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfsyn.captions.captioner import CaptionInputs

    made = CaptionInputs._made

    def shaken(self: Any, image: Image.Image, prompt: str | None) -> dict[str, Any]:
        return {name: value + 0 * torch.rand(1).long() for name, value in made(self, image, prompt).items()}

    monkeypatch.setattr(CaptionInputs, "_made", shaken)
    said = refusal(lambda: TransformersCaptioner(CaptionPart(model=str(folders("blip"))), "cpu"))
    assert "draws random numbers that no image's seed decides" in said


def with_weights(model: Path, copy: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a model with other weights."""
    shutil.copytree(model, copy)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("family", "lost"),
    [
        ("blip", "text_decoder.bert.encoder.layer.0.output.dense.weight"),
        ("git", "git.visual_projection.visual_projection.0.bias"),
        ("llava", "model.multi_modal_projector.linear_1.weight"),
    ],
)
def test_one_weight_that_is_missing_and_needed_is_refused(
    folders: Folders, tmp_path: Path, family: str, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library would fill it with other random numbers each time."""

    def lose(weights: dict[str, torch.Tensor]) -> None:
        (found,) = [name for name in weights if name.endswith(lost.removeprefix("model."))]
        del weights[found]

    model = with_weights(folders(family), tmp_path / "copy", lose)
    run = run_of(tmp_path, photographs(tmp_path / "photos"), f"caption.model={model}")
    ended = command(capsys, "caption", run, "--device", "cpu", "--num-processes", 1, "-q")
    assert ended.code == 2
    assert "has no weights for 1 parameters of its captioner, such as" in ended.err
    assert lost.removeprefix("model.") in ended.err


def test_weights_that_play_no_part_are_counted_said_and_recorded(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        weights |= {"itm_head.weight": torch.zeros(2, 16), "itm_head.bias": torch.zeros(2)}

    photos = photographs(tmp_path / "photos")
    model = with_weights(folders("vit_gpt2"), tmp_path / "copy", add)
    run = run_of(tmp_path, photos, f"caption.model={model}")
    ended = command(capsys, "caption", run, "--device", "cpu", "--num-processes", 1)
    assert ended.code == 0
    # transformers gives such a model a pooler, which its checkpoint has not, and no caption needs.
    assert "weights of" in ended.err
    assert "2 not used, 2 missing, and not needed" in ended.err
    plain = run_of(tmp_path, photos, f"caption.model={folders('vit_gpt2')}", name="plain")
    assert command(capsys, "caption", plain, "--device", "cpu", "--num-processes", 1, "-q").code == 0
    assert captions_of(run) == captions_of(plain)
    counts = {"caption": {"missing, and not needed": 2, "not used": 2}}
    manifest, card = finished(run)
    assert manifest["unused_weights"] == counts
    assert "| weights of the model (caption) | 2 | not used |" in card
    assert "weights of the model (caption): 2 not used" in command(capsys, "status", run).out
    assert json.loads(command(capsys, "status", run, "--json").out)["unused_weights"] == counts


# --- one image that a model refuses --------------------------------------------------------------------------------


def test_an_image_that_the_processor_refuses_is_set_aside_and_the_others_keep_their_captions(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"caption.model={folders('qwen2_vl')}"
    thin = {**PICTURES, "bthin": (1000, 4), "flat": (4, 1200)}
    run = run_of(tmp_path, photographs(tmp_path / "photos", thin), model)
    ended = command(capsys, "caption", run, "--device", "cpu", "--num-processes", 1, "-q")
    assert ended.code == 0, ended
    assert list(rejected_of(run)) == ["bthin", "flat"]
    assert rejected_of(run)["bthin"] == (
        "the model refuses it: absolute aspect ratio must be smaller than 200, got 250.0"
    )
    plain = run_of(tmp_path, photographs(tmp_path / "plain"), model, name="without")
    assert command(capsys, "caption", plain, "--device", "cpu", "--num-processes", 1, "-q").code == 0
    assert captions_of(run) == captions_of(plain)
    assert ", 2 set aside" in command(capsys, "status", run).out
    manifest, card = finished(run)
    reason = "the model refuses it: absolute aspect ratio must be smaller than N, got N"
    assert manifest["rejected"] == {f"caption: {reason}": 2}
    assert f"| set aside (caption) | 2 | {reason} |" in card
    lines = [json.loads(line) for line in (run / "rejected.jsonl").read_text().splitlines()]
    assert [Path(line["id"]).stem for line in lines] == ["bthin", "flat"]


def test_an_image_with_more_tokens_than_the_model_takes_is_set_aside_and_shortens_no_other_caption(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model whose pictures take as many places as they are large."""
    model = shutil.copytree(folders("qwen2_vl"), tmp_path / "copy")
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (model / name).exists():
            text = (model / name).read_text()
            assert '"longest_edge": 1024' in text
            (model / name).write_text(text.replace('"longest_edge": 1024', '"longest_edge": 16384'))
    settings = json.loads((model / "config.json").read_text())
    one = TransformersCaptioner(CaptionPart(model=str(model), max_new_tokens=6), "cpu")
    long = one.look(Image.new("RGB", (128, 128)))["input_ids"].shape[1]
    small, both = {"a": (16, 16)}, {"a": (16, 16), "big": (128, 128)}
    photos = {name: photographs(tmp_path / name, which) for name, which in (("small", small), ("both", both))}
    whole = {path.stem: one.caption([Image.open(path)])[0] for path in (photos["both"] / "tench").iterdir()}
    for positions, room in ((long + 3, 3), (long, 0)):
        settings["text_config"]["max_position_embeddings"] = positions
        (model / "config.json").write_text(json.dumps(settings))
        said = {}
        for name, folder in photos.items():
            run = run_of(tmp_path, folder, f"caption.model={model}", name=f"{name}-{room}")
            assert command(capsys, "caption", run, "--device", "cpu", "--num-processes", 1, "-q").code == 0
            said[name] = captions_of(run)
        assert said["both"]["a"] == said["small"]["a"] == whole["a"]
        if room:
            assert len(said["both"]["big"]) <= room < len(whole["big"])
            assert whole["big"].startswith(said["both"]["big"])
        else:
            assert rejected_of(run) == {"big": f"the model refuses it: {long} tokens, of at most {long - 1}"}


class Choosy(FakeCaptioner):
    """Refuses batches that have an image with more than half of its pixels red."""

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        if any(self.is_red(image) for image in images):
            raise RuntimeError("no /home/me/kernel for 7 red pixels\nand more")
        return super().caption(images)

    @staticmethod
    def is_red(image: Image.Image) -> bool:
        red, green, blue = np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0)
        return bool(red > 150 > green + blue)


def test_images_for_which_a_batch_fails_are_found_one_by_one(tmp_path: Path) -> None:
    from hfsyn.runs.status import status

    photos = tmp_path / "photos" / "tench"
    photos.mkdir(parents=True)
    red = {3, 4, 9, 13}
    for n in range(14):
        Image.new("RGB", (8, 8), (250, 0, n) if n in red else (10 * n, 200, 0)).save(photos / f"{n:02}.png")
    (photos / "05.png").write_bytes(b"not an image")
    runs = {}
    for name, captioner in (("all", FakeCaptioner()), ("choosy", Choosy())):
        runs[name] = run_of(tmp_path, photos.parent, "caption.batch_size=5", "store.shard_rows=8", name=name)
        caption(runs[name], captioner=captioner, quiet=True)
        assert set(captioner.batches) == {5}, "a batch has one size, so that rounding stays the same"
    kept, whole = captions_of(runs["choosy"]), captions_of(runs["all"])
    assert kept == {name: text for name, text in whole.items() if int(name) not in red}
    aside = rejected_of(runs["choosy"])
    assert list(aside) == ["03", "04", "05", "09", "13"], "in the order of the source"
    assert set(aside.values()) == {"the model refuses it: no ... for 7 red pixels", "not an image"}
    assert status(runs["choosy"]).stages[0].rejected == 5
    manifest, _ = finished(runs["choosy"])
    assert manifest["readable_rows"] == len(kept)
    again = run_of(tmp_path, photos.parent, "caption.batch_size=5", "store.shard_rows=8", name="again")
    caption(again, captions=str(runs["choosy"]), quiet=True)
    assert (captions_of(again), rejected_of(again)) == (kept, aside)


def test_an_image_for_which_the_model_computes_no_finite_values_is_set_aside(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfsyn.captions.captioner import CaptionInputs

    made = CaptionInputs._made

    def overflowing(self: Any, image: Any, prompt: str | None) -> dict[str, Any]:
        found = made(self, image, prompt)
        size = image.size if isinstance(image, Image.Image) else tuple(image.shape[:0:-1])
        return {**found, "pixel_values": found["pixel_values"] * (torch.inf if size == (33, 20) else 1)}

    photos = photographs(tmp_path / "photos")
    for beams in (1, 2):
        fields = (f"caption.model={folders('blip')}", f"caption.num_beams={beams}")
        plain = run_of(tmp_path, photos, *fields, name=f"plain-{beams}")
        caption(plain, device="cpu", quiet=True)
        with monkeypatch.context() as patch:
            patch.setattr(CaptionInputs, "_made", overflowing)
            run = run_of(tmp_path, photos, *fields, name=f"run-{beams}")
            caption(run, device="cpu", quiet=True)
        assert rejected_of(run) == {"e": "the model refuses it: the values that the model computes are not finite"}
        assert captions_of(run) == {name: text for name, text in captions_of(plain).items() if name != "e"}


def test_a_text_that_a_language_model_has_no_room_for_is_set_aside(folders: Folders, tmp_path: Path) -> None:
    """What it is shown differs from image to image; a short question is what it is tried with."""
    photos = photographs(tmp_path / "photos", dict.fromkeys("abcdefghijkl", (8, 8)))
    model = shutil.copytree(folders("chat_model"), tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    said = {}
    for positions in (2048, 535):
        (model / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": positions}))
        fields = (f"caption.model={model}", "prompt.strategy=llm", "caption.batch_size=4")
        run = run_of(tmp_path, photos, *fields, name=f"run-{positions}")
        caption(run, device="cpu", quiet=True)
        said[positions] = captions_of(run)
    assert all("tokens, of at most 534" in reason for reason in rejected_of(run).values())
    assert 0 < len(said[535]) < len(said[2048]) == 12
    assert said[535].items() <= said[2048].items()


# --- a model that refuses all --------------------------------------------------------------------------------------


class Broken(FakeCaptioner):
    """Refuses every image, until it is fixed; with `looking`, before it is asked."""

    whole = False

    def __init__(self, *, looking: bool) -> None:
        super().__init__()
        if looking:
            self.look = self._look
            self.ask = lambda views, seeds: lambda: super(Broken, self).caption(views)

    def _look(self, image: Image.Image, info: Any) -> Image.Image:
        if not self.whole:
            raise ValueError("cannot")
        return image.copy()

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        if not self.whole:
            raise ValueError("cannot")
        return super().caption(images)


@pytest.mark.parametrize("looking", [True, False])
@pytest.mark.parametrize("images", [5, 45])
def test_a_model_that_refuses_every_image_ends_the_run_and_nothing_is_set_aside(
    tmp_path: Path, looking: bool, images: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import hfsyn.captions.caption_stage

    texts_of, captioner = hfsyn.captions.caption_stage.texts_of, Broken(looking=looking)
    monkeypatch.setattr(
        hfsyn.captions.caption_stage, "texts_of", lambda run, **more: texts_of(run, **{**more, "captioner": captioner})
    )
    names = {f"{chr(97 + n % 26)}{n}": (8, 8) for n in range(images)}
    run = run_of(tmp_path, photographs(tmp_path / "photos", names), "store.shard_rows=4")
    ended = command(capsys, "caption", run, "--num-processes", 1, "-q")
    assert ended.code == 2
    assert f"took none of the first {min(images, 32)} images; the first: the model refuses it: cannot" in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not [path for path in run.glob("captions/*") if path.suffix == ".parquet"]
    captioner.whole = True
    assert command(capsys, "caption", run, "--num-processes", 1, "-q").code == 0
    assert len(captions_of(run)) == images
    assert not rejected_of(run)


def test_shards_that_a_model_refuses_whole_wait_for_one_that_it_takes(tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "tench"
    photos.mkdir(parents=True)
    for n in range(12):
        Image.new("RGB", (8, 8), (250, 0, n) if n < 8 else (10 * n, 200, 0)).save(photos / f"{n:02}.png")
    run = run_of(tmp_path, photos.parent, "store.shard_rows=3")
    caption(run, captioner=Choosy(), quiet=True)
    assert list(captions_of(run)) == ["08", "09", "10", "11"]
    assert len(rejected_of(run)) == 8


def test_a_model_that_breaks_on_the_way_ends_the_run(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a device does after its first fault: what it refuses then is not the fault of an image."""
    import hfsyn.captions.captioner

    calls = []
    new_tokens = hfsyn.captions.captioner.new_tokens

    def breaking(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:  # the trial and the first batch
            raise RuntimeError("device-side assert triggered")
        return new_tokens(*given, **more)

    monkeypatch.setattr(hfsyn.captions.captioner, "new_tokens", breaking)
    run = run_of(tmp_path, photographs(tmp_path / "photos"), f"caption.model={folders('blip')}", "store.shard_rows=3")
    ended = command(capsys, "caption", run, "--device", "cpu", "--num-processes", 1, "-q")
    assert ended.code == 2
    assert "fails as a captioner in a first try: RuntimeError: device-side assert triggered" in ended.err
    assert not rejected_of(run)
    assert len(captions_of(run)) == 3
