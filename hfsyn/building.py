"""All stages in one: build, in this process or in several that accelerate starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from builders.errors import DataError
from builders.runs.layout import SIDECARS, load_sidecar, shard_count, sidecar_of
from builders.runs.run_files import manifest_in
from hfsyn.captions.caption_stage import caption
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.gathering import check_launcher
from hfsyn.images.generate_stage import generate, tried_generator
from hfsyn.images.generator import ImageGenerator
from hfsyn.publishing.watching import check_target, publishing
from hfsyn.recipes.recipe import Recipe, load_recipe
from hfsyn.runs.claims import Claims, Patience
from hfsyn.runs.finish import finish, is_whole
from hfsyn.runs.options import DEFAULTS, WorkOptions
from hfsyn.runs.overwriting import working_in
from hfsyn.runs.run import Run, incomplete, prepare, select
from hfsyn.runs.shards import is_done, pending
from hfsyn.workers import (
    check_device,
    current_worker,
    default_processes,
    is_child,
    is_launched,
    launch,
    leave_group,
    pick_device,
    stopped,
)

STAGES: dict[str, Callable[..., None]] = {"caption": caption, "generate": generate}


def build(
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    num_processes: int | None = None,
    device: str | None = None,
    shards: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    options: WorkOptions = DEFAULTS,
    captions: str | None = None,
    publish_to: str | None = None,
    version: str | None = None,
) -> Run:
    """Carry out a recipe: caption, generate, finish. Running it again continues; a finished run is left as it is.

    Args:
        recipe: see `load_recipe`.
        out: the run folder; made if it is not there.
        overrides: ``key=value`` strings, as for `load_recipe`.
        num_processes: None is one a GPU, or one a CPU core, but no more than there are shards to make; 1 works in this
            process.
        device: a torch device; None is this process's GPU, or the CPU.
        shards: ``A:B`` generates only these shards and finishes the run if they were the last.
        overwrite: delete the run that `out` holds first.
        quiet: no progress.
        options: how fast and how long to work.
        captions: take those of a published dataset or another run instead of making them; the result is the same.
        publish_to: a dataset on the Hub, to which finished shards are sent while the others are made.
        version: under which the finished run is published there.

    Raises:
        HfsynError: see `prepare`; with `publish_to` see `publish`; with exit code 4 some shards are still missing.
    """
    check_device(device)
    check_target(publish_to, version)
    check_launcher()
    run = _prepared(load_recipe(recipe, overrides), out, device, overwrite=overwrite)
    with publishing(run, publish_to, version, quiet=quiet):
        if not is_whole(run):
            with working_in(run.folder, run.mark):
                _unmark_short(run)
                work(
                    run,
                    ("caption", "generate"),
                    num_processes=num_processes,
                    device=device,
                    shards=shards,
                    quiet=quiet,
                    options=options,
                    captions=captions,
                )
                if current_worker().is_main:
                    left = len(pending(run.data_shards()))
                    if shards is not None and left:
                        raise incomplete("generate", len(run.data_shards()) - left, len(run.data_shards()), run)
                    finish(run)
    leave_group()
    return run


def _prepared(recipe: Recipe, out: str | Path, device: str | None, *, overwrite: bool) -> Run:
    """As `prepare`; of a launcher's processes the main one alone deletes what is there, and the others wait."""
    worker = current_worker()
    if not overwrite or worker.world == 1:
        return prepare(recipe, out, overwrite=overwrite)
    from accelerate import PartialState

    made = prepare(recipe, out, overwrite=True) if worker.is_main else None
    pick_device(device)
    PartialState().wait_for_everyone()
    return made or prepare(recipe, out)


def _unmark_short(run: Run) -> None:
    """Take the sidecars of shards that were cut short after the run was finished, so that they are made again."""
    try:
        manifest = manifest_in(run.folder)
    except DataError:  # it is written again at the end
        return
    for entry in (*manifest.captions, *manifest.shards) if manifest else ():
        shard = run.folder / entry.file
        if shard.exists() and shard.stat().st_size != entry.bytes:
            sidecar_of(shard).unlink(missing_ok=True)


def work(
    run: Run,
    stages: Sequence[str],
    *,
    num_processes: int | None = None,
    device: str | None = None,
    shards: str | None = None,
    quiet: bool = False,
    options: WorkOptions = DEFAULTS,
    captions: str | None = None,
) -> None:
    """Run stages in this process, or in several through accelerate; returns when their shards are all there.

    Raises:
        HfsynError: with exit code 4, processes ended before that, or the budget of hours did.
    """
    run.check()
    if all(_complete(run, stage, shards if stage == stages[-1] else None) for stage in stages):
        return
    check_launcher()
    check_device(device)
    one = device is not None and ":" in device
    if one and (num_processes or 1) > 1:
        raise HfsynError(
            f"--device {device} names one GPU, for {num_processes} processes.",
            "Say which GPUs with CUDA_VISIBLE_DEVICES=1,2 and --device cuda, or leave --num-processes out.",
        )
    processes = num_processes or (1 if one else min(default_processes(), _shards_left(run, stages, shards)))
    if processes == 1 or is_launched():
        tried: ImageGenerator | None = None
        if {"caption", "generate"} <= set(stages) and not _complete(run, "caption", None):
            tried = tried_generator(run, device=device, options=options)
        for stage in stages:
            only = shards if stage == stages[-1] else None
            more: dict[str, Any] = {"captions": captions} if stage == "caption" else {"generator": tried}
            STAGES[stage](run, device=device, shards=only, quiet=quiet, options=options, **more)
            if options.budget_hours is not None and not _complete(run, stage, only):
                _end_early(run, stage, only, options)
                return
        return
    arguments = ["work-on", str(run.folder), "--stages", ",".join(stages)]
    arguments += ["--device", device] if device else []
    arguments += ["--shards", shards] if shards else []
    arguments += ["--quiet"] if quiet else []
    arguments += options.arguments()
    arguments += ["--captions", captions] if captions else []
    code = launch(
        arguments, processes, device=device, progress=lambda: len(list((run.folder / SIDECARS).glob("*/*.json")))
    )
    unfinished = [s for s in stages if not _complete(run, s, shards if s == stages[-1] else None)]
    if unfinished:
        if not code and not _has_time(run, unfinished[0], options):
            raise _budget_spent(run, unfinished[0], shards if unfinished[0] == stages[-1] else None, options)
        raise stopped(
            "The worker processes stopped before the work was done; what they finished is kept.",
            "The cause stands above. Run the same command again to continue.",
            code,
        )


def _paths(run: Run, stage: str, shards: str | None) -> list[Path] | None:
    """The shards that a stage is asked for; None as long as it is not known what they are."""
    if stage == "caption":
        return select(run.caption_shards(), shards)
    return None if run.planned_rows is None else select(run.data_shards(), shards)


def _complete(run: Run, stage: str, shards: str | None) -> bool:
    paths = _paths(run, stage, shards)
    return paths is not None and not pending(paths)


def _shards_left(run: Run, stages: Sequence[str], shards: str | None) -> int:
    """How many processes could have a shard at once, at least 1; before there is a plan, as if no row were rejected."""
    counts = [1]
    for stage in stages:
        paths = _paths(run, stage, shards if stage == stages[-1] else None)
        if paths is None:
            rows = run.source_rows * run.recipe.prompt.images_per_caption
            counts.append(shard_count(rows, run.recipe.store.shard_rows))
        else:
            counts.append(len(pending(paths)))
    return max(counts)


def _end_early(run: Run, stage: str, shards: str | None, options: WorkOptions) -> None:
    """End the work of a process whose budget is spent: the main one of a launcher's, or the only one, says so."""
    if is_child() or not current_worker().is_main:
        return  # the parent or the main process tells
    if is_launched():
        # A launcher whose main process ends with an error kills the others, and these may still be at a shard.
        taking = Claims(run.folder, _paths(run, stage, shards) or [], stage=stage)
        while True:
            while (claim := taking.take()) is not None:
                claim.release()
            if not taking.in_other_hands:
                break
            Patience(taking).wait()
    raise _budget_spent(run, stage, shards, options)


def _has_time(run: Run, stage: str, options: WorkOptions) -> bool:
    """Whether the budget would still allow a shard that takes as long as the longest of the stage so far."""
    done = [shard for shard in _paths(run, stage, None) or [] if is_done(shard)]
    return options.seconds_left() > max((load_sidecar(sidecar_of(shard)).seconds for shard in done), default=0.0)


def _budget_spent(run: Run, stage: str, shards: str | None, options: WorkOptions) -> HfsynError:
    paths = _paths(run, stage, shards)
    left = len(pending(paths or []))
    how_far = (
        "nothing of stage generate is done"
        if paths is None
        else (f"{len(paths) - left} of {len(paths)} {stage} shards are done and kept")
    )
    return HfsynError(
        f"The budget of {options.budget_hours:g} hours has no room for another shard: {how_far}.",
        "Run the same command again to continue.",
        code=ExitCode.PARTIAL,
    )
