"""The commands around published versions: publish, verify, reproduce, diff."""

from __future__ import annotations

from typing import Any

import click

from hfsyn.commands.options import answer_options, echo
from hfsyn.errors import ExitCode


def _checked_token(context: click.Context, parameter: click.Parameter, token: str | None) -> Any:
    from builders.hub import check_token

    return check_token(token)


token_option = click.option(
    "--token",
    metavar="TOKEN",
    callback=_checked_token,
    help="Default: HF_TOKEN, or the one that `hf auth login` stored. Better left out.",
)
_config = click.option("--config-name", metavar="NAME", help="A configuration.  [default: the card's own]")


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
@click.option("--private/--public", "private", default=None, help="For a repository that is created now.")
@click.option("--into", is_flag=True, help="Publish beside what a repository of other origin holds.")
@click.option("--set-default", is_flag=True, help="Let load_dataset(REPO_ID) take this configuration.")
@click.option("--license", metavar="NAME", help="The dataset's licence, by the Hub's name for it.")
@click.option("--benchmark", is_flag=True, help="Offer the configuration to test classifiers on, in eval.yaml.")
@click.option("--watch", is_flag=True, help="Publish finished shards while the run is at work, then the rest.")
@click.option("--dry-run", is_flag=True, help="Look at everything that can be wrong, and send nothing.")
@token_option
@answer_options
def publish(as_json: bool, **words: Any) -> None:
    """Publish a finished RUN as a version of the dataset REPO_ID. Running it again continues.

    Data, card, a reading back from the Hub, then the tag. Prints the version's web address.

    \b
    hfsyn publish runs/cip user/imagenette-cip --version 1.0.0 --dry-run
    hfsyn publish runs/cip user/imagenette-cip --version 1.0.0
    """
    from hfsyn import publish as run_publish

    found = run_publish(**words)
    if found.commit is not None and not (as_json or words["quiet"]):
        reference = f'"{found.repo_id}", revision="{found.version.tag}"'
        click.echo(f"in Python: datasets.load_dataset({reference})", err=True)
    text = found.text() if words["dry_run"] else found.address
    if found.failed and words["quiet"] and not as_json:
        click.echo("\n".join(check.line() for check in found.failed), err=True)
    echo(found.as_dict(), text, as_json=as_json, quiet=words["quiet"])
    if found.failed:
        raise click.exceptions.Exit(max(check.code for check in found.failed))


@click.command(short_help="Check a run or a version, to every prompt and seed.")
@click.argument("what", metavar="RUN|REPO_ID[@REVISION]")
@click.option(
    "--images/--no-images",
    default=None,
    help="Check the mark of every image.  [default: in a run folder; of a version this downloads them]",
)
@_config
@token_option
@answer_options
def verify(as_json: bool, quiet: bool, **words: Any) -> None:
    """Check a finished run or a published version: files, schema, counts, every prompt, every seed, every mark.

    Prints what differs; exit code 1 when anything does.
    """
    from hfsyn import verify as run_verify

    found = run_verify(quiet=quiet, **words)
    echo(found.as_dict(), found.text(), as_json=as_json, quiet=quiet)
    if found.problems:
        raise click.exceptions.Exit(ExitCode.DIFFERS)


@click.command(short_help="Make one image again from its row, and compare it.")
@click.argument("what", metavar="RUN|REPO_ID[@REVISION]")
@click.option("--sample-id", required=True, metavar="ID", help="The `sample_id` of a row.")
@click.option("--out", default=".", show_default=True, metavar="DIR", help="Where to write the pictures.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, mps. Default: the GPU, or the CPU.")
@click.option("--model", metavar="MODEL", help="Where the generator is now, if the recipe names a local folder.")
@click.option("--source", metavar="DIR", help="Where the real images are now, if the recipe's images start from them.")
@click.option("--classifier", metavar="MODEL", help="Where the classifier is now that steers by its entropy.")
@click.option("--allow-pickle-weights", is_flag=True, help="See `hfsyn generate --help`.")
@_config
@token_option
@answer_options
def reproduce(as_json: bool, quiet: bool, **words: Any) -> None:
    """Make one image again from its row and its recipe, and compare it with the stored one.

    Writes both beside each other and prints the picture's path. Exit code 1 when they differ by more than rounding.
    """
    from hfsyn import reproduce as run_reproduce

    found = run_reproduce(**words)
    if not (as_json or quiet):
        click.echo(found.text(), err=True)
    echo(found.as_dict(), str(found.picture), as_json=as_json, quiet=quiet)
    if found.verdict == "different":
        raise click.exceptions.Exit(ExitCode.DIFFERS)


@click.command(short_help="What differs between two versions: rows and recipes.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@_config
@token_option
@answer_options
def diff(as_json: bool, quiet: bool, **words: Any) -> None:
    """What differs between two versions (RUN or REPO_ID@REVISION): rows by class and column, and the recipes.

    \b
    hfsyn diff user/imagenette-cip@v1.0.0 user/imagenette-cip@v1.1.0
    """
    from hfsyn import diff as run_diff

    found = run_diff(quiet=quiet or as_json, **words)
    echo(found.as_dict(), found.text(), as_json=as_json, quiet=quiet)


HUB_COMMANDS = (publish, verify, reproduce, diff)
