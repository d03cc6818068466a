"""From prompts and seeds to images: the ImageGenerator protocol, and any text-to-image pipeline of diffusers.

Each sample has its own CPU random generator, so that its noise depends on its seed alone; a batch always has the
recipe's size, so that rounding does not depend on how much work was left.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hfsyn.errors import HfsynError
from hfsyn.making.hub_models import loading, unloadable
from hfsyn.making.recipe import GeneratePart

FLAT_RANGE = 4
"""An image whose grey levels all lie within this range in each channel shows nothing: what a broken decoder paints."""

_CACHED_PROMPTS = 1024  # at 77 x 768 values of 2 bytes about 120 MB; covers the class-name prompts of ImageNet-1K

# Pipelines whose `encode_prompt` gives (prompt, negative) or (prompt, negative, pooled prompt, pooled negative), and
# that take these by name. The others get the prompts as text.
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

    An image depends on its prompt, its seed and the recipe; its batch always has the recipe's size, and its companions
    make no difference. The initial noise is drawn on the CPU in the recipe's dtype. No watermark is put in, whether or
    not the optional library that SDXL takes for it is installed.

    Args:
        recipe: model, revision, scheduler, steps, guidance, size, dtype, batch size, safety checker.
        negative: negative prompt; None is the pipeline's own idea of none (the empty text, or zeros for SDXL).
        device: a torch device.
        allow_pickle: read weights that are no safetensors too.

    Raises:
        HfsynError: the model cannot be loaded, or has no use for the scheduler, the steps or the negative prompt.
    """

    def __init__(self, recipe: GeneratePart, negative: str | None, device: str, *, allow_pickle: bool = False) -> None:
        import diffusers
        import torch
        import transformers

        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        self._recipe = recipe
        self._negative = negative
        self._device = device
        where, options = loading(recipe.model, recipe.revision, "generator", allow_pickle=allow_pickle)
        try:
            index = diffusers.DiffusionPipeline.load_config(where, revision=options.get("revision"))
            # A part that a checkpoint leaves out (SD3 without its third encoder) must be left out by name.
            options |= {name: None for name, entry in index.items() if entry == [None, None]}
            if not recipe.safety_checker and "safety_checker" in index:
                options |= {"safety_checker": None, "requires_safety_checker": False}
            pipe = diffusers.AutoPipelineForText2Image.from_pretrained(
                where, dtype=getattr(torch, recipe.dtype), **options
            )
        except Exception as error:  # whatever is wrong with a model's files, each library has its own exception for it
            raise unloadable(recipe.model, "generator", error) from error
        # The libraries announce changes to come in calls that they make themselves.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.")
        _check_weights(pipe, recipe.model)
        _check_call(pipe, recipe, negative)
        pipe.set_progress_bar_config(disable=True)
        if getattr(pipe, "watermark", None) is not None:
            pipe.watermark = None
        pipe.scheduler = _scheduler(recipe, pipe.scheduler)
        self._size = _size(pipe, recipe)
        self._pipe = pipe.to(device)
        self._members = _EMBEDDINGS.get(type(pipe).__name__)
        self._cache: OrderedDict[str, tuple[Any, ...]] = OrderedDict()
        self._unconditional: tuple[Any, ...] | None = None
        self._tokenizer, self._max_tokens = _tokenizer(pipe, recipe.model)

    @property
    def max_tokens(self) -> int:
        """See `ImageGenerator`."""
        return self._max_tokens

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """See `ImageGenerator`."""
        return [len(ids) for ids in self._tokenizer(list(prompts), truncation=False, verbose=False).input_ids]

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
        """See `ImageGenerator`.

        Raises:
            HfsynError: the pipeline refuses the recipe's size, or the device's memory is too small.
        """
        import torch

        if not 0 < len(prompts) == len(seeds) <= self._recipe.batch_size:
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds for a batch of {self._recipe.batch_size}")
        wanted = len(prompts)
        spare = self._recipe.batch_size - wanted
        prompts = [*prompts, *[prompts[-1]] * spare]
        seeds = [*seeds, *[seeds[-1]] * spare]
        with torch.inference_mode():
            try:
                out = self._pipe(
                    **self._conditioning(prompts),
                    generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                    num_inference_steps=self._recipe.steps,
                    guidance_scale=self._recipe.guidance_scale,
                    output_type="pt",
                    **self._size,
                )
            except torch.OutOfMemoryError as error:
                raise HfsynError(
                    f"{self._device} has too little memory for generate.batch_size={self._recipe.batch_size}.",
                    "Set a smaller one; the result counts as another recipe, because rounding depends on it.",
                ) from error
            except ValueError as error:
                raise HfsynError(
                    f"{self._recipe.model} refuses the recipe: {' '.join(str(error).split())[:200]}",
                    "Change generate.width, generate.height or generate.steps.",
                ) from error
            images = out.images[:wanted].float()
            finite = images.isfinite().flatten(1).all(1).tolist()
            # On the device: a quarter of the bytes to copy, and no float arithmetic on the CPU.
            levels = images.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
            pixels = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        flagged = getattr(out, "nsfw_content_detected", None) or [False] * wanted
        return [
            Generated(pixels[i], problem_of(pixels[i], finite=finite[i], flagged=bool(flagged[i])))
            for i in range(wanted)
        ]

    def _conditioning(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What the pipeline is conditioned on: embeddings where we know how it makes them, else the prompts."""
        import torch

        if self._members is None:
            negative = {} if self._negative is None else {"negative_prompt": [self._negative] * len(prompts)}
            return {"prompt": list(prompts), **negative}
        missing = list(dict.fromkeys(p for p in prompts if p not in self._cache))
        if missing:
            # Always a full batch: a text encoder's last bits depend on the batch's shape, and must not on what is
            # cached. Cloned, because a row would keep its whole batch in memory.
            encoded = self._encode([*missing, *[""] * (len(prompts) - len(missing))])[::2]
            for i, prompt in enumerate(missing):
                self._cache[prompt] = tuple(member[i].clone() for member in encoded)
        chosen = []
        for prompt in prompts:
            self._cache.move_to_end(prompt)
            chosen.append(self._cache[prompt])
        while len(self._cache) > max(_CACHED_PROMPTS, len(prompts)):
            self._cache.popitem(last=False)
        given = {
            name: torch.stack(rows) for name, rows in zip(self._members[::2], zip(*chosen, strict=True), strict=True)
        }
        if self._recipe.guidance_scale > 1:
            if self._unconditional is None:
                encoded = self._encode([""] * len(prompts), guided=True)[1::2]
                self._unconditional = tuple(member[:1].clone() for member in encoded)
            for name, row in zip(self._members[1::2], self._unconditional, strict=True):
                given[name] = row.expand(len(prompts), *row.shape[1:])
        return given

    def _encode(self, prompts: Sequence[str], *, guided: bool = False) -> Sequence[Any]:
        """What `encode_prompt` gives for a batch of prompts: every other member is that of the negative prompt."""
        encoded: Sequence[Any] = self._pipe.encode_prompt(
            prompt=list(prompts),
            device=self._device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=None if self._negative is None else [self._negative] * len(prompts),
        )
        return encoded


def problem_of(pixels: npt.NDArray[np.uint8], *, finite: bool, flagged: bool) -> str | None:
    """Why an image must not be kept: the safety checker's word, numbers that are none, or nothing in the picture."""
    if flagged:
        return "safety"
    if not finite:
        return "nan"
    span = pixels.reshape(-1, pixels.shape[-1]).max(0).astype(int) - pixels.reshape(-1, pixels.shape[-1]).min(0)
    return "flat" if int(span.max()) < FLAT_RANGE else None


def _check_weights(pipe: Any, model: str) -> None:
    """Refuse a network that was left without some of its weights."""
    for name, network in pipe.components.items():
        empty = [key for key, value in getattr(network, "named_parameters", dict)() if value.is_meta]
        if empty:
            raise HfsynError(
                f"{model} has no weights for {len(empty)} parameters of its {name}, such as {empty[0]}.",
                "Name a complete checkpoint.",
            )


def _size(pipe: Any, recipe: GeneratePart) -> dict[str, int]:
    """Width and height in pixels, or nothing for the pipeline's own; given one, pipelines forget it for the other."""
    size = {key: value for key in ("width", "height") if (value := getattr(recipe, key)) is not None}
    if len(size) != 1:
        return size
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    own = getattr(pipe, "default_sample_size", None) or getattr(getattr(network, "config", None), "sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    if not isinstance(own, int) or not isinstance(factor, int):
        raise HfsynError(
            f"generate has a {next(iter(size))} only, and {recipe.model} does not say its own size.",
            "Set both generate.width and generate.height.",
        )
    return dict.fromkeys(("width", "height"), own * factor) | size


def _check_call(pipe: Any, recipe: GeneratePart, negative: str | None) -> None:
    """Refuse a pipeline that has no parameter for what the recipe says, before it is moved to the device."""
    known = inspect.signature(type(pipe).__call__).parameters
    wanted = {"prompt", "generator", "num_inference_steps", "guidance_scale", "output_type"}
    wanted |= {name for name in ("width", "height") if getattr(recipe, name) is not None}
    if negative is not None:
        wanted.add("negative_prompt")
    if lacking := sorted(wanted - known.keys()):
        raise HfsynError(
            f"{recipe.model} is a {type(pipe).__name__}, which takes no {' and no '.join(lacking)}.",
            "Set prompt.negative to null." if lacking == ["negative_prompt"] else "Name another generate.model.",
        )


def _tokenizer(pipe: Any, model: str) -> tuple[Any, int]:
    """The tokenizer of the text encoder that takes the most tokens, and how many these are."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    limit = parameter.default if parameter is not None and isinstance(parameter.default, int) else sys.maxsize
    found = [part for name, part in pipe.components.items() if "tokenizer" in name and part is not None]
    if not found:
        raise HfsynError(f"{model} is a {type(pipe).__name__} without a tokenizer.", "Name another generate.model.")
    best = max(found, key=lambda tokenizer: min(tokenizer.model_max_length, limit))
    return best, int(min(best.model_max_length, limit))


def _scheduler(recipe: GeneratePart, own: Any) -> Any:
    """The named scheduler with the checkpoint's own noise schedule; checked to take the recipe's steps."""
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
    # Flow matching has no betas, and a diffusion sampler would run on it and paint noise.
    diffusion = "beta_start" in own.config and not own.config.get("use_flow_sigmas")
    if recipe.scheduler == "default":
        chosen = own
    elif diffusion:
        kind, options = schedulers[recipe.scheduler]
        chosen = getattr(diffusers, kind).from_config(own.config, **options)
    else:
        raise HfsynError(
            f"generate.scheduler is {recipe.scheduler!r}, and {recipe.model} is made for {type(own).__name__} alone.",
            "Set generate.scheduler to default.",
        )
    if diffusion:
        try:
            chosen.set_timesteps(recipe.steps)
        except ValueError as error:
            raise HfsynError(
                f"generate.steps is {recipe.steps}, which scheduler {recipe.scheduler} refuses: "
                f"{' '.join(str(error).split())[:200]}",
                "Set fewer steps, or another scheduler.",
            ) from error
    return chosen
