"""The commands that list what there is: variants, strategies, captioners, generators, recipes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from hfsyn.commands.menu import Menu, menu
from hfsyn.commands.options import Word, answer_options, echo, echo_path, echo_table

if TYPE_CHECKING:
    from hfsyn.recipes.loading import FragmentKind


@menu()
def variants() -> None:
    """The sets of ImageNet classes that can be a source."""


@variants.command("ls")
@answer_options
def variants_ls(as_json: bool, quiet: bool) -> None:
    """List the variants."""
    from hfsyn.api import variants as sets

    echo_table(sets.ls(), as_json=as_json, quiet=quiet)


@variants.command("info")
@click.argument("name")
@click.option("--classes", is_flag=True, help="List the classes too.")
@answer_options
def variants_info(name: str, classes: bool, as_json: bool, quiet: bool) -> None:
    """All that is known about a variant, and where each fact is from. NAME may be the file of a class map."""
    from hfsyn.api import variants as sets

    fields = sets.info(name, classes=classes)
    lines = []
    for key, value in fields.items():
        if value is None or value == {}:
            continue
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {inner}: {text}" for inner, text in value.items())]
        elif isinstance(value, list):
            lines += [f"{key}: {len(value)}", *(f"  {c['wnid']}  {c['name']}: {c['definition']}" for c in value)]
        else:
            lines.append(f"{key}: {value}")
    echo(fields, "\n".join(lines), as_json=as_json, quiet=quiet)


@variants.command("peek")
@click.argument("name")
@click.option("--split", help="Default: the variant's first.")
@click.option("--path", metavar="DIR", help="A local folder or Parquet file; without it the Hub is read.")
@click.option("--revision", help="Hub revision.")
@click.option("-n", "--per-class", type=click.IntRange(1, 20), default=6, show_default=True, help="Images per class.")
@click.option("--out", metavar="FILE", help="Where to write the picture.  [default: NAME-SPLIT.png]")
@answer_options
def variants_peek(as_json: bool, quiet: bool, **words: Any) -> None:
    """Write a contact sheet of the first images of a variant's classes. Prints its path.

    NAME may be the file of a class map.
    """
    from hfsyn.api import variants as sets

    echo_path("picture", sets.peek(**words), as_json)


@variants.command("new")
@click.argument("name")
@click.option("--from", "source", required=True, metavar="FOLDER|USER/NAME", help="Where the images are.")
@click.option("--config-name", metavar="NAME", help="Which configuration of its tables, if they have several.")
@click.option("--revision", help="Hub revision.")
@click.option("--image-column", metavar="COLUMN", help="Where its tables have the images, if not found by name.")
@click.option("--label-column", metavar="COLUMN", help="Where its tables have the labels, if not found by name.")
@answer_options
def variants_new(as_json: bool, quiet: bool, **words: Any) -> None:
    """Write NAME.yaml, the class map of images of your own, to read over. Prints its path.

    The images are in class folders, in Parquet files or on the Hub; the class map keeps what is said of the tables.
    A recipe then names the file: `hfsyn build imagenette-cip --set source.variant=NAME.yaml`.
    """
    from hfsyn.api import variants as sets

    echo_path("file", sets.new(**words), as_json)


@menu()
def strategies() -> None:
    """The ways to write a prompt."""


@strategies.command("ls")
@answer_options
def strategies_ls(as_json: bool, quiet: bool) -> None:
    """List the strategies."""
    from hfsyn.api import strategies as ways

    echo_table(ways.ls(), as_json=as_json, quiet=quiet)


@strategies.command("show")
@click.argument("name")
@click.option(
    "--variant", default="imagenette", show_default=True, metavar="NAME", help="Whose classes; or a class map's file."
)
@click.option(
    "--caption",
    type=Word(empty=True),
    default="a person standing next to it in a field",
    show_default=True,
    help="A caption to try.",
)
@click.option("--domain", metavar="WORD", help="The word of the strategy domain.")
@click.option(
    "--recipe", default="imagenette-cip", show_default=True, metavar="RECIPE", help="Whose generator counts the tokens."
)
@answer_options
def strategies_show(as_json: bool, quiet: bool, **words: Any) -> None:
    """What a strategy makes of the first ten classes of a variant, with token counts.

    NAME is one of `strategies ls`, or a function of yours: path/to/file.py:function.
    """
    from hfsyn.api import strategies as ways

    found = ways.show(**words)
    if quiet and not as_json:
        click.echo("\n".join(row["prompt"] for row in found.rows))
        return
    echo_table(found.rows, as_json=as_json, quiet=False)
    for remark in () if quiet else found.remarks:
        click.echo(remark, err=True)


def _fragments(kind: FragmentKind, part: str) -> Menu:
    """The group of commands about captioners or generators."""

    @menu(f"{kind}s", help=f"The {kind}s that `--{kind} NAME` puts into a recipe.")
    def group() -> None: ...

    @group.command("ls", help=f"List the {kind}s that come with hfsyn.")
    @answer_options
    def ls(as_json: bool, quiet: bool) -> None:
        from hfsyn.api.fragments import listed

        echo_table(listed(kind), as_json=as_json, quiet=quiet)

    @group.command(
        "show", help=f"The {part} part of a {kind}, every field written out, and where its settings are from."
    )
    @click.argument("name")
    @answer_options
    def show(name: str, as_json: bool, quiet: bool) -> None:
        from hfsyn.api.fragments import shown

        found = shown(kind, name)
        fields = found[part].items()
        lines = [f"{key}: {value}" for key, value in found.items() if key != part]
        lines += [f"{part}:", *(f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields)]
        echo(found, "\n".join(lines), as_json=as_json, quiet=quiet)

    return group


@menu()
def recipes() -> None:
    """The recipes that come with hfsyn."""


@recipes.command("ls")
@answer_options
def recipes_ls(as_json: bool, quiet: bool) -> None:
    """List the shipped recipes."""
    from hfsyn.recipes import ls

    echo_table(ls(), as_json=as_json, quiet=quiet)


@recipes.command("show")
@click.argument("name")
@answer_options
def recipes_show(name: str, as_json: bool, quiet: bool) -> None:
    """Print a recipe, what it extends filled in. NAME is one of `recipes ls`, a YAML file, or hf://...

    Or NAME is a training recipe: shapes or tiny-imagenet-10, for `hfsyn train --config NAME` and for `hfsyn bench`.
    """
    from hfsyn import load_recipe
    from hfsyn.recipes import show
    from hfsyn.recipes.training_recipe import TRAINING_RECIPES

    text, fields = show(name).rstrip("\n"), None
    if as_json:
        training = name in TRAINING_RECIPES.names()
        fields = TRAINING_RECIPES.fields(name)[0] if training else load_recipe(name).model_dump(mode="json")
    echo(fields, text, as_json=as_json, quiet=False)


@recipes.command("new")
@click.argument("name")
@click.option(
    "--from", "base", default="imagenette-cip", show_default=True, metavar="RECIPE", help="The recipe to start from."
)
@answer_options
def recipes_new(name: str, base: str, as_json: bool, quiet: bool) -> None:
    """Write NAME.yaml, every field written out with its meaning, to edit. Prints its path."""
    from hfsyn.recipes import new

    echo_path("file", new(name, base), as_json)


CATALOGUE: tuple[click.Command, ...] = (
    variants,
    strategies,
    _fragments("captioner", "caption"),
    _fragments("generator", "generate"),
    recipes,
)
