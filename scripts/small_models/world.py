"""The drawings that the models learn from and are judged on, drawn once and kept as arrays.

Only the world "shapes" (independent attributes) is used. The models' drawings come from their own splits and seed, none
of which the variant's train and test splits use; "held out" means: from the split HELD_OUT, never seen by any model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from builders.sources.drawing import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    SHAPES,
    TEXTURES,
    Drawing,
    caption_of,
    draw_array,
    sample_attributes,
)

MODELS_SEED = 20_26
TRAIN, HELD_OUT = "models-train", "models-held-out"
TRAIN_COUNT, HELD_OUT_COUNT = 100_000, 4_000
ATTRIBUTES = ("shape", "colour", "background", "texture")
VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "background": BACKGROUNDS,
    "texture": TEXTURES,
}


@dataclass(frozen=True)
class Drawings:
    """Pixels uint8 (n, 3, 32, 32), labels int64 (n, 4) in the order of ATTRIBUTES, and the true captions."""

    pixels: np.ndarray
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, rows: np.ndarray | torch.Tensor | slice) -> torch.Tensor:
        """Float images (b, 3, 32, 32) in [-1, 1]."""
        rows = rows.numpy() if isinstance(rows, torch.Tensor) else rows
        return torch.from_numpy(np.array(self.pixels[rows])).float() / 127.5 - 1

    def caption(self, row: int) -> str:
        """The true caption of one drawing."""
        return caption_from_labels(self.labels[row].tolist())


def labels_of(drawing: Drawing) -> tuple[int, ...]:
    """The four attributes as indices into VALUES."""
    return tuple(VALUES[name].index(getattr(drawing, name)) for name in ATTRIBUTES)


def caption_from_labels(labels: list[int]) -> str:
    """The true caption of a drawing with these four attributes."""
    words = {name: VALUES[name][label] for name, label in zip(ATTRIBUTES, labels, strict=True)}
    return caption_of(Drawing(**words, size=0.7, x=0.0, y=0.0, rotation=0.0, variation=0))


def drawings(work_dir: Path, split: str = TRAIN, count: int | None = None) -> Drawings:
    """The drawings of a split, from the work folder if they were drawn before; some 0.3 ms each otherwise."""
    count = count or (TRAIN_COUNT if split == TRAIN else HELD_OUT_COUNT)
    pixels_path, labels_path = work_dir / f"{split}-{count}.npy", work_dir / f"{split}-{count}-labels.npy"
    if not labels_path.exists():
        work_dir.mkdir(parents=True, exist_ok=True)
        pixels = np.empty((count, 3, CANVAS, CANVAS), dtype=np.uint8)
        labels = np.empty((count, len(ATTRIBUTES)), dtype=np.int64)
        for index in range(count):
            drawing = sample_attributes(MODELS_SEED, split, index)
            pixels[index] = draw_array(drawing).transpose(2, 0, 1)
            labels[index] = labels_of(drawing)
        for array, path in ((pixels, pixels_path), (labels, labels_path)):
            temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")
            np.save(temporary, array)
            temporary.replace(path)
    return Drawings(np.load(pixels_path, mmap_mode="r"), torch.from_numpy(np.load(labels_path)))
