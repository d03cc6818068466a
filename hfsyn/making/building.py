"""All stages in one: build, in this process or in several that accelerate starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from builders import layout
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.making.captioning import caption
from hfsyn.making.generating import generate
from hfsyn.making.manifest import finish
from hfsyn.making.recipe import Recipe, load_recipe
from hfsyn.making.runs import Run, incomplete, prepare, select
from hfsyn.making.shards import pending
from hfsyn.publishing.watching import check_target, publishing
from hfsyn.workers import check_device, current_worker, default_processes, is_launched, launch, leave_group

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
    allow_pickle: bool = False,
    captions: str | None = None,
    publish_to: str | None = None,
    version: str | None = None,
) -> Run:
    """Carry out a recipe: caption, generate, finish. Running it again continues; a finished run is left as it is.

    Args:
        recipe: see `load_recipe`.
        out: the run folder; made if it is not there.
        overrides: ``key=value`` strings, as for `load_recipe`.
        num_processes: None is one a GPU, or one a CPU core; 1 works in this process.
        device: a torch device; None is this process's GPU, or the CPU.
        shards: ``A:B`` generates only these shards and finishes the run if they were the last.
        overwrite: delete the run that `out` holds first.
        quiet: no progress.
        allow_pickle: read weights that are no safetensors too; a pickle can run code when it is read.
        captions: take those of a published dataset or another run instead of making them; the result is the same.
        publish_to: a dataset on the Hub, to which finished shards are sent while the others are made.
        version: under which the finished run is published there.

    Raises:
        HfsynError: see `prepare`; with `publish_to` see `publish`; with exit code 4 some shards are still missing.
    """
    check_device(device)
    check_target(publish_to, version)
    run = prepare(load_recipe(recipe, overrides), out, overwrite=overwrite)
    with publishing(run, publish_to, version, quiet=quiet):
        if not (run.folder / layout.MANIFEST).exists():
            work(
                run, ("caption", "generate"), num_processes=num_processes, device=device, shards=shards, quiet=quiet,
                allow_pickle=allow_pickle, captions=captions,
            )  # fmt: skip
        if current_worker().is_main:
            left = len(pending(run.data_shards()))
            if shards is not None and left:
                raise incomplete("generate", len(run.data_shards()) - left, len(run.data_shards()), run)
            finish(run)
    leave_group()
    return run


def work(
    run: Run,
    stages: Sequence[str],
    *,
    num_processes: int | None = None,
    device: str | None = None,
    shards: str | None = None,
    quiet: bool = False,
    allow_pickle: bool = False,
    captions: str | None = None,
) -> None:
    """Run stages in this process, or in several through accelerate; returns when their shards are all there."""
    if all(_complete(run, stage, shards if stage == stages[-1] else None) for stage in stages):
        return
    check_device(device)
    processes = num_processes or default_processes()
    if processes == 1 or is_launched():
        for stage in stages:
            only = shards if stage == stages[-1] else None
            more = {"captions": captions} if stage == "caption" else {}
            STAGES[stage](run, device=device, shards=only, quiet=quiet, allow_pickle=allow_pickle, **more)
        return
    arguments = ["work-on", str(run.folder), "--stages", ",".join(stages)]
    arguments += ["--device", device] if device else []
    arguments += ["--shards", shards] if shards else []
    arguments += ["--quiet"] if quiet else []
    arguments += ["--allow-pickle-weights"] if allow_pickle else []
    arguments += ["--captions", captions] if captions else []
    code = launch(arguments, processes, device=device)
    if code or not all(_complete(run, stage, shards if stage == stages[-1] else None) for stage in stages):
        raise HfsynError(
            "The worker processes stopped before the work was done; what they finished is kept.",
            "The cause stands above. Run the same command again to continue.",
            code=ExitCode.PARTIAL,
        )


def _complete(run: Run, stage: str, shards: str | None) -> bool:
    if stage == "caption":
        return not pending(select(run.caption_shards(), shards))
    if run.planned_rows is None:
        return False
    return not pending(select(run.data_shards(), shards))
