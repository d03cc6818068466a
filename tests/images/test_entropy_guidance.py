"""Entropy guidance: as a plain loop with autograd has it, the same for an image in any company, off at weight 0."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_families
import tiny_models
import torch
from conftest import ROOT, run_folder
from fakes import FakeCaptioner
from PIL import Image

from builders.runs import layout
from builders.variants import get_variant
from hfsyn.captions.caption_stage import caption
from hfsyn.checks.reproduce import reproduce
from hfsyn.errors import HfsynError
from hfsyn.images import entropy
from hfsyn.images.encoding import fitted
from hfsyn.images.generate_stage import generate
from hfsyn.images.generator import DiffusersGenerator
from hfsyn.images.tuning import Tuning
from hfsyn.judging.classifier import Classifier, create_network, open_classifier, save_classifier
from hfsyn.judging.preprocessing import Preprocessing, plain_transform, tensor_transform
from hfsyn.outlook.costs import image_tflop
from hfsyn.outlook.doctor import doctor
from hfsyn.publishing.preflight import terms_checks
from hfsyn.recipes.recipe import (
    GeneratePart,
    Recipe,
    difference,
    dump_recipe,
    fingerprint,
    load_recipe,
    published_recipe,
)
from hfsyn.runs.finish import finish
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import load_run

PROMPTS, SEEDS, STEPS, SCALE = ["a cat", "a dog, in the grass"], [7, 9], 5, 3.0
WEIGHT = 2000.0
"""Of a network with random weights, whose gradients are small; it moves the images by several grey levels."""
SHAPES = {info.wnid: info.name for info in get_variant("shapes").classes}
FAMILIES = {"eps": tiny_models.stable_diffusion, "v": tiny_families.stable_diffusion_2, "xl": tiny_models.sdxl}
Folders = Callable[[str], str]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def classifier(folder: Path, seed: int = 0, classes: Sequence[str] = tuple(SHAPES), **preprocessing: Any) -> str:
    """The folder of a small network with random weights, which is sure of much and has batch norms."""
    torch.manual_seed(seed)
    options = {"output_stride": 8}
    network = create_network("test_resnet", len(classes), options, None)
    with torch.no_grad():
        network.get_classifier().weight.mul_(30)
    how = Preprocessing(
        **{"image_size": tiny_models.SIDE, "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop": 1.0, **preprocessing}
    )
    names = tuple(SHAPES.get(wnid, "thing") for wnid in classes)
    save_classifier(Classifier("test_resnet", network, tuple(classes), names, how, options), folder)
    return str(folder)


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> str:
    return classifier(tmp_path_factory.mktemp("critic"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The tiny pipeline of a family, written when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> str:
        if not (root / family).is_dir():
            FAMILIES[family](root / family)
        return str(root / family)

    return folder


def part(model: str, critic: str, **fields: Any) -> GeneratePart:
    base = {"dtype": "float32", "batch_size": 2, "steps": STEPS, "guidance_scale": SCALE, "entropy_every": 1}
    return GeneratePart(model=model, **{**base, "entropy_weight": WEIGHT, "entropy_classifier": critic, **fields})


def drawn(one: GeneratePart, images: Any = None) -> np.ndarray:
    by = DiffusersGenerator(one, None, "cpu", variant="shapes")
    # Twice: a call must leave nothing behind for the next one.
    by.generate(PROMPTS[::-1], SEEDS[::-1], images)
    return np.stack([image.pixels for image in by.generate(PROMPTS, SEEDS, images)])


def at_once(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let gradients of that many images be computed at once."""
    monkeypatch.setattr(entropy, "_AT_ONCE", most)
    monkeypatch.setattr(entropy, "_PIXELS", (tiny_models.SIDE // 2) ** 2)


def photographs() -> list[Image.Image]:
    side, chance = tiny_models.SIDE, np.random.default_rng(0)
    return [Image.fromarray(chance.integers(0, 255, (side, side, 3), dtype=np.uint8)) for _ in PROMPTS]


def by_hand(one: GeneratePart, guided: Sequence[int]) -> np.ndarray:
    """The levels that a plain loop draws, with the calls of the network that are steered."""
    pipe: Any = diffusers.AutoPipelineForText2Image.from_pretrained(one.model, dtype=torch.float32)
    network = open_classifier(str(one.entropy_classifier)).network
    scheduler, side, xl = pipe.scheduler, tiny_models.SIDE, "XL" in type(pipe).__name__
    told = pipe.encode_prompt(
        prompt=PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=None
    )
    scheduler.set_timesteps(STEPS)
    times = list(scheduler.timesteps)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    shape = (1, pipe.unet.config.in_channels, side // pipe.vae_scale_factor, side // pipe.vae_scale_factor)
    latents: Any = []
    for picture, generator in zip(photographs(), generators, strict=True):
        if one.init == "source":
            pixels = pipe.image_processor.preprocess(fitted(picture, side, side))
            real = pipe.vae.encode(pixels).latent_dist.sample(generator) * pipe.vae.config.scaling_factor
        noise = torch.randn(shape, generator=generator)
        if one.init == "source":
            skipped = len(times) - int(STEPS * one.strength)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(skipped)
            latents.append(scheduler.add_noise(real, noise, scheduler.timesteps[skipped:][:1]).detach())
        else:
            latents.append(noise * scheduler.init_noise_sigma)
    times = times[-int(STEPS * one.strength) :] if one.init == "source" else times
    latents = torch.cat(latents)

    def predicted(seen: Any, t: Any) -> Any:
        added = None
        if xl:
            sizes = torch.tensor([[side, side, 0, 0, side, side]] * 4, dtype=torch.float32)
            added = {"text_embeds": torch.cat([told[3], told[2]]), "time_ids": sizes}
        states = torch.cat([told[1], told[0]])
        found = pipe.unet(torch.cat([seen, seen]), t, encoder_hidden_states=states, added_cond_kwargs=added).sample
        away, towards = found.chunk(2)
        return away + SCALE * (towards - away)

    first = len(scheduler.timesteps) - len(times)
    for at, t in enumerate(times):
        seen = scheduler.scale_model_input(latents, t).detach().requires_grad_()
        output = predicted(seen, t)
        if at in guided:
            # Euler's timesteps lie between those that the model was trained with.
            kept = 1 / (1 + scheduler.sigmas[first + at] ** 2) if xl else scheduler.alphas_cumprod[int(t)]
            alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
            velocity = scheduler.config.prediction_type == "v_prediction"
            # Whatever is predicted, it says a noise and a clean image.
            noise = alpha * output + sigma * seen if velocity else output
            clean = (seen - sigma * noise) / alpha
            image = (pipe.vae.decode(clean / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
            chances = network((image - 0.5) / 0.5).softmax(1)
            doubt = -(chances * chances.log()).sum()
            noise = noise - one.entropy_weight * sigma * torch.autograd.grad(doubt, seen)[0]
            output = (noise - sigma * seen) / alpha if velocity else noise
        latents = scheduler.step(output.detach(), t, latents, return_dict=False)[0]
    with torch.no_grad():
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy().astype(np.int16)


@pytest.mark.parametrize(
    ("family", "fields", "guided"),
    [
        ("eps", {}, range(6)),  # PNDM has six calls
        ("eps", {"entropy_every": 2, "entropy_start": 0.2, "entropy_stop": 0.7}, (2, 4)),
        ("v", {"entropy_stop": 0.4}, range(2)),
        ("xl", {"entropy_every": 3}, (0, 3)),
        ("xl", {"init": "source", "strength": 0.6, "entropy_start": 0.6}, (1, 2)),
    ],
)
def test_images_are_those_of_a_plain_loop_with_autograd(
    family: str,
    fields: dict[str, Any],
    guided: Sequence[int],
    folders: Folders,
    critic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once(monkeypatch, 1)
    one = part(folders(family), critic, **fields)
    images = photographs() if one.init == "source" else None
    found = drawn(one, images).astype(np.int16)
    wanted = by_hand(one, guided)
    assert np.abs(found - wanted).max() <= 1  # of the last bits of a float
    assert np.abs(by_hand(one, ()) - wanted).mean() > 0.5


@pytest.mark.parametrize("family", ["eps", "xl"])
def test_company_and_place_in_a_batch_change_no_bit(
    family: str, folders: Folders, critic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once(monkeypatch, 2)
    one = DiffusersGenerator(part(folders(family), critic, batch_size=4, steps=2), None, "cpu", variant="shapes")
    prompts, seeds = [*PROMPTS, "a boat", "a dog"], [7, 9, 11, 13]
    together = [image.pixels for image in one.generate(prompts, seeds)]
    turned = [image.pixels for image in one.generate(prompts[::-1], seeds[::-1])][::-1]
    alone = [one.generate([prompt], [seed])[0].pixels for prompt, seed in zip(prompts, seeds, strict=True)]
    for others in (turned, alone):
        assert all((a == b).all() for a, b in zip(together, others, strict=True))


def test_gradients_are_computed_for_equally_many_images_at_once(
    folders: Folders, critic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once(monkeypatch, 4)
    taken: list[int] = []
    entropies = entropy.EntropyGuidance.entropies
    monkeypatch.setattr(
        entropy.EntropyGuidance,
        "entropies",
        lambda self, latents: (taken.append(len(latents)), entropies(self, latents))[1],
    )
    one = DiffusersGenerator(part(folders("eps"), critic, batch_size=6, steps=1), None, "cpu", variant="shapes")
    taken.clear()  # of the trial
    one.generate(PROMPTS, SEEDS)
    assert taken == [3, 3]  # of six, at most four at once


def test_weight_0_is_plain_to_the_bit_and_the_same_recipe(folders: Folders, critic: str) -> None:
    plain = GeneratePart(model=folders("eps"), dtype="float32", batch_size=2, steps=STEPS, guidance_scale=SCALE)
    off = part(folders("eps"), critic, entropy_weight=0.0)
    assert (drawn(plain) == drawn(off)).all()
    assert (drawn(plain) != drawn(part(folders("eps"), critic))).any()
    shipped = load_recipe("shapes-cip")
    same = load_recipe("shapes-cip", ["generate.entropy_weight=0"])
    assert fingerprint(same) == fingerprint(shipped)
    assert dump_recipe(same) == dump_recipe(shipped)
    assert "entropy" not in dump_recipe(shipped)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_tensors_are_prepared_as_pictures_are(mode: str, interpolation: str) -> None:
    chance = np.random.default_rng(0)
    small = Image.fromarray(chance.integers(80, 170, (8, 6, 3), dtype=np.uint8))  # nothing overshoots 0 or 255
    picture = small.resize((48, 64), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    for size, crop in ((24, 0.875), ((20, 28), 0.6), (64, 1.0)):
        how = Preprocessing(size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), interpolation, crop, mode)
        wanted = plain_transform(how)(picture)
        found = tensor_transform(how, 64, 48)(pixels)[0]
        assert found.shape == wanted.shape
        assert ((found - wanted).abs() * torch.tensor(how.std).view(3, 1, 1) * 255).max() < 2  # both passes round


def test_entropy_is_that_of_the_classes_of_the_set(folders: Folders, tmp_path: Path) -> None:
    more = classifier(tmp_path / "more", classes=("n00000001", *SHAPES, "n99999999"))
    one = part(folders("eps"), more)
    pipe = diffusers.AutoPipelineForText2Image.from_pretrained(one.model, dtype=torch.float32)
    guidance = entropy.EntropyGuidance(pipe, one, "shapes", "cpu")
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = (pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        logits = open_classifier(more).network((images - 0.5) / 0.5)[:, 1:-1].double()
        found = guidance.entropies(latents)
    chances = logits.softmax(1)
    assert torch.allclose(found.double(), -(chances * chances.log()).sum(1), atol=1e-4)
    assert (found < math.log(len(SHAPES))).all()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"entropy_weight": -1}, "greater than or equal to 0"),
        ({"entropy_weight": "nan"}, "entropy_weight"),
        ({"entropy_start": 1.5}, "entropy_start"),
        ({"entropy_stop": -0.1}, "entropy_stop"),
        ({"entropy_every": 0}, "entropy_every"),
        ({"entropy_start": 0.6, "entropy_stop": 0.4}, "leaves no step"),
        ({"entropy_classifier": None}, "no generate.entropy_classifier"),
        ({"entropy_weight": 0, "entropy_stop": 0.5}, "decides nothing"),
        ({"entropy_weight": 0}, "generate.entropy_classifier is .* decides nothing"),
        ({"entropy_revision": "sha256:0", "entropy_classifier": None, "entropy_weight": 0}, "no generate.entropy_cl"),
    ],
)
def test_fields_out_of_range_are_refused_as_the_recipe_is_read(fields: dict[str, Any], said: str) -> None:
    values = {"entropy_weight": 1, "entropy_classifier": "resnet50", **fields}
    overrides = [f"generate.{key}={'null' if value is None else value}" for key, value in values.items()]
    with pytest.raises(HfsynError, match=said) as caught:
        load_recipe("shapes-cip", overrides)
    assert "\n" not in caught.value.message


def recipe_with(critic: str, *overrides: str) -> Recipe:
    return load_recipe("shapes-cip", [f"generate.entropy_classifier={critic}", "generate.entropy_weight=2", *overrides])


def test_a_classifier_that_does_not_serve_is_refused_before_a_run_begins(tmp_path: Path) -> None:
    nine = classifier(tmp_path / "nine", classes=tuple(SHAPES)[:9])
    (tmp_path / "empty").mkdir()
    for name, said in {
        nine: "1 of the 10 classes of shapes are not among the 9 of the classifier",
        str(tmp_path / "gone"): "entropy_classifier: There is no folder",
        str(tmp_path / "empty"): "holds no trained classifier",
        "resnet5O": "Did you mean",
        "clip:openai/clip-vit-base-patch32": "a zero-shot classifier, through which no gradient is taken",
    }.items():
        with pytest.raises(HfsynError, match=said) as caught:
            prepare(recipe_with(name), tmp_path / "run")
        assert "\n" not in caught.value.message
        assert not (tmp_path / "run").exists()
    assert any(nine in check.text for check in doctor(recipe_with(nine)) if check.state == "failed")


def test_a_generator_that_cannot_be_steered_is_refused(folders: Folders, critic: str, tmp_path: Path) -> None:
    flow = str(tiny_models.sd3(tmp_path / "sd3"))
    odd = tmp_path / "odd"
    shutil.copytree(folders("v"), odd)
    settings = json.loads((odd / "scheduler" / "scheduler_config.json").read_text())
    (odd / "scheduler" / "scheduler_config.json").write_text(json.dumps({**settings, "prediction_type": "sample"}))
    nowhere = {"entropy_start": 0.1, "entropy_stop": 0.15}
    for one, said in (
        (part(flow, critic, guidance_scale=1.0), "is a StableDiffusion3Pipeline, and entropy guidance is for Stable"),
        (part(str(odd), critic), "predicts sample"),
        (part(folders("v"), critic, dtype="float16"), "generate.dtype is float16"),
        (part(folders("v"), critic, **nowhere), "none of the 5 steps lies between generate.entropy_start 0.1"),
    ):
        with pytest.raises(HfsynError, match=said):
            DiffusersGenerator(one, None, "cpu", variant="shapes")
    with pytest.raises(HfsynError, match="--compile cannot"):
        DiffusersGenerator(part(flow, critic), None, "cpu", variant="shapes", tuning=Tuning(compiled=True))


def test_a_run_pins_the_classifier_and_draws_with_no_other(critic: str, tmp_path: Path) -> None:
    here = shutil.copytree(critic, tmp_path / "here")
    made = run_folder(tmp_path, f"generate.entropy_classifier={here}", "generate.entropy_weight=2")
    recipe = load_run(made).recipe
    assert str(recipe.generate.entropy_revision).startswith("sha256:")
    # Where it lies makes no other dataset; what it is does, also if only its preprocessing differs.
    there = shutil.copytree(critic, tmp_path / "there")
    moved = run_folder(tmp_path, f"generate.entropy_classifier={there}", "generate.entropy_weight=2", name="moved")
    assert fingerprint(load_run(moved).recipe) == fingerprint(recipe)
    classifier(there, mean=(0.4, 0.5, 0.5))
    other = run_folder(tmp_path, f"generate.entropy_classifier={there}", "generate.entropy_weight=2", name="other")
    assert fingerprint(load_run(other).recipe) != fingerprint(recipe)
    assert fingerprint(recipe.with_fields("generate", entropy_weight=3.0)) != fingerprint(recipe)
    # The same command goes on with the run, as long as the classifier is the same.
    again = prepare(
        recipe_with(str(here), "source.limit_per_class=3", "store.shard_rows=8", "generate.batch_size=4"), made
    )
    assert difference(again.recipe, recipe) == []
    classifier(here, seed=1)
    caption(made, captioner=FakeCaptioner(), quiet=True)
    with pytest.raises(HfsynError, match=r"The classifier .*here is not the one that the recipe means"):
        generate(made, device="cpu", quiet=True)


def test_others_see_which_classifier_it_was_and_no_path(critic: str, tmp_path: Path) -> None:
    run = load_run(run_folder(tmp_path, f"generate.entropy_classifier={critic}", "generate.entropy_weight=2"))
    public = published_recipe(run.recipe)
    assert public.generate.entropy_classifier == f"./{Path(critic).name}"
    assert fingerprint(public) == fingerprint(run.recipe)
    (warned,) = [check.text for check in terms_checks(run, None) if check.state == "warning"]  # type: ignore[arg-type]
    assert warned == f"The classifier {critic} is a local folder: others cannot make these images again."


def test_a_steered_image_is_made_again_from_its_row(critic: str, tmp_path: Path) -> None:
    fields = ("source.limit_per_class=1", "generate.steps=2", "generate.batch_size=4", "generate.entropy_weight=500")
    here, there = shutil.copytree(critic, tmp_path / "here"), tmp_path / "there"
    run = run_folder(tmp_path, *fields, f"generate.entropy_classifier={here}", "generate.entropy_every=1")
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, device="cpu", quiet=True)
    finish(run)
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "| entropy guidance | weight 500.0, each step: the images are steered towards what a classifier is" in card
    assert str(load_run(run).recipe.generate.entropy_revision) in card
    assert str(here) not in card
    here.rename(there)
    rows = pq.read_table(next(layout.finished_shards(run / layout.DATA)), columns=["sample_id"])
    sample = rows["sample_id"][6].as_py()
    found = reproduce(str(run), sample, out=tmp_path, device="cpu", classifier=str(there))
    assert found.verdict == "byte-equal"


def test_the_estimate_counts_the_gradients() -> None:
    plain = GeneratePart(model="stable-diffusion-v1-5/stable-diffusion-v1-5", scheduler="ddim")
    each = plain.model_copy(update={"entropy_weight": 1.0, "entropy_every": 1})
    few = each.model_copy(update={"entropy_every": 5})
    without, often, seldom = (image_tflop(one) or 0 for one in (plain, each, few))
    assert 3.5 < often / without < 6
    assert seldom - without == pytest.approx((often - without) / 5)


@pytest.mark.slow
def test_a_trained_classifier_is_less_sure_with_each_weight() -> None:
    words = [sys.executable, str(ROOT / "scripts" / "check_entropy.py"), "--images", "40"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [row["weight"] for row in found["rows"]] == [0, 10, 30, 100]
    assert all(row["gain"] > 2 * row["error"] for row in found["rows"][1:])
