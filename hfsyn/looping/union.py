"""The images of all rounds of a policy as one run, which publishes as a version, with the round as a column."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from builders.runs import layout
from builders.runs.rows import synthetic_features
from builders.runs.run_files import finished
from hfsyn.captions.caption_stage import caption
from hfsyn.judging.audit.prompts import at_home, recipe_for, write_prompts
from hfsyn.looping.rounds import Looping, add_scores, prompts_of, runs_of
from hfsyn.runs.finish import finish
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import Run, load_run
from hfsyn.runs.scores import ID, Judge
from hfsyn.runs.selection import select_rows
from hfsyn.runs.selection_rule import Rule
from hfsyn.runs.shards import StoredRows
from hfsyn.runs.stage import Stage, write_plan
from hfsyn.workers import pick_device


def unite(opened: Looping, policy: str, rounds: int) -> Path:
    """The run of all rounds of a policy below a number; running it again continues.

    Images that begin from others have a recipe of their own, and so a run of their own: ``to-round-K-begun`` beside
    ``to-round-K``, as another configuration of the same version. Returns the latter.
    """
    runs = {run: number for number in range(rounds) for run in runs_of(opened.folder(policy, number))}
    whole = opened.out / policy / f"to-round-{rounds - 1}"
    for init, place in (("none", whole), ("source", whole.with_name(f"{whole.name}-begun"))):
        some = {run: number for run, number in runs.items() if load_run(run).recipe.generate.init == init}
        parent = place.with_name(f".{place.name}")
        if some and not _is_finished(place):
            _write(opened, some, place, parent, policy)
        if parent.exists():
            shutil.rmtree(parent)
    return whole


def _is_finished(place: Path) -> bool:
    return layout.is_run_folder(place) and finished(place) is not None


def _write(opened: Looping, runs: dict[Path, int], place: Path, parent: Path, policy: str) -> None:
    """Write the rows of some runs as a run whose prompts are theirs, then that one with the round of each row."""
    prompts = place.with_name(f"{place.name}.parquet").resolve()
    at_home(parent, prompts)
    rounds: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for run, number in runs.items():
        here = set(StoredRows(run).table(["source_id"])["source_id"].to_pylist())
        lines = pq.read_table(prompts_of(run)).to_pylist()
        rows += [line for line in lines if line["source_id"] in here]
        rounds |= dict.fromkeys(here, number)
    if not prompts.exists():
        write_prompts(prompts, rows)
    recipe = recipe_for(opened.recipe, prompts, policy)
    part = load_run(next(iter(runs))).recipe.generate
    made = prepare(recipe.with_fields("generate", init=part.init, strength=part.strength), parent)
    caption(made, options=opened.options)
    write_plan(made)
    _copy(opened, list(runs), made)
    finish(made)
    judge = Judge("rounds", {"round": "whole"}, {"kind": "loop"}, lambda some: [_round(rounds, row) for row in some])
    add_scores(parent, judge, opened.options)
    select_rows(str(parent), Rule(where="round >= 0"), place, columns=True)


def _round(rounds: dict[str, int], row: Any) -> dict[str, int]:
    return {"round": rounds[row["source_id"]]}


def _copy(opened: Looping, runs: Sequence[Path], made: Run) -> None:
    """Fill the shards of a run with the rows that other runs have of the same ids, as they are."""
    stored = [StoredRows(run) for run in runs]
    places = {name: (k, at) for k, one in enumerate(stored) for at, name in enumerate(one.table([ID])[ID].to_pylist())}
    schema = synthetic_features(made.class_names).arrow_schema
    device = pick_device(opened.options.device)
    stage = Stage(made, "generate", opened.options, made.data_shards(), schema, device)
    with stage.at_work("joining the rounds") as progress:
        for shard in stage.shards(stage.mine()):
            wanted = [places[line[ID]] for line in shard.lines]
            rows: list[Any] = [None] * len(wanted)
            for k, one in enumerate(stored):
                mine = [n for n, place in enumerate(wanted) if place[0] == k]
                for n, found in zip(mine, one.read([wanted[n][1] for n in mine]), strict=True):
                    rows[n] = found
            progress.add(len(rows))
            stage.write(shard, rows, (), (), time.monotonic() - shard.started)
            shard.claim.release()
