"""The commands that look before anything is spent, and while it is: plan, status."""

from __future__ import annotations

import json
from typing import Any

import click

from hfsyn.commands.catalogue import as_json_option
from hfsyn.commands.recipe_options import chosen_recipe, recipe_options
from hfsyn.commands.values import Finite
from hfsyn.commands.work_options import speed_options


@click.command()
@click.argument("run")
@as_json_option
def status(run: str, as_json: bool) -> None:
    """How far a RUN folder is, read from the folder alone. Prints `finished` or `unfinished`."""
    from dataclasses import asdict

    from hfsyn.runs.status import status as run_status

    found = run_status(run)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    click.echo(f"{found.name}  {found.fingerprint[:12]}  {found.source_rows} real images")
    for stage in found.stages:
        shards = "?" if stage.shards is None else stage.shards
        aside = f", {stage.rejected} set aside" if stage.rejected else ""
        rate = f", {stage.rows / stage.seconds:.1f} images/s a process" if stage.seconds else ""
        click.echo(f"{stage.stage:9} {stage.shards_done}/{shards} shards, {stage.rows} rows{aside}{rate}")
    for reason, count in found.left_out.items():
        click.echo(f"left out: {count} ({reason})")
    for entry in found.unreadable_classes:
        could = "used" if entry.get("refused") else "read"
        click.echo(f"left out: the class {entry['name']} (none of its {entry['images']} images could be {could})")
    for name, counts in found.unused_weights.items():
        click.echo(f"weights of the model ({name}): {', '.join(f'{n} {kind}' for kind, n in counts.items())}")
    for what in found.lost:
        click.echo(f"not finished: {what}; `hfsyn build` makes it again")
    click.echo("finished" if found.finished else "unfinished")


@click.command()
@click.argument("recipe")
@recipe_options
@click.option("--out", metavar="RUN", help="Use the captions of this run folder, if it has them.")
@click.option(
    "--price", type=Finite(0, 1e6), metavar="USD", help="What a device costs an hour: says what the run costs."
)
@click.option(
    "--probe",
    "count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Make N images here, in whole batches with one more before and after, and measure them. The options below are "
    "for this.",
)
@click.option(
    "--num-processes",
    type=click.IntRange(1, 10**6),
    metavar="N",
    help="Project the measured times for so many processes, each with a device like this.  [default: 1]",
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
        facts["probe"] = measured.as_dict() | projection.as_dict()
        lines += [f"measured      {measured.text()}", f"projected     {projection.text()}"]
    click.echo(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else "\n".join(lines))


LOOKING = (plan, status)
