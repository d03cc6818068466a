"""The second costly stage: make the images of the plan."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from builders import layout
from builders.schema import synthetic_features
from hfsyn.making.budget import Budget
from hfsyn.making.claims import claims
from hfsyn.making.generator import DiffusersGenerator, ImageGenerator
from hfsyn.making.options import DEFAULTS, WorkOptions
from hfsyn.making.planning import write_plan
from hfsyn.making.rows import draw, synthetic_rows
from hfsyn.making.runs import Run, load_run, select
from hfsyn.making.shards import pending
from hfsyn.making.specs import SampleSpec
from hfsyn.making.stages import Stage
from hfsyn.workers import pick_device

_ENCODE_THREADS = 2


def generate(
    run: Run | str | Path,
    *,
    device: str | None = None,
    shards: str | None = None,
    quiet: bool = False,
    options: WorkOptions = DEFAULTS,
    generator: ImageGenerator | None = None,
) -> None:
    """Make the images of the plan. The plan is written first, if it is not there and all captions are.

    Args:
        run: a prepared run or its folder.
        device: a torch device; None picks one.
        shards: ``A:B`` works on these shards only.
        quiet: no progress.
        options: how fast and how long to work; with a budget that is spent the stage ends before all shards are done.
        generator: in place of the recipe's model (for tests).

    Raises:
        HfsynError: captions are missing.
    """
    run = run if isinstance(run, Run) else load_run(run)
    write_plan(run)
    paths = select(run.data_shards(), shards)
    if not pending(paths):
        return
    where = "cpu"
    if generator is None:
        where = pick_device(device)
        part = run.recipe.generate
        generator = DiffusersGenerator(part, run.recipe.prompt.negative, where, allow_pickle=options.allow_pickle)
    stage = Stage(run, "generate", where)
    total = run.planned_rows or 0
    schema = synthetic_features(run.class_names).arrow_schema
    with (
        stage.progress("generating", paths, total, quiet=quiet) as progress,
        ThreadPoolExecutor(_ENCODE_THREADS, "encode") as pool,
    ):
        budget = Budget(options)
        for path in claims(run.folder, stage.mine(paths), stage="generate", waiting=progress.look):
            if not budget.allows_another():
                break  # the claim falls with the loop
            started = time.monotonic()
            start, stop, lines = run.shard_lines(path, layout.PLAN, total)
            specs = [SampleSpec(**{**line, "caption_flags": tuple(line["caption_flags"])}) for line in lines]
            results = draw(specs, generator, run.recipe, pool, progress.add)
            rows, rejected = synthetic_rows(specs, results, generator, run.recipe)
            stage.write(path, start, stop, rows, rejected, schema, started)
            progress.shard_done()
