"""The command that shows a run's images beside the real ones."""

from __future__ import annotations

from typing import Any

import click

from hfsyn.commands.hub import token_option
from hfsyn.commands.options import answer_options, echo, number


@click.command("look", short_help="Show real images beside what was made of them.")
@click.argument("what", metavar="RUN|REPO_ID[@REVISION]")
@click.option("--out", metavar="FILE", help="The PNG file.  [default: RUN/preview/look.png]")
@click.option(
    "--html",
    is_flag=False,
    flag_value=True,
    metavar="[FILE]",
    help="Write a page that filters by class, flag and words.  [default: RUN/preview/look.html]",
)
@click.option("--classes", metavar="NAME,...", help="Only these classes, by name or wnid.")
@number("-n", "--per-class", help="Images per class.  [default: 3 in the picture]")
@click.option("--flag", metavar="FLAG", help="Only rows with this flag, such as truncated.")
@click.option("--words", metavar="WORDS", help="Only rows with all of these words in their prompt or caption.")
@click.option("--by", metavar="COLUMN", help="The best and the worst of each class by this column of the scores.")
@click.option("--source", metavar="DIR", help="Where the real images are now, if not where the recipe says.")
@click.option("--config-name", metavar="NAME", help="A configuration.  [default: the card's own]")
@token_option
@answer_options
def look_command(as_json: bool, **words: Any) -> None:
    """Show real images beside what was made of them, as a picture or a page. Prints its path.

    The page opens without a network, holds at most 500 rows, and gives the command that makes an image again.

    \b
    hfsyn look runs/cip
    hfsyn look runs/cip --html --classes tench,church --words "red fish"
    hfsyn look runs/cip --by margin
    """
    from hfsyn import look

    found = look(**words)
    paths = "\n".join(str(path) for path in (found.picture, found.page) if path)
    echo(found.as_dict(), paths, as_json=as_json, quiet=words["quiet"])
