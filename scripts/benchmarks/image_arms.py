"""Three ways of drawing the same prompts with the same Stable Diffusion: as the official code does, plainly, and ours.

`OfficialStyle` is written from a description of the paper's released script: one prompt a call, a new seed for each,
half-precision weights under autocast, the checkpoint's own sampler, progress bar, each prompt printed, JPEG as Pillow
makes it by default. Its safety checker is replaced by one that finds nothing, which favours it.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import Watched, module
from builders.runs import layout
from builders.runs.layout import load_sidecar, sidecar_of
from builders.variants import get_variant
from hfsyn.captions.caption_stage import caption
from hfsyn.images.generate_stage import generate
from hfsyn.images.generator import DiffusersGenerator
from hfsyn.images.tuning import PLAIN, tuning_of
from hfsyn.recipes.recipe import Recipe, load_recipe
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import Run
from hfsyn.runs.stage import write_plan

SHARD_BATCHES = 1
"""Batches a shard; in use a shard has 1000 rows, so that this asks more of the writer."""
REFERENCE_IMAGES = 16
_PHRASES = (
    "a small brown dog",
    "two women in red coats",
    "an old wooden boat",
    "a white bird",
    "standing in front of",
    "lying on",
    "next to",
    "looking at",
    "the green grass",
    "a table by the window",
    "snow",
    "a house near the water",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """How an image is drawn."""

    steps: int
    scheduler: str
    """As a recipe names it."""
    guidance: float

    @property
    def guided(self) -> bool:
        """Whether each image is two rows for the UNet."""
        return self.guidance > 1


def setting_of(steps: int) -> Setting:
    """From 50 steps on the checkpoint's own sampler, as in the paper; below it DPM++; up to 4 without guidance."""
    return Setting(steps, "default" if steps >= 50 else "dpm++", 2.0 if steps > 4 else 1.0)


def words(number: int) -> str:
    """A caption that no other number has, of the usual length."""
    return " ".join([*random.Random(number).choices(_PHRASES, k=4), str(number)])


class _Prompts:
    """Prompts, each different."""

    def __init__(self) -> None:
        self._classes = get_variant("shapes").classes
        self._next = 0

    def take(self, count: int) -> list[str]:
        self._next += count
        numbers = range(self._next - count, self._next)
        return [f"a photo of {self._classes[n % len(self._classes)].name}, {words(n)}" for n in numbers]


def _pipeline(model: Path, setting: Setting, device: str, dtype: torch.dtype, like: Any) -> Any:
    """With the networks of `like`, an arm of the same dtype, unless that is None."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    names = () if like is None else ("unet", "vae", "text_encoder")
    given = {name: getattr(like._pipe, name) for name in names}
    pipe = StableDiffusionPipeline.from_pretrained(model, dtype=dtype, **given).to(device)
    if setting.scheduler == "dpm++":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="dpmsolver++")
    return pipe


def _watched(pipe: Any) -> Sequence[Watched]:
    return (module("unet", pipe.unet), Watched("vae", pipe.vae, "decode"), module("text_encoder", pipe.text_encoder))


class _Files:
    """An arm that writes one file an image."""

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self._folder, self._keep, self._turn = folder, keep, 0
        self._prompts = _Prompts()

    def prepare(self, images: int) -> None:
        """Nothing to do."""

    def clear(self) -> None:
        """See `Arm`."""
        if not self._keep:
            shutil.rmtree(self._place)

    @property
    def _place(self) -> Path:
        return self._folder / f"{self._turn:03d}"

    def _begin(self) -> Path:
        self._turn += 1
        self._place.mkdir(parents=True)
        return self._place


class OfficialStyle(_Files):
    """One image a call."""

    name = "official-style"
    unit = 1

    def __init__(
        self, model: Path, setting: Setting, device: str, folder: Path, *, keep: bool = False, like: Any = None
    ) -> None:
        super().__init__(folder / self.name, keep=keep)
        self._pipe = _pipeline(model, setting, device, torch.float16, like)
        self._setting, self._device = setting, device
        self._pipe.run_safety_checker = lambda image, device, dtype: (image, [False] * len(image))
        # Bar and prompts cost what they cost, but are not shown.
        self._nowhere = Path(os.devnull).open("w")  # noqa: SIM115
        self._pipe.set_progress_bar_config(file=self._nowhere)

    def work(self, images: int) -> int:
        """See `Arm`."""
        place = self._begin()
        for number, prompt in enumerate(self._prompts.take(images)):
            print(prompt, file=self._nowhere)
            seed = random.randint(0, 10_000)
            with torch.autocast(self._device.partition(":")[0], dtype=torch.float16):
                generator = torch.Generator(self._device).manual_seed(seed)
                flagged = True
                while flagged:
                    out = self._pipe(
                        prompt,
                        generator=generator,
                        num_inference_steps=self._setting.steps,
                        guidance_scale=self._setting.guidance,
                    )
                    flagged = out.nsfw_content_detected[0]
            out.images[0].save(place / f"image_{number}.jpg")
        return len(list(place.iterdir()))

    def watched(self) -> Sequence[Watched]:
        """See `Arm`."""
        return _watched(self._pipe)


class Plain(_Files):
    """A batch a call, everything else as the pipeline does it; the same JPEG files as ours."""

    name = "plain"

    def __init__(
        self,
        model: Path,
        setting: Setting,
        device: str,
        folder: Path,
        *,
        batch: int,
        keep: bool = False,
        dtype: torch.dtype = torch.float16,
        like: Any = None,
    ) -> None:
        super().__init__(folder / self.name, keep=keep)
        self.unit = batch
        self._pipe, self._setting = _pipeline(model, setting, device, dtype, like), setting
        self._pipe.set_progress_bar_config(disable=True)

    def work(self, images: int) -> int:
        """See `Arm`."""
        place = self._begin()
        prompts = self._prompts.take(images)
        for first in range(0, images, self.unit):
            some = prompts[first : first + self.unit]
            out = self._pipe(
                some,
                generator=[torch.Generator("cpu").manual_seed(first + i) for i in range(len(some))],
                num_inference_steps=self._setting.steps,
                guidance_scale=self._setting.guidance,
            )
            for number, image in enumerate(out.images, first):
                image.save(place / f"{number:05d}.jpg", quality=96, subsampling=0)
        return len(list(place.iterdir()))

    def watched(self) -> Sequence[Watched]:
        """See `Arm`."""
        return _watched(self._pipe)


class _Captions:
    """Gives each image of the drawn source another caption; none of the measured time is the captioner's."""

    def __init__(self) -> None:
        self._next = 0

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        self._next += len(images)
        return [words(n) for n in range(self._next - len(images), self._next)]


class Ours:
    """The stage `generate` on a prepared run folder: shards of the plan, JPEG in Parquet, sidecars."""

    name = "ours"

    def __init__(
        self,
        model: Path,
        setting: Setting,
        device: str,
        folder: Path,
        *,
        batch: int,
        dtype: str,
        options: WorkOptions,
        keep: bool = False,
        like: Ours | None = None,
    ) -> None:
        self._model, self._setting, self._folder, self._keep = model, setting, folder, keep
        self._device, self._options, self._batch, self._dtype = device, options, batch, dtype
        self.unit = batch * SHARD_BATCHES
        self._runs, self._done, self._turn = 0, 0, range(0)
        self._run: Run | None = None
        part = self.recipe(self.unit).generate
        tuning = tuning_of(options, device) if like is None else PLAIN
        self.generator = DiffusersGenerator(part, None, device, tuning=tuning)
        if like is not None:
            _adopt(self.generator, like.generator)

    def recipe(self, images: int, **generate: Any) -> Recipe:
        """The recipe of a run of at least that many images."""
        variant = get_variant("shapes")
        most = variant.splits["train"]
        each = math.ceil(images / most)
        changes = {
            "source.limit_per_class": math.ceil(images / each / len(variant.classes)),
            "prompt.images_per_caption": each,
            "generate.model": self._model,
            "generate.scheduler": self._setting.scheduler,
            "generate.steps": self._setting.steps,
            "generate.guidance_scale": self._setting.guidance,
            "generate.dtype": self._dtype,
            "generate.batch_size": self._batch,
            "store.shard_rows": self.unit,
            "store.format": "jpeg",
            "store.quality": 96,
            "store.subsampling": "4:4:4",
        } | {f"generate.{name}": value for name, value in generate.items()}
        return load_recipe("shapes-cip", [f"{name}={value}" for name, value in changes.items()])

    def prepare(self, images: int) -> None:
        """A new run folder, up to its plan."""
        if self._run is not None and not self._keep:
            shutil.rmtree(self._run.folder)
        self._runs, self._done = self._runs + 1, 0
        self._run = prepare(self.recipe(images), self._folder / f"{self.name}-{self._runs}")
        caption(self._run, captioner=_Captions(), quiet=True)
        write_plan(self._run)

    def work(self, images: int) -> int:
        """See `Arm`."""
        assert self._run is not None
        self._turn = range(self._done, self._done + images // self.unit)
        self._done = self._turn.stop
        chosen = f"{self._turn.start}:{self._turn.stop}"
        generate(self._run, shards=chosen, quiet=True, options=self._options, generator=self.generator)
        sidecars = [load_sidecar(sidecar_of(path)) for path in self._shards()]
        if again := sum(sidecar.flags.get("retried", 0) for sidecar in sidecars):
            raise RuntimeError(f"ours drew {again} images more than once, so that its time is that of other work")
        return sum(sidecar.rows for sidecar in sidecars)

    def clear(self) -> None:
        """See `Arm`."""
        for path in self._shards() if not self._keep else ():
            path.unlink()
            sidecar_of(path).unlink()

    def watched(self) -> Sequence[Watched]:
        """See `Arm`."""
        return _watched(self.generator._pipe)

    def _shards(self) -> list[Path]:
        assert self._run is not None
        return [path for path in self._run.data_shards() if (layout.shard_number(path) or ("", -1))[1] in self._turn]

    def psnr(self) -> dict[str, float]:
        """How far images are from those of the same noise in float32, without tuning, in dB.

        `psnr_db` is that of all pixels together, `psnr_db_lowest` that of the worst image, of `psnr_images`.
        """
        count = min(REFERENCE_IMAGES, self._batch)
        part = self.recipe(self.unit, dtype="float32").generate
        exact = DiffusersGenerator(part, None, self._device, tuning=PLAIN)
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            reference = _drawn(exact, count, count)
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
        errors = (_drawn(self.generator, count, self._batch) - reference) ** 2
        lowest = max(float(error.mean()) for error in errors)
        return {"psnr_db": _db(float(errors.mean())), "psnr_db_lowest": _db(lowest), "psnr_images": count}


def _adopt(generator: DiffusersGenerator, first: DiffusersGenerator) -> None:
    """Take the networks of another generator, so that they are compiled once for both."""
    generator._noise.detach()
    for name in ("unet", "vae"):
        setattr(generator._pipe, name, getattr(first._pipe, name))
    generator.tuning = first.tuning
    generator._noise.attach()


def _drawn(generator: DiffusersGenerator, count: int, size: int) -> npt.NDArray[np.float64]:
    """Levels of `count` images from fixed noise, drawn in a batch of `size`."""
    pipe = generator._pipe

    def fixed(rows: int, channels: int, height: int, width: int, dtype: Any, device: Any, *_: Any) -> Any:
        shape = (channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
        # A sample's own noise would be another in another dtype.
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(row)) for row in range(rows)]
        return torch.stack(noise).to(device, dtype) * pipe.scheduler.init_noise_sigma

    pipe.prepare_latents = fixed
    try:
        found = generator.start(_Prompts().take(count), list(range(count)), size)()
    finally:
        del pipe.prepare_latents
    return np.stack([image.pixels for image in found]).astype(np.float64)


def _db(error: float) -> float:
    return round(10 * math.log10(255**2 / error), 2) if error else math.inf


def flops_per_image(model: Path, setting: Setting) -> tuple[float, float]:
    """FLOP of one image by this setting, counted on the true configuration without computing anything; UNet rows of it.

    A multiplication and its addition are two. The empty prompt of guidance, the same for all images, is left out.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(model / "vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(model / "text_encoder"))
        side, tokens = unet.config.sample_size, text.config.max_position_embeddings
        latent = torch.empty(1, unet.config.in_channels, side, side)
        states = torch.empty(1, tokens, unet.config.cross_attention_dim)
        row = _flops(lambda: unet(latent, torch.empty(()), encoder_hidden_states=states))
        decoding = _flops(lambda: vae.decode(latent))
        encoding = _flops(lambda: text(torch.zeros(1, tokens, dtype=torch.long)))
    rows = unet_calls(model, setting) * (2 if setting.guided else 1)
    return rows * row + decoding + encoding, rows


def unet_calls(model: Path, setting: Setting) -> int:
    """Of one image: PNDM makes one more than there are steps."""
    from diffusers import DPMSolverMultistepScheduler, PNDMScheduler

    kind = PNDMScheduler if setting.scheduler == "default" else DPMSolverMultistepScheduler
    scheduler = kind.from_pretrained(model / "scheduler")
    scheduler.set_timesteps(setting.steps)
    return len(scheduler.timesteps)


def _flops(call: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
