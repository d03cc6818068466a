"""timm's training transform, cut in two: pictures are augmented one by one, pixels become numbers a batch at a time.

Between the halves an image is bytes: a quarter of what floats would be to hand from a worker to its loader and on to a
GPU, and the arithmetic is done where the network is. The values are those of timm's own transform but for rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hfsyn.judging.classifier.network import Preprocessing
from hfsyn.recipes.training_recipe import AugmentPart


class Augmentation:
    """Called with a PIL picture it gives a tensor, random as the generators are; `finish` makes a batch of them floats.

    The tensor is uint8 (height, width, 3). With random erasing it is float32 (3, height, width) and finished already,
    since timm erases in floats.
    """

    def __init__(self, preprocessing: Preprocessing, part: AugmentPart) -> None:
        from timm.data import create_transform

        first, second, last = create_transform(
            preprocessing.image_size,
            is_training=True,
            scale=part.scale,
            ratio=part.ratio,
            hflip=part.flip,
            auto_augment=part.auto_augment,
            color_jitter=part.color_jitter or None,
            re_prob=part.random_erasing,
            interpolation=part.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            separate=True,
        )
        self._floats = part.random_erasing > 0
        self._steps = [*first.transforms, *second.transforms, *(last.transforms if self._floats else [])]
        self._mean, self._std = preprocessing.mean, preprocessing.std

    def __call__(self, picture: Any) -> Any:
        """A PIL picture to a tensor; see the class."""
        import torch

        for step in self._steps:
            picture = step(picture)
        return picture if self._floats else torch.from_numpy(np.array(picture))

    def finish(self, batch: Any) -> Any:
        """A batch of such tensors, on any device, to float32 (n, 3, height, width), normalised."""
        import torch

        if self._floats:
            return batch
        # (v / 255 - mean) / std in two passes instead of three; bytes by the pixel are channels-last as they lie.
        scale = torch.tensor([1 / (255 * std) for std in self._std], device=batch.device).view(1, 3, 1, 1)
        shift = torch.tensor(
            [mean / std for mean, std in zip(self._mean, self._std, strict=True)], device=batch.device
        ).view(1, 3, 1, 1)
        return batch.permute(0, 3, 1, 2).float().mul_(scale).sub_(shift)
