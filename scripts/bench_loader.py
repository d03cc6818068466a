#!/usr/bin/env python
"""How fast images are fed: our loader against torchvision's ImageFolder, side by side in one run.

    python scripts/bench_loader.py                              on drawn images that it makes
    python scripts/bench_loader.py --images DIR --workers 8     on class folders named by wnid

Both read the same files in the same order with the same transform (timm's for training), the same batch size and the
same workers, in passes A B B A. A ratio pairs two passes that stand side by side; above 1 ours is faster. The last line
is one JSON object. What ours does beside that: it seeds every image's augmentation, so that a training can be resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from builders.sources.drawing import draw, sample_attributes
from builders.variants import get_variant
from hfsyn.judging.classifier import Preprocessing
from hfsyn.judging.sets.batches import Augmented, Order, Slice, training_batches
from hfsyn.judging.sets.image_set import TRAIN, open_images
from hfsyn.judging.train.timm_parts import Augmentation
from hfsyn.recipes.training_recipe import load_train_config


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.images or temporary)
        if options.images is None:
            draw_folder(folder, options.count)
        ours, theirs, count = loaders(folder, options)
        for warm in (ours, theirs):  # files into the page cache, code into memory
            images_per_second(warm, count)
        pairs = []
        for number in range(options.rounds):
            first, second = (ours, theirs) if number % 2 == 0 else (theirs, ours)
            a, b = images_per_second(first, count), images_per_second(second, count)
            mine, other = (a, b) if number % 2 == 0 else (b, a)
            pairs.append((mine, other))
            print(f"round {number + 1}: ours {mine:.0f} images/s, ImageFolder {other:.0f}, ratio {mine / other:.3f}")
    print(json.dumps(summary(pairs, count, options)))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="DIR", help="class folders of photographs, named by wnid")
    parser.add_argument("--count", type=int, default=1000, help="drawn images, if no DIR is given [1000]")
    parser.add_argument("--workers", type=int, default=1, help="worker processes of each loader [1]")
    parser.add_argument("--batch-size", type=int, default=50, help="[50]")
    parser.add_argument("--image-size", type=int, default=224, help="[224]")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of passes, in the order A B B A [10]")
    return parser.parse_args()


def draw_folder(folder: Path, count: int) -> None:
    """Drawings with some noise, as JPEG files of 400 x 300 pixels, about 35 kB each, in Imagenette's class folders."""
    classes = get_variant("imagenette").classes
    for number in range(count):
        drawing = draw(sample_attributes(0, "train", number, world="shapes")).resize(
            (400, 300), Image.Resampling.BICUBIC
        )
        noise = np.random.default_rng(number).normal(0, 6, (300, 400, 3))
        pixels = np.clip(np.asarray(drawing, dtype=np.float64) + noise, 0, 255).astype(np.uint8)
        place = folder / "train" / classes[number % len(classes)].wnid / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place, quality=85)


Pass = Callable[[], Iterable[Any]]


def loaders(folder: Path, options: argparse.Namespace) -> tuple[Pass, Pass, int]:
    """``(ours, theirs, images)``: each gives one pass of batches over the folder."""
    from timm.data import create_transform
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    recipe = load_train_config(None, ["data.train=[shapes]"])
    augmentation = Augmentation(Preprocessing(options.image_size, mean, std), recipe.augment)
    transform = create_transform(options.image_size, is_training=True, interpolation="bilinear", mean=mean, std=std)
    opened = open_images(f"imagenette={folder}" if options.images is None else str(folder), default=TRAIN)
    steps = len(opened) // options.batch_size
    order = Order((len(opened),), (len(opened),), 0)
    labels = {wnid: number for number, wnid in enumerate(opened.classes)}
    mine = Augmented([opened], order, labels, augmentation, 0)
    root = folder / "train" if (folder / "train").is_dir() else folder
    other = ImageFolder(str(root), transform)
    assert len(other) == len(opened), "the folder holds files that only one of the loaders takes for images"
    same_order = [order[position][1] for position in range(steps * options.batch_size)]

    def ours() -> Iterable[Any]:
        wanted = Slice(0, steps, options.batch_size, workers=options.workers)
        for tensors, targets, _ in training_batches(mine, wanted):
            yield augmentation.finish(tensors), targets

    def theirs() -> Iterable[Any]:
        return DataLoader(other, options.batch_size, sampler=same_order, num_workers=options.workers, drop_last=True)

    return ours, theirs, steps * options.batch_size


def images_per_second(batches: Pass, count: int) -> float:
    """Of one whole pass, with the start of its workers."""
    started = time.perf_counter()
    seen = sum(len(batch[1]) for batch in batches())
    assert seen == count
    return seen / (time.perf_counter() - started)


def summary(pairs: list[tuple[float, float]], count: int, options: argparse.Namespace) -> dict[str, Any]:
    ratios = sorted(mine / other for mine, other in pairs)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(ratios[0], 3),
        "ratio_high": round(ratios[-1], 3),
        "ours_images_per_second": round(statistics.median(mine for mine, _ in pairs), 1),
        "imagefolder_images_per_second": round(statistics.median(other for _, other in pairs), 1),
        "pairs": len(pairs),
        "images": count,
        "workers": options.workers,
        "batch_size": options.batch_size,
        "image_size": options.image_size,
    }


if __name__ == "__main__":
    main()
