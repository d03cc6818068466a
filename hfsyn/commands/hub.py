"""The commands around the Hub: publish, verify, reproduce, diff, doctor."""

from __future__ import annotations

import json
from typing import Any

import click

from hfsyn.commands.catalogue import as_json_option
from hfsyn.commands.recipe_options import chosen_recipe, recipe_options
from hfsyn.errors import ExitCode


def _checked_token(context: click.Context, parameter: click.Parameter, token: str | None) -> Any:
    from builders.hub.answers import check_token

    return check_token(token)


_token = click.option(
    "--token",
    metavar="TOKEN",
    callback=_checked_token,
    help="Default: HF_TOKEN, or the one that `hf auth login` stored. Better left out.",
)
_config = click.option("--config-name", "config", metavar="NAME", help="A configuration.  [default: the card's own]")
_quiet = click.option("-q", "--quiet", is_flag=True, help="No progress; only the last line.")


@click.command()
@click.argument("run")
@click.argument("repo_id")
@click.option("--version", required=True, metavar="X.Y.Z", help="The version; its tag is vX.Y.Z.")
@click.option("--config-name", default="default", show_default=True, metavar="NAME", help="The configuration.")
@click.option(
    "--what",
    type=click.Choice(["data", "captions"]),
    default="data",
    show_default=True,
    help="The images with their captions, or the captions alone.",
)
@click.option("--private/--public", "private", default=None, help="For a repository that is made now.")
@click.option("--into", is_flag=True, help="Publish beside what a repository of other origin holds.")
@click.option("--set-default", "make_default", is_flag=True, help="Let load_dataset(REPO_ID) take this configuration.")
@click.option("--license", "licence", metavar="NAME", help="The dataset's licence, by the Hub's name for it.")
@click.option(
    "--watch", "follow", is_flag=True, help="Publish finished shards while the run is at work, then the rest."
)
@click.option("--dry-run", is_flag=True, help="Look at everything that can be wrong, and send nothing.")
@_token
@as_json_option
@_quiet
def publish(run: str, repo_id: str, follow: bool, dry_run: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Publish a finished RUN as a version of the dataset REPO_ID. Running it again continues.

    Data, card, a reading back from the Hub, then the tag. Prints the version's address.

    \b
    hfsyn publish runs/cip user/imagenette-cip --version 1.0.0 --dry-run
    hfsyn publish runs/cip user/imagenette-cip --version 1.0.0
    """
    from hfsyn.publishing.publication import publish as run_publish
    from hfsyn.publishing.watching import watch

    if follow and dry_run:
        raise click.UsageError("--dry-run sends nothing, and --watch sends all the time: choose one.")
    if follow:
        found = watch(run, repo_id, quiet=quiet, **options)
    else:
        found = run_publish(run, repo_id, dry_run=dry_run, quiet=quiet, **options)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))
    elif dry_run:
        click.echo(found.text())
    else:
        click.echo(found.address)
    if found.failed:
        raise click.exceptions.Exit(max(check.code for check in found.failed))


@click.command()
@click.argument("what", metavar="RUN|REPO_ID[@REVISION]")
@_config
@_token
@as_json_option
@_quiet
def verify(what: str, config: str | None, token: str | None, as_json: bool, quiet: bool) -> None:
    """Check a finished run or a published version: files, schema, counts, every prompt and every seed.

    Prints what differs; exit code 1 when anything does.
    """
    from hfsyn.checks.verify import verify as run_verify

    found = run_verify(what, config=config, token=token, quiet=quiet)
    click.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else found.text())
    if found.problems:
        raise click.exceptions.Exit(ExitCode.DIFFERS)


@click.command()
@click.argument("what", metavar="RUN|REPO_ID[@REVISION]")
@click.option("--sample-id", required=True, metavar="ID", help="The `sample_id` of a row.")
@click.option("--out", default=".", show_default=True, metavar="DIR", help="Where to write the pictures.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, mps. Default: the GPU, or the CPU.")
@click.option("--model", metavar="MODEL", help="Where the generator is now, if the recipe names a local folder.")
@click.option("--source", metavar="DIR", help="Where the real images are now, if the recipe's images start from them.")
@click.option("--allow-pickle-weights", "allow_pickle", is_flag=True, help="See `hfsyn generate --help`.")
@_config
@_token
@as_json_option
def reproduce(what: str, sample_id: str, as_json: bool, **options: Any) -> None:
    """Make one image again from its row and its recipe, and compare it with the stored one.

    Writes both beside each other and prints the picture's path. Exit code 1 when they differ by more than rounding.
    """
    from hfsyn.checks.reproduce import reproduce as run_reproduce

    found = run_reproduce(what, sample_id, **options)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))
    else:
        click.echo(found.text(), err=True)
        click.echo(found.picture)
    if found.verdict == "different":
        raise click.exceptions.Exit(ExitCode.DIFFERS)


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@_config
@_token
@as_json_option
def diff(a: str, b: str, config: str | None, token: str | None, as_json: bool) -> None:
    """What differs between two versions (RUN or REPO_ID@REVISION): rows by class and column, and the recipes.

    \b
    hfsyn diff user/imagenette-cip@v1.0.0 user/imagenette-cip@v1.1.0
    """
    from hfsyn.checks.diff import diff as run_diff

    found = run_diff(a, b, config=config, token=token)
    click.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else found.text())


@click.command()
@click.argument("recipe", required=False)
@recipe_options
@click.option("--out", metavar="RUN", help="Where the recipe's run is or will be.  [default: this folder]")
@_token
@as_json_option
def doctor(recipe: str | None, out: str | None, token: str | None, as_json: bool, **given: Any) -> None:
    """Look at what may stop a run: token and its rights, Hub, disk, devices, library versions.

    With RECIPE also at its models and images, whether they are here or open to this account, and at the room and the
    memory that they take. Each finding ends with what mends it. Exit code 3 when something would stop the run.
    """
    from hfsyn.outlook.doctor import doctor as run_doctor

    if recipe is None and (out is not None or any(value not in (None, ()) for value in given.values())):
        raise click.UsageError("These options are about a RECIPE: name one.")
    chosen = None if recipe is None else chosen_recipe(recipe, given)[0]
    found = run_doctor(chosen, out, token=token)
    if as_json:
        rows = [{"state": c.state, "text": c.text, "hint": c.hint} for c in found]
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        for check in found:
            click.echo(check.line())
    if any(check.state == "failed" for check in found):
        raise click.exceptions.Exit(ExitCode.PREFLIGHT)


HUB_COMMANDS = (publish, verify, reproduce, diff, doctor)
