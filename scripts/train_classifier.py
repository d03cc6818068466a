#!/usr/bin/env python
"""Train a timm classifier on images, real or synthetic, and test it on real ones.

    python scripts/train_classifier.py --train-dataset shapes --eval-dataset shapes --model test_resnet --out out/shapes
    accelerate launch scripts/train_classifier.py --train-dataset user/imagenette-cip@v1.0.0 \\
        --eval-dataset imagenette --model resnet50 --mixed-precision bf16 --out out/cip

Run again, the same command goes on from its last checkpoint. On CPUs accelerate starts several processes only as
``ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 scripts/train_classifier.py ...``.
The options are those of `hfsyn train` (hfsyn/commands/training.py); the loop is `hfsyn.judging.train.loop.train`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it also runs where hfsyn is not installed

from hfsyn.cli import run_command
from hfsyn.commands.options import quiet_option
from hfsyn.commands.training import GroupedCommand, report, training_options


@click.command(cls=GroupedCommand, context_settings={"help_option_names": ["-h", "--help"]})
@training_options
@quiet_option
def main(**words: Any) -> None:
    """Train a timm classifier on images, real or synthetic, and test it on real ones. Prints DIR."""
    from hfsyn import train
    from hfsyn.workers import current_worker, leave_group

    # 1. The recipe: a file or a shipped one, then --set, then the flags. It decides the weights, and is kept with them.
    # 2. The training: open the sets, match their classes, fit, keep the weights, test them. Every process calls it.
    result = train(**words, num_processes=1)

    # 3. What came out: one line for people, results.json for programs, and the Hub if it was asked for.
    if current_worker().is_main:
        report(result, words["out"], as_json=False, quiet=words["quiet"])
    leave_group()


if __name__ == "__main__":
    run_command(main, "train_classifier.py")
