"""The second costly stage: make the images of the plan."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from builders.runs import layout
from builders.runs.schema import synthetic_features
from hfsyn.images.generator import DiffusersGenerator, ImageGenerator, fitting
from hfsyn.images.rows import synthetic_rows
from hfsyn.images.shard_writer import Production, Work
from hfsyn.images.start_images import SourcePictures
from hfsyn.images.tuning import PLAIN, tuning_of
from hfsyn.models.batch_sizes import BatchSize, choose, release_memory
from hfsyn.runs.budget import Budget
from hfsyn.runs.claims import Claims, Patience
from hfsyn.runs.options import DEFAULTS, WorkOptions
from hfsyn.runs.overwriting import working_in
from hfsyn.runs.plan import write_plan
from hfsyn.runs.run import Run, load_run, select
from hfsyn.runs.shards import pending
from hfsyn.runs.specs import SampleSpec
from hfsyn.runs.stage import Stage
from hfsyn.workers import current_worker, pick_device

KEPT_PARAMETERS = 2 * 10**8
"""A model of fewer waits in memory while captions are made; a larger one is loaded again."""


def loaded_generator(run: Run, *, device: str | None, options: WorkOptions) -> ImageGenerator:
    """The recipe's model on its device, tried out; what of it is not used is said.

    Raises:
        HfsynError: see `DiffusersGenerator`.
    """
    where = pick_device(device)
    found = DiffusersGenerator(
        run.recipe.generate,
        run.recipe.prompt.negative,
        where,
        allow_pickle=options.allow_pickle,
        tuning=tuning_of(options, where),
    )
    if current_worker().is_main:
        for what, count in getattr(found, "left_out", {}).items():
            print(f"hfsyn: left out: {count} ({what})", file=sys.stderr, flush=True)
    return found


def tried_generator(run: Run, *, device: str | None, options: WorkOptions) -> ImageGenerator | None:
    """The model tried out before anything costly is done with its captions; None where it is too large to be kept.

    Raises:
        HfsynError: see `DiffusersGenerator`.
    """
    found = loaded_generator(run, device=device, options=replace(options, compile=False))
    if options.compile or getattr(found, "parameters", 0) > KEPT_PARAMETERS:
        del found
        release_memory()
        return None
    return found


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
        generator: one that is loaded already, or in place of the recipe's model (for tests).

    Raises:
        HfsynError: captions are missing, or the model is refused; see `DiffusersGenerator`.
    """
    run = run if isinstance(run, Run) else load_run(run)
    write_plan(run)
    paths = select(run.data_shards(), shards)
    if not pending(paths):
        return
    if generator is None:
        generator = loaded_generator(run, device=device, options=options)
    where, tuning = getattr(generator, "device", "cpu"), getattr(generator, "tuning", PLAIN)
    unused: Mapping[str, int] = getattr(generator, "left_out", {})
    stage = Stage(run, "generate", where)
    part = run.recipe.generate
    size = BatchSize(choose(options.batch_size, part.batch_size, where, generator, guided=part.guidance_scale > 1))
    total = run.planned_rows or 0
    schema = synthetic_features(run.class_names).arrow_schema
    pictures = SourcePictures(run, fitting(generator)) if part.init == "source" else None

    with working_in(run.folder, run.mark), stage.progress("generating", paths, total, quiet=quiet) as progress:

        def write(work: Work) -> None:
            results = [work.results[spec.sample_id] for spec in work.specs]
            rows, rejected = synthetic_rows(work.specs, results, work.tokens, generator.max_tokens, run.recipe)
            stage.write(
                work.claim.path,
                work.start,
                work.stop,
                rows,
                rejected,
                schema,
                work.seconds,
                grid=tuple(work.grid),
                options=tuning.record(),
                unused_weights=unused,
            )
            progress.shard_done(len(rows))

        with Production(generator, run.recipe, size, write, progress.add, pictures=pictures) as production:
            budget = Budget(options)
            taking = Claims(run.folder, stage.mine(paths), stage="generate")
            patience = Patience(taking, look=progress.look)
            while True:
                claim = taking.take()
                if claim is None:
                    # What is in this process's own hands must not be waited for.
                    production.finish()
                    if not taking.in_other_hands:
                        break
                    patience.wait()
                    continue
                if not budget.allows_another():
                    claim.release()
                    break
                start, stop, lines = run.shard_lines(claim.path, layout.PLAN, total)
                specs = [SampleSpec(**{**line, "caption_flags": tuple(line["caption_flags"])}) for line in lines]
                production.add(Work(claim, start, stop, specs))
