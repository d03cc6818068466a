"""`hfsyn tune`: the steps of a plain loop over peft and diffusers, resumed to the bit, in a file of diffusers."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
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
from hfsyn.images.generator import DiffusersGenerator
from hfsyn.models.pipelines import load_pipeline
from hfsyn.recipes.recipe import TunePart, fingerprint, load_recipe
from hfsyn.rules import seed_of
from hfsyn.runs.run import load_run
from hfsyn.tuning.cache import Cache
from hfsyn.tuning.examples import of_dataset, of_run, prior
from hfsyn.tuning.loop import Deck, Tuner
from hfsyn.workers import Worker

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
            if not prompt and rest:  # SDXL's guidance has zeros for what is told nothing
                embeddings, pooled = torch.zeros_like(embeddings), torch.zeros_like(pooled)
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
                ((picture,),) = pictures([one.number])
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
def test_the_file_draws_the_same_images_in_plain_diffusers(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfsyn.tuning.tune.rmtree", lambda *_, **__: None)  # its checkpoints are looked at
    run = captioned(tmp_path, *small(family, tmp_path))
    beyond = '"conv1"' if family.startswith("sd-1") or family == "sdxl" else '"proj_out"'
    targets = f'tune.targets=["to_q", "to_k", "to_v", "to_out.0", {beyond}]'
    how = ["tune.steps=3", "tune.batch_size=4", "tune.lr=0.01", "tune.text_encoder=true", targets]
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
    beside = {"tuned_on": found["tuned_on"]}  # and no more: the content of the folder is that of the weights
    assert json.loads((tmp_path / "out" / "pipeline" / "tuning.json").read_text()) == beside
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


def test_each_class_can_have_a_lora_of_its_own_with_which_it_is_drawn_in_whole_batches(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for name in ("circle", "star"):
        for number in range(3):
            path = tmp_path / "two" / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chance.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    classes = "classes: [{id: circle, name: circle}, {id: star, name: star}]\n"
    (tmp_path / "two.yaml").write_text(f"name: two\nsplits: {{train: 6}}\npath: {tmp_path / 'two'}\n{classes}")
    few = [f"source.variant={tmp_path / 'two.yaml'}", "generate.steps=2"]
    how = [*few, "tune.per_class=true", "tune.steps=1", "tune.batch_size=2", "tune.lr=0.05"]
    found = hfsyn.tune("shapes-cip", tmp_path / "out", limit=2, overrides=how, **QUIET)
    listed = json.loads((tmp_path / "out" / "lora_by_class.json").read_text())
    assert (found["classes"], found["images"], list(listed)) == (2, 4, ["circle", "star"])
    assert len({one["sha256"] for one in listed.values()}) == 2
    assert found["tuned_on"]["reference"].endswith("=./two")
    drawing = [*few, f"generate.lora={tmp_path / 'out'}", "generate.batch_size=4"]
    run = hfsyn.build("shapes-cip", tmp_path / "run", limit=3, overrides=drawing, num_processes=1, quiet=True)
    rows = run.dataset()
    assert run.recipe.generate.lora_revision == f"sha256:{found['sha256']}"
    assert rows["wnid"] == sorted(rows["wnid"])  # a class after the other: its LoRA is loaded once
    assert hfsyn.verify(tmp_path / "run").problems == []
    # An image is what plain diffusers draws with the LoRA of its class.
    row = rows[3]  # the first of its class, after three of another, and four would be a batch
    part = run.recipe.generate
    pipe, _ = load_pipeline(part.model_copy(update={"lora": None, "lora_file": None}), None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'load_lora_weights("PATH/TO/THIS/FOLDER", subfolder="classes/WNID")' in card
    pipe.load_lora_weights(tmp_path / "out", subfolder=f"classes/{row['wnid']}")
    draw = [torch.Generator().manual_seed(row["seed"]) for _ in range(4)]
    (image, *_) = pipe([row["prompt"]] * 4, generator=draw, num_inference_steps=2, guidance_scale=2.5).images
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(row["image"], dtype=int)).max() <= 1
    again = hfsyn.build("shapes-cip", tmp_path / "run", limit=3, overrides=drawing, num_processes=1, quiet=True)
    assert again.fingerprint == run.fingerprint
    (tmp_path / "out" / listed[row["wnid"]]["file"]).write_bytes(b"")
    generator = DiffusersGenerator(part, None, "cpu")
    with pytest.raises(HfsynError, match="is not the file that its list names"):
        generator.take_class(row["wnid"])
    with pytest.raises(HfsynError, match="has no LoRA for the class n0"):
        generator.take_class("n0")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["tune.targets=[to_w]"],
            r"tune\.targets to_w match no layer of the UNet2DConditionModel\. It has, for instance: ",
        ),
        (
            ["tune.lr=10", "tune.full=true", "tune.clip_grad=0", "tune.steps=60"],
            r"The (loss|gradient's norm) is (nan|inf) at step \d+\. Tune into another --out with a lower tune\.lr",
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


def test_a_model_without_a_network_that_draws_and_a_lora_of_another_base_are_refused(tmp_path: Path) -> None:
    run = captioned(tmp_path, *small("sd-1.5", tmp_path))
    hfsyn.tune(run, tmp_path / "lora", overrides=["tune.steps=1", "tune.batch_size=2"], **QUIET)
    other = load_recipe(load_run(run).recipe, [*small("sdxl", tmp_path), f"generate.lora={tmp_path / 'lora'}"])
    with pytest.raises(HfsynError, match=r"The LoRA .* cannot be put into .*|holds no LoRA weights for") as refused:
        DenoisingLoss(other.generate, "cpu")
    assert "\n" not in refused.value.message
    index = tmp_path / "sd-1.5" / "model_index.json"
    parts = json.loads(index.read_text())
    del parts["unet"]
    index.write_text(json.dumps(parts))
    part = load_run(run).recipe.generate.model_copy(update={"revision": None})
    with pytest.raises(HfsynError, match=r"cannot be loaded as a generator: ValueError: Pipeline") as refused:
        DenoisingLoss(part, "cpu")
    assert "\n" not in refused.value.message


def test_a_model_of_another_family_and_a_lora_on_a_lora_are_refused(tmp_path: Path) -> None:
    run = captioned(tmp_path, *small("pixart", tmp_path))
    with pytest.raises(HfsynError, match="It can for Stable Diffusion 1, 2 and 3, SDXL and FLUX"):
        hfsyn.tune(run, tmp_path / "out", **QUIET)
    hfsyn.tune("shapes-cip", tmp_path / "a", limit=1, overrides=["tune.steps=1", "tune.batch_size=2"], **QUIET)
    with pytest.raises(HfsynError, match=r"what is tuned is the model itself"):
        hfsyn.tune("shapes-cip", tmp_path / "b", limit=1, overrides=[f"generate.lora={tmp_path / 'a'}"], **QUIET)


@pytest.mark.slow
def test_two_processes_and_parts_of_a_step_change_the_weights_by_rounding_alone(tmp_path: Path) -> None:
    run = captioned(tmp_path, *small("sd-1.5", tmp_path))
    words = {"overrides": ["tune.steps=5", "tune.batch_size=4", "tune.lr=0.001"], **QUIET}
    ways: dict[str, dict[str, Any]] = {
        "one": {"num_processes": 1},
        "two": {"num_processes": 2},
        "parts": {"num_processes": 1, "gradient_accumulation_steps": 2},
    }
    results = {name: hfsyn.tune(run, tmp_path / name, **words, **way) for name, way in ways.items()}
    one, two, parts = (load_file(tmp_path / name / FILE) for name in ways)
    assert results["one"]["loss"]["last"] == pytest.approx(results["two"]["loss"]["last"], rel=1e-5)
    # What a LoRA begins with is zero on one side: this side is what the steps have made. Adam's first steps divide a
    # gradient by itself, so that a weight whose gradient is all but zero goes either way.
    grown = [name for name in one if "lora_B" in name or "lora.up" in name]
    size = sum(float(one[name].square().sum()) for name in grown) ** 0.5
    assert size > 1e-2
    for other in (two, parts):
        assert sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5 < size / 50


def test_two_processes_take_the_same_steps_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where rounding does not grow; the processes are threads, which meet where accelerate adds up."""
    run = captioned(tmp_path)
    barrier, held = threading.Barrier(2), dict[str, torch.Tensor]()

    def reduce(tensor: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        held[threading.current_thread().name] = tensor.clone()
        barrier.wait()
        added = sum(held.values(), torch.zeros_like(tensor))
        barrier.wait()
        return added

    monkeypatch.setattr("accelerate.utils.reduce", reduce)
    tuners = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        monkeypatch.setattr("hfsyn.tuning.loop.current_worker", lambda place=(rank, world): Worker(*place))
        tuner, loss = tuner_of(run, tmp_path / "out", "tune.rank=4", "generate.dtype=float32")
        loss.network.double()
        tuners.append(tuner)
    alone, *both = tuners
    start = {name: weight.detach().clone() for name, weight in alone.weights.items()}
    losses = [alone.step() for _ in range(3)]
    threads = [Thread(target=lambda one=one: [one.step() for _ in range(3)], name=str(n)) for n, one in enumerate(both)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in both:
        assert one.losses == pytest.approx(losses, rel=1e-6)  # which are added up in float32
        moved = max(float((weight.detach() - start[name]).abs().max()) for name, weight in alone.weights.items())
        apart = max(float((weight - one.weights[name]).detach().abs().max()) for name, weight in alone.weights.items())
        assert moved > 1e-4
        assert apart < moved / 10**6


def test_the_images_of_a_step_are_shared_out_among_processes_without_changing_how_they_are_shown(
    tmp_path: Path,
) -> None:
    tuner, _ = tuner_of(captioned(tmp_path), tmp_path / "out")

    def told(shown: list[Any]) -> list[Any]:
        return [(one.number, one.share, one.mirrored, one.prompt, one.noise.sum().item()) for one in shown]

    whole = told(tuner.shown(3))
    assert [whole[0::2], whole[1::2]] == [told(tuner.shown(3, rank, 2)) for rank in (0, 1)]
    assert whole != told(tuner.shown(4))
    seen = Counter(one.number for step in range(15) for one in tuner.shown(step))
    assert set(seen.values()) == {2}  # thirty images, two epochs in fifteen steps of four


def photographs(folder: Path, texts: list[Any], *, size: int = 32, column: str = "text") -> Path:
    """A folder of images with texts, as somebody would bring it."""
    folder.mkdir(parents=True)
    lines = []
    for number, told in enumerate(texts):
        pixels = np.random.default_rng(number).integers(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", column: told}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def test_any_dataset_with_images_and_texts_can_be_tuned_on(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "cats", [["a cat", "", "a red cat"], [], ["a dog"], ["a bird"]])
    (folder / "3.png").write_bytes(b"no image")
    how = ["tune.steps=2", "tune.batch_size=2", "tune.caption_dropout=0", "generate.dtype=float32"]
    found = hfsyn.tune("shapes-cip", tmp_path / "out", dataset=str(folder), overrides=how, **QUIET)
    assert (found["images"], found["classes"]) == (2, 0)
    assert found["left_out"] == {"row without a text": 1, "image that cannot be read": 1}
    assert not (tmp_path / "out" / "run").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "on 2 real images of\ncats, with their texts" in card
    assert "Left out: 1 (image that cannot be read)." in card
    assert str(tmp_path) not in card
    part = TunePart(dataset=str(folder))
    assert [one.prompts for one in of_dataset(part).rows] == [("a cat", "", "a red cat"), ("a dog",), ("a bird",)]
    # Each text is drawn as often, by the image and the step.
    recipe = load_recipe("shapes-cip", [*how, f"tune.dataset={folder}"])
    loss = DenoisingLoss(recipe.generate, "cpu")
    cache = Cache(tmp_path / "cache", of_dataset(part))
    cache.fill(loss, quiet=True)
    tuner = Tuner(recipe, loss, [Deck(cache, [0], recipe.seed)], tmp_path / "one")
    shown = Counter(one.prompt for step in range(150) for one in tuner.shown(step))
    assert shown.keys() == {"a cat", "", "a red cat"}
    assert min(shown.values()) > 70


def test_of_several_columns_of_texts_the_named_one_is_told(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "cats", ["a cat"], column="notes")
    line = json.loads((folder / "metadata.jsonl").read_text())
    (folder / "metadata.jsonl").write_text(json.dumps({**line, "text": "a photograph", "caption": "an animal"}) + "\n")
    for column, told in ((None, "a photograph"), ("caption", "an animal"), ("notes", "a cat")):
        assert of_dataset(TunePart(dataset=str(folder), text_column=column)).rows[0].prompts == (told,)


@pytest.mark.parametrize(
    ("texts", "words", "said"),
    [
        ([1, 2], {}, r"has no column of texts that is called '?prompt"),
        ([[], []], {"text_column": "text"}, r"has no column 'text' of texts|No row of .* has a text"),
        (["", " "], {}, r"No row of .* has a text in its column 'text'"),
        (["a cat", "a dog"], {"text_column": "words"}, r"has no column 'words' of texts; its columns are"),
        (["a cat", "a dog"], {"image_column": "text"}, r"has no column 'text' of images"),
        (["a cat"], {"overrides": ["tune.split=test"]}, r"has no split 'test'"),
        (["a cat"], {"overrides": ["generate.width=64", "generate.height=64"]}, r"None of the images of cats is shown"),
        (["a cat"], {"overrides": ["tune.prior_images=2"]}, r"cats has no classes to draw"),
        (["a cat"], {"overrides": ["tune.from_config=true"]}, r"tune\.from_config is true, and tune\.full is not"),
    ],
)
def test_what_a_dataset_lacks_is_said_in_a_line_and_nothing_is_lost(
    tmp_path: Path, texts: list[Any], words: dict[str, Any], said: str
) -> None:
    folder = photographs(tmp_path / "cats", texts)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    how = ["tune.steps=1", "tune.batch_size=1", *words.pop("overrides", [])]
    with pytest.raises(HfsynError, match=said) as refused:
        hfsyn.tune("shapes-cip", tmp_path / "out", dataset=str(folder), overrides=how, **words, **QUIET)
    assert "\n" not in refused.value.message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_smaller_images_are_enlarged_if_that_is_asked_for(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "cats", ["a cat", "a dog"], size=24)
    how = ["tune.steps=1", "tune.batch_size=1", "tune.enlarge=true"]
    assert hfsyn.tune("shapes-cip", tmp_path / "out", dataset=str(folder), overrides=how, **QUIET)["images"] == 2
    missing = r"There is no dataset '\./nowhere' here, and it is not USER/NAME"
    with pytest.raises(HfsynError, match=missing):
        hfsyn.tune("shapes-cip", tmp_path / "no", dataset="./nowhere", **QUIET)


def test_a_network_begins_with_random_weights_of_the_seed_if_only_its_configuration_is_taken(tmp_path: Path) -> None:
    model = FAMILIES["sd-1.5"].save(tmp_path / "model")
    for weights in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        (model / weights).unlink()
    part = load_recipe("shapes-cip", [f"generate.model={model}", "generate.dtype=float32"]).generate
    part = part.model_copy(update={"safety_checker": False})
    first, again, other = (DenoisingLoss(part, "cpu", fresh={"unet": s, "text_encoder": 0}) for s in (1, 1, 2))
    weights = [one.network.conv_in.weight for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(HfsynError, match="no loadable weights of its text_encoder"):
        DenoisingLoss(part, "cpu", fresh={"unet": 1})
    folder = photographs(tmp_path / "cats", ["a cat", "a dog"])
    how = ["tune.full=true", "tune.from_config=true", "tune.text_encoder=true", "tune.ema=0.9", "tune.uniform=0.3"]
    how += ["tune.steps=2", "tune.batch_size=2", f"generate.model={model}", "generate.safety_checker=false"]
    found = hfsyn.tune("shapes-cip", tmp_path / "out", dataset=str(folder), overrides=how, **QUIET)
    made: Any = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline", safety_checker=None)
    sizes = [weight.numel() for network in (made.unet, made.text_encoder) for weight in network.parameters()]
    assert sum(sizes) == found["trained"]


def test_a_wide_photograph_is_shown_in_crops_along_its_longer_side(tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    slope = np.repeat(np.linspace(0, 255, 128).astype(np.uint8)[None, :, None], 3, axis=2).repeat(32, axis=0)
    Image.fromarray(slope).save(tmp_path / "wide" / "0.png")
    (tmp_path / "wide" / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a slope"}) + "\n")
    base = [f"tune.dataset={tmp_path / 'wide'}", "tune.batch_size=4", "tune.min_snr=null", "generate.dtype=float32"]
    recipe, plain = (load_recipe("shapes-cip", [*base, f"tune.crops={crops}"]) for crops in (4, 1))
    assert recipe.tune is not None
    assert plain.tune is not None
    loss = DenoisingLoss(recipe.generate, "cpu")
    examples = of_dataset(recipe.tune)
    (crops,), ((middle,),) = (of_dataset(part).open(loss)([0]) for part in (recipe.tune, plain.tune))
    levels = [float(np.asarray(crop).mean()) for crop in crops]
    # Four places at equal distances, as far from the ends as half of that: 12, 36, 60 and 84 of 96 pixels.
    assert np.diff(levels) == pytest.approx([255 * 24 / 127] * 3, abs=2)
    assert sum(levels) / 4 == pytest.approx(float(np.asarray(middle).mean()), abs=1)
    cache = Cache(tmp_path / "cache", examples, crops=4)
    cache.fill(loss, quiet=True)
    for mirrored in (False, True):
        turned = [crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop for crop in crops]
        kept = cache.latents([0] * 4, [mirrored] * 4, range(4))
        assert torch.allclose(kept, loss.latents(turned), atol=1e-5)
    tuner = Tuner(recipe, loss, [Deck(cache, [0], recipe.seed)], tmp_path / "out")
    seen = Counter(one.crop for step in range(50) for one in tuner.shown(step))
    assert set(seen) == {0, 1, 2, 3}
    assert min(seen.values()) > 30
    # What is drawn besides is what it would be without crops.
    alone = Cache(tmp_path / "alone", of_dataset(plain.tune))
    alone.fill(loss, quiet=True)
    other = Tuner(plain, DenoisingLoss(plain.generate, "cpu"), [Deck(alone, [0], plain.seed)], tmp_path / "other")
    for one, two in zip(tuner.shown(1), other.shown(1), strict=True):
        assert (one.share, one.mirrored, one.prompt, two.crop) == (two.share, two.mirrored, two.prompt, 0)
        assert torch.equal(one.noise, two.noise)
    shown = tuner.shown(0)
    latents = cache.latents([0] * 4, [one.mirrored for one in shown], [one.crop for one in shown])
    told = cache.conditions([one.prompt for one in shown])
    shares = torch.tensor([one.share for one in shown], dtype=torch.float64)
    wanted = loss.errors(latents, torch.stack([one.noise for one in shown]), shares, told).mean()
    assert tuner.step() == pytest.approx(float(wanted.detach()), rel=1e-5)
    whole = [*base, "tune.crops=4", "tune.steps=1", "tune.prior_images=1", 'tune.prior_prompts=["a star"]']
    hfsyn.tune("shapes-cip", tmp_path / "whole", overrides=[*whole, "generate.steps=2"], **QUIET)
    views = [load_file(path)["latents"].shape[1] for path in sorted((tmp_path / "whole" / "cache").rglob("images-*"))]
    assert views == [8, 2]  # each crop, or the one image that was drawn, and its mirror image


def test_the_average_of_the_weights_is_kept_and_not_the_last_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfsyn.tuning.tune.rmtree", lambda *_, **__: None)  # its checkpoints are looked at
    run = captioned(tmp_path, *small("sd-1.5", tmp_path))
    how = ["tune.full=true", "tune.steps=3", "tune.batch_size=2", "tune.ema=0.2", "tune.lr=0.01"]
    hfsyn.tune(run, tmp_path / "out", overrides=how, checkpoint_steps=1, **QUIET)
    states = [torch.load(path, weights_only=True) for path in sorted((tmp_path / "out/checkpoints").glob("*.pt"))]
    two, three = (state["weights"]["conv_in.weight"] for state in states[-2:])
    before, after = (
        state["average"]["shadow_params"][list(state["weights"]).index("conv_in.weight")] for state in states[-2:]
    )
    # By diffusers' EMAModel: its decay after n steps is (n + 1) / (n + 10), here 3/12, up to the one that is asked for.
    assert torch.allclose(after, 0.2 * before + 0.8 * three, atol=1e-6)
    assert not torch.allclose(after, three, atol=1e-4)
    assert not torch.allclose(two, three, atol=1e-4)
    tuned: Any = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline", safety_checker=None)
    assert torch.equal(tuned.unet.conv_in.weight, after)


def test_images_of_the_generator_itself_are_shown_beside_the_real_ones_with_their_weight(tmp_path: Path) -> None:
    run = captioned(tmp_path, *small("sd-1.5", tmp_path))
    prompts = 'tune.prior_prompts=["a cat", "a dog"]'
    how = ["tune.steps=1", "tune.batch_size=2", "tune.prior_images=3", prompts, "tune.flip=false"]
    first = {}
    for weight in (0.0, 1.0, 3.0):
        out = tmp_path / f"weight-{weight:g}"
        found = hfsyn.tune(run, out, overrides=[*how, f"tune.prior_weight={weight}"], **QUIET)
        first[weight] = found["loss"]["last"]
    # The loss is that of the real images and the weight times that of the others.
    assert first[1.0] > first[0.0]
    assert first[3.0] - first[0.0] == pytest.approx(3 * (first[1.0] - first[0.0]), rel=1e-3)
    # They are what the untuned generator draws for these prompts, from seeds of their own.
    recipe = load_recipe(load_run(run).recipe, how)
    loss = DenoisingLoss(recipe.generate, "cpu")
    own = prior(recipe, of_run(load_run(run), TunePart()))
    assert own is not None
    cache = Cache(tmp_path / "weight-1" / "cache" / "prior", own, flip=False)
    assert [cache.example(number).prompts for number in range(3)] == [("a cat",), ("a dog",), ("a cat",)]
    seeds = [seed_of(recipe.seed, f"prior/{number}", purpose="tune-prior") for number in range(3)]
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "sd-1.5", safety_checker=None)
    draw = [torch.Generator().manual_seed(seed) for seed in seeds]
    scale = recipe.generate.guidance_scale
    images = pipe(["a cat", "a dog", "a cat"], generator=draw, num_inference_steps=2, guidance_scale=scale).images
    assert torch.allclose(cache.latents([0, 1, 2], [False] * 3), loss.latents(images), atol=1e-4)
    shown = Tuner(recipe, loss, [Deck(cache, [0, 1, 2], 0), Deck(cache, [0], 0)], tmp_path / "x").shown(0)
    assert len(shown) == 4  # of each deck as many as a step has


def test_steps_in_bfloat16_train_float32_weights(tmp_path: Path) -> None:
    run = captioned(tmp_path, *small("sd-1.5", tmp_path))
    found = {}
    for full in ("true", "false"):
        for dtype in ("float32", "bfloat16"):
            how = [f"tune.full={full}", f"tune.dtype={dtype}", "tune.steps=2", "tune.batch_size=4"]
            recipe = load_recipe(load_run(run).recipe, how)
            base = "float32" if full == "true" else dtype  # as `hfsyn tune` loads it
            loss = DenoisingLoss(recipe.generate.model_copy(update={"dtype": base}), "cpu")
            cache = Cache(tmp_path / f"{full}-{dtype}", of_run(load_run(run), TunePart()))
            cache.fill(loss, quiet=True)
            tuner = Tuner(recipe, loss, [Deck(cache, cache.usable()[0], recipe.seed)], tmp_path / "out")
            found[full, dtype] = tuner.step()
            assert {weight.dtype for weight in tuner.weights.values()} == {torch.float32}
        plain, half = found[full, "float32"], found[full, "bfloat16"]
        assert 1e-6 < abs(half / plain - 1) < 0.05  # rounded, and the same step
