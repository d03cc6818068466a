"""From prompts and seeds to images: the ImageGenerator protocol, and any text-to-image pipeline of diffusers.

Each sample has its own CPU random generator, so that its noise depends on its seed alone; a batch always has the
recipe's size, so that rounding does not depend on how much work was left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hfsyn.errors import HfsynError
from hfsyn.hub_models import locate
from hfsyn.recipe import GeneratePart

FLAT_RANGE = 4
"""An image whose grey levels all lie within this range in each channel shows nothing: what a broken decoder paints."""

_CACHED_PROMPTS = 1024  # at 77 x 768 bfloat16 values about 120 MB; covers the class-name prompts of ImageNet-1K

# Pipelines whose `encode_prompt` we know, and what the members of its result are called by the pipeline itself.
_EMBEDDINGS = {
    "StableDiffusionPipeline": ("prompt_embeds", "negative_prompt_embeds"),
    "StableDiffusionXLPipeline": (
        "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Generated:
    """One image, or why there is none to keep."""

    pixels: npt.NDArray[np.uint8]
    """Height x width x 3, RGB."""
    problem: str | None = None
    """None, ``safety`` (the checkpoint's checker hit), ``nan`` or ``flat``."""


class ImageGenerator(Protocol):
    """Something that draws prompts."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
        """One image for each prompt and its seed, in order; at most `batch_size` of the recipe at once."""
        ...

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt with the markers at its ends, before any truncation."""
        ...

    @property
    def max_tokens(self) -> int:
        """How many tokens the text encoder takes; what is beyond is cut off."""
        ...


class DiffusersGenerator:
    """Any text-to-image pipeline that ``AutoPipelineForText2Image`` loads.

    Args:
        recipe: model, revision, scheduler, steps, guidance, size, dtype, batch size, safety checker.
        negative: negative prompt; None is the empty one.
        device: a torch device.

    Raises:
        HfsynError: the model cannot be loaded, or has not the named scheduler's parts.
    """

    def __init__(self, recipe: GeneratePart, negative: str | None, device: str) -> None:
        import diffusers
        import torch
        import transformers

        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        self._recipe = recipe
        self._negative = negative
        self._device = device
        where = locate(recipe.model, "generator")
        options: dict[str, Any] = {"revision": recipe.revision} if recipe.revision else {}
        try:
            if not recipe.safety_checker and "safety_checker" in diffusers.DiffusionPipeline.load_config(
                where, **options
            ):
                options |= {"safety_checker": None, "requires_safety_checker": False}
            pipe = diffusers.AutoPipelineForText2Image.from_pretrained(
                where, dtype=getattr(torch, recipe.dtype), **options
            )
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise HfsynError(
                f"{recipe.model} cannot be loaded as a text-to-image pipeline: {reason}",
                "Name a diffusers pipeline such as stable-diffusion-v1-5/stable-diffusion-v1-5.",
            ) from error
        pipe.set_progress_bar_config(disable=True)
        self._pipe = pipe.to(device)
        self._pipe.scheduler = _scheduler(recipe.scheduler, pipe.scheduler)
        self._members = _EMBEDDINGS.get(type(pipe).__name__)
        self._cache: OrderedDict[str, tuple[Any, ...]] = OrderedDict()
        self._tokenizer = max(
            (t for name in ("tokenizer", "tokenizer_2", "tokenizer_3") if (t := getattr(pipe, name, None)) is not None),
            key=lambda t: t.model_max_length if t.model_max_length < 10**6 else 0,
        )

    @property
    def max_tokens(self) -> int:
        """See `ImageGenerator`."""
        return int(self._tokenizer.model_max_length)

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """See `ImageGenerator`."""
        return [len(ids) for ids in self._tokenizer(list(prompts), truncation=False, verbose=False).input_ids]

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
        """See `ImageGenerator`."""
        import torch

        if not 0 < len(prompts) == len(seeds) <= self._recipe.batch_size:
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds for a batch of {self._recipe.batch_size}")
        wanted = len(prompts)
        spare = self._recipe.batch_size - wanted
        prompts = [*prompts, *[prompts[-1]] * spare]
        seeds = [*seeds, *[seeds[-1]] * spare]
        size = {k: v for k in ("width", "height") if (v := getattr(self._recipe, k)) is not None}
        with torch.inference_mode():
            out = self._pipe(
                **self._conditioning(prompts),
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                num_inference_steps=self._recipe.steps,
                guidance_scale=self._recipe.guidance_scale,
                output_type="pt",
                **size,
            )
            images = out.images[:wanted].float()
            finite = images.isfinite().flatten(1).all(1).tolist()
            # On the device: a quarter of the bytes to copy, and no float arithmetic on the CPU.
            pixels = (
                images.nan_to_num(0.0)
                .clamp(0, 1)
                .mul(255)
                .round()
                .to(torch.uint8)
                .permute(0, 2, 3, 1)
                .contiguous()
                .cpu()
                .numpy()
            )
        flagged = getattr(out, "nsfw_content_detected", None) or [False] * wanted
        return [
            Generated(pixels[i], problem_of(pixels[i], finite=finite[i], flagged=bool(flagged[i])))
            for i in range(wanted)
        ]

    def _conditioning(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What the pipeline is conditioned on: embeddings where we know how it makes them, else the prompts."""
        if self._members is None:
            negative = {"negative_prompt": [self._negative] * len(prompts)} if self._negative else {}
            return {"prompt": list(prompts), **negative}
        missing = list(dict.fromkeys(p for p in prompts if p not in self._cache))
        # Always a full batch: a text encoder's last bits depend on the batch's shape, and must not on what is cached.
        for start in range(0, len(missing), self._recipe.batch_size):
            group = missing[start : start + self._recipe.batch_size]
            rows = self._encode([*group, *[""] * (self._recipe.batch_size - len(group))])
            self._cache.update(zip(group, rows, strict=False))
        chosen = []
        for prompt in prompts:
            self._cache.move_to_end(prompt)
            chosen.append(self._cache[prompt])
        while len(self._cache) > max(_CACHED_PROMPTS, len(prompts)):
            self._cache.popitem(last=False)
        import torch

        return {
            name: torch.stack([row[i] for row in chosen])
            for i, name in enumerate(self._members)
            if chosen[0][i] is not None
        }

    def _encode(self, prompts: Sequence[str]) -> list[tuple[Any, ...]]:
        """The members of `encode_prompt` for each prompt; None for those that this guidance has no use for."""
        encoded = self._pipe.encode_prompt(
            prompt=list(prompts),
            device=self._device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=self._recipe.guidance_scale > 1,
            negative_prompt=[self._negative] * len(prompts) if self._negative else None,
        )
        return [tuple(None if member is None else member[i] for member in encoded) for i in range(len(prompts))]


def problem_of(pixels: npt.NDArray[np.uint8], *, finite: bool, flagged: bool) -> str | None:
    """Why an image must not be kept: the safety checker's word, numbers that are none, or nothing in the picture."""
    if flagged:
        return "safety"
    if not finite:
        return "nan"
    span = pixels.reshape(-1, pixels.shape[-1]).max(0).astype(int) - pixels.reshape(-1, pixels.shape[-1]).min(0)
    return "flat" if int(span.max()) < FLAT_RANGE else None


def _scheduler(name: str, own: Any) -> Any:
    """The named scheduler with the checkpoint's own noise schedule."""
    if name == "default":
        return own
    import diffusers

    schedulers: dict[str, tuple[str, dict[str, Any]]] = {
        "ddim": ("DDIMScheduler", {}),
        "pndm": ("PNDMScheduler", {}),
        "euler": ("EulerDiscreteScheduler", {}),
        "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
        "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
        "unipc": ("UniPCMultistepScheduler", {}),
        "lcm": ("LCMScheduler", {}),
    }
    kind, options = schedulers[name]
    return getattr(diffusers, kind).from_config(own.config, **options)
