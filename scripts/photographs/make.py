#!/usr/bin/env python
"""ImageNette from photographs to table, stage by stage; a stage that was stopped goes on where it was.

    python scripts/photographs/make.py --data DIR --out OUT --stage features

DIR holds `imagenette-128` and `flickr8k-128`; see scripts/photographs/README.md, which tells what comes out.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.photographs import settings


def _part(name: str) -> Any:
    """A module beside this one, loaded when it is needed: torch and timm take seconds."""
    return importlib.import_module(f"scripts.photographs.{name}")


def flickr_features(data: Path, out: Path) -> None:
    """EfficientNet-Lite0's features of Flickr8k's photographs and their mirror images: six minutes."""
    _part("features").make(_part("photographs").flickr(data), out / "features" / "flickr", mirrored=True)


def imagenette_features(data: Path, out: Path) -> None:
    """EfficientNet-Lite0's features of ImageNette's training photographs: four minutes."""
    _part("features").make(
        _part("photographs").imagenette(data, "train"), out / "features" / "imagenette", mirrored=False
    )


def captioner(data: Path, out: Path) -> None:
    """Train the captioner: an hour of one core."""
    _part("train_captioner").train(data, out)


def captions_quality(data: Path, out: Path) -> None:
    """Measure the captions on 1,000 photographs of Flickr8k, and by nouns on ImageNette's last third."""
    _part("quality").measure(data, out)


def autoencoder(data: Path, out: Path) -> None:
    """Make the generator's autoencoder, and train its decoder: three minutes."""
    _part("generator").autoencoder(data, out)


def fresh(data: Path, out: Path) -> None:
    """Pre-train the generator's text encoder, and write the pipeline with a random UNet: ten minutes."""
    _part("generator").fresh(data, out)


def teach(data: Path, out: Path) -> None:
    """Caption what the generator learns, in several wordings, and write it down as a data set: ten minutes."""
    _part("teaching").teach(data, out)
    _part("teaching").shrink(data, out)


def _of_table(name: str) -> Callable[[Path, Path], object]:
    return lambda data, out: getattr(_part("table"), name)(data, out)


STAGES: dict[str, Callable[[Path, Path], object]] = {
    "flickr-features": flickr_features,
    "imagenette-features": imagenette_features,
    "captioner": captioner,
    "quality": captions_quality,
    "autoencoder": autoencoder,
    "fresh": fresh,
    "teach": teach,
    "generators": _of_table("generators"),
    "told": _of_table("told"),
    "sets": _of_table("sets"),
    "readings": _of_table("readings"),
    "classifiers": _of_table("classifiers"),
    "table": _of_table("table"),
}
"""In their order: what each does is said by its function, of the last six in `table`."""


def main() -> None:
    """Run the stages that are asked for, or all in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", action="append", choices=[*STAGES], help="this one; may be given several times")
    parser.add_argument("--rehearse", action="store_true", help="everything tiny; what comes out means nothing")
    words = parser.parse_args()
    out = words.out.resolve()
    if words.rehearse:
        settings.rehearse()
        out = out / "rehearsal"  # nothing of it may be taken for the real one
    for name in words.stage or STAGES:
        print(f"--- {name}", file=sys.stderr, flush=True)
        STAGES[name](words.data.resolve(), out)


if __name__ == "__main__":
    main()
