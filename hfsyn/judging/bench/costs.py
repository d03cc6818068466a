"""What a matrix would cost: the runs that are not there yet, trainings and tests; in hours of one device, and disk.

Runs cost what `hfsyn plan` says. The arithmetic of a network is counted on torch's meta device, without weights; a
training step takes three times that of the forward pass (backwards each layer computes two products of the same size:
to its input and to its weights). Decoding and augmentation are assumed to keep up with the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from builders.errors import hours_text, plural, size_text
from hfsyn.errors import HfsynError
from hfsyn.judging.bench.matrix import Cell, Matrix, place
from hfsyn.judging.sets.references import without_weight
from hfsyn.outlook.costs import DEVICES, UTILISATION
from hfsyn.recipes.recipe import load_recipe

BACKWARD = 3
"""Arithmetic of a training step over that of its forward pass."""
_COPIES = 3  # of the weights, at most, that a training keeps: the result, and a checkpoint with one or two moments
_DTYPES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
Hours = dict[str, float]
"""Of one device, by its name."""


@dataclass(frozen=True)
class Unbuilt:
    """A run folder that an arm is trained on, that is not there, and that its recipe makes."""

    place: str
    recipe: str
    generator: str | None
    seed: int | None

    @property
    def command(self) -> str:
        """What makes it."""
        generator = f" --generator {self.generator}" if self.generator else ""
        seed = "" if self.seed is None else f" --seed {self.seed}"
        return f"hfsyn build {self.recipe}{generator}{seed} --out {self.place}"


def to_build(matrix: Matrix, wanted: Mapping[Cell, Any]) -> list[Unbuilt]:
    """The run folders that are missing, of arms that name their recipe."""
    found: dict[str, Unbuilt] = {}
    for cell in wanted:
        arm = matrix.arms[cell.arm]
        for text in arm.train if arm.recipe else ():
            there = without_weight(place(text, cell.seed, cell.variant))
            if not Path(there).expanduser().exists():
                recipe, seed = place(str(arm.recipe), cell.seed, cell.variant), cell.seed if "{seed}" in text else None
                found[there] = Unbuilt(there, recipe, arm.generator, seed)
    return list(found.values())


def costs(matrix: Matrix, jobs: Mapping[Cell, Any], sizes: Mapping[Any, int | None]) -> dict[str, Any]:
    """What is left to do of a matrix.

    Args:
        matrix: the matrix.
        jobs: what is left to do of each cell.
        sizes: as of `hfsyn.judging.bench.preflight.refuse_faults`.

    Returns:
        ``runs`` (each with ``place``, ``command``, ``images``, ``disk_bytes``, ``hours``), ``trainings`` (``count``,
        ``images``, ``hours``), ``tests`` (``count``, ``images``, ``hours``), ``hours`` and ``disk_bytes`` of all,
        ``unknown`` (networks and runs whose cost is not known), and the ``assumption``.
    """
    unknown: list[str] = []
    runs = [_run(one, unknown) for one in to_build(matrix, jobs)]
    made = {run["place"]: run["images"] for run in runs}
    trainings, tests = _Sum(), _Sum()
    disk = sum(run["disk_bytes"] or 0 for run in runs)
    for job in jobs.values():
        network = network_cost(job.config.model.name, job.config.model.image_size)
        data = job.config.data.model_dump_json()
        tested = [sizes.get((data, test)) or sizes.get(test) or 0 for test in job.tests.values()]
        tested += [sizes.get((words[w], words[f"{w}_split"])) or 0 for words in job.attacks.values() for w in _SIDES]
        if network is None:
            unknown.append(job.config.model.name)
            continue
        dtype = _DTYPES[job.config.optimise.mixed_precision]
        tests.add(sum(tested), network.tflop, "float32", len(tested))
        if not (job.folder / "training" / "results.json").is_file():
            each = _images(job.config, sizes, made)
            trainings.add(each * job.config.optimise.epochs, network.tflop * BACKWARD, dtype)
            disk += _COPIES * network.bytes
    parts = [*(run["hours"] for run in runs), trainings.hours, tests.hours]
    known = [found for found in parts if found]
    return {
        "runs": runs,
        "trainings": trainings.facts(),
        "tests": tests.facts(),
        "hours": {d.name: sum(f[d.name] for f in known) for d in DEVICES if all(d.name in f for f in known)},
        "disk_bytes": disk,
        "unknown": sorted(set(unknown)),
        "assumption": f"one device at {UTILISATION:.0%} of its peak; a training step is {BACKWARD} forward passes",
    }


_SIDES = ("members", "others")


def _images(config: Any, sizes: Mapping[Any, int | None], made: Mapping[str, int]) -> int:
    """Images of an epoch."""
    data = config.data
    if data.budget:
        return int(data.budget)
    known = sizes.get(data.model_dump_json())
    return known or sum(made.get(without_weight(text), 0) for text in data.train)


class _Sum:
    """Images and their hours on each device."""

    def __init__(self) -> None:
        self.count, self.images = 0, 0
        self.hours: Hours = {device.name: 0.0 for device in DEVICES}

    def add(self, images: int, tflop: float, dtype: str, count: int = 1) -> None:
        self.count, self.images = self.count + count, self.images + images
        for device in DEVICES:
            peak = device.peak(dtype)
            if peak is None:
                self.hours.pop(device.name, None)
            elif device.name in self.hours:
                self.hours[device.name] += tflop * images / (peak * UTILISATION) / 3600

    def facts(self) -> dict[str, Any]:
        hours = {name: round(found, 3) for name, found in self.hours.items()}
        return {"count": self.count, "images": self.images, "hours": hours}


def _run(one: Unbuilt, unknown: list[str]) -> dict[str, Any]:
    from hfsyn.outlook.forecast import forecast

    recipe = load_recipe(one.recipe, generator=one.generator)
    found = forecast(recipe)
    if not found.hours:
        unknown.append(one.place)
    about = {"images": found.images, "disk_bytes": found.disk_bytes, "hours": found.hours}
    return {"place": one.place, "command": one.command, **about}


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs."""

    tflop: float  # of one image's forward pass
    bytes: int  # of its weights in float32


@cache
def network_cost(name: str, image_size: int | None = None) -> NetworkCost | None:
    """What a network of timm costs at an image size (its own if None), counted; None if it cannot be made so."""
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device("meta"):
            own = timm.get_pretrained_cfg(name, allow_unregistered=True)
            fixed = {"img_size": image_size} if image_size and own is not None and own.fixed_input_size else {}
            network = timm.create_model(name, pretrained=False, **fixed).eval()
            size = image_size or network.pretrained_cfg["input_size"][-1]
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                network(torch.empty(1, 3, size, size))
    except (RuntimeError, ValueError, NotImplementedError, HfsynError):
        return None
    return NetworkCost(counter.get_total_flops() / 1e12, 4 * sum(p.numel() for p in network.parameters()))


def costs_text(found: Mapping[str, Any]) -> list[str]:
    """Lines about the costs, for a terminal."""

    def times(hours: Mapping[str, float]) -> str:
        return ", ".join(f"{hours_text(some)} on {device}" for device, some in hours.items()) or "not known"

    lines = []
    for run in found["runs"]:
        lines.append(f"to build: {run['images']:,} images, {size_text(run['disk_bytes'])}; {times(run['hours'])}")
        lines.append(f"  {run['command']}")
    for what, noun in (("trainings", "training"), ("tests", "test")):
        if (part := found[what])["count"]:
            lines.append(f"{plural(part['count'], noun)} of {part['images']:,} images: {times(part['hours'])}")
    lines.append(f"all: {times(found['hours'])} ({found['assumption']}); disk: about {size_text(found['disk_bytes'])}")
    if found["unknown"]:
        lines.append(f"not counted, since their cost is not known: {', '.join(found['unknown'])}")
    return lines
