#!/usr/bin/env python
"""Which copies of photographs hfsyn finds, and how many pairs of different ones it takes for copies.

    python scripts/check_copies.py --data imagenette                    1,000 photographs of the validation set
    python scripts/check_copies.py --data imagenette --split train      those on which the threshold was chosen

Of 200 of the photographs copies are made, 25 of each kind: JPEG of quality 50, half the size, mirrored, a crop of 80 %
of the sides at a random place, 30 % brighter, WebP of quality 30, turned by 3 degrees, small text over it. A copy is
found if it is paired with its own photograph; a false pair is one of two different photographs, among all pairs of the
1,000. DIR is an ImageNette: train/<wnid>/*, val/<wnid>/*. It aims at 95 % of all, 80 % of each kind and at most one
false pair; exit code 1 where it falls short. The threshold was chosen on photographs of the training split, halfway
between the most alike pair of different photographs and the least alike one of twenty copies.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance

from hfsyn.judging.sets.copies import COPY, Copies, copies_between, copies_within, thumbnail

EACH = 25
Change = Callable[[Image.Image, random.Random], Image.Image]


def _encoded(picture: Image.Image, form: str, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, form, quality=quality)
    return Image.open(buffer).convert("RGB")


def _cropped(picture: Image.Image, rng: random.Random) -> Image.Image:
    (width, height), (w, h) = picture.size, (int(0.8 * side) for side in picture.size)
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    return picture.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BICUBIC)


def _written(picture: Image.Image, rng: random.Random) -> Image.Image:
    copy = picture.copy()
    ImageDraw.Draw(copy).text((rng.randint(2, 20), rng.randint(2, 100)), "sample 2026", fill=(255, 255, 255))
    return copy


KINDS: dict[str, Change] = {
    "JPEG of quality 50": lambda picture, rng: _encoded(picture, "JPEG", 50),
    "half the size": lambda p, rng: p.resize((p.width // 2, p.height // 2), Image.Resampling.BICUBIC),
    "mirrored": lambda picture, rng: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "crop of 80 %": _cropped,
    "30 % brighter": lambda picture, rng: ImageEnhance.Brightness(picture).enhance(1.3),
    "WebP of quality 30": lambda picture, rng: _encoded(picture, "WEBP", 30),
    "turned by 3 degrees": lambda p, rng: p.rotate(rng.choice([-3, 3]), Image.Resampling.BICUBIC),
    "small text over it": _written,
}


def check(folder: Path, count: int, seed: int, least: float = COPY) -> dict[str, object]:
    """What is found among the photographs below a folder, and of copies of them."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    rng.shuffle(files)
    pictures = [Image.open(path).convert("RGB") for path in files[:count]]
    thumbnails = np.stack([thumbnail(picture) for picture in pictures])
    began = time.monotonic()
    within = copies_within(thumbnails, least=min(least, 0.5))
    seconds = time.monotonic() - began
    planted = [(kind, place * EACH + number) for place, kind in enumerate(KINDS) for number in range(EACH)]
    copies = np.stack([thumbnail(KINDS[kind](pictures[number], rng)) for kind, number in planted])
    found = _likeness_of_own(copies_between(copies, thumbnails, least=0.0), [number for _, number in planted])
    kinds = {
        kind: sum(likeness >= least for (of, _), likeness in zip(planted, found, strict=True) if of == kind)
        for kind in KINDS
    }
    return {
        "photographs": len(pictures),
        "threshold": least,
        "found": sum(kinds.values()),
        "planted": len(planted),
        "by_kind": kinds,
        "false_pairs": sum(likeness >= least for likeness in within.likeness),
        "most_alike": [round(likeness, 3) for likeness in within.likeness[:5]],
        "least_alike_copies": [round(likeness, 3) for likeness in sorted(found)[:15]],
        "seconds_within": round(seconds, 1),
    }


def _likeness_of_own(found: Copies, numbers: list[int]) -> list[float]:
    known = dict(zip(found.pairs, found.likeness, strict=True))
    return [known.get((place, number), 0.0) for place, number in enumerate(numbers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="an ImageNette")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="[val]")
    parser.add_argument("--count", type=int, default=1000, help="photographs, at least 200 [1000]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the lines")
    options = parser.parse_args()
    folder = options.data / options.split
    if not folder.is_dir() or options.count < EACH * len(KINDS):
        parser.error(f"--data {options.data}: there is no folder {folder}, or --count is below {EACH * len(KINDS)}")
    torch.set_num_threads(1)
    found = check(folder, options.count, options.seed)
    if options.json:
        print(json.dumps(found))
    else:
        for kind, count in found["by_kind"].items():  # type: ignore[attr-defined]
            print(f"{kind:22} {count} of {EACH}")
        print(f"{found['found']} of {found['planted']} copies, {found['false_pairs']} false pairs", end="; ")
        print(f"most alike {found['most_alike']}, least alike copies {found['least_alike_copies']}", end="; ")
        print(f"{found['seconds_within']} s for {found['photographs']} photographs against each other")
    enough = min(found["by_kind"].values()) >= 0.8 * EACH  # type: ignore[attr-defined]
    sys.exit(0 if enough and found["found"] >= 0.95 * found["planted"] and found["false_pairs"] <= 1 else 1)  # type: ignore[operator]


if __name__ == "__main__":
    main()
