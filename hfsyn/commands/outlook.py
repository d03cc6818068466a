"""The commands that look before anything is spent, and while it is: plan, status, doctor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import click

from builders.errors import plural
from hfsyn.commands.hub import token_option
from hfsyn.commands.options import (
    Finite,
    as_json_option,
    chosen_recipe,
    echo_json,
    number,
    recipe_options,
    speed_options,
)
from hfsyn.errors import ExitCode


@click.command()
@click.argument("run")
@as_json_option
def status(run: str, as_json: bool) -> None:
    """How far a RUN folder is, read from the folder alone. Prints `finished` or `unfinished`."""
    from hfsyn.runs.status import status as run_status

    found = run_status(run)
    if as_json:
        echo_json(asdict(found))
        return
    lines = [f"{found.name}  {found.fingerprint[:12]}  {plural(found.source_rows, 'real image')}"]
    for stage in found.stages:
        shards = "?" if stage.shards is None else stage.shards
        aside = f", {stage.rejected} set aside" if stage.rejected else ""
        rate = f", {stage.rows / stage.seconds:.1f} images/s per process" if stage.seconds else ""
        lines.append(f"{stage.stage:9} {stage.shards_done}/{shards} shards, {plural(stage.rows, 'row')}{aside}{rate}")
    lines += left_out(found.left_out, found.unreadable_classes)
    for name, counts in found.unused_weights.items():
        lines.append(f"weights of the model ({name}): {', '.join(f'{n} {kind}' for kind, n in counts.items())}")
    lines += [f"not finished: {what}; `hfsyn build` makes it again" for what in found.lost]
    click.echo("\n".join([*lines, "finished" if found.finished else "unfinished"]))


def left_out(counts: Mapping[str, int], classes: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each reason why real images, and for each class that, were left out of a run."""
    lines = [f"left out: {count} ({reason})" for reason, count in counts.items()]
    for entry in classes:
        could = "used" if entry.get("refused") else "read"
        lines.append(f"left out: the class {entry['name']} (none of its {entry['images']} images could be {could})")
    return lines


@click.command(short_help="What RECIPE would make: counts, prompts, disk, time, cost.")
@click.argument("recipe")
@recipe_options
@click.option("--out", metavar="RUN", help="Use the captions of this run folder, if it has them.")
@click.option(
    "--price", type=Finite(0, 1e6), metavar="USD", help="What a device costs per hour: says what the run costs."
)
@number(
    "--probe",
    "count",
    help="Make N images here, in whole batches with one more before and after, and measure them. The options below are "
    "for this.",
)
@number(
    "--num-processes",
    most=10**6,
    help="Project the measured times for that many processes, each with a device like this.  [default: 1]",
)
@speed_options
@as_json_option
def plan(
    recipe: str,
    out: str | None,
    price: float | None,
    count: int | None,
    num_processes: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """What RECIPE would make: counts, first prompts, truncations, shards, disk, upload, time, cost. Loads no model.

    Without a network the counts of a set on the Hub are those of `hfsyn variants info`. With --probe the models are
    loaded and tried; nothing of that is kept.

    \b
    hfsyn plan imagenette-cip --price 2.5
    hfsyn plan imagenette-cip --price 2.5 --probe 64 --num-processes 8
    """
    from hfsyn.outlook.forecast import forecast
    from hfsyn.runs.options import WorkOptions

    chosen, given = chosen_recipe(recipe, given)
    options = WorkOptions(**given)
    if count is None and (options != WorkOptions() or num_processes):
        raise click.UsageError("Devices, processes and speed are for --probe N.")
    found = forecast(chosen, out, price=price)
    facts, lines = found.as_dict(), [found.text()]
    if count is not None:
        from hfsyn.outlook.probe import probe
        from hfsyn.progress import teller
        from hfsyn.workers import check_device

        check_device(options.device)
        measured = probe(chosen, count, options=options, say=teller(as_json))
        projection = measured.projected(found.real_images, found.images, num_processes or 1, price)
        facts["probe"] = asdict(measured) | asdict(projection)
        lines += [f"measured      {measured.text()}", f"projected     {projection.text()}"]
    if as_json:
        echo_json(facts)
    else:
        click.echo("\n".join(lines))


@click.command(short_help="What could stop a run here: token, Hub, disk, devices, libraries.")
@click.argument("recipe", required=False)
@recipe_options
@click.option("--out", metavar="RUN", help="Where the recipe's run is or will be.  [default: this folder]")
@token_option
@as_json_option
def doctor(recipe: str | None, out: str | None, token: str | None, as_json: bool, **given: Any) -> None:
    """Look at what may stop a run: token and its rights, Hub, disk, devices, library versions.

    With RECIPE also at its models and images, whether they are here or open to this account, and at the room and the
    memory that they take. Each finding ends with the way to fix it. Exit code 3 when something would stop the run.
    """
    from hfsyn.outlook.doctor import doctor as run_doctor

    if recipe is None and (out is not None or any(value not in (None, ()) for value in given.values())):
        raise click.UsageError("These options are about a RECIPE: name one.")
    chosen = None if recipe is None else chosen_recipe(recipe, given)[0]
    found = run_doctor(chosen, out, token=token)
    if as_json:
        echo_json([{"state": c.state, "text": c.text, "hint": c.hint} for c in found])
    else:
        click.echo("\n".join(check.line() for check in found))
    if any(check.state == "failed" for check in found):
        raise click.exceptions.Exit(ExitCode.PREFLIGHT)


@click.command()
@as_json_option
def env(as_json: bool) -> None:
    """Versions, devices and settings of this machine, for a bug report. Asks no server, and shows no token."""
    from hfsyn.outlook.environment import env as run_env

    found = run_env()
    if as_json:
        echo_json(found)
        return
    click.echo("Copy this into the report:", err=True)
    for name, value in found.items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if isinstance(value, list):
            value = "; ".join(value)
        if isinstance(value, dict):
            click.echo(f"- {name}:" + (" none" if not value else ""))
            click.echo(
                "".join(f"    {key}: {'missing' if of is None else of}\n" for key, of in value.items()), nl=False
            )
        else:
            click.echo(f"- {name}: {value if value != '' else 'none'}")


LOOKING = (plan, status, doctor, env)
