"""What is said before anything is spent: counts with and without a source, token limits, time, cost, upload."""

from __future__ import annotations

import inspect
import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from conftest import finished_run, run_folder
from fakes import FakeCaptioner

from builders.variants import VARIANTS
from hfsyn.cli import main
from hfsyn.errors import HfsynError
from hfsyn.models.token_limits import SEQUENCES, limits
from hfsyn.outlook.costs import DEVICES, UTILISATION, image_size, image_tflop, memory_needed
from hfsyn.outlook.forecast import Forecast, forecast
from hfsyn.recipes.recipe import GeneratePart, load_recipe

SHIPPED = sorted(path.name.removesuffix(".yaml") for path in files("hfsyn.recipes").iterdir() if path.suffix == ".yaml")
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def of(recipe: str, *overrides: str, run: Path | None = None, price: float | None = None) -> Forecast:
    return forecast(load_recipe(recipe, overrides), run, price=price)


def run_main(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_planned_without_a_network(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_main("plan", name, capsys=capsys)
    recipe = load_recipe(name)
    variant = VARIANTS[recipe.source.variant]
    expected = variant.splits[recipe.source.split] * recipe.prompt.images_per_caption
    if recipe.source.limit_per_class is None:
        assert f"images        {expected}: " in out
    assert (code, err) == (0, "")
    assert ("counts from the variant's table" in out) == (not variant.drawn)


def test_counts_of_the_table_follow_the_recipe() -> None:
    whole = of("imagenet-1k-cip")
    assert (whole.real_images, whole.classes, whole.images_per_class) == (1_281_167, 1000, (1281, 1281))
    assert whole.counts == "from the variant's table"
    assert "HF_HUB_OFFLINE" in whole.why
    few = of("imagenet-1k-cip", "source.limit_per_class=20", "prompt.images_per_caption=3")
    assert (few.real_images, few.images, few.images_per_class, few.shards) == (20_000, 60_000, (60, 60), 60)
    # Asked for more a class than there can be: the whole set, never more.
    assert of("imagenette-cip", "source.limit_per_class=2000").images == 9469


def test_prompts_without_captions_are_known_from_the_classes_alone() -> None:
    assert of("imagenette-basic").unique_prompts == 10
    assert of("imagenette-basic").first_prompts[0].startswith("a photo of ")
    assert of("imagenette-basic", "prompt.strategy=clip80").unique_prompts is None
    assert of("imagenette-cip").unique_prompts is None


def test_a_wrong_source_is_an_error_and_not_a_guess(tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="no folder"):
        of("imagenette-cip", f"source.path={tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HfsynError, match="no images"):
        of("imagenette-cip", f"source.path={tmp_path / 'empty'}")


def test_a_run_tells_its_own_counts_and_captions(tmp_path: Path) -> None:
    from hfsyn.captions.caption_stage import caption

    run = run_folder(tmp_path, "prompt.images_per_caption=2")
    recipe = run / "recipe.yaml"
    before = of(str(recipe), run=run)
    assert (before.counts, before.captions, before.images, before.unique_prompts) == (
        "of this run",
        "not made yet",
        60,
        None,
    )
    caption(run, captioner=FakeCaptioner(), quiet=True)
    after = of(str(recipe), run=run)
    assert (after.captions, after.images, after.limits[0].encoder) == ("of this run", 60, "tokenizer")
    assert 20 < (after.unique_prompts or 0) <= 30
    with pytest.raises(HfsynError, match=r"source.limit_per_class is 3 there, None here"):
        of("shapes-cip", run=run)


def test_the_forecast_of_a_publication_is_what_is_published(tmp_path: Path) -> None:
    from hfsyn.hub.repo import FILES_A_COMMIT, commits_for
    from hfsyn.publishing.contents import contents
    from hfsyn.runs.run import load_run

    run = finished_run(tmp_path, "source.limit_per_class=7")
    found = of(str(run / "recipe.yaml"), run=run)
    sent = contents(load_run(run), "default")
    assert found.shards == 9
    assert abs(found.upload_files - (len(sent) + 1)) <= 1  # fakes draw no preview
    assert found.commits == commits_for(len(sent)) == 1
    assert commits_for(FILES_A_COMMIT - 1) == 1 < commits_for(FILES_A_COMMIT) == 2


# --- text encoders ----------------------------------------------------------------------------------------------------


def test_sequence_lengths_are_those_of_the_pipelines() -> None:
    import diffusers

    for name, length in SEQUENCES.items():
        pipeline = getattr(diffusers, name)
        if (asked := inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")) is not None:
            assert asked.default == length, name
        else:
            assert f"max_length = {length}\n" in inspect.getsource(pipeline.encode_prompt), name


def pipeline(folder: Path, kind: str, **tokenizers: Any) -> GeneratePart:
    """A folder with what `plan` reads of a pipeline: its index and its tokenizers."""
    index = {"_class_name": kind, "unet": ["diffusers", "UNet2DConditionModel"], "tokenizer_9": [None, None]}
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folder / name)
        index[name] = ["transformers", type(tokenizer).__name__]
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    return GeneratePart(model=str(folder))


def letters(length: int) -> Any:
    """Each letter is a token, and there is one marker at the end, as with T5."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz ü")} | {"?": 98, "</s>": 99}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 99)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=length, eos_token="</s>", unk_token="?")


def test_each_text_encoder_has_its_own_limit(tmp_path: Path) -> None:
    clip = tiny_models._clip_tokenizer()  # letters are its words, and it adds two markers
    prompts = [("a" * 75, 3), ("a" * 76, 5), ("a" * 255, 7), ("a" * 256, 11), ("ü" * 76, 1), ("b" * 600, 2)]
    sdxl = limits(pipeline(tmp_path / "a", "StableDiffusionXLPipeline", tokenizer=clip, tokenizer_2=clip), prompts)
    assert [(limit.encoder, limit.max_tokens, limit.truncated) for limit in sdxl] == [
        ("tokenizer", 77, 26),
        ("tokenizer_2", 77, 26),
    ]
    part = pipeline(
        tmp_path / "b", "StableDiffusion3Pipeline", tokenizer=clip, tokenizer_2=clip, tokenizer_3=letters(512)
    )
    assert [(limit.encoder, limit.max_tokens, limit.truncated) for limit in limits(part, prompts)] == [
        ("tokenizer_3", 256, 13),
        ("tokenizer", 77, 26),
        ("tokenizer_2", 77, 26),
    ]
    flux = limits(pipeline(tmp_path / "c", "FluxPipeline", tokenizer=clip, tokenizer_2=letters(512)), prompts)
    assert (flux[0].encoder, flux[0].max_tokens, flux[0].truncated) == ("tokenizer_2", 512, 2)
    short = pipeline(tmp_path / "e", "FluxPipeline", tokenizer=clip, tokenizer_2=letters(512))
    assert limits(short.model_copy(update={"max_sequence_length": 256}), prompts)[0].max_tokens == 256
    sigma = limits(pipeline(tmp_path / "d", "PixArtSigmaPipeline", tokenizer=letters(512)), prompts)
    assert [(limit.max_tokens, limit.truncated) for limit in sigma] == [(300, 2)]


def test_many_prompts_are_counted_as_one_by_one(tmp_path: Path) -> None:
    chance = random.Random(0)
    signs = "ab c,d'e  .\nfgü7-é" * 2 + " "
    prompts = ["".join(chance.choices(signs, k=n % 130)) for n in range(1500)]
    clip, other = tiny_models._clip_tokenizer(), letters(90)
    part = pipeline(tmp_path / "a", "StableDiffusion3Pipeline", tokenizer=clip, tokenizer_2=other)
    longer, shorter = limits(part, ((prompt, 1) for prompt in prompts))
    assert longer.truncated == sum(len(other(prompt, verbose=False).input_ids) > 90 for prompt in prompts) > 100
    assert shorter.truncated == sum(len(clip(prompt, verbose=False).input_ids) > 77 for prompt in prompts) > 100


def test_the_headline_is_what_the_generator_flags() -> None:
    from hfsyn.images.generator import DiffusersGenerator

    part = GeneratePart(model="builtin", dtype="float32", batch_size=1, steps=1)
    prompts = ["a photo of circle", "a photo of circle, " + "red and blue " * 12, "b" * 60, "striped " * 29]
    generator = DiffusersGenerator(part, None, "cpu")
    flagged = sum(count > generator.max_tokens for count in generator.count_tokens(prompts))
    (found,) = limits(part, [(prompt, 1) for prompt in prompts])
    assert (found.max_tokens, found.truncated) == (generator.max_tokens, flagged)
    assert 0 < flagged < 4


def test_a_tokenizer_that_is_not_here_is_said_and_not_fetched() -> None:
    assert limits(GeneratePart(model=SD15), [("a", 1)]) == ()
    assert "not counted" in of("imagenette-basic").text()


# --- time and cost ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_table_of_costs_is_what_torch_counts() -> None:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval()
        assert sum(p.numel() for p in unet.parameters()) == 859_520_964
        for side in (512, 640, 768):
            latent = torch.empty(1, 4, side // 8, side // 8)
            with FlopCounterMode(display=False) as row:
                unet(latent, torch.tensor(1), torch.empty(1, 77, 768))
            with FlopCounterMode(display=False) as decoding:
                vae.decoder(latent)
            part = GeneratePart(model=SD15, steps=1, scheduler="ddim", guidance_scale=1, width=side, height=side)
            counted = (row.get_total_flops() + decoding.get_total_flops()) / 1e12
            assert image_tflop(part) == pytest.approx(counted + 0.013, rel=0.01)


def test_steps_guidance_and_size_decide_the_time() -> None:
    def tflop(**more: Any) -> float:
        found = image_tflop(GeneratePart(model=SD15, **more))
        assert found is not None
        return found

    # Notes that others published: 82.9 TFLOP for 50 guided steps, 84.5 for the 51 calls of PNDM.
    assert tflop(scheduler="ddim") == pytest.approx(82.9, rel=0.005)
    assert tflop() == pytest.approx(84.5, rel=0.005)
    assert tflop(scheduler="ddim", guidance_scale=1.0) == pytest.approx(42.7, rel=0.005)
    assert tflop(scheduler="ddim", guidance_stop=0.5) == pytest.approx((82.9 + 42.7) / 2, rel=0.005)
    assert tflop(width=512, height=1024) > 2 * tflop()
    # From the real image: half of the steps, and the image encoded first.
    assert tflop(scheduler="ddim", init="source", strength=0.5) == pytest.approx(82.9 / 2 + 1.1 + 1.3, rel=0.01)
    assert image_tflop(GeneratePart(model="somebody/else")) is None
    for name, guidance, rows in (("schnell", 0, 1), ("dev", 3.5, 1), ("schnell", 3.5, 2)):
        flux = GeneratePart(model=f"black-forest-labs/FLUX.1-{name}", steps=4, guidance_scale=guidance)
        assert image_size(flux) == (1024, 1024)
        # That of dev is an input of the network.
        assert image_tflop(flux) == pytest.approx(4 * rows * 74.4 + 10.5 + 4.9, rel=0.01)


def test_hours_are_work_over_what_a_device_does_and_cost_follows() -> None:
    found = of("imagenette-basic", "generate.dtype=float16", price=2.0)
    a100 = next(device for device in DEVICES if device.name == "A100")
    part = load_recipe("imagenette-basic").generate
    by_hand = 9469 * (image_tflop(part) or 0) / (a100.half * UTILISATION) / 3600
    assert found.hours["A100"] == pytest.approx(by_hand, rel=1e-3)
    assert found.cost["A100"] == pytest.approx(2 * by_hand, abs=0.02)
    assert found.hours.keys() == {device.name for device in DEVICES}
    # A T4 has no bfloat16.
    assert found.hours.keys() - of("imagenette-basic", "generate.dtype=bfloat16").hours.keys() == {"T4"}
    both = of("imagenette-cip")
    assert both.hours_of["A100"].captions > 0
    assert both.hours["A100"] == pytest.approx(both.hours_of["A100"].captions + both.hours_of["A100"].images)
    assert of("shapes-cip").hours == of("shapes-cip", price=1.0).cost == {}


def test_plan_says_what_it_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_main("plan", "imagenet-1k-cip", "--price", "3", capsys=capsys)
    assert code == 0
    assert "at 40% of its peak" in out
    assert "USD at 3 per hour: " in out
    assert "5,137 files in 6 commits" in out
    assert "USD" not in run_main("plan", "imagenet-1k-cip", capsys=capsys)[1]
    code, out, _ = run_main("plan", "imagenet-1k-cip", "--price", "3", "--json", capsys=capsys)
    found = json.loads(out)
    assert found["cost"]["A100"] == pytest.approx(3 * found["hours"]["A100"], abs=0.01)
    assert found["utilisation"] == UTILISATION


def test_a_model_is_known_by_its_files_too(tmp_path: Path) -> None:
    def saved(name: str, **config: Any) -> GeneratePart:
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "model_index.json").write_text("{}")
        (tmp_path / name / "unet" / "config.json").write_text(json.dumps(config))
        return GeneratePart(model=str(tmp_path / name), width=512, height=512)

    known = saved("mine", block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=768)
    assert image_tflop(known) == image_tflop(GeneratePart(model=SD15, scheduler="ddim", width=512, height=512))
    lcm = saved("lcm", block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=768, time_cond_proj_dim=256)
    assert image_tflop(lcm) == pytest.approx(0.803 * 50 + 2.515 + 0.013)  # guidance is an input, not a second row
    assert image_tflop(saved("small", block_out_channels=[32, 64], cross_attention_dim=768)) is None


def test_images_have_a_time_where_captions_have_none() -> None:
    found = of("imagenette-cip", "caption.model=somebody/else")
    assert found.hours == {}
    assert "for the images, at 40%; for the captions not known" in found.text()


GENERATORS = sorted(path.name.removesuffix(".yaml") for path in files("hfsyn.recipes").joinpath("generators").iterdir())


@pytest.mark.parametrize("name", GENERATORS)
def test_every_shipped_generator_has_a_cost_and_a_size(name: str) -> None:
    recipe = load_recipe("imagenette-basic", generator=name)
    found = forecast(recipe)
    assert name == "builtin" or (found.hours["H100/H200"] > 0 and memory_needed(recipe)[1])
    assert name == "builtin" or min(image_size(recipe.generate)) >= 512


def test_memory_is_estimated_from_weights_and_batch() -> None:
    small, large = (memory_needed(load_recipe("imagenette-cip", [f"generate.batch_size={n}"])) for n in (1, 16))
    assert small[0] == large[0] == pytest.approx(0.224 * 2, rel=0.01)
    assert 2.1 < (small[1] or 0) < 4 < (large[1] or 0) < 24
    assert memory_needed(load_recipe("shapes-cip")) == (None, None)
