"""Told beforehand: how much each kind of prompt tells a generator about real images."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from command import command
from conftest import ROOT
from fakes import FakeCaptioner
from PIL import Image
from tiny_families import FAMILIES

from builders.variants import get_variant
from hfsyn import informativeness, plan
from hfsyn.captions.caption_stage import caption
from hfsyn.errors import HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.outlook.informativeness import (
    CLASS,
    NONE,
    OTHER,
    OWN,
    PROMPT,
    SAME,
    Gain,
    Informativeness,
    kept_in,
    measure,
    prompts_of,
)
from hfsyn.recipes.recipe import GeneratePart, load_recipe
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.prepare import prepare
from hfsyn.runs.specs import Caption

QUIET = WorkOptions(device="cpu", quiet=True)
PROMPTS = ["a photo of a dog", "a red car, seen from above"]


def pictures(size: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in PROMPTS]


@torch.no_grad()
def plain(folder: Path, images: Sequence[Image.Image], noise: torch.Tensor, share: float, size: int) -> list[float]:
    """The loss as a plain loop over diffusers computes it, one image at a time."""
    pipe: Any = diffusers.AutoPipelineForText2Image.from_pretrained(folder)
    losses = []
    for picture, one, prompt in zip(images, noise, PROMPTS, strict=True):
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        latent = pipe.vae.encode(pixels).latent_dist.mode()
        latent = (latent - (pipe.vae.config.shift_factor or 0)) * pipe.vae.config.scaling_factor
        eps = one[None]
        kind = type(pipe).__name__
        if kind in ("StableDiffusion3Pipeline", "FluxPipeline"):
            noisy, target = (1 - share) * latent + share * eps, eps - latent
        else:
            betas = diffusers.DDPMScheduler.from_config(pipe.scheduler.config).betas
            kept = torch.cumprod(1 - betas, 0)[int(share * 1000)]
            noisy = kept.sqrt() * latent + (1 - kept).sqrt() * eps
            velocity = kept.sqrt() * eps - (1 - kept).sqrt() * latent
            target = velocity if pipe.scheduler.config.prediction_type == "v_prediction" else eps
        if kind == "StableDiffusion3Pipeline":
            told, _, pooled, _ = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)
            step = torch.tensor([1000 * share])
            found = pipe.transformer(noisy, told, pooled, step, return_dict=False)[0]
        elif kind == "FluxPipeline":
            told, pooled, ids = pipe.encode_prompt(prompt, max_sequence_length=256)
            side = noisy.shape[-1]
            packed = pipe._pack_latents(noisy, 1, noisy.shape[1], side, side)
            places = pipe._prepare_latent_image_ids(1, side // 2, side // 2, "cpu", torch.float32)
            step = torch.tensor([share])
            flow = pipe.transformer(packed, told, pooled, step, places, ids, return_dict=False)[0]
            found = pipe._unpack_latents(flow, size, size, pipe.vae_scale_factor)
        elif kind == "StableDiffusionXLPipeline":
            told, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
            times = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32)
            added = {"text_embeds": pooled, "time_ids": times}
            found = pipe.unet(noisy, int(share * 1000), told, added_cond_kwargs=added, return_dict=False)[0]
        else:
            told, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
            found = pipe.unet(noisy, int(share * 1000), told, return_dict=False)[0]
        losses.append(float(((found - target) ** 2).mean()))
    return losses


@pytest.mark.parametrize("name", ["sd-1.5", "sd-2.1", "sdxl", "sd-3-medium", "flux-schnell"])
def test_the_loss_is_that_of_a_plain_loop_over_diffusers(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = family.save(tmp_path / "model")
    part = GeneratePart(model=str(folder), dtype="float32", steps=2, **family.fields)
    loss = DenoisingLoss(part, "cpu")
    size = family.size[0]
    images = pictures(size)
    latents = loss.latents(images)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    for share in (0.125, 0.875):
        found = loss.losses(latents, noise, share, PROMPTS)
        assert found == pytest.approx(plain(folder, images, noise, share, size), rel=1e-4)
    swapped = loss.losses(latents, noise, 0.5, PROMPTS[::-1])
    assert swapped != pytest.approx(loss.losses(latents, noise, 0.5, PROMPTS), rel=1e-6)


def test_own_captions_tell_most_and_those_of_others_mislead() -> None:
    recipe = load_recipe("shapes-cip", ["generate.batch_size=7"])
    found = measure(recipe, 30, draws=2, options=QUIET)
    assert found.images == 30
    assert found.gains[OWN].sign == 1
    assert all(found.gains[kind].sign == -1 for kind in (SAME, OTHER))
    assert found.verdict.startswith("Informative")
    assert len(found.by_class) == 10
    assert min(found.by_class.values(), key=lambda gain: gain.mean) == next(iter(found.by_class.values()))
    again = measure(load_recipe("shapes-cip-across", ["generate.batch_size=30"]), 30, draws=2, options=QUIET)
    for kind, gain in again.gains.items():  # neither the batch size nor the pairing matters
        assert gain.mean == pytest.approx(found.gains[kind].mean, abs=1e-5)
    assert "gives each image the caption of another class" in again.verdict
    # What a recipe's images are made from counts: its captions as it pairs them.
    assert found.gain == found.gains[OWN]
    assert again.gain == again.gains[OTHER]
    assert Informativeness.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_a_captioner_that_is_wrong_is_named_uninformative() -> None:
    class Wrong(FakeCaptioner):
        def caption(self, images: Sequence[Any], *more: Any, **given: Any) -> list[str]:
            return ["a red star on a plain black background" for _ in images]

    found = measure(load_recipe("shapes-cip"), 20, draws=1, options=QUIET, captioner=Wrong())
    assert found.verdict.startswith("Uninformative")


def test_three_processes_measure_what_one_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Two batches of captions for three processes: one of them has nothing to do.
    words = ("shapes-cip", "--images", 6, "--draws", 1, "--set", "caption.batch_size=4", "--device", "cpu")
    alone = json.loads(command(capsys, "informativeness", *words, "--json").out)
    file = tmp_path / "found.json"
    several = command(capsys, "informativeness", *words, "--num-processes", 3, "--out", file, "-q")
    assert several.code == 0
    assert several.out.startswith("Informative")
    found = json.loads(file.read_text())
    assert found["images"] == 6
    for kind, gain in alone["gains"].items():
        assert found["gains"][kind] == pytest.approx(gain, abs=1e-5)
    assert found["by_class"].keys() == alone["by_class"].keys()
    assert found["examples"] == alone["examples"]


def test_of_a_run_its_own_captions_are_measured_and_the_result_stays_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(FakeCaptioner):
        def caption(self, images: Sequence[Any], *more: Any, **given: Any) -> list[str]:
            return ["a red star on a plain black background" for _ in images]

    run = prepare(load_recipe("shapes-cip", ["source.limit_per_class=2"]), tmp_path / "run")
    caption(run, captioner=Wrong(), quiet=True)
    found = informativeness(run.folder, images=20, draws=1, device="cpu", quiet=True)
    assert "a red star on a plain black background" in found.examples[OWN]
    assert found.verdict.startswith("Uninformative")
    assert kept_in(run.folder) == found
    refused = command(capsys, "informativeness", run.folder, "--seed", 3)
    assert refused.code == 2 or refused.code == 1
    assert "is a run, whose recipe stays as it is, and seed would change it" in refused.err
    (run.folder / "informativeness.json").write_text('{"recipe": "damaged"}')
    assert kept_in(run.folder) is None
    # It is a file of the run: the folder may still be continued, or made again.
    prepare(load_recipe("shapes-cip", ["source.limit_per_class=2", "seed=1"]), run.folder, overwrite=True)
    assert not (run.folder / "informativeness.json").exists()


def test_a_plan_that_probes_says_how_informative_the_prompts_are(tmp_path: Path) -> None:
    small = ("generate.batch_size=4", "caption.batch_size=4", "generate.steps=2")
    found = plan("shapes-cip", probe=4, overrides=small, device="cpu")
    assert isinstance(found.informativeness, Informativeness)
    assert found.informativeness.images == 4
    assert f"informative   {found.informativeness.verdict}" in found.text()
    assert found.as_dict()["informativeness"]["gain"]["mean"] == found.informativeness.gain.mean
    assert plan("shapes-cip", overrides=small).informativeness is None
    folder = FAMILIES["pixart-sigma"].save(tmp_path / "model")
    fields = ["generate.batch_size=1", "generate.steps=2", "generate.dtype=float32", f"generate.model={folder}"]
    other = plan("shapes-basic", probe=1, overrides=fields, device="cpu")
    assert "informative   Not measured: The denoising loss of" in other.text()
    assert str(other.as_dict()["informativeness"]).startswith("Not measured")


def test_prompts_without_texts_are_measured_where_they_say_more_or_less_than_the_class_name(tmp_path: Path) -> None:
    (tmp_path / "strategy.py").write_text('def nothing(c, caption, rng):\n    return "a photo"\n')
    blind = measure(
        load_recipe("shapes-basic", [f"prompt.strategy={tmp_path / 'strategy.py'}:nothing"]), 10, draws=1, options=QUIET
    )
    assert set(blind.gains) == {NONE, PROMPT}
    assert blind.examples[PROMPT] == "a photo"
    assert blind.gain == blind.gains[PROMPT]
    assert blind.gain.sign == -1
    assert blind.verdict.startswith("Uninformative: these prompts mislead")
    assert len(blind.by_class) == 10
    names = measure(load_recipe("shapes-basic"), 10, draws=1, options=QUIET)
    assert set(names.gains) == {NONE}
    assert names.gain == Gain(0.0, 0.0, 10)


def test_the_rank_correlation_of_the_check_is_that_of_spearman() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    from check_informativeness import correlated, spearman

    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)  # as scipy.stats.spearmanr
    assert spearman([1, 2, 3], [5, 5, 5]) == 0
    lines = [{"gain": {"mean": float(n)}, "accuracies": [0.1 * n, 0.1 * n + 0.01]} for n in range(8)]
    found = correlated(lines)
    assert found["rank"] == pytest.approx(1)
    assert 0.9 < found["low"] <= found["high"] <= 1.0 + 1e-9
    assert correlated(lines[:4] + [{**line, "accuracies": [0.0, 0.0]} for line in lines[4:]])["low"] < 0


def test_each_kind_of_prompt_is_of_the_image_that_it_says() -> None:
    classes = get_variant("shapes").by_wnid
    star, ring = list(classes)[:2]
    some = [
        Caption("a", star, f"a red {classes[star].name}"),
        Caption("b", star, f"a blue {classes[star].name}"),
        Caption("c", ring, f"a green {classes[ring].name}"),
        Caption("d", ring, ""),
    ]
    told = prompts_of(load_recipe("shapes-cip"), some, classes)
    first, second = classes[star].name, classes[ring].name
    assert told[NONE] == [""] * 4
    assert told[CLASS] == [f"a photo of {name}" for name in (first, first, second, second)]
    assert told[OWN] == [
        f"a photo of {first}, a red {first}",
        f"a photo of {first}, a blue {first}",
        f"a photo of {second}, a green {second}",
        None,
    ]
    assert told[SAME][:2] == told[OWN][1::-1]
    assert told[SAME][2:] == [None, told[OWN][2]]
    assert f"a green {first}" in " ".join(filter(None, told[OTHER][:2]))
    assert told[OTHER][2] in (f"a photo of {second}, a red {second}", f"a photo of {second}, a blue {second}")
    assert set(prompts_of(load_recipe("shapes-basic"), [replace(c, text=None) for c in some], classes)) == {NONE, CLASS}


@pytest.mark.parametrize(
    ("own", "same", "begins"),
    [
        (Gain(0.05, 0.01, 50), Gain(-0.02, 0.01, 50), "Informative"),
        (Gain(0.015, 0.01, 50), Gain(-0.02, 0.01, 50), "Uninformative, as far as"),
        (Gain(-0.05, 0.01, 50), Gain(-0.02, 0.01, 50), "Uninformative: these captions mislead"),
        (Gain(0.05, None, 1), Gain(0.01, None, 1), "Uninformative, as far as"),
    ],
)
def test_the_verdict_follows_from_the_numbers(own: Gain, same: Gain, begins: str) -> None:
    gains = {NONE: Gain(-0.1, 0.01, 50), OWN: own, SAME: same}
    found = Informativeness("r", "c", "g", own.images, 4, 0.4, gains, {}, dict.fromkeys(gains, "p"))
    assert found.verdict.startswith(begins)
    assert found.text().endswith(found.verdict)
    assert "does as well" not in found.verdict
    better = replace(found, gains={**gains, SAME: Gain(own.mean + 0.1, 0.01, 50)})
    assert ("does as well" in better.verdict) == (begins == "Informative")
    nothing = replace(found, gains={NONE: gains[NONE]})
    assert "nothing to compare" in nothing.verdict


def test_a_generator_of_another_family_is_refused_before_anything_is_captioned(tmp_path: Path) -> None:
    folder = FAMILIES["pixart-sigma"].save(tmp_path / "model")
    recipe = load_recipe("shapes-cip", [f"generate.model={folder}", "generate.dtype=float32", "generate.steps=2"])
    with pytest.raises(HfsynError, match=r"PixArtSigmaPipeline, cannot be measured"):
        measure(recipe, 4, options=QUIET)
