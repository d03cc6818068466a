"""What `check_exactness.py` compares of images: schedulers, families, images to start from, LoRA weights.

Each case is a true pipeline of diffusers with tiny random weights. It is drawn by hfsyn, and by diffusers' own call of
the pipeline with the same prompts and a generator a sample; the result is the largest difference in grey levels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import tiny_families
import tiny_models
import torch
from PIL import Image
from safetensors.torch import save_file

PROMPTS = ["a photo of goldfish", "a dog, in the grass", "the red house on a hill"]
SEEDS = [7, 2**63 - 1, 0]
NEGATIVE = "a blurred photo"
STEPS = 6

_OFFSET = {"steps_offset": 1}
_V = {"prediction_type": "v_prediction"}
_KARRAS, _TRAILING = {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}
_MIN = {"final_sigmas_type": "sigma_min"}
_LEADING, _LINSPACE = {"timestep_spacing": "leading", **_OFFSET}, {"timestep_spacing": "linspace"}
SCHEDULERS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [
        {"clip_sample": False, "set_alpha_to_one": False, **_OFFSET},
        {},
        _V,
        {"prediction_type": "sample"},
        _TRAILING,
        _LINSPACE,
        {**_V, **_TRAILING, "rescale_betas_zero_snr": True},
        {"clip_sample": False, "thresholding": True},
        {"beta_schedule": "squaredcos_cap_v2"},
    ],
    "DDIMParallelScheduler": [{}, _TRAILING],
    "DDPMScheduler": [{}, {"variance_type": "fixed_large"}, _TRAILING, _V, {"clip_sample": False}],
    "DDPMParallelScheduler": [{}],
    "PNDMScheduler": [
        {"skip_prk_steps": True, "set_alpha_to_one": False, **_OFFSET},
        {"skip_prk_steps": False},
        _V,
        {"skip_prk_steps": True, **_TRAILING},
    ],
    "EulerDiscreteScheduler": [
        {},
        _LEADING,
        _TRAILING,
        _KARRAS,
        {"use_exponential_sigmas": True},
        _V,
        {"interpolation_type": "log_linear"},
        {"timestep_type": "continuous", **_V},
        {"final_sigmas_type": "sigma_min"},
        {**_V, **_TRAILING, "rescale_betas_zero_snr": True},
    ],
    "EulerAncestralDiscreteScheduler": [{}, _LEADING, _TRAILING, _V],
    "HeunDiscreteScheduler": [{}, _KARRAS, _TRAILING],
    "KDPM2DiscreteScheduler": [{}, _KARRAS, _TRAILING],
    "KDPM2AncestralDiscreteScheduler": [{}, _KARRAS],
    "LMSDiscreteScheduler": [{}],
    "DEISMultistepScheduler": [{}, {"solver_order": 1}, {"solver_order": 3}, _KARRAS],
    "DPMSolverMultistepScheduler": [
        {},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "heun"},
        _KARRAS,
        {"use_lu_lambdas": True},
        _V,
        _TRAILING,
        {"euler_at_final": True},
        {"final_sigmas_type": "sigma_min"},
        {"thresholding": True},
        {"use_exponential_sigmas": True},
    ],
    "DPMSolverSinglestepScheduler": [{}, {"solver_order": 3}, _KARRAS, {"solver_type": "heun"}],
    "UniPCMultistepScheduler": [
        {},
        {"solver_order": 3},
        {"solver_type": "bh1", **_MIN},
        _KARRAS,
        {"predict_x0": False, **_MIN},
        {"disable_corrector": [0]},
        _TRAILING,
    ],
    "LCMScheduler": [{}, _V],
    "TCDScheduler": [{}],
    "SASolverScheduler": [{}, {"algorithm_type": "data_prediction", **_KARRAS}],
}
"""Schedulers that a checkpoint of Stable Diffusion may have for its own, with their settings beside the noise."""

NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-trailing": ("EulerDiscreteScheduler", _TRAILING),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_KARRAS}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
"""What the words of a recipe's ``generate.scheduler`` stand for."""
IMG2IMG = ("default", "ddim", "euler", "euler-ancestral", "dpm++", "dpm++-karras", "unipc", "lcm")
STRENGTHS = (0.3, 0.5, 0.8, 1.0)


class BothRefuse(Exception):  # noqa: N818 (a verdict)
    """Neither hfsyn nor the library takes something."""


@dataclass(frozen=True)
class Case:
    """One comparison."""

    group: str
    line: str
    """Cases of one line of the report."""
    name: str
    differ: Callable[[], int]
    """The largest difference in grey levels; or the number of texts that differ."""


@dataclass
class Pictures:
    """Makes the cases, and the checkpoints that they need, in a folder.

    Args:
        root: empty.
    """

    root: Path
    _folders: dict[str, Path] = field(default_factory=dict)

    def checkpoint(self, name: str) -> Path:
        """The saved tiny checkpoint of a family."""
        if name not in self._folders:
            self._folders[name] = tiny_families.FAMILIES[name].save(self.root / name)
        return self._folders[name]

    @cached_property
    def stable_diffusion(self) -> Path:
        """One without a safety checker, whose scheduler is exchanged from case to case."""
        return tiny_models.stable_diffusion(self.root / "stable-diffusion")

    def cases(self) -> Iterator[Case]:
        """All of them."""
        for kind, settings in SCHEDULERS.items():
            for more in settings:
                yield Case("schedulers", kind, _told(more), partial(self._own_scheduler, kind, more))
        for own in ("epsilon", "v_prediction"):
            for name in NAMED:
                line = f"generate.scheduler, of {own}"
                yield Case("schedulers", line, name, partial(self._named_scheduler, name, own))
        for name, family in tiny_families.FAMILIES.items():
            for options, negative in self._settings(family.fields):
                told = _told({**options, **({"negative": negative} if negative else {})})
                yield Case("families", name, told, partial(self._family, name, options, negative))
            if family.starts_from_images:
                diffusion = name not in ("sd-3-medium", "flux-schnell", "sdxl-lightning")
                for scheduler in IMG2IMG if diffusion and name != "lcm" else ("default",):
                    for strength in STRENGTHS:
                        more = {"scheduler": scheduler} if scheduler != "default" else {}
                        told = f"{scheduler}, strength {strength:g}"
                        yield Case("img2img", name, told, partial(self._from_image, name, more, strength))
        for family in ("sd-1.5", "sdxl"):
            for style in LORAS:
                for scale in (1.0, 0.6):
                    told = f"{style}, scale {scale:g}"
                    yield Case("loras", family, told, partial(self._lora, family, style, scale))

    @staticmethod
    def _settings(fields: Mapping[str, Any]) -> list[tuple[dict[str, Any], str | None]]:
        guided = fields.get("guidance_scale", 2.0) > 1
        size = {"width": 48, "height": 32}
        if not guided:
            return [({}, None), (size, None)]
        return [({}, None), ({}, NEGATIVE), ({"guidance_scale": 1.0}, None), ({"guidance_scale": 5.0, **size}, None)]

    # One case of each kind ------------------------------------------------------------------------------------------

    def _own_scheduler(self, kind: str, settings: Mapping[str, Any]) -> int:
        folder = self._with_scheduler(kind, settings)
        return largest(lambda: drawn(folder), lambda: plainly(pipeline(folder)))

    def _named_scheduler(self, name: str, prediction: str) -> int:
        import diffusers

        folder = self._with_scheduler(
            "PNDMScheduler",
            {"skip_prk_steps": True, "set_alpha_to_one": False, **_OFFSET, "prediction_type": prediction},
        )

        def theirs() -> Any:
            pipe = pipeline(folder)
            kind, options = NAMED[name]
            pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **options)
            return plainly(pipe)

        return largest(lambda: drawn(folder, scheduler=name), theirs)

    def _with_scheduler(self, kind: str, settings: Mapping[str, Any]) -> Path:
        import diffusers

        folder = self.stable_diffusion
        noise = {**tiny_models._NOISE, **settings}
        try:
            getattr(diffusers, kind)(**noise).save_pretrained(folder / "scheduler")
        except ImportError as error:
            raise BothRefuse(str(error)) from error
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", kind]
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    def _family(self, name: str, options: Mapping[str, Any], negative: str | None) -> int:
        folder, fields = self.checkpoint(name), {**tiny_families.FAMILIES[name].fields, **options}
        return largest(
            lambda: drawn(folder, negative, **fields),
            lambda: plainly(scheduled(pipeline(folder), fields), negative, **_call(fields)),
        )

    def _from_image(self, name: str, options: Mapping[str, Any], strength: float) -> int:
        import diffusers

        from hfsyn.images.encoding import fitted

        folder, family = self.checkpoint(name), tiny_families.FAMILIES[name]
        fields = {**family.fields, **options}
        noise = np.random.default_rng(3).integers(0, 256, (len(PROMPTS), *family.size[::-1], 3), dtype=np.uint8)
        images = [Image.fromarray(image).resize(family.size) for image in noise]

        def theirs() -> Any:
            pipe = diffusers.AutoPipelineForImage2Image.from_pipe(scheduled(pipeline(folder), fields))
            # Cut to a crop that leaves no grid of a JPEG file behind, before either draws over them.
            starts = [fitted(image, *family.size) for image in images]
            return plainly(pipe, image=starts, strength=strength, **_call(fields))

        return largest(lambda: drawn(folder, images=images, init="source", strength=strength, **fields), theirs)

    def _lora(self, family: str, style: str, scale: float) -> int:
        folder = self.checkpoint(family)
        file = self.root / "lora.safetensors"
        save_file(LORAS[style](pipeline(folder)), file)
        fields = dict(tiny_families.FAMILIES[family].fields)

        def theirs() -> Any:
            pipe = pipeline(folder)
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="theirs")
            parts = [name for name, adapters in pipe.get_list_adapters().items() if "theirs" in adapters]
            pipe.fuse_lora(components=parts, lora_scale=scale, adapter_names=["theirs"])
            return plainly(pipe, **_call(fields))

        found = largest(lambda: drawn(folder, lora=str(file), lora_scale=scale, **fields), theirs)
        if not largest(lambda: drawn(folder, **fields), theirs):
            raise AssertionError(f"{style} changes nothing, so that this case shows nothing")
        return found


def pipeline(folder: Path) -> Any:
    """The pipeline of a folder, as diffusers loads it."""
    import diffusers

    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    pipe = diffusers.AutoPipelineForText2Image.from_pretrained(folder, dtype=torch.float32, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduled(pipe: Any, fields: Mapping[str, Any]) -> Any:
    """The pipeline with the scheduler of a recipe's fields."""
    import diffusers

    if (name := fields.get("scheduler", "default")) != "default":
        kind, options = NAMED[name]
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **options)
    return pipe


def plainly(pipe: Any, negative: str | None = None, **options: Any) -> Any:
    """The images of diffusers' own call: image x height x width x 3."""
    import inspect

    pipe.set_progress_bar_config(disable=True)
    named = inspect.signature(pipe.__call__).parameters
    if "clean_caption" in named:
        options["clean_caption"] = False
    if negative is not None:
        if "negative_prompt" not in named:  # some take any keyword and ignore it
            raise TypeError(f"{type(pipe).__name__} has no negative_prompt")
        options["negative_prompt"] = [negative] * len(PROMPTS)
    made = pipe(
        prompt=PROMPTS,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
        **{"num_inference_steps": STEPS, "guidance_scale": 2.0, **options},
    )
    return np.stack([np.asarray(image) for image in made.images])


def drawn(folder: Path, negative: str | None = None, images: Any = None, **fields: Any) -> Any:
    """The images of hfsyn: image x height x width x 3."""
    from hfsyn.images.generator import DiffusersGenerator
    from hfsyn.recipes.recipe import GeneratePart

    base = {"model": str(folder), "dtype": "float32", "batch_size": len(PROMPTS), "steps": STEPS}
    generator = DiffusersGenerator(GeneratePart(**{**base, **fields}), negative, "cpu")
    return np.stack([image.pixels for image in generator.generate(PROMPTS, SEEDS, images)])


def largest(ours: Callable[[], Any], theirs: Callable[[], Any]) -> int:
    """The largest difference in grey levels; see `both`."""
    found, expected = both(ours, theirs)
    if found.shape != expected.shape:
        return 255
    if len({image.tobytes() for image in expected}) < len(expected):
        raise AssertionError("the images are all alike, so that this case shows nothing")
    return int(np.abs(found.astype(int) - expected).max())


def both(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[Any, Any]:
    """What hfsyn makes, and what the library makes.

    Raises:
        BothRefuse: neither makes anything.
        AssertionError: one of them refuses what the other one takes.
    """
    from hfsyn.errors import HfsynError

    problem: Exception | None = None
    expected = None
    try:
        expected = theirs()
    except Exception as error:  # each library has its own exceptions for what it does not take
        problem = error
    try:
        found = ours()
    except HfsynError as error:
        if problem is not None:
            raise BothRefuse(str(error)) from problem
        raise AssertionError(f"hfsyn refuses what the library takes: {error}") from error
    if problem is not None:
        raise AssertionError(f"hfsyn takes what the library refuses: {problem}") from problem
    return found, expected


def _call(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe as diffusers' arguments."""
    return {name: value for name, value in fields.items() if name != "scheduler"}


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "as it is"


# LoRA weights as the tools write them -------------------------------------------------------------------------------

_UNET = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
_RANK = 4
Weights = dict[str, torch.Tensor]


def _layers(pipe: Any, *, text: bool) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Part of the pipeline, module, the matrices of a LoRA (down, up), and the weight that they are added to."""
    generator = torch.Generator().manual_seed(5)
    parts = {"unet": _UNET, **({"text_encoder": _TEXT, "text_encoder_2": _TEXT} if text else {})}
    for part, ends in parts.items():
        for name, module in getattr(pipe, part).named_modules() if getattr(pipe, part, None) is not None else ():
            if name.endswith(tuple(f".{end}" for end in ends)):
                outer, inner = module.weight.shape
                down = torch.randn(_RANK, inner, generator=generator) * 0.3
                up = torch.randn(outer, _RANK, generator=generator) * 0.3
                yield part, name, down, up, module.weight.detach()


def _peft(pipe: Any, *, text: bool = False, dora: bool = False) -> Weights:
    found: Weights = {}
    for part, name, down, up, weight in _layers(pipe, text=text):
        found |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
        if dora:
            found[f"{part}.{name}.lora_magnitude_vector"] = weight.norm(dim=1) * 1.2
    return {name: value.contiguous() for name, value in found.items()}


def _diffusers(pipe: Any, *, text: bool = False) -> Weights:
    found: Weights = {}
    for part, name, down, up, _ in _layers(pipe, text=text):
        inner = "lora" if part == "unet" else "lora_linear_layer"
        found |= {f"{part}.{name}.{inner}.down.weight": down, f"{part}.{name}.{inner}.up.weight": up}
    return found


def _old_diffusers(pipe: Any) -> Weights:
    found: Weights = {}
    for part, name, down, up, _ in _layers(pipe, text=False):
        attention, _, last = name.removesuffix(".0").rpartition(".")
        found |= {
            f"{part}.{attention}.processor.{last}_lora.down.weight": down,
            f"{part}.{attention}.processor.{last}_lora.up.weight": up,
        }
    return found


def _kohya(pipe: Any, *, text: bool = False, alpha: float = _RANK, dora: bool = False) -> Weights:
    names = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if getattr(pipe, "text_encoder_2", None) is not None:
        names["text_encoder"] = "lora_te1"
    found: Weights = {}
    for part, name, down, up, weight in _layers(pipe, text=text):
        key = f"{names[part]}_{name.replace('.', '_')}"
        found |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
        if dora:
            found[f"{key}.dora_scale"] = (weight.norm(dim=1) * 1.2).reshape(-1, 1)
    return found


LORAS: dict[str, Callable[[Any], Weights]] = {
    "peft": _peft,
    "peft, with text encoders": partial(_peft, text=True),
    "peft, DoRA": partial(_peft, dora=True),
    "diffusers": _diffusers,
    "diffusers, with text encoders": partial(_diffusers, text=True),
    "diffusers before peft": _old_diffusers,
    "kohya": _kohya,
    "kohya, with text encoders": partial(_kohya, text=True),
    "kohya, alpha 1": partial(_kohya, alpha=1.0, text=True),
    "kohya, DoRA": partial(_kohya, dora=True),
}
