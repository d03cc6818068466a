#!/usr/bin/env python
"""How fast images are fed to a training: our loader beside the three that people use instead.

    python scripts/bench_loader.py                              on photographs of 500 x 375 pixels that it makes
    python scripts/bench_loader.py --data DIR                   and on class folders named by wnid, such as imagenette

The others are torchvision's ImageFolder, timm's `hfds` reader with timm's own loader, and `datasets` with
`set_transform`. All read the same images with the same transform (timm's for training), the same batch size and the
same workers, and give float batches, normalised. Ours reads image files where it is compared to ImageFolder, and
Parquet with the images in it where it is compared to the readers of `datasets`.

Turns go A B C ... and back, ours twice in each round: the second is the control. A ratio pairs two turns of the same
round; above 1 ours is faster. A turn is timed from its first batch on, so that starting the workers does not count; the
CPU time beside it is that of the whole turn, workers included. The last line is one JSON object. What ours does beside
that: it seeds every image's augmentation, so that a training can be resumed, and counts images that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import datasets
import numpy as np
import torch
from benchmarks.measuring import CONTROL, CONTROL_RANGE, order, ratio, say
from PIL import Image
from timm.data import create_dataset, create_loader, create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from builders.variants import get_variant
from hfsyn.judging.preprocessing import Preprocessing
from hfsyn.judging.sets import batches
from hfsyn.judging.sets.image_set import TRAIN, open_images
from hfsyn.judging.train.timm_parts import Augmentation
from hfsyn.recipes.training_recipe import load_train_config

AIM = 1.3
"""Over ImageFolder; the others are only to be slower than ours."""
MADE = (500, 375)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS, OURS_PARQUET = "ours", "ours from Parquet"
BESIDE = {"ImageFolder": OURS, CONTROL: OURS, "timm hfds": OURS_PARQUET, "set_transform": OURS_PARQUET}
"""Arm -> which of ours reads the same files."""


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        places = {f"{MADE[0]} x {MADE[1]}": make_photographs(Path(temporary, "made"), options.count)}
        if options.data is not None:
            places[options.data.resolve().name] = copy_some(options.data, Path(temporary, "data"), options.count)
        for name, place in places.items():
            arms = Arms(place, options)
            for workers in options.workers:
                say(f"{name}, {workers} worker{'s' * (workers != 1)}, {arms.count} images a turn")
                found.append({"images": name, "workers": workers, **compared(arms, workers, options.rounds)})
    for one in found:
        rates = ", ".join(f"{arm} {rate:.0f}" for arm, rate in one["images_per_second"].items())
        say(f"{one['images']}, {one['workers']} workers: images/s: {rates}")
        for arm, figures in one["ratios"].items():
            say(f"  {BESIDE[arm]} / {arm}: {figures['ratio']} ({figures['low']} to {figures['high']})")
    settings = {"batch_size": options.batch_size, "image_size": options.image_size, "aim": AIM}
    print(json.dumps({"ok": all(one["ok"] for one in found), **settings, "found": found}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", type=Path, help="class folders of photographs, named by wnid")
    parser.add_argument("--count", type=int, default=800, help="images of a turn, at most [800]")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes of each loader [1 2]")
    parser.add_argument("--batch-size", type=int, default=50, help="[50]")
    parser.add_argument("--image-size", type=int, default=224, help="[224]")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each loader [7]")
    return parser.parse_args()


def make_photographs(folder: Path, count: int) -> Path:
    """JPEG files with the size and detail of ImageNet's: clouds of several scales with noise, about 110 kB each."""
    wnids = [info.wnid for info in get_variant("imagenette").classes]
    for number in range(count):
        chance = np.random.default_rng(number)
        pixels = chance.normal(128, 5, (MADE[1], MADE[0], 3))
        for scale in (4, 16, 64):
            coarse = chance.normal(0, 128, (MADE[1] // scale + 2, MADE[0] // scale + 2, 3)).clip(-127, 127) + 127
            smooth = Image.fromarray(coarse.astype(np.uint8)).resize(MADE, Image.Resampling.BICUBIC)
            pixels += (np.asarray(smooth, dtype=np.float64) - 127) * scale / 128
        place = folder / "train" / wnids[number % len(wnids)] / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place, quality=95)
    return folder / "train"


def copy_some(source: Path, folder: Path, count: int) -> Path:
    """Some images of class folders, evenly spread."""
    root = source / "train" if (source / "train").is_dir() else source
    files = sorted(path for path in root.glob("*/*") if path.is_file())
    for path in files[:: max(1, len(files) // count)][:count]:
        place = folder / "train" / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    return folder / "train"


class Arms:
    """The loaders over one folder of images; each call of one starts a pass of batches."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self._size, self._batch = options.image_size, options.batch_size
        self._recipe = load_train_config(None, ["data.train=[shapes]"])
        self._transform = create_transform(
            self._size, is_training=True, interpolation="bilinear", mean=MEAN, std=STD, color_jitter=0.4
        )
        self._files = ImageFolder(str(root), self._transform)
        self._parquet = self._write_parquet(root.with_name("parquet"))
        self._sets = {OURS: open_images(str(root)), OURS_PARQUET: open_images(str(self._parquet), default=TRAIN)}
        self.count = len(self._files) // self._batch * self._batch
        if len({len(one) for one in (self._files, *self._sets.values())}) > 1:
            raise SystemExit(f"{root} has files that only some of the loaders take for images.")
        rows = datasets.load_dataset(str(self._parquet), split="train", cache_dir=str(root.with_name("cache")))
        rows.set_transform(self._transformed)
        self._rows = rows
        self._read_by_timm = create_dataset(
            f"hfds/{self._parquet}", root=str(root.with_name("cache")), split="train", is_training=True
        )
        size = len(self._files)
        images = batches.Order((size,), (size,), 0)
        self._order = [images[position][1] for position in range(self.count)]

    def _write_parquet(self, folder: Path) -> Path:
        """The images in a file as `datasets` writes them."""
        labels = datasets.ClassLabel(names=self._files.classes)
        features = datasets.Features({"image": datasets.Image(), "label": labels})
        columns: dict[str, list[Any]] = {"image": [], "label": []}
        for path, label in self._files.samples:
            columns["image"].append({"bytes": Path(path).read_bytes(), "path": Path(path).name})
            columns["label"].append(label)
        folder.mkdir()
        datasets.Dataset.from_dict(columns, features).to_parquet(str(folder / "train-00000-of-00001.parquet"))
        return folder

    def _transformed(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        pixels = [self._transform(image.convert("RGB")) for image in rows["image"]]
        return {"pixels": pixels, "label": rows["label"]}

    def passes(self, workers: int) -> dict[str, Callable[[], Iterable[Any]]]:
        """By name, in the order of the first round's turns."""
        return {
            "ImageFolder": partial(self._plain, self._files, workers),
            "set_transform": partial(self._set_transform, workers),
            "timm hfds": partial(self._timm, workers),
            OURS_PARQUET: partial(self._ours, OURS_PARQUET, workers),
            OURS: partial(self._ours, OURS, workers),
        }

    def _ours(self, name: str, workers: int) -> Iterable[Any]:
        opened = self._sets[name]
        images = batches.Order((len(opened),), (len(opened),), 0)
        labels = {wnid: number for number, wnid in enumerate(opened.classes)}
        augmentation = Augmentation(Preprocessing(self._size, MEAN, STD), self._recipe.augment)
        dataset = batches.Augmented([opened], images, labels, augmentation, 0)
        wanted = batches.Slice(0, self.count // self._batch, self._batch, workers=workers)
        for tensors, targets, _ in batches.training_batches(dataset, wanted):
            yield augmentation.finish(tensors), targets

    def _plain(self, rows: Any, workers: int) -> Iterable[Any]:
        return DataLoader(rows, self._batch, sampler=self._order, num_workers=workers, drop_last=True)

    def _set_transform(self, workers: int) -> Iterable[Any]:
        for batch in self._plain(self._rows, workers):
            yield batch["pixels"], batch["label"]

    def _timm(self, workers: int) -> Iterable[Any]:
        return create_loader(  # in a random order of its own
            self._read_by_timm,
            self._size,
            self._batch,
            is_training=True,
            color_jitter=0.4,
            interpolation="bilinear",
            mean=MEAN,
            std=STD,
            num_workers=workers,
            persistent_workers=False,
            device=torch.device("cpu"),
        )


@dataclass(frozen=True)
class Turn:
    """One pass."""

    rate: float  # images a second, from the first batch on
    cpu_ms: float  # of all processes, an image


def timed(batches_of: Callable[[], Iterable[Any]], count: int) -> Turn:
    """One pass; fails if it has other than `count` images, or other than float batches."""
    used, seen, first, started = cpu_seconds(), 0, 0, 0.0
    for pixels, targets in batches_of():
        if not first:
            started, first = time.perf_counter(), len(targets)
        assert pixels.dtype == torch.float32
        seen += len(targets)
    seconds = time.perf_counter() - started
    assert seen == count, f"{seen} images instead of {count}"
    return Turn((seen - first) / seconds, (cpu_seconds() - used) / count * 1000)


def cpu_seconds() -> float:
    """Of this process and the workers that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compared(arms: Arms, workers: int, rounds: int) -> dict[str, Any]:
    """Turns of all arms side by side, after one of each that warms up."""
    passes = arms.passes(workers)
    for one in passes.values():
        timed(one, arms.count)
    turns: dict[str, list[Turn]] = {name: [] for name in (*passes, CONTROL)}
    for number, names in enumerate(order(list(passes), rounds), start=1):
        for name in names:
            turns[name].append(timed(passes.get(name, passes[OURS]), arms.count))
        say(f"round {number}: " + ", ".join(f"{name} {turns[name][-1].rate:.0f} images/s" for name in names))

    def pairs(figure: str, other: str) -> dict[str, float]:
        both = zip(turns[BESIDE[other]], turns[other], strict=True)
        return ratio((getattr(mine, figure), getattr(theirs, figure)) for mine, theirs in both)

    ratios = {other: pairs("rate", other) for other in BESIDE}
    fastest = all(ratios[other]["ratio"] > 1 for other in BESIDE if other != CONTROL)
    control = CONTROL_RANGE[0] <= ratios[CONTROL]["ratio"] <= CONTROL_RANGE[1]
    return {
        "ok": ratios["ImageFolder"]["ratio"] >= AIM and fastest and control,
        "ratios": ratios,
        "cpu_ratios": {other: pairs("cpu_ms", other) for other in BESIDE},
        "images_per_second": {n: round(statistics.median(t.rate for t in some), 1) for n, some in turns.items()},
        "cpu_ms_per_image": {n: round(statistics.median(t.cpu_ms for t in some), 3) for n, some in turns.items()},
        "images_a_turn": arms.count,
    }


if __name__ == "__main__":
    main()
