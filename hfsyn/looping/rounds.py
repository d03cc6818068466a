"""A round of a loop: its plan, its images, its classifier, and what that was measured to be."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from builders.files import atomic_text, make_folder
from builders.published import RunFolder
from builders.runs import layout
from hfsyn.building import build
from hfsyn.errors import HfsynError
from hfsyn.judging.audit.audit import audit
from hfsyn.judging.audit.prompts import Axes, at_home, recipe_for, within, write_prompts
from hfsyn.judging.classifier import open_classifier, start_accelerator
from hfsyn.judging.measures.evaluate import rights
from hfsyn.judging.measures.metrics import wilson
from hfsyn.judging.scores.scoring import finish_scores, score_set
from hfsyn.judging.sets.image_set import TRAIN, open_images
from hfsyn.judging.sets.references import parse_dataset
from hfsyn.judging.train.checkpoints import RECORDED
from hfsyn.judging.train.loop import RunOptions, train
from hfsyn.looping.loop_file import LoopFile
from hfsyn.looping.opening import open_measured
from hfsyn.looping.planning import planned
from hfsyn.looping.policies import UNIFORM, Known, Policy, asks_of
from hfsyn.recipes.recipe import Recipe
from hfsyn.recipes.training_recipe import load_train_config
from hfsyn.rules import seed_of
from hfsyn.runs.claims import mark_of
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.run import load_run
from hfsyn.runs.scores import ID, Judge, Scored, check_judge, score_by
from hfsyn.runs.selection import select_rows
from hfsyn.runs.selection_rule import Rule
from hfsyn.runs.shards import StoredRows

MEASURED, PLAN, HOURS = "measured.json", "plan.json", "hours.json"
FIRST = "round-0"
BEAT = 30.0  # seconds after which work is written down


@dataclass
class Clock:
    """Seconds of work by round, in a file; of a process that was killed all but the last ones, see `BEAT`."""

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.seconds = json.loads(self.path.read_text(encoding="utf-8"))

    @contextmanager
    def at_work(self, number: int) -> Iterator[None]:
        """What is done within is work on a round, however it ends."""
        before, began, done = self.seconds.get(str(number), 0), time.monotonic(), Event()

        def note() -> None:
            self.seconds[str(number)] = round(before + time.monotonic() - began, 1)
            atomic_text(self.path, json.dumps(self.seconds) + "\n")

        def beat() -> None:
            while not done.wait(BEAT):
                note()

        beating = Thread(target=beat, daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()
            note()


@dataclass(frozen=True)
class Looping:
    """An opened loop."""

    out: Path
    file: LoopFile
    recipe: Recipe
    """With the seed of the loop's images: one for all rounds, whose images have ids of their own."""
    axes: Axes
    policies: Mapping[str, Policy]
    """By the names of their folders; the control is the last one."""
    options: WorkOptions
    clock: Clock

    @property
    def levels(self) -> dict[str, list[str]]:
        """Factor -> its levels; ``class`` -> the classes' names."""
        return dict(zip(self.axes.names, self.axes.levels, strict=True))

    @property
    def asked(self) -> frozenset[str]:
        """What any of the policies asks for."""
        return frozenset().union(*map(asks_of, self.policies.values()))

    def seed(self, purpose: str, number: int) -> int:
        """The seed of a round for a purpose: of all policies the same, so that they differ in what they plan alone."""
        return seed_of(self.file.seed, f"{purpose}/{number}") % 2**31

    def folder(self, policy: str, number: int) -> Path:
        """Of a round."""
        return round_folder(self.out, policy, number)


def round_folder(out: Path, policy: str, number: int) -> Path:
    """Of a round; the first one is the same for all policies."""
    return out / FIRST if number == 0 else out / policy / f"round-{number}"


def runs_of(folder: Path) -> list[Path]:
    """The runs of a round that are trained on, as far as they are there."""
    drawn = sorted(folder.glob("run*"), key=lambda path: (len(path.name), path.name))
    return [run for run in (folder / "audit" / "run", *drawn) if run.is_dir()]


def measured_in(folder: Path) -> dict[str, Any] | None:
    """What a round was measured to be; None if it is not done."""
    if not (folder / MEASURED).exists():
        return None
    found: dict[str, Any] = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    return found


def carry_out(opened: Looping, policy: str, number: int) -> dict[str, Any]:
    """Carry out a round, or what of it is missing, and return what was measured."""
    folder = opened.folder(policy, number)
    if (found := measured_in(folder)) is not None:
        return found
    make_folder(folder)
    with opened.clock.at_work(number):
        parts = _plan(opened, policy, number, folder)
        _draw(opened, policy, number, folder, parts)
        _train(opened, policy, number, folder / "training")
        return _measured(opened, folder)


# --- the plan ---------------------------------------------------------------------------------------------------------


def _plan(opened: Looping, policy: str, number: int, folder: Path) -> list[dict[str, Any]]:
    """The parts of a round's plan, written down before anything is drawn, with the classifier that steers it."""
    images, by = opened.file.images, None
    before = opened.folder(policy, number - 1)
    if number:
        by = (measured_in(before) or {})["weights"]
        if open_classifier(before / "training", device="cpu").sha256 != by:
            said = f"{before / 'training'} has other weights than those that were measured there."
            raise HfsynError(said, f"Put those back, or delete {before / MEASURED}: they are measured again.")
    if (folder / PLAN).exists():
        found = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if found["by"] != by:
            said = f"{folder} was planned by other weights than those in {before / 'training'}."
            raise HfsynError(said, f"Put those back, or delete {folder}: it is planned again.")
        return list(found["parts"])
    if number == 0:
        function: Policy = opened.policies[UNIFORM]
        known = Known(0, opened.levels, {})
    else:
        function = opened.policies[policy]
        known, images = _known(opened, function, number, folder, before)
    parts = planned(function, policy, known, images, opened.seed("policy", number))
    atomic_text(folder / PLAN, json.dumps({"by": by, "parts": parts}, indent=1) + "\n")
    return parts


def _known(opened: Looping, policy: Policy, number: int, folder: Path, before: Path) -> tuple[Known, int]:
    """What a policy knows, and how many images it plans."""
    steered, images = (measured_in(before) or {})["steer"], opened.file.images
    findings: list[Any] = []
    if "audit" in asks_of(policy):
        images -= images // 2
        findings = _findings(opened, before / "training", folder / "audit", opened.file.images // 2, number)
    right = {name: (pair[0], pair[1]) for name, pair in steered.items()}
    seen = _seen(opened, before) if "losses" in asks_of(policy) else []
    return Known(number, opened.levels, right, findings, seen, opened.file.candidates), images


def _findings(opened: Looping, model: Path, out: Path, images: int, number: int) -> list[Any]:
    """What an audit of the last classifier finds."""
    how: dict[str, Any] = {"recipe": opened.recipe, "images": images, "repair": 0, "reader": opened.file.reader}
    how |= {"classes": (), "overrides": (), "generator": None, "options": opened.options, "confirm": 0}
    found = audit(
        str(model), opened.file.factors, out, seed=opened.seed("audit", number), kind=f"audit-{number}", **how
    )
    assert found is not None, "a loop works in this process"
    return list(found["findings"])


def _seen(opened: Looping, before: Path) -> list[dict[str, Any]]:
    """What the last training has shown of the images that it learnt from; see `Known.images`."""
    names = {info.wnid: info.name for info in opened.axes.classes}
    places = {str(parse_dataset(one)): (None, f"start-{k}/") for k, one in enumerate(opened.file.start)}
    for run in map(Path, json.loads((before / "sets.json").read_text(encoding="utf-8"))):
        if load_run(run).recipe.generate.init == "none":
            parent = run.parent.parent if run.parent.name == "audit" else run.parent
            places[str(run)] = int(parent.name.partition("-")[2]), ""  # type: ignore[assignment]
    found = []
    for line in pq.read_table(before / "training" / RECORDED).to_pylist():
        if line["reference"] in places and line["early_loss"] is not None and line["wnid"] in names:
            of, prefix = places[line["reference"]]
            shown = {key: line[key] for key in ("early_loss", "margin", "forgotten")}
            found.append({"id": prefix + line["id"], "class": names[line["wnid"]], "round": of, **shown})
    return found


# --- the images -------------------------------------------------------------------------------------------------------


def _draw(opened: Looping, policy: str, number: int, folder: Path, parts: Sequence[Mapping[str, Any]]) -> None:
    """Draw the images of a plan: a run for each way in which some are drawn."""
    ways: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for part in parts:
        ways.setdefault((part["candidates"], part["by"], part["begin"] is not None), []).append(part)
    first = 0
    for place, ((candidates, by, over), some) in enumerate(ways.items()):
        end = f"-{place}" if place else ""
        prompts, run = (folder / f"prompts{end}.parquet").resolve(), folder / f"run{end}"
        images = sum(part["images"] for part in some)
        if not prompts.exists():
            rows = _begun(opened, policy, number, some, first) if over else _rows(opened, number, some, first)
            each = [{**row, "source_id": f"{row['source_id']}.{k}"} for row in rows for k in range(candidates)]
            write_prompts(prompts, each if candidates > 1 else rows)
        first += images
        recipe = recipe_for(opened.recipe, prompts, "loop")
        if over:
            recipe = recipe.with_fields("generate", init="source", strength=opened.file.strength)
        mine = folder / f"drawn{end}" if candidates > 1 else run
        at_home(mine, prompts)
        drawn = build(recipe, mine, options=opened.options).folder
        if candidates > 1:
            _keep(opened, drawn, run, opened.folder(policy, number - 1) / "training", by)


def _rows(opened: Looping, number: int, parts: Sequence[Mapping[str, Any]], first: int) -> list[dict[str, Any]]:
    """The prompts of parts that begin from noise; `first` is the number of the first image."""
    rows: list[dict[str, Any]] = []
    for part in parts:
        start = first + len(rows)
        seed = opened.seed("design", number) + start  # with one seed each part would have the same levels in turn
        rows += within(opened.axes, part["levels"], part["images"], seed, f"round-{number}", start)
    return rows


def _begun(
    opened: Looping, policy: str, number: int, parts: Sequence[Mapping[str, Any]], first: int
) -> list[dict[str, Any]]:
    """The prompts of parts that begin from other images, with these; a real one has levels by the design."""
    wanted = {name for part in parts for name in part["begin"]}
    known: dict[str, tuple[str, Any, bytes]] = {}
    for k, one in enumerate(opened.file.start):
        images = open_images(one, default=TRAIN)
        for at, name in enumerate(images.ids):
            if f"start-{k}/{name}" in wanted:
                known[f"start-{k}/{name}"] = images.wnids[at], None, images.images[at]
    for of in range(number):
        for run in runs_of(opened.folder(policy, of)):
            known |= _stored(run, wanted)
    names = {info.wnid: info for info in opened.axes.classes}
    rows: list[dict[str, Any]] = []
    for part in parts:
        for turn in range(part["images"]):
            wnid, levels, image = known[part["begin"][turn % len(part["begin"])]]
            at, seed = first + len(rows), opened.seed("design", number) + turn
            row = within(opened.axes, {"class": [names[wnid].name]}, 1, seed, f"round-{number}", at)[0]
            if levels is not None:
                row |= {"levels": levels, "prompt": opened.axes.factors.prompt_of(names[wnid], levels)}
            rows.append({**row, "image": image})
    return rows


def _stored(run: Path, wanted: set[str]) -> dict[str, tuple[str, Any, bytes]]:
    """Class, levels and bytes of those images of a run whose ids are wanted."""
    stored = StoredRows(run)
    ids = stored.table([ID])[ID].to_pylist()
    numbers = [at for at, name in enumerate(ids) if name in wanted]
    levels = levels_of(run) if numbers else {}
    lines = stored.read(numbers, [ID, "source_id", "wnid", "image"])
    return {line[ID]: (line["wnid"], levels[line["source_id"]], line["image"]["bytes"]) for line in lines}


def prompts_of(run: Path) -> Path:
    """The prompts of a round's run, wherever the loop is now."""
    return run.parent / Path(str(load_run(run).recipe.source.path)).name


def levels_of(run: Path) -> dict[str, dict[str, str]]:
    """Source id -> levels of the images of a round's run, by factor."""
    lines = pq.read_table(prompts_of(run), columns=["source_id", "levels"]).to_pylist()
    return {line["source_id"]: line["levels"] for line in lines}


def _keep(opened: Looping, drawn: Path, run: Path, model: Path, by: str) -> None:
    """Keep of the candidates for each prompt the one with the largest score, as an ordinary selection."""
    how: dict[str, Any] = {"out": None, "config_name": None, "overwrite": False, "options": opened.options}
    assert score_set(str(drawn), [f"last={model}"], **how) is not None, "a loop works in this process"
    sources = dict(zip(*StoredRows(drawn).table([ID, "source_id"]).to_pydict().values(), strict=True))
    column, sign = by.removeprefix("-"), -1 if by.startswith("-") else 1
    best: dict[str, tuple[float, str]] = {}
    for line in pq.read_table(drawn / layout.SCORES_TABLE, columns=[ID, column]).to_pylist():
        value = -np.inf if line[column] is None else sign * line[column]
        prompt = sources[line[ID]].rpartition(".")[0]
        best[prompt] = max(best.get(prompt, (-np.inf, line[ID])), (value, line[ID]))
    kept = {name for _, name in best.values()}
    facts = {"kind": "the best of each prompt", "by": by}
    judge = Judge("best", {"kept": "truth"}, facts, lambda rows: [{"kept": row[ID] in kept} for row in rows])
    add_scores(drawn, judge, opened.options)
    select_rows(str(drawn), Rule(where="kept"), run)


def add_scores(run: Path, judge: Judge, options: WorkOptions) -> None:
    """Let a judge of our own score a finished run, in this process."""
    scored = Scored(RunFolder(run), run, mark_of(run))
    check_judge(scored, judge)
    score_by(scored, judge, options)
    finish_scores(scored)


# --- the classifier ---------------------------------------------------------------------------------------------------


def _train(opened: Looping, policy: str, number: int, out: Path) -> None:
    """Train on everything so far, each image as often as any other."""
    file = opened.file
    runs = [run for k in range(number + 1) for run in runs_of(opened.folder(policy, k))]
    sizes = {one: len(open_images(one, default=TRAIN)) for one in file.start} | {
        str(run): len(StoredRows(run)) for run in runs
    }
    total = sum(sizes.values())
    sets = [f"{one}:{size / total:.9f}" for one, size in sizes.items()] if len(sizes) > 1 else list(sizes)
    values: dict[str, Any] = {"data.train": sets, "data.budget": total, "seed": opened.seed("training", number)}
    if number and file.weights == "last":
        values |= {"model.init_from": str(opened.folder(policy, number - 1) / "training"), "model.pretrained": False}
    asked = opened.asked if number == 0 else asks_of(opened.policies[policy])
    options = RunOptions(device=opened.options.device, quiet=opened.options.quiet, record="losses" in asked)
    atomic_text(out.parent / "sets.json", json.dumps([str(run) for run in runs]) + "\n")
    train(load_train_config(file.train, (), values), out, options)


def _measured(opened: Looping, folder: Path) -> dict[str, Any]:
    """What a round's classifier is measured to be, written down: with it the round is done."""
    model = folder / "training"
    accelerator = start_accelerator(opened.options.device)
    classifier = open_classifier(model, device=str(accelerator.device))
    found: dict[str, Any] = {
        "images": sum(len(StoredRows(run)) for run in runs_of(folder)),
        "weights": classifier.sha256,
    }
    for name, on in (("steer", opened.file.steer), ("test", opened.file.test)):
        images = open_measured(on)
        numbers, right = rights(classifier, images, accelerator)
        found[f"{name}_right"] = "".join("1" if one else "0" for one in right)
        if name == "steer":
            of = {info.wnid: info.name for info in opened.axes.classes}
            wnids = np.array([images.wnids[number] for number in numbers])
            found[name] = {of[w]: (int(right[wnids == w].sum()), int((wnids == w).sum())) for w in of}
        found[f"{name}_top1"] = wilson(int(right.sum()), len(right))
    atomic_text(folder / MEASURED, json.dumps(found, indent=1) + "\n")
    return found
