"""Guidance in some of the steps only: as a plain loop over the parts of a pipeline draws it, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

from hfsyn.errors import HfsynError
from hfsyn.images.encoding import fitted
from hfsyn.images.generator import DiffusersGenerator
from hfsyn.recipes.recipe import GeneratePart

PROMPTS, SEEDS, STEPS, SCALE = ["a cat", "a dog, in the grass"], [7, 9], 5, 3.0
Folders = Callable[[str], str]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The saved tiny pipeline of a family with a scheduler, written when it is first asked for."""
    root = tmp_path_factory.mktemp("guidance")

    def folder(family: str, scheduler: str) -> str:
        path = root / f"{family}-{scheduler}"
        if not path.is_dir():
            getattr(tiny_models, family)(path)
            kind = getattr(diffusers, scheduler)
            kind.from_config(kind.load_config(path / "scheduler")).save_pretrained(path / "scheduler")
            index = (path / "model_index.json").read_text()
            (path / "model_index.json").write_text(index.replace("PNDMScheduler", scheduler))
        return str(path)

    return lambda words: folder(*words.split())


def photographs() -> list[Image.Image]:
    side = tiny_models.SIDE
    chance = np.random.default_rng(0)
    return [Image.fromarray(chance.integers(0, 255, (side, side, 3), dtype=np.uint8)) for _ in PROMPTS]


@torch.no_grad()
def by_hand(folder: str, start: float, stop: float, negative: str | None, strength: float | None) -> np.ndarray:
    """The levels that a plain loop draws: a call of the network for each step, with guidance or without."""
    pipe: Any = diffusers.AutoPipelineForText2Image.from_pretrained(folder, dtype=torch.float32)
    scheduler, side, xl = pipe.scheduler, tiny_models.SIDE, "XL" in type(pipe).__name__
    told = pipe.encode_prompt(
        prompt=PROMPTS,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=None if negative is None else [negative] * len(PROMPTS),
    )
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    scheduler.set_timesteps(STEPS)
    whole = left = len(scheduler.timesteps)
    shape = (1, pipe.unet.config.in_channels, side // pipe.vae_scale_factor, side // pipe.vae_scale_factor)
    latents: Any = []
    for picture, generator in zip(photographs(), generators, strict=True):
        if strength is not None:
            pixels = pipe.image_processor.preprocess(fitted(picture, side, side))
            real = pipe.vae.encode(pixels).latent_dist.sample(generator) * pipe.vae.config.scaling_factor
        noise = torch.randn(shape, generator=generator)
        if strength is None:
            latents.append(noise * scheduler.init_noise_sigma)
        else:
            skipped = (STEPS - int(STEPS * strength)) * scheduler.order
            left = whole - skipped
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(skipped)
            latents.append(scheduler.add_noise(real, noise, scheduler.timesteps[skipped:][:1]))
    latents = torch.cat(latents)

    def predicted(t: Any, rows: Any) -> Any:
        added = None
        if xl:
            sizes = torch.tensor([[side, side, 0, 0, side, side]] * len(rows), dtype=torch.float32)
            added = {"text_embeds": torch.cat([told[3], told[2]])[-len(rows) :], "time_ids": sizes}
        states = torch.cat([told[1], told[0]])[-len(rows) :]
        return pipe.unet(rows, t, encoder_hidden_states=states, added_cond_kwargs=added).sample

    for at, t in enumerate(scheduler.timesteps[whole - left :], whole - left):
        guided = start * whole <= at < stop * whole
        rows = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        noise = predicted(t, rows)
        if guided:
            away, towards = noise.chunk(2)
            noise = away + SCALE * (towards - away)
        latents = scheduler.step(noise, t, latents, return_dict=False)[0]
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def drawn(folder: str, negative: str | None = None, images: Any = None, **fields: Any) -> np.ndarray:
    part = GeneratePart(
        model=folder, **{"dtype": "float32", "batch_size": 2, "steps": STEPS, "guidance_scale": SCALE, **fields}
    )
    one = DiffusersGenerator(part, negative, "cpu")
    # Twice: a call must leave nothing behind for the next one.
    one.generate(PROMPTS[::-1], SEEDS[::-1], images)
    return np.stack([image.pixels for image in one.generate(PROMPTS, SEEDS, images)])


@pytest.mark.parametrize("model", ["stable_diffusion PNDMScheduler", "sdxl EulerDiscreteScheduler"])
@pytest.mark.parametrize(
    ("limits", "negative", "strength"),
    [((0.0, 0.5), None, None), ((0.5, 1.0), "blurred", None), ((0.2, 0.6), "blurred", 0.8), ((0.7, 1.0), None, 0.6)],
)
def test_guidance_lasts_as_long_as_a_plain_loop_gives_it(
    model: str, limits: tuple[float, float], negative: str | None, strength: float | None, folders: Folders
) -> None:
    start, stop = limits
    fields: dict[str, Any] = {} if strength is None else {"init": "source", "strength": strength}
    images = None if strength is None else photographs()
    found = drawn(folders(model), negative, images, guidance_start=start, guidance_stop=stop, **fields)
    assert (found == by_hand(folders(model), start, stop, negative, strength)).all()
    whole = drawn(folders(model), negative, images, **fields)
    assert (whole == by_hand(folders(model), 0.0, 1.0, negative, strength)).all()
    assert (found != whole).any()


def test_limits_count_the_calls_of_a_scheduler_that_makes_two_a_step(folders: Folders) -> None:
    model = folders("stable_diffusion HeunDiscreteScheduler")
    for start, stop in ((0.0, 0.5), (0.5, 1.0)):
        found = drawn(model, guidance_start=start, guidance_stop=stop)
        assert (found == by_hand(model, start, stop, None, None)).all()
    # Nine calls, of which the second and later ones of six are left; none of them is in the first tenth.
    with pytest.raises(HfsynError, match="none of the 5 steps lies between"):
        drawn(model, None, photographs(), guidance_stop=0.1, init="source", strength=0.8)
