"""How an image is prepared for a network: as timm's ``validate.py`` does it, unless the user says something else."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hfsyn.errors import HfsynError

CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Preprocessing:
    """A resize, a crop and a normalisation."""

    image_size: int | tuple[int, int]  # side of the network's input; or its height and width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop: float = 0.875  # side of the crop, as a share of the resized image
    crop_mode: str = "center"
    """What gives way where the image is not of the input's shape: its ends (``center``), its shape (``squash``: all of
    it is seen), or the input, which gets a border of the mean (``border``).
    """

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> "Preprocessing":
        """From its JSON; raises TypeError if it is something else."""
        tuples = {name: tuple(value) for name, value in facts.items() if isinstance(value, list | tuple)}
        return (ByProcessor if "processor" in facts else cls)(**{**facts, **tuples})


@dataclass(frozen=True)
class ByProcessor(Preprocessing):
    """What an image processor of transformers does; the other fields only tell of it."""

    processor: Mapping[str, Any] = field(default_factory=dict)
    """Its settings, as its ``preprocessor_config.json`` has them."""

    @classmethod
    def of(cls, processor: Any) -> "ByProcessor":
        """That of an image processor."""
        from PIL import Image

        settings = json.loads(processor.to_json_string())
        height, width = processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"].shape[-2:]
        mean, std = (tuple(getattr(processor, name) or ()) for name in ("image_mean", "image_std"))
        size = height if height == width else (height, width)
        return cls(size, mean, std, f"resample {settings.get('resample')}", 1.0, processor=settings)

    def transform(self) -> Any:
        """A function from a PIL image to the pixels (3, h, w) that the processor makes of it."""
        import transformers

        made = getattr(transformers, self.processor["image_processor_type"])(**self.processor)
        return lambda picture: made(images=picture, return_tensors="pt")["pixel_values"][0]


def of_weights(network: Any) -> Preprocessing:
    """What timm's ``validate.py`` uses for a network's pretrained weights: their test size, crop and crop mode, where
    they state some.
    """
    from timm.data import resolve_data_config

    found = resolve_data_config({}, model=network, use_test_size=True)
    height, width = found["input_size"][-2:]
    size = height if height == width else (height, width)
    crop, mode = found["crop_pct"], found["crop_mode"]
    return Preprocessing(size, tuple(found["mean"]), tuple(found["std"]), found["interpolation"], crop, mode)


def of_training(
    network: Any, image_size: int | None = None, crop: float | None = None, interpolation: str = "random"
) -> Preprocessing:
    """That of a network that is trained here: timm's for its training size but for what is given; `random` is an
    interpolation for training only.
    """
    from timm.data import resolve_model_data_config

    found = resolve_model_data_config(network)
    return Preprocessing(
        image_size or found["input_size"][-1],
        tuple(found["mean"]),
        tuple(found["std"]),
        found["interpolation"] if interpolation == "random" else interpolation,
        found["crop_pct"] if crop is None else crop,
    )


@dataclass(frozen=True)
class Overrides:
    """What the user says of it in place of the classifier's own; None leaves that as it is.

    Args:
        image_size: side of the network's input in pixels, 8 to 4096.
        crop_pct: side of the crop as a share of the resized image, above 0, at most 1.
        crop_mode: one of `CROP_MODES`.
        mean: of each channel, of values of 0 to 1.
        std: of each channel, above 0.
    """

    image_size: int | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        wrong, allowed = None, ""
        if self.image_size is not None and not 8 <= self.image_size <= 4096:
            wrong, allowed = f"--image-size {self.image_size}", "It is from 8 to 4096."
        elif self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            wrong, allowed = f"--crop-pct {self.crop_pct:g}", "It is above 0 and at most 1."
        elif self.crop_mode not in (None, *CROP_MODES):
            wrong, allowed = f"--crop-mode {self.crop_mode}", f"Known: {', '.join(CROP_MODES)}."
        for name, values in (("mean", self.mean), ("std", self.std)):
            least = 0 if name == "mean" else 1e-6
            if values is not None and not (len(values) == 3 and all(least <= value <= 1 for value in values)):
                wrong = f"--{name} {','.join(f'{value:g}' for value in values)}"
                allowed = f"It is three numbers, one for red, green and blue, of {least:g} to 1: --{name} .5,.5,.5"
        if wrong:
            raise HfsynError(f"{wrong} is out of range.", allowed)

    def applied(self, to: Preprocessing) -> Preprocessing:
        """The preprocessing with what is said. Raises HfsynError if an image processor leaves nothing to be said."""
        if isinstance(to, ByProcessor):
            if said := [name for name in asdict(self) if getattr(self, name) is not None]:
                flag = f"--{said[0].replace('_', '-')}"
                raise HfsynError(f"{flag} is for networks of timm.", "A CLIP has an image processor of its own.")
            return to
        return Preprocessing(
            to.image_size if self.image_size is None else self.image_size,
            to.mean if self.mean is None else tuple(self.mean),
            to.std if self.std is None else tuple(self.std),
            to.interpolation,
            to.crop if self.crop_pct is None else self.crop_pct,
            to.crop_mode if self.crop_mode is None else self.crop_mode,
        )


def plain_transform(preprocessing: Preprocessing) -> Any:
    """timm's evaluation transform, or transformers' own: resize, crop, normalise; no randomness."""
    if isinstance(preprocessing, ByProcessor):
        return preprocessing.transform()
    from timm.data import create_transform

    return create_transform(
        preprocessing.extent,
        is_training=False,
        crop_pct=preprocessing.crop or None,
        crop_mode=preprocessing.crop_mode,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def tensor_transform(preprocessing: Preprocessing, height: int, width: int) -> Any:
    """What `plain_transform` does, for images of one size as tensors and with gradients.

    A function from (n, 3, height, width), float32 of 0 to 1, to what the network takes; levels are not rounded in
    between. Resizing is Pillow's as two products of matrices, whose gradients are the same on each call also on a GPU,
    where those of torch's own resizing are not. Raises HfsynError for a processor of transformers.
    """
    import torch

    if isinstance(preprocessing, ByProcessor):
        raise HfsynError("An image processor of transformers has no gradients.", "Name a classifier of timm.")
    rows, columns = _resized(preprocessing, height, width)
    target = preprocessing.extent
    down = _resampling(height, rows, target[0], preprocessing.interpolation)
    across = _resampling(width, columns, target[1], preprocessing.interpolation)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    # What a border leaves free is of the mean, as far as 8 bits have it.
    seen = (down.sum(1) != 0).float()[:, None] * (across.sum(1) != 0).float()
    border = (mean * 255).round() / 255 * (1 - seen)

    def prepare(images: Any) -> Any:
        found = down.to(images) @ images @ across.to(images).mT + border.to(images)
        return (found - mean.to(images)) / std.to(images)

    return prepare


def _resized(preprocessing: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """The size that timm's evaluation resizes to, before the crop."""
    share = preprocessing.crop or 0.875
    wanted = [math.floor(side / share) for side in preprocessing.extent]
    if preprocessing.crop_mode == "squash":
        return wanted[0], wanted[1]
    if preprocessing.crop_mode != "border" and wanted[0] == wanted[1]:
        short, side = min(height, width), wanted[0]
        return (int(side * height / short), int(side * width / short))
    ratios = height / wanted[0], width / wanted[1]
    ratio = max(ratios) if preprocessing.crop_mode == "border" else min(ratios)
    return round(height / ratio), round(width / ratio)


def _resampling(before: int, resized: int, after: int, interpolation: str) -> Any:
    """The matrix (after, before) of a resize along one side and a crop of its middle, or a border around it."""
    import numpy as np
    import torch
    from PIL import Image
    from timm.data.transforms import str_to_pil_interp

    identity = Image.fromarray(np.eye(before, dtype=np.float32))
    found = torch.from_numpy(np.array(identity.resize((before, resized), str_to_pil_interp(interpolation))))
    if resized >= after:
        first = round((resized - after) / 2)
        return found[first : first + after].contiguous()
    matrix = torch.zeros(after, before)
    first = (after - resized) // 2
    matrix[first : first + resized] = found
    return matrix
