"""What a loop would come to before anything is spent, and how far one is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builders.errors import and_more, hours_text, plural, size_text
from builders.runs import layout
from builders.yaml import load_file
from hfsyn.errors import HfsynError
from hfsyn.judging.bench.costs import BACKWARD, network_cost
from hfsyn.judging.measures.results import interval
from hfsyn.looping.loop import CURVE, curve_of
from hfsyn.looping.loop_file import LOOP, load_loop
from hfsyn.looping.opening import ordered
from hfsyn.looping.planning import part_text
from hfsyn.looping.policies import POLICIES, UNIFORM, asks_of
from hfsyn.looping.rounds import HOURS, MEASURED, PLAN, round_folder, runs_of
from hfsyn.outlook.costs import DEVICES, UTILISATION
from hfsyn.outlook.costs import hours as hours_of
from hfsyn.outlook.forecast import stored_bytes
from hfsyn.runs.status import status

_SHOWN_PARTS = 6
_COPIES = 3  # of the weights: the result, and a checkpoint with its moments


@dataclass(frozen=True)
class Standing:
    """How far a loop is."""

    out: Path
    policies: Sequence[str]
    """Names of their folders, the control last."""
    rounds: int
    """After the first one, at most."""
    curve: Sequence[Mapping[str, Any]]
    """Of what is done: see `hfsyn.loop`."""
    now: Sequence[str]
    """What the rounds that have begun are at, a line each."""
    stopped: Mapping[str, Any] | None
    """Why it ended: ``why``, ``rounds`` and ``said``; None if it has not."""
    seconds: Mapping[str, float]
    """Round -> seconds of work."""
    steer: str
    test: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "out": str(self.out), "finished": self.stopped is not None}

    def text(self) -> str:
        """For people; the last line is ``finished`` or ``unfinished``."""
        lines = [f"steered by {self.steer}, which is not the test; tested on {self.test}"]
        for one in self.curve:
            what = f"{one['policy']} {one['round']}"
            lines.append(f"{what:24}{plural(one['images'], 'image'):>14}  {interval(one['test'], percent=True)}")
        spent = ", ".join(f"{hours_text(some / 3600)} in round {number}" for number, some in self.seconds.items())
        lines += [*self.now, *([f"work: {spent}"] if spent else [])]
        return "\n".join([*lines, *([f"{self.stopped['said']}", "finished"] if self.stopped else ["unfinished"])])

    def done(self, policy: str) -> int:
        """How many rounds of a policy are done, with the first one."""
        return sum(one["policy"] == policy for one in self.curve)


def standing(out: str | Path) -> Standing:
    """How far a loop is, read from its folder alone, while others work in it."""
    folder = Path(out).expanduser()
    fields = load_file(folder / LOOP, "loop", "")
    names = [name if name in POLICIES else name.rpartition(":")[2] for name in fields["policy"]]
    policies = [*(name for name in names if name != UNIFORM), UNIFORM]
    seconds = json.loads((folder / HOURS).read_text(encoding="utf-8")) if (folder / HOURS).exists() else {}
    ended = json.loads((folder / CURVE).read_text(encoding="utf-8"))["stopped"] if (folder / CURVE).exists() else None
    now = [line for policy in policies for line in _at_work(folder, policy, fields["rounds"])]
    named = [(fields[key]["dataset"], fields[key]["split"]) for key in ("steer", "test")]
    steer, test = (f"{name} ({split})" if split else name for name, split in named)
    curve = curve_of(folder, policies)
    return Standing(folder, policies, fields["rounds"], curve, list(dict.fromkeys(now)), ended, seconds, steer, test)


def _at_work(out: Path, policy: str, rounds: int) -> list[str]:
    """What the round that has begun and is not done is at."""
    for number in range(rounds + 1):
        folder = round_folder(out, policy, number)
        if not folder.is_dir() or (folder / MEASURED).exists():
            continue
        what = "planned" if (folder / PLAN).exists() else "being planned"
        runs = [run for run in (*runs_of(folder), *folder.glob("drawn*")) if layout.is_run_folder(run)]
        if (folder / "training").is_dir():
            what = "training"
        elif runs and (left := [found for run in runs if not (found := status(run)).finished]):
            what = f"drawing, {left[0].stages[-1].rows} of {left[0].source_rows} images"
        return [f"{policy if number else 'the first round'}, round {number}: {what}"]
    return []


@dataclass(frozen=True)
class LoopForecast:
    """What a loop would come to."""

    policies: Sequence[str]
    rounds: Sequence[Mapping[str, Any]]
    """Of each policy and round the ``images`` that are drawn, those that are ``trained`` on, ``hours`` of one device of
    each kind for both, and the ``disk_bytes``.
    """
    union_bytes: int
    """Of the runs that hold the images of all rounds."""
    unknown: Sequence[str]
    """What has no known cost in hours."""
    plans: Mapping[str, Sequence[Mapping[str, Any]]]
    """Policy -> the parts that it plans when it is asked with made-up answers: see `hfsyn.looping.planning`."""
    remarks: Sequence[str]
    """What is left out, or is not as one would expect."""

    @property
    def disk_bytes(self) -> int:
        """Of all."""
        return sum(one["disk_bytes"] for one in self.rounds) + self.union_bytes

    @property
    def hours(self) -> dict[str, float]:
        """Of all, on one device of each kind."""
        devices = [device.name for device in DEVICES if all(device.name in one["hours"] for one in self.rounds)]
        return {name: round(sum(one["hours"][name] for one in self.rounds), 3) for name in devices}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "disk_bytes": self.disk_bytes, "hours": self.hours}

    def text(self) -> str:
        """For people."""
        shown = next(iter(self.hours), None)
        lines = []
        for one in self.rounds:
            times = f", {hours_text(one['hours'][shown])} on {shown}" if shown else ""
            what = f"{one['policy']} {one['round']}"
            images = f"{one['images']:,} drawn, {one['trained']:,} trained on"
            lines.append(f"{what:24}{images}{times}, {size_text(one['disk_bytes'])}")
        times = ", ".join(f"{hours_text(some)} on {device}" for device, some in self.hours.items())
        total = f"all: {sum(one['images'] for one in self.rounds):,} images, about {size_text(self.disk_bytes)}"
        of = f" (one device at {UTILISATION:.0%} of its peak)" if times else ""
        for name, parts in self.plans.items():
            some = "; ".join(part_text(part) for part in parts[:_SHOWN_PARTS])
            lines.append(f"{name}, asked with made-up answers: {some}{and_more(len(parts), _SHOWN_PARTS)}")
        missing = [f"hours are without {', '.join(self.unknown)}, whose cost is not known"] if self.unknown else []
        return "\n".join([*lines, *self.remarks, *missing, f"{total}; {times or 'hours are not known'}{of}"])


def forecast_loop(file: str) -> LoopForecast:
    """What a loop file would come to, by round; nothing is made. Raises HfsynError as `hfsyn.loop`."""
    order = ordered(load_loop(file))
    asked, recipe, config, sets = order.file, order.recipe, order.training, order.sets
    steered = len(sets["steer"]) + len(sets["test"])
    started = sum(map(len, sets.values())) - steered
    network = network_cost(config.model.name, config.model.image_size)
    if network is None:
        raise HfsynError(f"The network {config.model.name[:80]!r} cannot be made.", "`timm.list_models()` has those.")
    rounds, unknown = [], set()
    for number in range(asked.rounds + 1):
        for name, policy in order.policies.items() if number else [("first round", POLICIES[UNIFORM])]:
            images = sum(part["images"] * part["candidates"] for part in order.plans.get(name, order.plans[UNIFORM]))
            on = started + asked.images * (number + 1)
            points = config.test.record_points if "losses" in asks_of(policy) else 0
            passes = on * (BACKWARD * config.optimise.epochs + points) + steered
            drawing = hours_of(recipe, images, images)
            drawn = {device: found.total for device, found in drawing.items() if found.total is not None}
            if not drawn:
                unknown.add(f"the images of {recipe.generate.model}")
            times = {
                one.name: drawn.get(one.name, 0) + passes * network.tflop / (one.single * UTILISATION) / 3600
                for one in DEVICES
                if not drawn or one.name in drawn
            }
            kept = asked.images if images > asked.images else 0  # of the candidates
            disk = stored_bytes(recipe, images + kept) + _COPIES * network.bytes
            one = {"policy": name, "round": number, "images": images, "trained": on, "hours": times}
            rounds.append({**one, "disk_bytes": disk})
    unions = (len(order.policies) - 1) * stored_bytes(recipe, asked.images * (asked.rounds + 1))
    return LoopForecast(list(order.policies), rounds, unions, sorted(unknown), order.plans, order.remarks)
