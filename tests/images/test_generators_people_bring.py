"""Checkpoints as people bring them: drawn as their pipelines draw them, or refused before anything is spent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import _t5, flux_schnell
from tiny_models import SIDE, _randomise, _unet, _vae, sd3, sdxl, stable_diffusion

from hfsyn.errors import HfsynError
from hfsyn.images.generator import DiffusersGenerator
from hfsyn.models.pipelines import OWN_CLASS
from hfsyn.recipes.recipe import GeneratePart

PROMPTS, SEEDS = ["a photo of a cat", "a dog"], [1, 2]
SMALL = {"width": 32, "height": 32}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion at 16 px, to be copied or changed by others."""
    return stable_diffusion(tmp_path_factory.mktemp("model") / "sd")


def part(model: Path, **fields: Any) -> GeneratePart:
    return GeneratePart(model=str(model), **{"dtype": "float32", "batch_size": 2, "steps": 3, **fields})


def drawn(
    model: Path, negative: str | None = None, *, prompts: list[str] = PROMPTS, seeds: list[int] = SEEDS, **fields: Any
) -> Any:
    """The images, or in a text what a user would read; another state of the global generators each time."""
    torch.seed()
    try:
        one = DiffusersGenerator(part(model, **fields), negative, "cpu")
        return np.stack([image.pixels for image in one.generate(prompts, seeds)])
    except HfsynError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def refused(model: Path, *words: str, negative: str | None = None, **fields: Any) -> str:
    """What is read of a refusal, which says all these words in one line."""
    said = drawn(model, negative, **fields)
    assert isinstance(said, str), "it drew"
    assert said.startswith("refused: "), said
    assert "\n" not in said
    for word in words:
        assert word in said
    return said


def equal(a: Any, b: Any) -> bool:
    """Whether two are the same images."""
    return not isinstance(a, str) and not isinstance(b, str) and bool((a == b).all())


def loaded(model: Path) -> Any:
    """The pipeline as diffusers loads it, which wants to be told what a checkpoint leaves out."""
    index = json.loads((model / "model_index.json").read_text())
    without = {name: None for name, entry in index.items() if entry == [None, None]}
    return diffusers.DiffusionPipeline.from_pretrained(model, **without)


def changed(model: Path, folder: Path, **parts: Any) -> Path:
    """A saved pipeline with some parts replaced."""
    pipe = loaded(model)
    type(pipe)(**{**pipe.components, **parts}, **_options(pipe)).save_pretrained(folder)
    return folder


def _options(pipe: Any) -> dict[str, Any]:
    return {"requires_safety_checker": False} if "requires_safety_checker" in pipe.config else {}


def by_hand(model: Path, **options: Any) -> Any:
    """The pipeline's own call with the samples' generators."""
    pipe = loaded(model)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    out = pipe(PROMPTS, num_inference_steps=3, generator=generators, output_type="np", **options).images
    return (out * 255).round().astype(np.uint8)


# --- every draw comes from the sample's own generator -------------------------------------------------------------


def consistency_decoder() -> Any:
    small = {"block_out_channels": (16, 16), "down_block_types": ("ResnetDownsampleBlock2D",) * 2}
    vae = diffusers.ConsistencyDecoderVAE(
        sample_size=SIDE,
        encoder_block_out_channels=(16, 16),
        encoder_down_block_types=("DownEncoderBlock2D",) * 2,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=8,
        decoder_block_out_channels=(32, 32),
        decoder_down_block_types=small["down_block_types"],
        decoder_layers_per_block=1,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
    )
    _randomise(vae, 0)
    return vae.eval()


@pytest.mark.parametrize("family", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_decoder_that_draws_gets_the_samples_own_generators(family: str, sd: Path, tmp_path: Path) -> None:
    base = sd if family == "sd" else sdxl(tmp_path / "xl")
    model = changed(base, tmp_path / "model", vae=consistency_decoder())
    first = drawn(model)
    assert equal(first, drawn(model))
    assert equal(first[::-1], drawn(model, prompts=PROMPTS[::-1], seeds=SEEDS[::-1]))
    assert equal(first[:1], drawn(model, prompts=PROMPTS[:1], seeds=SEEDS[:1]))
    if family == "sd":  # whose pipeline passes them on
        assert equal(first, by_hand(model, guidance_scale=2.0))


@pytest.mark.parametrize(
    "kind",
    [
        "FlowMatchEulerDiscreteScheduler",
        pytest.param("FlowMatchLCMScheduler", marks=pytest.mark.slow),
        pytest.param("LTXEulerAncestralRFScheduler", marks=pytest.mark.slow),
    ],
)
def test_a_scheduler_that_draws_gets_them_from_a_pipeline_that_keeps_them_back(kind: str, tmp_path: Path) -> None:
    options = {"stochastic_sampling": True} if kind.startswith("FlowMatchEuler") else {}
    scheduler = getattr(diffusers, kind)(**options)
    model = changed(sd3(tmp_path / "sd3"), tmp_path / "model", scheduler=scheduler)
    first = drawn(model)
    if isinstance(first, str):
        assert first.startswith("refused: ")
        return
    assert equal(first, drawn(model))
    assert equal(first[::-1], drawn(model, prompts=PROMPTS[::-1], seeds=SEEDS[::-1]))


@pytest.mark.parametrize("kind", ["DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"])
def test_a_scheduler_whose_noise_is_one_tree_for_a_batch_is_refused_and_can_be_replaced(
    kind: str, sd: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(sd, tmp_path / "model")
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        (model / name).write_text((model / name).read_text().replace("PNDMScheduler", kind))
    refused(model, kind, "could be made again", "--set generate.scheduler=dpm++")
    assert equal(drawn(model, scheduler="dpm++"), drawn(sd, scheduler="dpm++"))


def from_torch(*shape: int) -> Any:
    return torch.randn(shape)


def from_numpy(*shape: int) -> Any:
    return torch.from_numpy(np.random.standard_normal(shape)).float()


@pytest.mark.parametrize(
    ("place", "source"),
    [("scheduler", from_torch), ("unet", from_numpy), ("text_encoder", from_torch), ("vae", from_torch)],
)
def test_whatever_else_draws_from_a_global_generator_is_refused_by_name(
    place: str, source: Callable[..., Any], sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CLIPTextModel

    kinds = {
        "scheduler": (diffusers.EulerDiscreteScheduler, "step"),
        "unet": (diffusers.UNet2DConditionModel, "forward"),
        "text_encoder": (CLIPTextModel, "forward"),
        "vae": (diffusers.AutoencoderKL, "decode"),
    }
    kind, method = kinds[place]
    call = getattr(kind, method)

    def noisy(self: Any, *args: Any, **options: Any) -> Any:
        source(1)
        return call(self, *args, **options)

    monkeypatch.setattr(kind, method, noisy)
    refused(sd, f"its {place} ({kind.__name__}) draws noise", "could not make an image again", scheduler="euler")


def test_what_gives_another_image_in_another_place_of_a_batch_is_refused(
    sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise of a generator that nobody sees, such as a scheduler's own."""
    own = torch.Generator().manual_seed(0)
    step = diffusers.EulerDiscreteScheduler.step

    def noisy(self: Any, *args: Any, **options: Any) -> Any:
        (latents,) = step(self, *args, **options)[:1]
        return (latents + 3 * torch.randn(latents.shape, generator=own),)

    monkeypatch.setattr(diffusers.EulerDiscreteScheduler, "step", noisy)
    refused(sd, "StableDiffusionPipeline draws noise", scheduler="euler")


# --- prompts ------------------------------------------------------------------------------------------------------


def test_a_word_that_stands_for_several_vectors_is_read_and_counted_whole(sd: Path, tmp_path: Path) -> None:
    from hfsyn.models.token_limits import limits

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd)
    pipe.load_textual_inversion({"<toy>": torch.randn(3, 32, generator=torch.Generator().manual_seed(0))}, "<toy>")
    pipe.save_pretrained(tmp_path / "model")
    one = DiffusersGenerator(part(tmp_path / "model"), "a <toy>", "cpu")
    assert one.count_tokens(["<toy>", "a <toy>", "a <toy> and <toy>", "cat"]) == [5, 6, 12, 5]
    prompts = ["a <toy>", "a dog"]
    ours = np.stack([image.pixels for image in one.generate(prompts, SEEDS)])
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    theirs = pipe(
        prompts,
        negative_prompt=["a <toy>"] * 2,
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=generators,
        output_type="np",
    ).images
    assert equal(ours, (theirs * 255).round().astype(np.uint8))
    (limit,) = limits(part(tmp_path / "model"), [("<toy> " * 26, 1), ("<toy> " * 24, 1)])
    assert limit.truncated == 1  # 78 tokens and two markers; as words they would be 26


def test_a_tokenizer_that_was_not_told_of_a_limit_has_that_of_its_text_encoder(sd: Path, tmp_path: Path) -> None:
    model = shutil.copytree(sd, tmp_path / "model")
    config = json.loads((model / "tokenizer" / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (model / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    assert loaded(model).tokenizer.model_max_length > 10**6
    assert equal(drawn(model, prompts=["x " * 99, "a"]), drawn(sd, prompts=["x " * 99, "a"]))
    assert DiffusersGenerator(part(model), None, "cpu").max_tokens == 77


# --- a field that decides nothing ---------------------------------------------------------------------------------


def flux(folder: Path, *, distilled: bool) -> Path:
    """FLUX.1-dev, whose guidance is an input of the network, or schnell, which has none."""
    flux_schnell(folder)
    if distilled:
        pipe = diffusers.FluxPipeline.from_pretrained(folder)
        torch.manual_seed(0)
        network = diffusers.FluxTransformer2DModel.from_config({**pipe.transformer.config, "guidance_embeds": True})
        network.eval().save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux(tmp_path_factory.mktemp("model") / "dev", distilled=True)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux(tmp_path_factory.mktemp("model") / "schnell", distilled=False)


def test_a_negative_prompt_that_a_pipeline_ignores_is_refused(dev: Path) -> None:
    words = "prompt.negative is 'blurred' and decides nothing", "--set prompt.negative=null"
    refused(dev, *words, negative="blurred", guidance_scale=3.5, **SMALL)
    plain = drawn(dev, guidance_scale=3.5, **SMALL)
    assert not equal(plain, drawn(dev, guidance_scale=7.0, **SMALL))


def test_guidance_is_the_true_one_where_a_pipeline_has_it_under_that_name(schnell: Path) -> None:
    off, on = (drawn(schnell, guidance_scale=scale, **SMALL) for scale in (0.0, 6.0))
    assert not isinstance(off, str)
    assert not isinstance(on, str)
    assert not equal(off, on)
    assert not equal(on, drawn(schnell, "blurred", guidance_scale=6.0, **SMALL))
    assert equal(on, by_hand(schnell, true_cfg_scale=6.0, negative_prompt=[" "] * 2, max_sequence_length=512, **SMALL))
    refused(
        schnell, "prompt.negative is 'blurred' and decides nothing", negative="blurred", guidance_scale=1.0, **SMALL
    )


def test_a_negative_prompt_that_says_what_none_says_is_refused(sd: Path, tmp_path: Path) -> None:
    refused(sd, "prompt.negative is '' and decides nothing", negative="")
    assert not isinstance(drawn(sdxl(tmp_path / "xl"), ""), str)  # for which none is zeros


def test_guidance_that_a_pipeline_ignores_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers.StableDiffusion3Pipeline, "do_classifier_free_guidance", property(lambda self: False))
    refused(sd3(tmp_path / "sd3"), "generate.guidance_scale is 2.0 and decides nothing", "guidance_scale=1")


def test_a_length_of_prompts_that_no_encoder_reads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = diffusers.StableDiffusion3Pipeline._get_t5_prompt_embeds

    def deaf(self: Any, *args: Any, **options: Any) -> Any:
        return encode(self, *args, **{**options, "max_sequence_length": 256})

    monkeypatch.setattr(diffusers.StableDiffusion3Pipeline, "_get_t5_prompt_embeds", deaf)
    words = "generate.max_sequence_length is 300 and decides nothing", "--set generate.max_sequence_length=null"
    refused(sd3(tmp_path / "sd3"), *words, max_sequence_length=300)


def test_limits_of_a_guidance_that_is_off_are_refused(sd: Path) -> None:
    refused(sd, "no guidance to limit at generate.guidance_scale 1", guidance_scale=1.0, guidance_stop=0.5)
    refused(sd, "none of the 3 steps lies between", guidance_start=0.4, guidance_stop=0.5)
    assert not isinstance(drawn(sd, guidance_start=0.3, guidance_stop=0.7), str)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["prompt.negative=blurred", "generate.guidance_scale=1"], "prompt.negative is 'blurred'"),
        (["generate.guidance_stop=0.5", "generate.guidance_scale=0"], "generate.guidance_stop is 0.5"),
        (["generate.lora=a/b", "generate.lora_scale=0"], "generate.lora is 'a/b'"),
    ],
)
def test_what_decides_nothing_by_the_recipe_alone_is_refused_as_it_is_read(words: list[str], field: str) -> None:
    from hfsyn.recipes.recipe import load_recipe

    with pytest.raises(HfsynError, match="and decides nothing, because") as caught:
        load_recipe("shapes-cip", words)
    assert field in str(caught.value)


# --- weights that fit nothing -------------------------------------------------------------------------------------


def lora(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    folder.mkdir()
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return str(folder)


def pair(prefix: str, width: int, seed: int, outer: int | None = None) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 for one layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}.lora_A.weight": torch.randn(2, width, generator=generator),
        f"{prefix}.lora_B.weight": torch.randn(outer or width, 2, generator=generator),
    }


ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


def test_how_much_of_a_lora_fits_nothing_is_counted(sd: Path, tmp_path: Path) -> None:
    fits = pair(f"unet.{ATTENTION}.to_q", 32, 1) | pair(f"unet.{ATTENTION}.to_k", 32, 2)
    foreign = pair("unet.down_blocks.7.attn.to_q", 32, 3) | pair("transformer.blocks.0.to_q", 32, 4)
    foreign |= pair("else.where.to_q", 32, 5)
    whole, half = lora(tmp_path / "a", fits), lora(tmp_path / "b", fits | foreign)
    for name, left in ((whole, {}), (half, {"weight of the LoRA that fits nothing in the model, of 10": 6})):
        for dtype in ("float32", "bfloat16"):
            assert getattr(DiffusersGenerator(part(sd, lora=name, dtype=dtype), None, "cpu"), "left_out", None) == left
    assert equal(drawn(sd, lora=whole), drawn(sd, lora=half))
    none = lora(tmp_path / "c", foreign)
    refused(sd, "LoRA", lora=none)


def test_a_lora_that_fits_the_text_encoder_alone_is_refused_unless_it_was_made_for_it_alone(
    sd: Path, tmp_path: Path
) -> None:
    text = pair("text_encoder.encoder.layers.0.self_attn.q_proj", 32, 1)
    foreign = pair("transformer.blocks.7.attn.to_q", 32, 2)
    refused(
        sd, "Of the 4 weights", "2 fit", "none of the network that draws", lora=lora(tmp_path / "both", text | foreign)
    )
    assert not isinstance(drawn(sd, lora=lora(tmp_path / "text", text)), str)


def altered(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A checkpoint with one file of weights changed in place."""
    path = next((folder / name).glob("*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae"])
def test_weights_that_a_network_does_not_have_are_counted_and_those_that_are_missing_refused(
    name: str, sd: Path, tmp_path: Path
) -> None:
    more = altered(shutil.copytree(sd, tmp_path / "more"), name, lambda t: t.update({"other.weight": torch.zeros(3)}))
    left = getattr(DiffusersGenerator(part(more), None, "cpu"), "left_out", {})
    assert [(what.split(" that")[0], count) for what, count in left.items()] == [
        (f"weight of the checkpoint's {name}", 1)
    ]
    fewer = altered(shutil.copytree(sd, tmp_path / "fewer"), name, lambda t: t.pop(sorted(t)[-1]))
    refused(fewer, f"has no weights for 1 parameters of its {name}")


# --- as the pipeline does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_latents_have_the_mean_and_deviation_that_the_pipeline_gives_them(
    family: str, sd: Path, tmp_path: Path
) -> None:
    base = sd if family == "sd" else sdxl(tmp_path / "xl")
    model = changed(
        base, tmp_path / "m", vae=_vae(latents_mean=[0.5, -0.3, 0.2, 0.1], latents_std=[2.0, 1.5, 0.5, 3.0])
    )
    assert equal(drawn(model), by_hand(model, guidance_scale=2.0))


def deepfloyd(folder: Path) -> Path:
    """A pipeline that draws pixels, with T5 and without an autoencoder."""
    t5, encoder = _t5(77, 0)
    unet = _unet(
        in_channels=3,
        out_channels=6,
        sample_size=SIDE,
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_proj",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True
    )
    diffusers.IFPipeline(
        tokenizer=t5,
        text_encoder=encoder,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def test_a_pipeline_without_an_autoencoder_draws_what_its_own_call_draws(tmp_path: Path) -> None:
    model = deepfloyd(tmp_path / "if")
    first = drawn(model)
    assert equal(first, by_hand(model, guidance_scale=2.0, clean_caption=False))
    assert equal(first[::-1], drawn(model, prompts=PROMPTS[::-1], seeds=SEEDS[::-1]))
    assert DiffusersGenerator(part(model), None, "cpu").max_tokens == 77


# --- checkpoints that are not whole -------------------------------------------------------------------------------


def test_the_only_weights_that_are_there_are_found_and_others_are_named(sd: Path, tmp_path: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd)
    half = tmp_path / "half"
    pipe.save_pretrained(half, variant="fp16")
    assert equal(drawn(half), drawn(sd))
    from hfsyn.recipes.recipe import load_recipe
    from hfsyn.runs.pins import pinned

    recipe = pinned(load_recipe("shapes-basic", [f"generate.model={half}"]))
    assert recipe.generate.variant == "fp16"
    assert load_recipe(recipe, [f"generate.model={sd}"]).generate.variant is None
    refused(half, "generate.variant is 'bf16'", "it has fp16", variant="bf16")
    pipe.unet.save_pretrained(half / "unet", variant="ema")
    assert equal(drawn(half), drawn(sd))  # its other parts have one variant alone
    for name in ("vae", "text_encoder"):
        getattr(pipe, name).save_pretrained(half / name, variant="ema")
    refused(half, "several variants: ema, fp16", "--set generate.variant=ema")
    assert equal(drawn(half, variant="ema"), drawn(sd))
    pipe.save_pretrained(half)
    assert equal(drawn(half), drawn(sd))
    refused(half, "--set generate.variant=null", variant="bf16")


def test_a_captioner_of_one_variant_alone_is_loaded_and_one_that_lacks_a_file_is_told(tmp_path: Path) -> None:
    from PIL import Image
    from tiny_models import blip

    from hfsyn.captions.captioner import TransformersCaptioner
    from hfsyn.recipes.recipe import CaptionPart

    def said() -> list[str]:
        recipe = CaptionPart(model=str(tmp_path / "blip"), dtype="float32")
        return TransformersCaptioner(recipe, "cpu").caption([Image.new("RGB", (20, 20), "red")])

    weights = blip(tmp_path / "blip") / "model.safetensors"
    plain = said()
    half = weights.rename(weights.with_name("model.fp16.safetensors"))
    assert said() == plain
    half.rename(weights.with_name("model-00002-of-00003.safetensors"))
    with pytest.raises(HfsynError, match="lacks 2 of the 3 files with the weights of its captioner"):
        said()


def test_each_broken_checkpoint_is_told_with_the_way_out(sd: Path, tmp_path: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd)

    def copy(name: str, flags: bool = False) -> Path:
        if flags:
            return stable_diffusion(tmp_path / name, flags=False)
        return Path(shutil.copytree(sd, tmp_path / name))

    unchecked = copy("unchecked", flags=True)
    shutil.rmtree(unchecked / "safety_checker")
    refused(unchecked, "has no folder safety_checker", "--set generate.safety_checker=false")
    shutil.rmtree(unchecked / "feature_extractor")
    assert equal(drawn(unchecked, safety_checker=False), drawn(sd))

    for name in ("vae", "tokenizer", "scheduler"):
        lacking = copy(f"no-{name}")
        shutil.rmtree(lacking / name)
        assert "pickle" not in refused(lacking, f"has no folder {name}, which its model_index.json names")

    sharded = tmp_path / "sharded"
    pipe.save_pretrained(sharded, max_shard_size="100KB")
    assert equal(drawn(sharded), drawn(sd))
    next((sharded / "unet").glob("*-00002-of-*")).unlink()
    assert "pickle" not in refused(sharded, "lacks 1 of the", "of its unet, such as diffusion_pytorch_model-00002-of-")

    pickled = tmp_path / "pickled"
    pipe.save_pretrained(pickled, safe_serialization=False)
    refused(pickled, "as pickles alone", "--allow-pickle-weights")
    allowed = DiffusersGenerator(part(pickled), None, "cpu", allow_pickle=True)
    assert equal(np.stack([image.pixels for image in allowed.generate(PROMPTS, SEEDS)]), drawn(sd))

    for key, value in (("_class_name", "NoSuchPipeline"), ("unet", ["diffusers", "NoSuchNet"])):
        unknown = copy(f"unknown-{key}")
        index = json.loads((unknown / "model_index.json").read_text())
        (unknown / "model_index.json").write_text(json.dumps({**index, key: value}))
        refused(unknown, "NoSuch", f"which diffusers {diffusers.__version__} does not have", "newer diffusers")


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["model.fp16.safetensors", "model.fp16.bin"], "fp16"),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], "fp16"),
        (["model-00001-of-00001.fp16.safetensors"], "fp16"),
        (["model.safetensors-00001-of-00002.safetensors", "model.safetensors.index.json"], None),
        (["model.safetensors", "model-00001-of-00002.safetensors"], None),
    ],
)
def test_weights_are_known_by_their_names(names: list[str], variant: str | None) -> None:
    from hfsyn.models.finding import checked_variant

    assert checked_variant("m", "captioner", ["config.json", *names]) == variant


# --- tried before anything is spent -------------------------------------------------------------------------------


def inpainting(sd: Path, folder: Path) -> Path:
    return changed(sd, folder, unet=_unet(in_channels=9))


def wrong_text(sd: Path, folder: Path) -> Path:
    return changed(sd, folder, unet=_unet(cross_attention_dim=16))


def broken_decoder(sd: Path, folder: Path) -> Path:
    vae = _vae()
    torch.nn.init.constant_(vae.decoder.conv_out.weight, float("nan"))
    return changed(sd, folder, vae=vae)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize(
    ("save", "words"),
    [
        (inpainting, "has a unet for 9 channels, and its vae makes 4"),
        (wrong_text, "cannot draw: "),
        (broken_decoder, "draws nothing but NaN values"),
    ],
)
def test_a_build_ends_before_the_captions_where_its_model_cannot_draw(
    save: Callable[[Path, Path], Path], words: str, sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfsyn.cli import main

    model = save(sd, tmp_path / "model")
    small = [f"--set=generate.model={model}", "--set=generate.dtype=float32", "--set=generate.steps=2", "--limit=1"]
    capsys.readouterr()
    try:
        main(["build", "shapes-cip", *small, "--num-processes=1", f"--out={tmp_path / 'run'}", "--quiet"])
    except SystemExit as ended:
        code: Any = ended.code
    except Exception as error:  # what would be a traceback
        code = repr(error)
    err = capsys.readouterr().err
    assert code == 2
    assert words in err
    assert len([line for line in err.splitlines() if line.startswith("Error")]) == 1
    assert not list((tmp_path / "run").glob("captions/*")), "captions were made first"


def test_what_of_the_weights_is_not_used_is_said_and_recorded(
    sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfsyn.cli import main

    foreign = pair("unet.down_blocks.7.attn.to_q", 32, 3)
    name = lora(tmp_path / "lora", pair(f"unet.{ATTENTION}.to_q", 32, 1) | foreign)
    sets = [f"generate.model={sd}", f"generate.lora={name}", "generate.dtype=float32", "generate.steps=2"]
    run = tmp_path / "run"
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "build",
                "shapes-basic",
                *[f"--set={one}" for one in sets],
                "--limit=1",
                "--num-processes=1",
                f"--out={run}",
            ]
        )
    said = capsys.readouterr().err
    assert ended.value.code in (0, None)
    what = "weight of the LoRA that fits nothing in the model, of 4"
    assert f"left out: 2 ({what})" in said
    assert json.loads((run / "manifest.json").read_text())["unused_weights"] == {"generate": {what: 2}}
    assert f"| weights of the model (generate) | 2 | {what} |" in (run / "README.md").read_text()
    with pytest.raises(SystemExit):
        main(["status", str(run)])
    assert f"weights of the model (generate): 2 {what}" in capsys.readouterr().out


@pytest.mark.parametrize("name", OWN_CLASS)
def test_pipelines_that_are_loaded_by_their_own_class_are_those_that_diffusers_would_choose(name: str) -> None:
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING, _get_task_class

    assert _get_task_class(AUTO_TEXT2IMAGE_PIPELINES_MAPPING, name).__name__ == name


def test_stable_diffusion_is_loaded_without_importing_every_pipeline(tmp_path: Path) -> None:
    code = """
        import sys
        from hfsyn.models.pipelines import load_pipeline
        from hfsyn.recipes.recipe import load_recipe
        load_pipeline(load_recipe("shapes-cip").generate, None)
        print("diffusers.pipelines.auto_pipeline" in sys.modules)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
