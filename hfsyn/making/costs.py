"""What models cost: the arithmetic of an image or a caption, and the memory of the weights.

Counted on the true architectures with torch's FlopCounterMode (two for a multiplication with its addition), batch 1:
nothing here loads a model, and a test counts one of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hfsyn.making.devices import DEVICES, UTILISATION
from hfsyn.making.model_files import configuration
from hfsyn.making.recipe import CaptionPart, GeneratePart, Recipe

Triple = tuple[float, float, float]
_SIDES = (512, 768, 1024)
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_DECODE: Triple = (2.515, 5.754, 10.470)  # AutoencoderKL with 128, 256, 512, 512 channels; 4 or 16 latent ones alike
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
    side: int
    """Its own image size, pixels a side, where the checkpoint says nothing else."""
    guided: bool = True
    """Whether a guidance scale over 1 costs a second row."""


_SD1 = Architecture("Stable Diffusion 1", (0.803, 2.148, 4.674), 0.013, 1.07, 512)
_SD2 = Architecture("Stable Diffusion 2", (0.804, 2.149, 4.675), 0.045, 1.29, 512)
_SDXL = Architecture("SDXL", (1.589, 3.641, 6.761), 0.111, 3.47, 1024)
_SD3 = Architecture("Stable Diffusion 3 medium", (2.107, 4.601, 8.904), 2.508, 7.69, 1024)
_FLUX = Architecture("FLUX.1", (21.50, 41.93, 74.38), 4.858, 16.86, 1024, guided=False)
_PIXART = Architecture("PixArt", (1.289, 3.220, 6.634), 2.814, 5.46, 1024)

_GENERATORS: Mapping[str, tuple[Architecture, int]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (_SD1, 512),
    "CompVis/stable-diffusion-v1-4": (_SD1, 512),
    "SimianLuo/LCM_Dreamshaper_v7": (_SD1, 768),
    "stabilityai/stable-diffusion-2-1": (_SD2, 768),
    "stabilityai/stable-diffusion-2-1-base": (_SD2, 512),
    "stabilityai/sd-turbo": (_SD2, 512),
    "stabilityai/stable-diffusion-xl-base-1.0": (_SDXL, 1024),
    "stabilityai/sdxl-turbo": (_SDXL, 512),
    "stabilityai/stable-diffusion-3-medium-diffusers": (_SD3, 1024),
    "black-forest-labs/FLUX.1-schnell": (_FLUX, 1024),
    "black-forest-labs/FLUX.1-dev": (_FLUX, 1024),
    "PixArt-alpha/PixArt-XL-2-512x512": (_PIXART, 512),
    "PixArt-alpha/PixArt-XL-2-1024-MS": (_PIXART, 1024),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": (_PIXART, 1024),
}
"""Checkpoints by their name on the Hub, and their own image size."""

_CAPTIONERS: Mapping[str, tuple[float, float]] = {
    "Salesforce/blip-image-captioning-base": (0.133, 0.224),
    "Salesforce/blip-image-captioning-large": (0.409, 0.446),
    "Salesforce/blip2-opt-2.7b": (0.815, 3.745),
    "nlpconnect/vit-gpt2-image-captioning": (0.046, 0.239),
}
"""TFLOP of one image with a caption of 20 tokens, and billions of parameters."""


def architecture_of(part: GeneratePart) -> Architecture | None:
    """The architecture of a generator: by its name, or by its configuration files where these are at hand."""
    if part.model in _GENERATORS:
        return _GENERATORS[part.model][0]
    found = configuration(part.model, part.revision, "unet/config.json")
    if found.get("block_out_channels") == [320, 640, 1280, 1280]:
        return {768: _SD1, 1024: _SD2}.get(found.get("cross_attention_dim", 0))
    if found.get("block_out_channels") == [320, 640, 1280] and found.get("cross_attention_dim") == 2048:
        return _SDXL
    found = configuration(part.model, part.revision, "transformer/config.json")
    kinds = {
        ("SD3Transformer2DModel", 24): _SD3, ("FluxTransformer2DModel", 19): _FLUX,
        ("PixArtTransformer2DModel", 28): _PIXART,
    }  # fmt: skip
    return kinds.get((found.get("_class_name", ""), found.get("num_layers", 0)))


def image_size(part: GeneratePart) -> tuple[int, int]:
    """Width and height that the generator draws, in pixels: of the recipe, else of the model, else 512."""
    if part.width is not None and part.height is not None:
        return part.width, part.height
    own = _own_side(part)
    return part.width or own, part.height or own


def _own_side(part: GeneratePart) -> int:
    if part.model in _GENERATORS:
        return _GENERATORS[part.model][1]
    unet, transformer, decoder = (
        configuration(part.model, part.revision, f"{name}/config.json") for name in ("unet", "transformer", "vae")
    )
    size, channels = (unet or transformer).get("sample_size"), decoder.get("block_out_channels")
    if isinstance(size, int) and channels:
        return int(size * 2 ** (len(channels) - 1))
    architecture = architecture_of(part)
    return architecture.side if architecture else 512


def image_tflop(part: GeneratePart) -> float | None:
    """TFLOP of one image by the recipe; None where the architecture is not known."""
    architecture = architecture_of(part)
    if architecture is None:
        return None
    width, height = image_size(part)
    rows = float(part.steps)
    if part.scheduler == "pndm" or (part.scheduler == "default" and architecture is _SD1):
        rows += 1  # its first step is made twice
    if architecture.guided and part.guidance_scale > 1:
        rows *= 1 + max(0.0, part.guidance_stop - part.guidance_start)
    pixels = width * height
    return rows * _at(architecture.step, pixels) + _at(_DECODE, pixels) + architecture.text


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
    architecture = architecture_of(part)
    if architecture is None:
        return first, None
    width, height = image_size(part)
    decoding = min(part.batch_size, _DECODED_AT_ONCE) * width * height * _VALUES_A_PIXEL / 1e9
    return first, (architecture.parameters + decoding) * _BYTES[part.dtype]
