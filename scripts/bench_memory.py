#!/usr/bin/env python
"""Whether memory grows with the number of images: peak RSS of a stage at 10,000 images over that at 1,000.

    python scripts/bench_memory.py
    python scripts/bench_memory.py --photos [100]

Each figure is of a process of its own (the kernel's high-water mark); those of one kind differ by up to 3 %, by how
threads meet in their allocators: there are several, interleaved, and medians are compared. Models are stubs, all
else is real: images of 512 px are encoded, written into shards of 100 rows and hashed. `caption` reads and describes
half as many drawn images, of which each gives two. The last line is one JSON object.

With --photos: the peak of one process that builds a dataset from photographs of 12 megapixels (drawn here) by the
recipe shapes-cip with the models that come with hfsyn, and whether each photograph's caption is the one that it gets
alone. The aim is 1.2 GB, of which the libraries and the small models take 1.0 where torch is built for CUDA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

AIM = 1.02
PHOTOS_AIM = 1200
"""MB"""
STAGES = ("caption", "plan", "generate", "finish")


def main() -> None:
    options = parse_options()
    if options.photos:
        photographs(options)
        return
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


def one(folder: str, images: int, stage: str) -> dict[str, object]:
    """Carry out one stage in this process; its peak memory in MB and its seconds."""
    import numpy as np
    import torch
    from benchmarks.image_arms import words
    from PIL import Image

    from hfsyn.captions.caption_stage import caption
    from hfsyn.images.generate_stage import generate
    from hfsyn.images.generator import Generated
    from hfsyn.recipes.recipe import load_recipe
    from hfsyn.runs.finish import finish
    from hfsyn.runs.prepare import prepare
    from hfsyn.runs.run import load_run
    from hfsyn.runs.stage import write_plan

    torch.set_num_threads(1)
    classes = 10
    changes = {
        "source.limit_per_class": images // classes // 2,
        "prompt.images_per_caption": 2,
        "store.shard_rows": 100,
        "store.format": "jpeg",
        "generate.batch_size": 16,
        "caption.batch_size": 32,
    }

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
    return used(began)


def photographs(options: argparse.Namespace) -> None:
    """The peak of a build from photographs, and its captions beside those of one image at a time."""
    if options.stage:
        print(json.dumps(built(Path(options.run)) if options.stage == "build" else alone(Path(options.run))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        draw_photographs(Path(temporary) / "photos", options.photos)
        found = {}
        for stage in ("build", "alone"):
            command = [sys.executable, __file__, "--photos", "1", "--run", temporary, "--stage", stage]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[stage] = json.loads(done.stdout.splitlines()[-1])
            print(f"{stage}: {found[stage]['peak_mb']:.0f} MB, {found[stage]['seconds']:.0f} s", flush=True)
    captions = found["build"]["captions"]
    equal = captions == found["alone"]["captions"]
    print(f"{len(captions)} captions, {len(set(captions.values()))} of them different; equal: {equal}")
    peak = found["build"]["peak_mb"]
    ok = equal and len(captions) == options.photos and peak <= PHOTOS_AIM
    print(json.dumps({"photos": options.photos, "peak_mb": peak, "aim": PHOTOS_AIM, "equal": equal, "ok": ok}))


def draw_photographs(folder: Path, count: int) -> None:
    """JPEG files of 4000 x 3000 pixels, a few megabytes each, in two class folders."""
    import numpy as np
    from PIL import Image

    chance = np.random.default_rng(0)
    noise = chance.integers(0, 40, (3000, 4000, 3), dtype=np.uint8)
    for number in range(count):
        shades = Image.fromarray(chance.integers(0, 216, (5, 7, 3), dtype=np.uint8))
        picture = np.asarray(shades.resize((4000, 3000), Image.Resampling.BICUBIC).point(lambda v: min(v, 215)))
        path = folder / ("circle", "square")[number % 2] / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture + np.roll(noise, 97 * number, axis=0)).save(path, quality=88)


def built(folder: Path) -> dict[str, object]:
    """Build a dataset from the photographs in this process."""
    import pyarrow.parquet as pq

    from builders.sources.new_class_map import new_variant
    from hfsyn.cli import main as command

    began = time.monotonic()
    class_map = new_variant("photos", str(folder / "photos"), out=folder / "photos.yaml")
    words = ["build", "shapes-cip", "--out", str(folder / "run"), "--num-processes", "1", "-q"]
    try:
        command([*words, "--set", f"source.variant={class_map}", "--set", "generate.steps=1"])
    except SystemExit as end:
        if end.code:
            raise
    shards = sorted((folder / "run" / "captions").glob("*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard, columns=["source_id", "caption"]).to_pylist()]
    return {**used(began), "captions": {row["source_id"].split("/")[1]: row["caption"] for row in rows}}


def alone(folder: Path) -> dict[str, object]:
    """The caption of each photograph by itself."""
    from builders.images.decoding import decode_rgb
    from hfsyn.captions.captioner import TransformersCaptioner
    from hfsyn.runs.run import load_run

    began = time.monotonic()
    part = load_run(folder / "run").recipe.caption
    assert part is not None
    captioner = TransformersCaptioner(part, "cpu")
    files = sorted((folder / "photos").rglob("*.jpg"))
    captions = {file.name: captioner.caption([decode_rgb(file.read_bytes())])[0] for file in files}
    return {**used(began), "captions": captions}


def used(began: float) -> dict[str, object]:
    """The peak memory of this process in MB, and the seconds since."""
    # Not what getrusage says: that counts what the process was before it became this program.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    return {"peak_mb": peak, "seconds": time.monotonic() - began}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000], help="few and many [1000 10000]")
    parser.add_argument("--rounds", type=int, default=3, help="processes of either number and stage [3]")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage [finish]")
    parser.add_argument("--photos", type=int, nargs="?", const=100, help="build from this many large photographs [100]")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=(*STAGES, "build", "alone"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
