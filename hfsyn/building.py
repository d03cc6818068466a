"""All stages in one: build, in this process or in several that accelerate starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from builders.errors import DataError
from builders.published import open_reference
from builders.runs.layout import SIDECARS, shard_count, sidecar_of
from builders.runs.run_files import manifest_in
from builders.stores.copies import is_address, remove
from hfsyn.captions.caption_stage import caption
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.images.generate_stage import generate, tried_generator
from hfsyn.launching import launch, stopped
from hfsyn.publishing.watching import check_target, publishing
from hfsyn.recipes.recipe import Recipe, load_recipe
from hfsyn.runs.claims import Claims, working_in
from hfsyn.runs.finish import finish, is_whole
from hfsyn.runs.options import WorkOptions, select
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import Run
from hfsyn.runs.selection_rule import selection_of
from hfsyn.runs.shards import pending, sidecars
from hfsyn.workers import (
    check_device,
    check_launcher,
    current_worker,
    default_processes,
    is_child,
    is_launched,
    leave_group,
    pick_device,
)

STAGES: dict[str, Callable[..., None]] = {"caption": caption, "generate": generate}


def build(
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    push_to_hub: str | None = None,
    version: str | None = None,
    options: WorkOptions | None = None,
    **more_options: Any,
) -> Run:
    """Carry out a recipe: caption, generate, finish. Running it again continues; a finished run is left as it is.

    Args:
        recipe: see `load_recipe`.
        out: the run folder; made if it is not there.
        overrides: ``key=value`` strings, as for `load_recipe`.
        overwrite: delete the run that `out` holds first.
        push_to_hub: a dataset on the Hub, to which finished shards are sent while the others are made.
        version: under which the finished run is published there.
        options: where, how fast and how long to work.
        more_options: fields of `WorkOptions` in place of those of `options`: ``device="cpu"``, ``quiet=True``.

    Raises:
        HfsynError: see `prepare`; with `push_to_hub` see `publish`; with exit code 4 some shards are still missing.
    """
    options = replace(options or WorkOptions(), **more_options)
    check_device(options.device)
    check_target(push_to_hub, version)
    check_launcher()
    if push_to_hub is not None and is_address(out):
        said = f"--push-to-hub sends the shards of a run on a disk, and {out} is in object storage."
        raise HfsynError(said, f"Publish it when it is finished: hfsyn publish {out} {push_to_hub}")
    if options.captions is not None:
        open_reference(options.captions, None)  # before anything is written
    run = _prepared(load_recipe(recipe, overrides), out, options.device, overwrite=overwrite)
    with publishing(run, push_to_hub, version, quiet=options.quiet):
        if not is_whole(run):
            _refuse_selection(run)
            with working_in(run.folder, run.mark):
                _unmark_short(run)
                work(run, ("caption", "generate"), options)
                if current_worker().is_main:
                    finish(run)
    leave_group()
    return run


def _refuse_selection(run: Run) -> None:
    """Refuse to make the missing shards of a selection, which would get the rows that it has removed."""
    if (chosen := selection_of(run.folder)) is not None:
        said = f"{run.folder} is a selection from {chosen['parent'].get('name')}, and is no longer whole."
        raise HfsynError(said, "Run the same `hfsyn select` again: it writes what is missing.")


def _prepared(recipe: Recipe, out: str | Path, device: str | None, *, overwrite: bool) -> Run:
    """As `prepare`; of a launcher's processes only the main one deletes what is there, and the others wait."""
    worker = current_worker()
    if not overwrite or worker.world == 1:
        return prepare(recipe, out, overwrite=overwrite)
    from accelerate import PartialState

    made = prepare(recipe, out, overwrite=True) if worker.is_main else None
    pick_device(device)
    PartialState().wait_for_everyone()
    return made or prepare(recipe, out)


def _unmark_short(run: Run) -> None:
    """Remove the sidecars of shards that were cut short after the run was finished, so that they are made again."""
    try:
        manifest = manifest_in(run.folder)
    except DataError:  # it is written again at the end
        return
    for entry in (*manifest.captions, *manifest.shards) if manifest else ():
        shard = run.folder / entry.file
        if shard.exists() and shard.stat().st_size != entry.bytes:
            remove(sidecar_of(shard))


def work(run: Run, stages: Sequence[str], options: WorkOptions) -> None:
    """Run stages in this process, or in several through accelerate; returns when their shards are all there.

    `options.shards` selects shards of the last stage; the stages before it are worked on as a whole.

    Raises:
        HfsynError: with exit code 4, processes ended before that, or the budget of hours did.
    """
    run.check()
    chosen = [(stage, options.shards if stage == stages[-1] else None) for stage in stages]
    if all(_complete(run, *stage) for stage in chosen):
        return
    check_launcher()
    check_device(options.device)
    one = options.device is not None and ":" in options.device
    if one and (options.num_processes or 1) > 1:
        raise HfsynError(
            f"--device {options.device} names one GPU, for {options.num_processes} processes.",
            "Say which GPUs with CUDA_VISIBLE_DEVICES=1,2 and --device cuda, or leave --num-processes out.",
        )
    processes = options.num_processes or (1 if one else min(default_processes(), _shards_left(run, chosen)))
    if processes == 1 or is_launched():
        _work_here(run, chosen, options)
        return
    code = launch(
        ["work-on", f"{run.folder}", "--stages", ",".join(stages), *options.arguments()],
        processes,
        device=options.device,
        progress=lambda: len(list((run.folder / SIDECARS).glob("*/*.json"))),
    )
    unfinished = next((stage for stage in chosen if not _complete(run, *stage)), None)
    if unfinished is not None:
        if not code and not _has_time(run, unfinished[0], options):
            raise _budget_spent(run, *unfinished, options)
        raise stopped(
            "The worker processes stopped before the work was done; what they finished is kept.",
            "The cause stands above. Run the same command again to continue.",
            code,
        )


def _work_here(run: Run, chosen: Sequence[tuple[str, str | None]], options: WorkOptions) -> None:
    """Run stages in this process, each on its chosen shards, up to the one that the budget has no time for."""
    generator = None
    if chosen[0][0] == "caption" and len(chosen) > 1 and not _complete(run, "caption", None):
        generator = tried_generator(run, options)
    for stage, shards in chosen:
        more = {"generator": generator} if stage == "generate" else {}
        STAGES[stage](run, options=replace(options, shards=shards), **more)
        if options.budget_hours is not None and not _complete(run, stage, shards):
            _end_early(run, stage, shards, options)
            return


def _paths(run: Run, stage: str, shards: str | None) -> list[Path] | None:
    """The shards that a stage is asked for; None as long as there is no plan to say what they are."""
    if stage == "caption":
        return select(run.caption_shards(), shards)
    return None if run.planned_rows is None else select(run.data_shards(), shards)


def _complete(run: Run, stage: str, shards: str | None) -> bool:
    paths = _paths(run, stage, shards)
    return paths is not None and not pending(paths)


def _shards_left(run: Run, chosen: Sequence[tuple[str, str | None]]) -> int:
    """How many processes could have a shard at once, at least 1; before there is a plan, as if no row were rejected."""
    counts = [1]
    for stage in chosen:
        paths = _paths(run, *stage)
        if paths is None:
            rows = run.source_rows * run.recipe.prompt.images_per_caption
            counts.append(shard_count(rows, run.recipe.store.shard_rows))
        else:
            counts.append(len(pending(paths)))
    return max(counts)


def _end_early(run: Run, stage: str, shards: str | None, options: WorkOptions) -> None:
    """End the work of a process whose budget is spent; the parent, or else the main process, says so."""
    if is_child() or not current_worker().is_main:
        return
    if is_launched():
        # A launcher whose main process ends with an error kills the others, and these may still be at a shard.
        for claim in Claims(run.folder, _paths(run, stage, shards) or [], stage=stage).each():
            claim.release()
    raise _budget_spent(run, stage, shards, options)


def _has_time(run: Run, stage: str, options: WorkOptions) -> bool:
    """Whether the budget would still allow a shard that takes as long as the longest of the stage so far."""
    done = sidecars(_paths(run, stage, None) or [])
    return options.seconds_left() > max((sidecar.seconds for sidecar in done), default=0.0)


def _budget_spent(run: Run, stage: str, shards: str | None, options: WorkOptions) -> HfsynError:
    paths = _paths(run, stage, shards)
    how_far = "nothing of stage generate is done"
    if paths is not None:
        how_far = f"{len(paths) - len(pending(paths))} of {len(paths)} {stage} shards are done and kept"
    return HfsynError(
        f"The budget of {options.budget_hours:g} hours has no room for another shard: {how_far}.",
        "Run the same command again to continue.",
        code=ExitCode.PARTIAL,
    )
