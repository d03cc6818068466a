"""`hfsyn tune`: the steps of a plain loop over peft and diffusers, resumed to the bit, in a file of diffusers."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import run_folder
from diffusers.training_utils import compute_snr
from fakes import FakeCaptioner
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from tiny_families import FAMILIES

import hfsyn
from hfsyn.captions.caption_stage import caption
from hfsyn.errors import HfsynError
from hfsyn.images.denoising_loss import DenoisingLoss
from hfsyn.recipes.recipe import TunePart, fingerprint, load_recipe
from hfsyn.runs.run import load_run
from hfsyn.tuning.cache import Cache
from hfsyn.tuning.examples import of_run
from hfsyn.tuning.loop import Deck, Tuner

FILE = "pytorch_lora_weights.safetensors"
QUIET: dict[str, Any] = {"device": "cpu", "quiet": True, "samples": 0}


def captioned(tmp_path: Path, *overrides: str, name: str = "run") -> Path:
    """A run folder with captions, of three images a class."""
    run = run_folder(tmp_path, *overrides, name=name)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    return run


def small(family: str, tmp_path: Path) -> list[str]:
    """What makes a recipe one of a family's tiny twin."""
    model = FAMILIES[family].save(tmp_path / family)
    width, height = FAMILIES[family].size
    fields: Mapping[str, Any] = {"model": model, "dtype": "float32", "safety_checker": False, "steps": 2}
    fields = {**fields, "width": width, "height": height, **FAMILIES[family].fields}
    return [
        f"generate.{key}={json.dumps(str(value) if isinstance(value, Path) else value)}"
        for key, value in fields.items()
    ]


def tuner_of(run: Path, folder: Path, *overrides: str) -> tuple[Tuner, DenoisingLoss]:
    recipe = load_recipe(load_run(run).recipe, ["tune.batch_size=4", *overrides])
    loss = DenoisingLoss(recipe.generate, "cpu")
    assert recipe.tune is not None
    cache = Cache(folder / "cache", of_run(load_run(run), recipe.tune))
    cache.fill(loss, quiet=True)
    return Tuner(recipe, loss, [Deck(cache, cache.usable()[0], recipe.seed)], folder), loss


class PlainLoop:
    """A training loop as the scripts of diffusers have it, in float64, on images and prompts that it is given.

    In float32 these random networks make chaos of the last bit: what is equal in float64 differs there by rounding.
    """

    def __init__(self, model: Path, rank: int, start: Mapping[str, torch.Tensor]) -> None:
        self.pipe: Any = diffusers.AutoPipelineForText2Image.from_pretrained(model)
        self.flows = getattr(self.pipe, "transformer", None) is not None
        self.network = self.pipe.transformer if self.flows else self.pipe.unet
        self.network.requires_grad_(False)
        ends = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        self.network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=ends))
        self.network.double()
        self.weights = {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}
        assert self.weights.keys() == start.keys()
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(start[name])
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=1e-4, weight_decay=1e-2)
        self.schedule = None if self.flows else diffusers.DDPMScheduler.from_config(self.pipe.scheduler.config)

    @torch.no_grad()
    def latent(self, picture: Any, mirrored: bool) -> torch.Tensor:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        config, found = self.pipe.vae.config, self.pipe.vae.encode(pixels).latent_dist.mode()
        return (found - (getattr(config, "shift_factor", None) or 0)) * config.scaling_factor

    @torch.no_grad()
    def told(self, prompt: str) -> dict[str, torch.Tensor]:
        kind, plain = type(self.pipe).__name__, {"device": "cpu", "do_classifier_free_guidance": False}
        if kind == "FluxPipeline":
            embeddings, pooled, _ = self.pipe.encode_prompt(prompt, None, device="cpu", max_sequence_length=256)
        elif kind == "StableDiffusion3Pipeline":
            embeddings, _, pooled, _ = self.pipe.encode_prompt(prompt, None, None, **plain)
        else:
            embeddings, _, *rest = self.pipe.encode_prompt(prompt, num_images_per_prompt=1, **plain)
            pooled = rest[0] if rest else None
        return {"embeddings": embeddings} | ({} if pooled is None else {"pooled": pooled})

    def step(self, latents: torch.Tensor, told: Mapping[str, torch.Tensor], shown: list[Any]) -> None:
        each = [{name: tensor[n : n + 1].double() for name, tensor in told.items()} for n in range(len(shown))]
        rows = zip(latents.double(), each, shown, strict=True)
        loss = torch.stack([self.error(latent[None], words, one) for latent, words, one in rows]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()

    def error(self, latent: torch.Tensor, told: Mapping[str, torch.Tensor], one: Any) -> torch.Tensor:
        noise = one.noise[None].double()
        if self.flows:
            predicted = self.flow((1 - one.share) * latent + one.share * noise, told, one.share)
            return ((predicted - (noise - latent)) ** 2).mean()
        step = torch.tensor([int(one.share * 1000)])
        noisy, added = self.schedule.add_noise(latent, noise, step), None
        if "pooled" in told:
            side = self.pipe.vae_scale_factor
            size = [latent.shape[2] * side, latent.shape[3] * side]
            times = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float64)
            added = {"text_embeds": told["pooled"], "time_ids": times}
        predicted = self.network(noisy, step, told["embeddings"], added_cond_kwargs=added).sample
        velocity = self.schedule.config.prediction_type == "v_prediction"
        target = self.schedule.get_velocity(latent, noise, step) if velocity else noise
        snr = compute_snr(self.schedule, step).double()
        weight = snr.clamp(max=5.0) / (snr + 1 if velocity else snr)
        return weight[0] * ((predicted - target) ** 2).mean()

    def flow(self, noisy: torch.Tensor, told: Mapping[str, torch.Tensor], share: float) -> torch.Tensor:
        words = {"encoder_hidden_states": told["embeddings"], "pooled_projections": told["pooled"]}
        if "3" in type(self.pipe).__name__:
            return self.network(noisy, timestep=torch.tensor([1000 * share]), **words).sample
        _, channels, height, width = noisy.shape
        packed = self.pipe._pack_latents(noisy, 1, channels, height, width)
        places = self.pipe._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float64)
        ids = {"img_ids": places, "txt_ids": torch.zeros(told["embeddings"].shape[1], 3, dtype=torch.float64)}
        share_of = torch.tensor([share], dtype=torch.float64)
        out = self.network(packed, timestep=share_of, **words, **ids).sample
        side = self.pipe.vae_scale_factor
        return self.pipe._unpack_latents(out, height * side, width * side, side)


@pytest.mark.parametrize("family", ["sd-1.5", "sd-2.1", "sdxl", "sd-3-medium", "flux-schnell"])
def test_twenty_steps_are_those_of_a_plain_loop(tmp_path: Path, family: str) -> None:
    run = captioned(tmp_path, *small(family, tmp_path))
    tuner, loss = tuner_of(run, tmp_path / "out", "tune.rank=4")
    start = {name: weight.detach().clone() for name, weight in tuner.weights.items()}
    plain = PlainLoop(tmp_path / family, 4, start)
    examples = of_run(load_run(run), TunePart())
    cache, pictures = Cache(tmp_path / "out" / "cache", examples), examples.open(loss)
    loss.network.double()
    kinds: Counter[str] = Counter()
    for step in range(20):
        shown = tuner.shown(step)
        numbers = [one.number for one in shown]
        latents = cache.latents(numbers, [one.mirrored for one in shown])
        told = cache.conditions([one.prompt for one in shown])
        if step == 0:  # what is cached is what plain calls give
            for row, one in enumerate(shown):
                (picture,) = pictures([one.number])
                assert torch.allclose(latents[row], plain.latent(picture, one.mirrored)[0], atol=1e-5)
                for name, tensor in plain.told(one.prompt).items():
                    assert torch.allclose(told[name][row], tensor[0], atol=1e-4), name
        tuner.step()
        plain.step(latents, told, shown)
        kinds.update(
            ["dropped" if not one.prompt else "told" for one in shown], mirrored=sum(o.mirrored for o in shown)
        )
    assert 0 < kinds["dropped"] < 30
    assert 20 < kinds["mirrored"] < 60
    moved = max(float((weight.detach() - start[name]).abs().max()) for name, weight in tuner.weights.items())
    apart = max(float((w - plain.weights[name]).detach().abs().max()) for name, w in tuner.weights.items())
    assert moved > 1e-3
    assert apart < 1e-6, f"{apart} of {moved}"


def test_a_killed_tuning_ends_in_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = captioned(tmp_path, *small("sd-1.5", tmp_path))
    how = ["tune.steps=6", "tune.batch_size=4", "tune.lr=0.01", "tune.ema=0.9", "tune.text_encoder=true"]
    words = {"overrides": how, "checkpoint_steps": 2, **QUIET}
    whole = hfsyn.tune(run, tmp_path / "whole", **words)
    step = Tuner.step

    def cut(self: Tuner) -> float:
        if self.done == 5:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Tuner, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        hfsyn.tune(run, tmp_path / "killed", **words)
    monkeypatch.undo()
    assert hfsyn.tune(run, tmp_path / "killed", **words)["sha256"] == whole["sha256"]
    assert (tmp_path / "killed" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


@pytest.mark.parametrize("family", ["sd-1.5", "sd-2.1", "sdxl", "sd-3-medium", "flux-schnell"])
def test_the_file_draws_the_same_images_in_plain_diffusers(tmp_path: Path, family: str) -> None:
    run = captioned(tmp_path, *small(family, tmp_path))
    how = ["tune.steps=3", "tune.batch_size=4", "tune.lr=0.01", "tune.text_encoder=true"]
    hfsyn.tune(run, tmp_path / "whole", overrides=how, **QUIET)
    pipe: Any = diffusers.AutoPipelineForText2Image.from_pretrained(tmp_path / family)
    width, height = FAMILIES[family].size

    def drawn(pipe: Any) -> np.ndarray:
        how = {"num_inference_steps": 2, "width": width, "height": height, "output_type": "np"}
        return np.array(pipe("a photo of a dog", generator=torch.Generator().manual_seed(0), **how).images)

    before = drawn(pipe)
    pipe.load_lora_weights(tmp_path / "whole")
    after = drawn(pipe)
    moved = float(np.abs(before - after).max())
    assert moved > 1e-2
    tuner, loss = tuner_of(run, tmp_path / "again", *how)
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "again" / "checkpoints")
    assert tuner.resume() == 3
    for network in tuner.networks:
        network.eval()
    assert np.abs(drawn(loss.pipe) - after).max() < moved / 200
    lora = load_recipe(load_run(run).recipe, [f"generate.lora={tmp_path / 'whole'}"])
    assert np.abs(drawn(DenoisingLoss(lora.generate, "cpu").pipe) - after).max() < moved / 200


def test_all_weights_can_be_tuned_and_are_a_checkpoint(tmp_path: Path) -> None:
    run = captioned(tmp_path, *small("sd-1.5", tmp_path))
    how = ["tune.full=true", "tune.steps=3", "tune.batch_size=4", "tune.schedule=cosine", "tune.warmup_steps=1"]
    found = hfsyn.tune(run, tmp_path / "out", overrides=how, **{**QUIET, "samples": 2})
    tuned: Any = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline", safety_checker=None)
    plain: Any = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "sd-1.5", safety_checker=None)
    pairs = list(zip(tuned.unet.parameters(), plain.unet.parameters(), strict=True))
    assert sum(weight.numel() for weight, _ in pairs) == found["trained"]
    assert all(not torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(a, b) for a, b in zip(tuned.vae.parameters(), plain.vae.parameters(), strict=True))
    assert len(list((tmp_path / "out" / "samples").glob("*.png"))) == 2 * 4  # before, and after each step
    assert (tmp_path / "out" / "samples.png").is_file()


def test_a_recipe_is_captioned_and_tuned_in_one_command_and_its_lora_is_pinned_by_content(tmp_path: Path) -> None:
    words = {"limit": 1, "overrides": ["tune.steps=2", "tune.batch_size=2", "tune.shots=1"], **QUIET}
    found = hfsyn.tune("shapes-cip", tmp_path / "out", **words)
    assert (found["images"], found["classes"], found["steps"]) == (10, 10, 2)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tuned with hfsyn on 10 real images of\n10 classes" in card
    assert str(tmp_path) not in card
    assert len(load_file(tmp_path / "out" / FILE)) > 10
    again = (tmp_path / "out" / FILE).stat().st_mtime_ns
    assert hfsyn.tune("shapes-cip", tmp_path / "out", **words) == found
    assert (tmp_path / "out" / FILE).stat().st_mtime_ns == again
    recipe = load_recipe("shapes-cip")
    assert fingerprint(load_recipe("shapes-cip", ["tune.rank=4"])) == fingerprint(recipe)
    run = run_folder(tmp_path, f"generate.lora={tmp_path / 'out'}", name="drawn")
    assert load_run(run).recipe.generate.lora_revision == f"sha256:{found['sha256']}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["tune.targets=[to_w]"],
            r"tune\.targets to_w match no layer of the UNet2DConditionModel\. It has, for instance: ",
        ),
        (
            ["tune.lr=10", "tune.full=true", "tune.clip_grad=0", "tune.steps=60"],
            r"The loss is (nan|inf) at step \d+\. Lower tune\.lr",
        ),
        (["generate.steps=3"], r"is a run, whose recipe stays as it is, and overrides would change it"),
        (["tune.rank=0"], r"tune\.rank"),
        (["tune.steps=1"], r"holds another tuning: tune\.steps was 2 there and is 1 now"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_a_line(tmp_path: Path, overrides: list[str], said: str) -> None:
    run = captioned(tmp_path, *small("sd-1.5", tmp_path))
    if "steps=1" in overrides[0]:
        hfsyn.tune(run, tmp_path / "out", overrides=["tune.steps=2", "tune.batch_size=2"], **QUIET)
    with pytest.raises(HfsynError, match=said):
        hfsyn.tune(run, tmp_path / "out", overrides=["tune.batch_size=2", *overrides], **QUIET)


def test_a_model_of_another_family_and_a_lora_on_a_lora_are_refused(tmp_path: Path) -> None:
    run = captioned(tmp_path, *small("pixart", tmp_path))
    with pytest.raises(HfsynError, match="It can for Stable Diffusion 1, 2 and 3, SDXL and FLUX"):
        hfsyn.tune(run, tmp_path / "out", **QUIET)
    hfsyn.tune("shapes-cip", tmp_path / "a", limit=1, overrides=["tune.steps=1", "tune.batch_size=2"], **QUIET)
    with pytest.raises(HfsynError, match=r"what is tuned is the model itself"):
        hfsyn.tune("shapes-cip", tmp_path / "b", limit=1, overrides=[f"generate.lora={tmp_path / 'a'}"], **QUIET)
