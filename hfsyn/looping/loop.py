"""The closed loop: images that are planned by what the last classifier got wrong, a new classifier, and again.

    loop.yaml                    what was asked for, with what pins the policies, the recipe and the sets
    round-0/                     images of all kinds alike, the same for every policy
    POLICY/round-K/              a round of a policy, and of `uniform`, which always runs beside
        audit/                   of the last classifier, if the policy asks for one: its images are part of the round
        plan.json prompts.parquet run/       the plan, its prompts, and the run that draws them
        drawn/                   all candidates, if the policy keeps some of them: then `run` is a selection
        training/ measured.json              the classifier, and what it was measured to be
    POLICY/to-round-K/           the images of all rounds, as one run with a column `round`
    curve.json hours.json        what came out, and the seconds that each round took

A round depends on the loop file and on what was measured before it, and on nothing else. Each part is an ordinary run
or training folder, so the same command continues in the middle of any of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.errors import hours_text, plural, quoted
from builders.files import atomic_text
from builders.runs import layout
from builders.stores.copies import on_disk
from builders.yaml import dump, load_file
from hfsyn.errors import HfsynError, make_out
from hfsyn.judging.measures.metrics import paired_difference
from hfsyn.judging.measures.results import Result, interval, row
from hfsyn.judging.steering import pin_entropy
from hfsyn.looping.loop_file import FREE, LOOP, load_loop
from hfsyn.looping.opening import Order, ordered
from hfsyn.looping.policies import UNIFORM
from hfsyn.looping.rounds import HOURS, Clock, Looping, carry_out, measured_in, round_folder
from hfsyn.looping.union import unite
from hfsyn.models.loras import pin_lora
from hfsyn.progress import teller
from hfsyn.recipes.recipe import GeneratePart, Recipe
from hfsyn.rules import seed_of
from hfsyn.runs.claims import lock
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.pins import pin_generator

CURVE = "curve.json"
_ENDED = {"images": "budget of images", "hours": "budget of hours", "without_gain": "no gain", "rounds": "all rounds"}


class Curve(Result):
    """What `loop` found: ``curve``, a line for each policy and round, ``stopped``, ``unions`` and ``out``."""

    def rows(self) -> list[dict[str, str]]:
        """A line for each policy and round."""
        return [
            row(
                f"{one['policy']} {one['round']}",
                interval(one["test"], percent=True),
                plural(one["images"], "image") + ("" if one["over"] is None else f", {gain_text(one['over'])}"),
            )
            for one in self["curve"]
        ]

    def title(self) -> str:
        """What the numbers are."""
        return "accuracy on the test, by policy and round"

    def remarks(self) -> list[str]:
        """Why it ended, and what the intervals are of."""
        of = "intervals are of the test's images, not of other seeds"
        return [*([self["stopped"]["said"]] if self["stopped"] else []), of]


def gain_text(over: Mapping[str, Any]) -> str:
    """``+2.1 points [-0.3, +4.5] over uniform``."""
    ends = "" if over["low"] is None else f" [{100 * over['low']:+.1f}, {100 * over['high']:+.1f}]"
    return f"{100 * over['mean']:+.1f} points{ends} over {UNIFORM}"


def loop(file: str, out: str | Path, options: WorkOptions) -> Curve:
    """See `hfsyn.api.looping.loop`, whose arguments and errors these are."""
    folder = on_disk(out).resolve()
    order, tell = ordered(load_loop(file)), teller(options.quiet)
    for remark in order.remarks:
        tell(remark)
    draw = _generator(order.recipe, folder)
    make_out(folder)
    if _there(folder) is None and any(path.name != layout.LOCKS for path in folder.iterdir()):
        raise HfsynError(f"{folder} holds something else.", "Name an empty or new folder for --out.")
    with lock(folder, "loop", wait=False) as held:
        if not held:
            said = f"Another process is at work in the loop {folder}."
            raise HfsynError(said, f"Wait for it, or end it; `hfsyn status {folder}` shows how far it is.")
        return _looped(_opened(order, draw, folder, options), tell)


def _looped(opened: Looping, tell: Callable[[str], None]) -> Curve:
    """Carry out what is missing of a loop."""
    number, stopped = 0, None
    while stopped is None:
        for policy in opened.policies:
            new = measured_in(opened.folder(policy, number)) is None
            found = carry_out(opened, policy, number)
            if new:
                tell(f"{policy}, round {number}: {interval(found['test_top1'], percent=True)}")
        number += 1
        stopped = _stopped(opened, number)
        _write(opened.out, list(opened.policies), None)
    steered = [name for name in opened.policies if name != UNIFORM] or [UNIFORM]
    unions = {name: str(unite(opened, name, number)) for name in steered}
    return Curve({**_write(opened.out, list(opened.policies), stopped), "unions": unions, "out": str(opened.out)})


def _write(out: Path, policies: Sequence[str], stopped: Mapping[str, Any] | None) -> dict[str, Any]:
    """Write the curve, and return it."""
    found = {"curve": curve_of(out, policies), "stopped": stopped}
    atomic_text(out / CURVE, json.dumps(found, indent=1) + "\n")
    return found


def curve_of(out: Path, policies: Sequence[str]) -> list[dict[str, Any]]:
    """Of each policy and round that is done the images so far, the accuracies, the weights, and the gain over the
    control on the same images of the test.
    """
    found = []
    for policy in policies:
        images, number = 0, 0
        while (here := measured_in(round_folder(out, policy, number))) is not None:
            images += here["images"]
            beside = measured_in(round_folder(out, UNIFORM, number)) if policy != UNIFORM and number else None
            line = {"policy": policy, "round": number, "images": images, "weights": here["weights"]}
            over = None if beside is None else gain(here["test_right"], beside["test_right"])
            found.append({**line, "test": here["test_top1"], "steer": here["steer_top1"], "over": over})
            number += 1
    return found


def gain(here: str, there: str) -> dict[str, Any]:
    """The mean difference of right answers on the same images, with its interval over these."""
    return paired_difference([float(one) for one in here], [float(one) for one in there])


def _stopped(opened: Looping, number: int) -> dict[str, Any] | None:
    """Why the loop has ended before a round of this number; None if it has not, as for each that is done."""
    file, stop, seconds = opened.file, opened.file.stop, opened.clock.seconds
    why, said = "", ""
    if all(measured_in(opened.folder(name, number)) is not None for name in opened.policies):
        return None  # it is done, whatever was lowered since
    if number > file.rounds:
        why, said = "rounds", f"Done: {plural(number - 1, 'round')} after the first."
    elif stop.images is not None and (number + 1) * file.images > stop.images:
        why = "images"
        said = f"The budget of {plural(stop.images, 'image')} has no room for another round of {file.images}."
    elif stop.without_gain is not None and (told := _no_gain(opened, number - 1, stop.without_gain)):
        why, said = "without_gain", told
    elif stop.hours is not None and not any(opened.folder(name, number).exists() for name in opened.policies):
        spent, longest = sum(seconds.values()), max(seconds.values(), default=0.0)
        if spent + longest > 3600 * stop.hours:
            why = "hours"
            said = f"The budget of {stop.hours:g} hours has no room for another round of {hours_text(longest / 3600)}."
    return {"why": _ENDED[why], "rounds": number - 1, "said": said} if why else None


def _no_gain(opened: Looping, last: int, rounds: int) -> str:
    """A sentence if no policy has gained anything over that many rounds; empty if one has, or too few are done."""
    told = []
    for name in opened.policies if last >= rounds else ():
        then, now = (measured_in(opened.folder(name, number)) or {} for number in (last - rounds, last))
        found = gain(now["steer_right"], then["steer_right"])
        told += [(name, found)] if name != UNIFORM or len(opened.policies) == 1 else []
    if not told or any(found["low"] is None or found["low"] > 0 for _, found in told):
        return ""
    ends = (f"{name} {100 * f['mean']:+.1f} points [{100 * f['low']:+.1f}, {100 * f['high']:+.1f}]" for name, f in told)
    return f"The last {plural(rounds, 'round')} gained nothing on the images that steer: {', '.join(ends)}."


# --- opening ----------------------------------------------------------------------------------------------------------


def _opened(order: Order, draw: GeneratePart, out: Path, options: WorkOptions) -> Looping:
    """The loop that was checked, its folder ready."""
    file, there = order.file, _there(out)
    recipe = order.recipe.model_copy(update={"seed": seed_of(file.seed, "images") % 2**31, "generate": draw})
    place = Path(there.get("place", out)) if there else out
    if place.resolve() != out:
        said = f"{out} is a loop that began in {place}, which its runs and trainings name."
        raise HfsynError(said, f"Move it back there, or put a link there: ln -s {out} {place}")
    more = {"pins": order.pins, "generate": draw.model_dump(), "place": str(place)}
    _begin(out, {**json.loads(file.model_dump_json()), **more}, there)
    return Looping(place, file, recipe, order.axes, order.policies, options, Clock(out / HOURS))


def _there(out: Path) -> dict[str, Any] | None:
    """What a loop that is there began with."""
    return load_file(out / LOOP, "loop", "") if (out / LOOP).exists() else None


def _generator(recipe: Recipe, out: Path) -> GeneratePart:
    """Who draws, and what guides it, as the loop began with them. Raises HfsynError if they are not there."""
    if "generate" in (there := _there(out) or {}):
        stored = recipe.model_copy(update={"generate": GeneratePart.model_validate(there["generate"])})
        pin_entropy(stored)
        return stored.generate
    return pin_lora(pin_entropy(pin_generator(recipe)).generate)


def _begin(out: Path, fields: dict[str, Any], there: Mapping[str, Any] | None) -> None:
    """Write what was asked for, or compare it with what is there."""
    if there is not None:
        for key in (key for key in fields if key not in FREE and fields[key] != there.get(key)):
            if key == "pins":
                names = [name for name, pin in fields[key].items() if there.get(key, {}).get(name) != pin]
                said = f"{out} holds a loop of other contents: {quoted(names)} changed since it began."
                raise HfsynError(said, "Put them back as they were, or name another --out.")
            said = f"{out} holds another loop: {key} is {there.get(key)!r} there, {fields[key]!r} here."
            raise HfsynError(said, "Name another --out.")
        if there != fields:
            (out / CURVE).unlink(missing_ok=True)  # it says why the loop ended
    if there != fields:
        atomic_text(out / LOOP, dump(fields))
