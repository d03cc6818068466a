#!/usr/bin/env python
"""Ours against a plain `pipe(prompts)` loop with the small trained models on a CPU, everything written by both.

    python scripts/bench_small.py

Here the models take nearly all the time, so that the ratio can only be 1; what is asked is that all that ours does
beside (plan, seeds, checks, encoding, shards, sidecars) costs nothing: wall time over the time inside the networks.
Counted too: UNet rows an image and step. Turns go A B C, C B A (C is ours again,
as control); the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from benchmarks.budget import Budget
from benchmarks.image_arms import Ours, Plain, Setting
from benchmarks.measuring import Race, say

from hfsyn.models.finding import locate
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.options import WorkOptions

AIM_RATIO, AIM_OVERHEAD = 1.0, 1.02


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    part = load_recipe("shapes-cip").generate
    model = Path(locate("builtin", "generator"))
    setting = Setting(part.steps, "default", part.guidance_scale)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plain = Plain(model, setting, "cpu", folder, batch=part.batch_size, dtype=torch.float32)
        ours = Ours(model, setting, "cpu", folder, batch=part.batch_size, dtype="float32", options=WorkOptions())
        ours.unit = part.batch_size * options.shard_batches
        race = Race([plain, ours], rounds=options.rounds, seconds=options.seconds, window=1.0, device="cpu", say=say)
        race.warm()
        race.run(Budget(None))
        for arm in (plain, ours):
            race.look(arm.name)
        found = race.found
        ratio, control = found.ratios()["ours / plain"], found.ratios()["ours / again"]
        look = found.looks["ours"]
        overhead = 1 / look.busy
        rows = look.rows["unet"] / part.steps
    say(f"ratio {ratio['ratio']} ({ratio['low']} to {ratio['high']}), aim {AIM_RATIO}; control {control['ratio']}")
    say(f"wall over time in the networks {overhead:.4f}, aim at most {AIM_OVERHEAD}; plain {plain_overhead(found):.4f}")
    say(f"UNet rows an image and step {rows:.4f}")
    print(
        json.dumps(
            {
                "ratio": ratio,
                "control": control,
                "aim_ratio": AIM_RATIO,
                "overhead": round(overhead, 4),
                "plain_overhead": round(plain_overhead(found), 4),
                "aim_overhead": AIM_OVERHEAD,
                "unet_rows_per_image_and_step": rows,
                "images_per_second": {k: v["images_per_second"] for k, v in found.figures().items()},
                "ok": ratio["ratio"] >= AIM_RATIO and overhead <= AIM_OVERHEAD and rows == 2 and not found.void,
            }
        )
    )


def plain_overhead(found: Any) -> float:
    """Wall time over the time in the networks of the plain loop."""
    return 1 / float(found.looks["plain"].busy)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each arm [7]")
    parser.add_argument("--seconds", type=float, default=50.0, help="that each arm works in all [50]")
    parser.add_argument("--shard-batches", type=int, default=4, help="batches a shard; 6 or 7 in use [4]")
    return parser.parse_args()


if __name__ == "__main__":
    main()
