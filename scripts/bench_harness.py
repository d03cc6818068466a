#!/usr/bin/env python
"""What everything around the models costs: ours against a plain `pipe(prompts)` loop, with models of zero cost.

    python scripts/bench_harness.py

UNet, autoencoder and text encoder answer at once, with what they were given or with one picture, at 512 px in float32.
Both arms write the same JPEG bytes and the same metadata: the plain loop as files and JSON lines, ours as Parquet
shards with sidecars. A third one is ours without the mark in each image. Turns go there and back, with ours twice in
each as control; the last line is one JSON object.

`blocked` is the time of the main thread, per image, that no model call takes: what a device would have to wait. It is
measured against a device that takes 20 ms an image (an H200's floor is 44 ms at 20 steps), because for a device of zero
cost nobody has to wait: the encoders are then the slowest part.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from benchmarks.budget import Budget
from benchmarks.image_arms import Ours, Plain, Setting
from benchmarks.measuring import CONTROL, Comparison, Race, Watched, ratio, say
from full_size_models import save_stable_diffusion
from PIL import Image

from hfsyn.images.generator import Generated
from hfsyn.recipes.recipe import Recipe
from hfsyn.runs.options import WorkOptions

AIM_RATIO, AIM_BLOCKED_MS, AIM_MARK = 2.5, 1.0, 1.02
SIZE, STEPS = 512, 20
SHARD_BATCHES = 8
"""In use a shard has 1000 rows; here it must fit several times into a turn."""


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as temporary:  # noqa: S108
        folder = Path(temporary)
        model = folder / "model"
        save_stable_diffusion(model, size="tiny")
        setting = Setting(STEPS, "dpm++", 2.0)
        plain = PlainWithMetadata(model, setting, "cpu", folder, batch=options.batch_size, dtype=torch.float32)
        ours = Ours(model, setting, "cpu", folder, batch=options.batch_size, dtype="float32", options=WorkOptions())
        bare = Unmarked(model, setting, "cpu", folder, batch=options.batch_size, dtype="float32", options=WorkOptions())
        for arm in (ours, bare):
            arm.unit = options.batch_size * SHARD_BATCHES
        for pipe in (plain._pipe, ours.generator._pipe, bare.generator._pipe):
            stub(pipe, options.batch_size)
        race = Race(
            [plain, bare, ours], rounds=options.rounds, seconds=options.seconds, window=1.0, device="cpu", say=say
        )
        race.warm()
        race.run(Budget(None))
        found = race.found
        paced = Paced(ours, options.pace)
        blocked = paced.blocked_ms(options.seconds / 2)
    gain = found.ratios()["ours / plain"]
    control = found.ratios()["ours / again"]
    growth = cpu_growth(found)
    cpu = {name: figures["cpu_seconds_per_image"] * 1000 for name, figures in found.figures().items()}
    say(f"plain {1000 / found.figures()['plain']['images_per_second']:.2f} ms an image, {cpu['plain']:.2f} ms of CPU")
    say(f"ours  {1000 / found.figures()['ours']['images_per_second']:.2f} ms an image, {cpu['ours']:.2f} ms of CPU")
    say(f"ratio {gain['ratio']} ({gain['low']} to {gain['high']}), aim {AIM_RATIO}; control {control['ratio']}")
    say(f"mark  {growth['ratio']} of the CPU time without ({growth['low']} to {growth['high']}), aim {AIM_MARK}")
    say(f"blocked {blocked:.2f} ms an image with a device of {options.pace} ms, aim at most {AIM_BLOCKED_MS}")
    print(
        json.dumps(
            {
                "ratio": gain,
                "control": control,
                "aim_ratio": AIM_RATIO,
                "mark_cpu": growth,
                "aim_mark_cpu": AIM_MARK,
                "blocked_ms": round(blocked, 3),
                "aim_blocked_ms": AIM_BLOCKED_MS,
                "pace_ms": options.pace,
                "size": SIZE,
                "steps": STEPS,
                "batch_size": options.batch_size,
                "cpu_ms_per_image": {k: round(v, 2) for k, v in cpu.items()},
                "ok": gain["ratio"] >= AIM_RATIO and blocked <= AIM_BLOCKED_MS and not found.void,
            }
        )
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each arm [5]")
    parser.add_argument("--seconds", type=float, default=20.0, help="that each arm works in all [20]")
    parser.add_argument("--batch-size", type=int, default=16, help="[16]")
    parser.add_argument("--pace", type=float, default=20.0, help="ms an image of the device that is waited for [20]")
    return parser.parse_args()


def picture() -> np.ndarray:
    """Smooth shades with some noise: about 150 KB as JPEG, like a photograph of 512 px."""
    chance = np.random.default_rng(0)
    shades = Image.fromarray(chance.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    large = np.asarray(shades.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64)
    return np.clip(large + chance.normal(0, 2.5, large.shape), 0, 255)


def stub(pipe: Any, batch: int) -> None:
    """Let the three networks answer at once, at 512 px."""
    pipe.unet.register_to_config(sample_size=SIZE // 8)
    pipe.register_to_config(requires_safety_checker=False)
    pipe.unet.forward = lambda sample, *args, **kwargs: (sample,)
    width = pipe.text_encoder.config.hidden_size
    states = torch.zeros(batch, 77, width, dtype=pipe.unet.dtype)
    pipe.text_encoder.forward = lambda ids, *args, **kwargs: (states[: len(ids)],)
    image = torch.from_numpy(picture() / 127.5 - 1).permute(2, 0, 1).to(pipe.unet.dtype)
    images = image.expand(batch, 3, SIZE, SIZE).contiguous()
    pipe.vae.decode = lambda latents, *args, **kwargs: (images[: len(latents)],)


class Unmarked(Ours):
    """Ours, without an XMP packet in each image."""

    name = "unmarked"

    def recipe(self, images: int, **generate: Any) -> Recipe:
        """See `Ours`."""
        return super().recipe(images, **generate).with_fields("store", mark=False)


def cpu_growth(found: Comparison) -> dict[str, float]:
    """CPU time an image with the mark over that without it; with it there are two turns a round, of which the mean."""
    bare, ours, again = (
        [turn.cpu_seconds / turn.images for turn in found.turns[name]] for name in ("unmarked", "ours", CONTROL)
    )
    return ratio(((first + second) / 2, one) for one, first, second in zip(bare, ours, again, strict=True))


class PlainWithMetadata(Plain):
    """The plain loop, with one line of metadata an image."""

    def work(self, images: int) -> int:
        """See `Arm`."""
        place = self._begin()
        prompts = self._prompts.take(images)
        with (place / "metadata.jsonl").open("w") as metadata:
            for first in range(0, images, self.unit):
                some = prompts[first : first + self.unit]
                seeds = list(range(first, first + len(some)))
                out = self._pipe(
                    some,
                    generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                    num_inference_steps=self._setting.steps,
                    guidance_scale=self._setting.guidance,
                )
                for seed, prompt, image in zip(seeds, some, out.images, strict=True):
                    name = f"{seed:05d}.jpg"
                    image.save(place / name, quality=96, subsampling=0)
                    metadata.write(json.dumps({"file_name": name, "prompt": prompt, "seed": seed}) + "\n")
        return len(list(place.glob("*.jpg")))

    def watched(self) -> Sequence[Watched]:
        """Nothing: the stubs cost nothing."""
        return ()


class Paced:
    """Ours on a device that takes its time without using the CPU."""

    def __init__(self, ours: Ours, pace_ms: float) -> None:
        self._ours, self._pace = ours, pace_ms / 1000
        self._free = 0.0

    def blocked_ms(self, seconds: float) -> float:
        """Milliseconds an image for which the device had nothing to do, over some seconds of its work."""
        shards = max(4, round(seconds / self._pace / self._ours.unit))
        images = shards * self._ours.unit
        self._ours.prepare(images)
        inner = self._ours.generator
        began = time.perf_counter()
        self._ours.generator = _Device(inner, self._pace)  # type: ignore[assignment]
        try:
            self._ours.work(images)
        finally:
            self._ours.generator = inner
        seconds = time.perf_counter() - began
        self._ours.clear()
        return (seconds - images * self._pace) / images * 1000


class _Device:
    """A queue in which each batch takes its time after the one before; start does not wait for it."""

    def __init__(self, inner: Any, pace: float) -> None:
        self._inner, self._pace, self._free = inner, pace, 0.0
        self.tuning = inner.tuning

    def start(self, prompts: Sequence[str], seeds: Sequence[int], size: int) -> Callable[[], list[Generated]]:
        pending = self._inner.start(prompts, seeds, size)
        self._free = max(self._free, time.perf_counter()) + size * self._pace
        ready = self._free

        def settle() -> list[Generated]:
            time.sleep(max(0.0, ready - time.perf_counter()))
            return list(pending())

        return settle

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        return list(self._inner.count_tokens(prompts))

    @property
    def max_tokens(self) -> int:
        return int(self._inner.max_tokens)


if __name__ == "__main__":
    main()
