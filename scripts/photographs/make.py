#!/usr/bin/env python
"""ImageNette from photographs to table, stage by stage; a stage that was stopped goes on where it was.

    python scripts/photographs/make.py --data DIR --out OUT --stage features

DIR holds `imagenette-128` and `flickr8k-128`; see scripts/photographs/README.md, which tells what comes out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.photographs import features, generator, photographs, quality, settings, table, teaching, train_captioner


def flickr_features(data: Path, out: Path) -> None:
    """EfficientNet-Lite0's features of Flickr8k's photographs and their mirror images: six minutes."""
    features.make(photographs.flickr(data), out / "features" / "flickr", mirrored=True)


def imagenette_features(data: Path, out: Path) -> None:
    """EfficientNet-Lite0's features of ImageNette's training photographs: four minutes."""
    features.make(photographs.imagenette(data, "train"), out / "features" / "imagenette", mirrored=False)


def captioner(data: Path, out: Path) -> None:
    """Train the captioner: an hour of one core."""
    train_captioner.train(data, out)


def captions_quality(data: Path, out: Path) -> None:
    """Measure the captions on 1,000 photographs of Flickr8k, and by nouns on ImageNette's last third."""
    quality.measure(data, out)


def autoencoder(data: Path, out: Path) -> None:
    """Make the generator's autoencoder, and train its decoder: three minutes."""
    generator.autoencoder(data, out)


def fresh(data: Path, out: Path) -> None:
    """Pre-train the generator's text encoder, and write the pipeline with a random UNet: ten minutes."""
    generator.fresh(data, out)


def teach(data: Path, out: Path) -> None:
    """Caption what the generator learns, in several wordings, and write it down as a data set: ten minutes."""
    teaching.teach(data, out)
    teaching.shrink(data, out)


STAGES: dict[str, Callable[[Path, Path], object]] = {
    "flickr-features": flickr_features,
    "imagenette-features": imagenette_features,
    "captioner": captioner,
    "quality": captions_quality,
    "autoencoder": autoencoder,
    "fresh": fresh,
    "teach": teach,
    "generators": table.generators,
    "told": table.told,
    "sets": table.sets,
    "readings": table.readings,
    "classifiers": table.classifiers,
    "table": table.table,
}
"""In their order: what each does is said by its function."""


def main() -> None:
    """Run the stages that are asked for, or all in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", action="append", choices=[*STAGES], help="this one; may be given several times")
    parser.add_argument("--rehearse", action="store_true", help="everything tiny; what comes out means nothing")
    words = parser.parse_args()
    if words.rehearse:
        settings.rehearse()
    for name in words.stage or STAGES:
        print(f"--- {name}", file=sys.stderr, flush=True)
        STAGES[name](words.data.resolve(), words.out.resolve())


if __name__ == "__main__":
    main()
