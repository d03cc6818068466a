#!/usr/bin/env python
"""Whether memory grows with the number of images: peak RSS of a stage at 10,000 images over that at 1,000.

    python scripts/bench_memory.py

Each figure is of a process of its own (the kernel's high-water mark); those of one kind differ by up to 3 %, by how
threads meet in their allocators: there are several, interleaved, and medians are compared. Models are stubs, all
else is real: images of 512 px are encoded, written into shards of 100 rows and hashed. `caption` reads and describes
half as many drawn images, of which each gives two. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

AIM = 1.02
STAGES = ("caption", "plan", "generate", "finish")


def main() -> None:
    options = parse_options()
    if options.run:
        print(json.dumps(one(options.run, options.images[0], options.stage)))
        return
    stages = STAGES[: STAGES.index(options.until) + 1]
    few, many = options.images[0], options.images[-1]
    peaks: dict[str, dict[int, list[float]]] = {stage: {few: [], many: []} for stage in stages}
    for number in range(options.rounds):
        for images in (few, many) if number % 2 == 0 else (many, few):
            with tempfile.TemporaryDirectory() as temporary:
                for stage in stages:
                    command = [sys.executable, __file__, "--run", temporary, "--stage", stage, "--images", str(images)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    figures = json.loads(done.stdout.splitlines()[-1])
                    peaks[stage][images].append(figures["peak_mb"])
                    print(
                        f"{stage:9} {images:6} images: {figures['peak_mb']:.0f} MB, {figures['seconds']:.0f} s",
                        flush=True,
                    )
    ratios = {}
    for stage, found in peaks.items():
        ratios[stage] = round(statistics.median(found[many]) / statistics.median(found[few]), 4)
        spread = f"{min(found[many]) / max(found[few]):.3f} to {max(found[many]) / min(found[few]):.3f}"
        print(f"{stage:9} ratio {ratios[stage]} of medians ({spread} of single processes), aim at most {AIM}")
    result = {"images": [few, many], "peak_mb": peaks, "ratios": ratios, "aim": AIM, "ok": max(ratios.values()) <= AIM}
    print(json.dumps(result))


def one(folder: str, images: int, stage: str) -> dict[str, float]:
    """Carry out one stage in this process; its peak memory in MB and its seconds."""
    import numpy as np
    import torch
    from benchmarks.image_arms import words
    from PIL import Image

    from hfsyn.making.captioning import caption
    from hfsyn.making.generating import generate
    from hfsyn.making.generator import Generated
    from hfsyn.making.manifest import finish
    from hfsyn.making.planning import write_plan
    from hfsyn.making.recipe import load_recipe
    from hfsyn.making.runs import load_run, prepare

    torch.set_num_threads(1)
    classes = 10
    changes = {
        "source.limit_per_class": images // classes // 2, "prompt.images_per_caption": 2,
        "store.shard_rows": 100, "store.format": "jpeg",
        "generate.batch_size": 16, "caption.batch_size": 32,
    }  # fmt: skip

    class Captions:
        def __init__(self) -> None:
            self.number = 0

        def caption(self, pictures: list[Image.Image], **_: object) -> list[str]:
            self.number += len(pictures)
            return [words(self.number + i) for i in range(len(pictures))]

    class Images:
        max_tokens = 77

        def __init__(self) -> None:
            chance = np.random.default_rng(0)
            shades = Image.fromarray(chance.integers(0, 256, (24, 24, 3), dtype=np.uint8))
            self.picture = np.asarray(shades.resize((512, 512), Image.Resampling.BICUBIC))

        def start(self, prompts: list[str], seeds: list[int], size: int) -> object:
            # Each a picture of its own in memory, as from a model.
            return lambda: [Generated(np.roll(self.picture, seed % 512, axis=0)) for seed in seeds]

        def count_tokens(self, prompts: list[str]) -> list[int]:
            return [len(prompt.split()) for prompt in prompts]

    began = time.monotonic()
    run = Path(folder) / "run"
    if stage == "caption":
        prepared = prepare(load_recipe("shapes-cip", [f"{k}={v}" for k, v in changes.items()]), run)
        assert prepared.source_rows * 2 == images, prepared.source_rows
        caption(prepared, captioner=Captions(), quiet=True)  # type: ignore[arg-type]
    elif stage == "plan":
        write_plan(load_run(run))
    elif stage == "generate":
        generate(load_run(run), generator=Images(), quiet=True)  # type: ignore[arg-type]
    else:
        finish(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"peak_mb": peak, "seconds": time.monotonic() - began}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000], help="few and many [1000 10000]")
    parser.add_argument("--rounds", type=int, default=3, help="processes of either number and stage [3]")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage [finish]")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
