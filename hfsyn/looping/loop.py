"""The closed loop: images that are planned by what the last classifier got wrong, a new classifier, and again.

    loop.yaml                    what was asked for, with what pins the policy
    round-0/                     images of all kinds alike, the same for every policy
    POLICY/round-K/              a round of the policy, and of `uniform`, which always runs beside it
        audit/                   of the last classifier, if the policy asks for one: its images are part of the round
        plan.json prompts.parquet run/       the plan, its prompts, and the run that draws them
        training/ measured.json              the classifier, and what it was measured to be

A round depends on the loop file and on what was measured before it, and on nothing else. Each part is an ordinary run
or training folder, so the same command continues in the middle of any of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.errors import plural
from builders.files import atomic_text, make_folder
from builders.variants import get_variant
from builders.yaml import dump, load_file
from hfsyn.building import build
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.audit.audit import audit
from hfsyn.judging.audit.prompts import Axes, recipe_for, within, write_prompts
from hfsyn.judging.measures.evaluate import evaluate
from hfsyn.judging.measures.results import Result, interval, row
from hfsyn.judging.sets.image_set import TRAIN, open_images
from hfsyn.judging.train.loop import RunOptions, train
from hfsyn.looping.loop_file import LoopFile, Measured, load_loop
from hfsyn.looping.policies import AUDITS, Known, planned, policy_of
from hfsyn.progress import teller
from hfsyn.recipes.factor_file import CLASS, load_factors
from hfsyn.recipes.recipe import Recipe, load_recipe
from hfsyn.recipes.training_recipe import load_train_config
from hfsyn.rules import seed_of
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.shards import StoredRows

LOOP, MEASURED, PLAN, CURVE = "loop.yaml", "measured.json", "plan.json", "curve.json"
UNIFORM = "uniform"


class Curve(Result):
    """What `loop` found: ``curve``, a line for each policy and round, and ``out``."""

    def rows(self) -> list[dict[str, str]]:
        """A line for each policy and round."""
        return [
            row(f"{one['policy']} {one['round']}", interval(one["test"], percent=True), plural(one["images"], "image"))
            for one in self["curve"]
        ]

    def title(self) -> str:
        """What the numbers are."""
        return "accuracy on the test, by policy and round"


@dataclass(frozen=True)
class Looping:
    """An opened loop."""

    out: Path
    file: LoopFile
    recipe: Recipe
    axes: Axes
    options: WorkOptions

    def folder(self, policy: str, number: int) -> Path:
        """Of a round; the first is the same for all policies."""
        return self.out / "round-0" if number == 0 else self.out / policy / f"round-{number}"

    def runs(self, policy: str, number: int) -> list[Path]:
        """The runs of a round that are there."""
        folder = self.folder(policy, number)
        return [run for run in (folder / "audit" / "run", folder / "run") if run.is_dir()]


def loop(file: str, out: str | Path, options: WorkOptions) -> Curve:
    """See `hfsyn.api.looping.loop`, whose arguments and errors these are."""
    opened, name = _opened(load_loop(file), Path(out).expanduser(), options)
    curve = []
    for policy in dict.fromkeys((name, UNIFORM)):
        images = 0
        for number in range(opened.file.rounds + 1):
            measured = _round(opened, policy, number)
            images += measured["images"]
            line = {"policy": policy, "round": number, "images": images, "test": measured["test"]}
            curve.append({**line, "weights": measured["weights"]})
            teller(options.quiet)(f"{policy}, round {number}: {interval(line['test'], percent=True)}")
    found = Curve({"out": str(opened.out), "curve": curve})
    atomic_text(opened.out / CURVE, json.dumps(dict(found), indent=1) + "\n")
    return found


def _opened(file: LoopFile, out: Path, options: WorkOptions) -> tuple[Looping, str]:
    """The loop with everything in it looked at, its folder ready; and a name for the policy's rounds."""
    if (file.steer.dataset, file.steer.split) == (file.test.dataset, file.test.split):
        said = f"The loop steers by its own test, {file.test.dataset}."
        raise HfsynError(said, "Give `steer` other images, such as split: train[held 10%].")
    factors, recipe = load_factors(file.factors), load_recipe(file.recipe)
    axes = Axes(factors, get_variant(recipe.source.variant).classes)
    axes.allowed()
    policy, pin = policy_of(file.policy)
    name = file.policy if pin == file.policy else file.policy.rpartition(":")[2]
    levels = dict(zip(axes.names, axes.levels, strict=True))
    guess = Known(1, levels, dict.fromkeys(levels[CLASS], (1, 2)))
    planned(policy, file.policy, guess, file.images, file.seed)
    for measured in (file.steer, file.test):
        open_images(measured.dataset, measured.split, limit=measured.limit)
    fields = {**json.loads(file.model_dump_json()), "pin": pin}
    try:
        make_folder(out)
    except OSError as error:
        raise HfsynError(f"--out {out} cannot be created: {error.strerror}.", "", ExitCode.PREFLIGHT) from None
    if (out / LOOP).exists():
        there = load_file(out / LOOP, "loop", "")
        if differing := [key for key in fields if fields[key] != there.get(key)]:
            key = differing[0]
            said = f"{out} holds another loop: {key} is {there.get(key)!r} there, {fields[key]!r} here."
            raise HfsynError(said, "Name another --out.")
    elif any(out.iterdir()):
        raise HfsynError(f"{out} holds something else.", "Name an empty or new folder for --out.")
    atomic_text(out / LOOP, dump(fields))
    return Looping(out, file, recipe, axes, options), name


def _round(opened: Looping, policy: str, number: int) -> dict[str, Any]:
    """Carry out a round, or what of it is missing, and return what was measured."""
    folder = opened.folder(policy, number)
    if (folder / MEASURED).exists():
        found: dict[str, Any] = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
        return found
    make_folder(folder)
    parts = _plan(opened, policy, number, folder)
    prompts, seed = (folder / "prompts.parquet").resolve(), _seed(opened, "design", number)
    rows: list[dict[str, Any]] = []
    for one in parts:
        rows += within(opened.axes, one["levels"], one["images"], seed, f"round-{number}", len(rows))
    if not prompts.exists():
        write_prompts(prompts, rows)
    recipe = recipe_for(opened.recipe.model_copy(update={"seed": _seed(opened, "images", number)}), prompts, "loop")
    build(recipe, folder / "run", options=opened.options)
    _train(opened, policy, number, folder / "training")
    return _measured(opened, policy, number, folder)


def _seed(opened: Looping, purpose: str, number: int) -> int:
    """The seed of a round for a purpose: of all policies the same, so that they differ in what they plan alone."""
    return seed_of(opened.file.seed, f"{purpose}/{number}") % 2**31


def _plan(opened: Looping, policy: str, number: int, folder: Path) -> list[dict[str, Any]]:
    """The parts of a round's plan, written down before anything is drawn."""
    if (folder / PLAN).exists():
        found: list[dict[str, Any]] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return found
    images = opened.file.images
    if number == 0:
        parts = [{"images": images, "levels": {}}]
    else:
        said = opened.file.policy if policy != UNIFORM else UNIFORM
        before = opened.folder(policy, number - 1)
        steered = json.loads((before / MEASURED).read_text(encoding="utf-8"))["steer"]
        findings: list[Any] = []
        if said in AUDITS:
            images -= images // 2
            findings = _findings(opened, before / "training", folder / "audit", opened.file.images // 2, number)
        levels = dict(zip(opened.axes.names, opened.axes.levels, strict=True))
        known = Known(number, levels, {name: tuple(pair) for name, pair in steered.items()}, findings)
        parts = planned(policy_of(said)[0], said, known, images, _seed(opened, "policy", number))
    atomic_text(folder / PLAN, json.dumps(parts, indent=1) + "\n")
    return parts


def _findings(opened: Looping, model: Path, out: Path, images: int, number: int) -> list[Any]:
    """What an audit of the last classifier finds."""
    how: dict[str, Any] = {"recipe": opened.recipe, "images": images, "repair": 0, "classes": (), "reader": None}
    how |= {"overrides": [f"seed={_seed(opened, 'audit', number)}"], "generator": None, "options": opened.options}
    found = audit(str(model), opened.file.factors, out, seed=_seed(opened, "audit", number), **how)
    assert found is not None, "a loop works in this process"
    return list(found["findings"])


def _train(opened: Looping, policy: str, number: int, out: Path) -> None:
    """Train on everything so far, each image as often as any other."""
    file = opened.file
    runs = [run for k in range(number + 1) for run in opened.runs(policy, k)]
    sizes = {one: len(open_images(one, default=TRAIN)) for one in file.start} | {
        str(run): len(StoredRows(run)) for run in runs
    }
    total = sum(sizes.values())
    sets = [f"{one}:{size / total:.9f}" for one, size in sizes.items()] if len(sizes) > 1 else list(sizes)
    values: dict[str, Any] = {"data.train": sets, "data.budget": total, "seed": _seed(opened, "training", number)}
    if number and file.weights == "last":
        values["model.init_from"] = str(opened.folder(policy, number - 1) / "training")
    options = RunOptions(device=opened.options.device, quiet=opened.options.quiet)
    train(load_train_config(file.train, (), values), out, options)


def _measured(opened: Looping, policy: str, number: int, folder: Path) -> dict[str, Any]:
    steer, test = (_evaluated(opened, one, folder / "training") for one in (opened.file.steer, opened.file.test))
    names = {info.wnid: info.name for info in opened.axes.classes}
    per_class = {one["wnid"]: one for one in steer["metrics"]["per_class"] if one["n"]}
    right = {name: _pair(per_class.get(wnid)) for wnid, name in names.items()}
    found = {
        "images": sum(len(StoredRows(run)) for run in opened.runs(policy, number)),
        "weights": test["model"]["sha256"],
        "steer": right,
        "test": test["metrics"]["top1"],
    }
    atomic_text(folder / MEASURED, json.dumps(found, indent=1) + "\n")
    return found


def _pair(one: Mapping[str, Any] | None) -> tuple[int, int]:
    return (0, 0) if one is None else (round(one["top1"]["value"] * one["n"]), one["n"])


def _evaluated(opened: Looping, on: Measured, model: Path) -> Mapping[str, Any]:
    how: dict[str, Any] = {"split": on.split, "limit_per_class": on.limit, "device": opened.options.device}
    return evaluate(str(model), on.dataset, quiet=True, **how)
