"""The commands that look before anything is spent, and while it is: plan, status, doctor, env."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import click

from builders.errors import plural
from hfsyn.commands.hub import token_option
from hfsyn.commands.making import left_out
from hfsyn.commands.options import (
    Finite,
    answer_options,
    captions_option,
    echo,
    number,
    pickle_option,
    processes_option,
    recipe_options,
    speed_options,
)
from hfsyn.errors import ExitCode


@click.command()
@click.argument("run")
@answer_options
def status(run: str, as_json: bool, quiet: bool) -> None:
    """How far a RUN folder or a loop is, from its folder alone. Prints `finished` or `unfinished`."""
    from hfsyn import status as run_status
    from hfsyn.runs.status import RunStatus

    found = run_status(run)
    if not isinstance(found, RunStatus):
        echo(found.as_dict(), found.text(), as_json=as_json, quiet=quiet)
        return
    lines = [f"{found.name}  {found.fingerprint[:12]}  {plural(found.source_rows, 'real image')}"]
    for stage in (*found.stages, *(replace(judge, stage=f"scores of {judge.stage}:") for judge in found.scores)):
        shards = "?" if stage.shards is None else stage.shards
        aside = f", {stage.rejected} set aside" if stage.rejected else ""
        rate = f", {stage.rows / stage.seconds:.1f} images/s per process" if stage.seconds else ""
        lines.append(f"{stage.stage:9} {stage.shards_done}/{shards} shards, {plural(stage.rows, 'row')}{aside}{rate}")
    lines += left_out(found.left_out, found.unreadable_classes)
    for name, counts in found.unused_weights.items():
        lines.append(f"weights of the model ({name}): {', '.join(f'{n} {kind}' for kind, n in counts.items())}")
    lines += [f"selected: {found.selection}"] if found.selection else []
    if found.made_again:
        lines.append(f"made twice: {plural(found.made_again, 'shard')}, by jobs that did not see each other")
    lines += [f"not finished: {what}; `hfsyn build` makes it again" for what in found.lost]
    lines.append("finished" if found.finished else "unfinished")
    echo(asdict(found), "\n".join(lines), as_json=as_json, quiet=quiet)


@click.command(short_help="What RECIPE or LOOP.yaml would make: disk, time, cost.")
@click.argument("recipe")
@recipe_options
@click.option("--out", metavar="RUN", help="Use the captions of this run folder, if it has them.")
@click.option(
    "--price", type=Finite(0, 1e6), metavar="USD", help="What a device costs per hour: says what the run costs."
)
@number(
    "--probe",
    help="Make N images here, in whole batches with one more before and after, and measure them. The options below are "
    "for this.",
)
@number(
    "--num-processes",
    most=10**6,
    help="Project the measured times for that many processes, each with a device like this.  [default: 1]",
)
@speed_options
@answer_options
def plan(recipe: str, as_json: bool, quiet: bool, **words: Any) -> None:
    """What RECIPE would make: counts, first prompts, truncations, shards, disk, upload, time, cost. Loads no model.

    Without a network the counts of a set on the Hub are those of `hfsyn variants info`. With --probe the models are
    loaded and tried; nothing of that is kept. Of a loop file: images, hours and disk by round.

    \b
    hfsyn plan imagenette-cip --price 2.5
    hfsyn plan loop.yaml
    hfsyn plan imagenette-cip --price 2.5 --probe 64 --num-processes 8
    """
    from hfsyn import plan as run_plan
    from hfsyn.progress import teller

    found = run_plan(recipe, say=teller(as_json or quiet), **words)
    echo(found.as_dict(), found.text(), as_json=as_json, quiet=quiet)


@click.command(short_help="Whether RECIPE's captions tell its generator anything.")
@click.argument("recipe")
@number("--images", least=2, default=200, show_default=True, help="Real images to measure on.")
@number("--draws", most=1000, default=4, show_default=True, help="Noises for each image and kind of prompt.")
@recipe_options
@captions_option
@click.option("--device", metavar="DEVICE", help="cpu, cuda, mps.  [default: the GPU, or else the CPU]")
@processes_option("Processes on this machine, started by accelerate.  [default: this one]")
@click.option("--out", metavar="FILE", help="Also write the result as JSON to this file.")
@pickle_option
@answer_options
def informativeness(recipe: str, as_json: bool, quiet: bool, **words: Any) -> None:
    """Whether RECIPE's captions tell its generator more than the class name, before images are made from them.

    On real images with a known noise, the generator's denoising loss is compared under no prompt, the class name, the
    image's own caption, and captions of other images of the same and of another class. This says what captions tell the
    generator, not what a classifier gains from the images: wrong captions can still make a varied set.

    In place of RECIPE a run folder: its recipe and captions are measured, and `hfsyn report` shows the result beside
    the accuracies of what was trained on it.

    \b
    hfsyn informativeness shapes-cip --images 40
    hfsyn informativeness imagenette-cip --captioner blip2 --num-processes 2
    hfsyn informativeness runs/cip-0
    """
    from hfsyn import informativeness as measure
    from hfsyn.workers import current_worker, is_child, leave_group

    found = measure(recipe, quiet=as_json or quiet, **words)
    if current_worker().is_main and not is_child():
        echo(found.as_dict(), found.text(), as_json=as_json, quiet=quiet)
    leave_group()


@click.command(short_help="What could stop a run here: token, Hub, disk, devices.")
@click.argument("recipe", required=False)
@recipe_options
@click.option("--out", metavar="RUN", help="Where the recipe's run is or will be.  [default: this folder]")
@token_option
@answer_options
def doctor(recipe: str | None, as_json: bool, quiet: bool, **words: Any) -> None:
    """Look at what may stop a run: token and its rights, Hub, disk, devices, library versions.

    With RECIPE also at its models and images, whether they are here or open to this account, and at the room and the
    memory that they take. Each finding ends with the way to fix it. Exit code 3 when something would stop the run.
    """
    from hfsyn import doctor as run_doctor

    found = run_doctor(recipe, **words)
    states = [check.state for check in found]
    failed = states.count("failed")
    verdict = f"{plural(failed, 'finding')} would stop it" if failed else "nothing would stop it"
    lines = [*(check.line() for check in found), f"{verdict}, {plural(states.count('warning'), 'warning')}"]
    checks = [{"state": c.state, "text": c.text, "hint": c.hint} for c in found]
    echo(checks, "\n".join(lines), as_json=as_json, quiet=quiet)
    if failed:
        raise click.exceptions.Exit(ExitCode.PREFLIGHT)


@click.command()
@answer_options
def env(as_json: bool, quiet: bool) -> None:
    """Versions, devices and settings of this machine, for a bug report. Asks no server, and shows no token."""
    from hfsyn import env as run_env

    found = run_env()
    lines = []
    for name, value in found.items():
        shown = ("yes" if value else "no") if isinstance(value, bool) else value
        shown = "; ".join(value) or "none" if isinstance(value, list) else shown
        within = value if isinstance(value, dict) else {}
        lines.append(f"- {name}: {'' if within else shown or 'none'}".rstrip())
        lines += [f"    {key}: {'missing' if of is None else of}" for key, of in within.items()]
    if not (as_json or quiet):
        click.echo("Copy this into the report:", err=True)
    echo(found, "\n".join(lines), as_json=as_json, quiet=False)


LOOKING = (plan, informativeness, status, doctor, env)
