"""The second costly stage: make the images of the plan."""

from __future__ import annotations

from pathlib import Path

from builders import layout
from builders.schema import synthetic_features
from hfsyn.making.batch_sizes import BatchSize, choose
from hfsyn.making.budget import Budget
from hfsyn.making.claims import Claims, Patience
from hfsyn.making.generator import DiffusersGenerator, ImageGenerator, fitting
from hfsyn.making.options import DEFAULTS, WorkOptions
from hfsyn.making.overwriting import working_in
from hfsyn.making.planning import write_plan
from hfsyn.making.production import Production, Work
from hfsyn.making.rows import synthetic_rows
from hfsyn.making.runs import Run, load_run, select
from hfsyn.making.shards import pending
from hfsyn.making.source_pictures import SourcePictures
from hfsyn.making.specs import SampleSpec
from hfsyn.making.stages import Stage
from hfsyn.making.tuning import PLAIN, tuning_of
from hfsyn.workers import pick_device


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
    where, tuning = "cpu", PLAIN
    if generator is None:
        where = pick_device(device)
        tuning = tuning_of(options, where)
        part = run.recipe.generate
        generator = DiffusersGenerator(
            part, run.recipe.prompt.negative, where, allow_pickle=options.allow_pickle, tuning=tuning
        )
    stage = Stage(run, "generate", where)
    part = run.recipe.generate
    size = BatchSize(choose(options.batch_size, part.batch_size, where, generator, guided=part.guidance_scale > 1))
    total = run.planned_rows or 0
    schema = synthetic_features(run.class_names).arrow_schema
    pictures = SourcePictures(run, fitting(generator)) if part.init == "source" else None

    with (
        working_in(run.folder, run.mark),
        stage.progress("generating", paths, total, quiet=quiet) as progress,
    ):

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
