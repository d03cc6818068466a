"""The commands that look before anything is spent, and while it is: plan, status."""

from __future__ import annotations

import json
from typing import Any

import click

from hfsyn.commands.catalogue import as_json_option
from hfsyn.commands.recipe_options import chosen_recipe, recipe_options


@click.command()
@click.argument("run")
@as_json_option
def status(run: str, as_json: bool) -> None:
    """How far a RUN folder is, read from the folder alone. Prints `finished` or `unfinished`."""
    from dataclasses import asdict

    from hfsyn.making.runs import status as run_status

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
    click.echo("finished" if found.finished else "unfinished")


@click.command()
@click.argument("recipe")
@recipe_options
@click.option("--out", metavar="RUN", help="Use the captions of this run folder, if it has them.")
@click.option(
    "--price", type=click.FloatRange(min=0), metavar="USD", help="What a device costs an hour: says what the run costs."
)  # fmt: skip
@as_json_option
def plan(recipe: str, out: str | None, price: float | None, as_json: bool, **given: Any) -> None:
    """What RECIPE would make: counts, first prompts, truncations, shards, disk, upload, time, cost. Loads no model.

    Without a network the counts of a set on the Hub are those of `hfsyn variants info`.
    """
    from hfsyn.making.forecast import forecast

    found = forecast(chosen_recipe(recipe, given)[0], out, price=price)
    click.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else found.text())


LOOKING = (plan, status)
