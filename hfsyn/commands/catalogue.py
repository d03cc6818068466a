"""The commands that list what there is: variants, strategies, captioners, generators, recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hfsyn.commands.values import Word

if TYPE_CHECKING:
    from hfsyn.recipes.loading import FragmentKind

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def variants() -> None:
    """The sets of ImageNet classes that can be a source."""


@variants.command("ls")
@as_json_option
def variants_ls(as_json: bool) -> None:
    """List the variants."""
    from builders.variants import VARIANTS

    _table(
        [
            {
                "name": v.name,
                "classes": len(v.classes),
                "images": sum(v.splits.values()),
                "hub": v.hub.repo_id if v.hub else None,
                "title": v.title,
            }
            for v in VARIANTS.values()
        ],
        as_json,
    )


@variants.command("info")
@click.argument("name")
@click.option("--classes", is_flag=True, help="List the classes too.")
@as_json_option
def variants_info(name: str, classes: bool, as_json: bool) -> None:
    """All that is known about a variant, and where each fact is from. NAME may be the file of a class map."""
    from builders.variants.class_maps import find_variant
    from builders.variants.facts import facts_of

    found = find_variant(name)
    fields: dict[str, Any] = facts_of(found)
    if classes:
        fields["classes"] = [{"wnid": c.wnid, "name": c.name, "definition": c.definition} for c in found.classes]
    if as_json:
        click.echo(json.dumps(fields, indent=1, ensure_ascii=False))
        return
    for key, value in fields.items():
        if isinstance(value, dict):
            click.echo(f"{key}:")
            for inner, text in value.items():
                click.echo(f"  {inner}: {text}")
        elif isinstance(value, list):
            click.echo(f"{key}: {len(value)}")
            for c in value:
                click.echo(f"  {c['wnid']}  {c['name']}: {c['definition']}")
        elif value is not None:
            click.echo(f"{key}: {value}")


@variants.command("peek")
@click.argument("name")
@click.option("--split", help="Default: the variant's first.")
@click.option("--path", metavar="DIR", help="A local folder or Parquet file; without it the Hub is read.")
@click.option("--revision", help="Hub revision.")
@click.option("-n", "--per-class", type=click.IntRange(1, 20), default=6, show_default=True, help="Images a class.")
@click.option("--out", metavar="FILE", help="Where to write the picture.  [default: NAME-SPLIT.png]")
def variants_peek(
    name: str, split: str | None, path: str | None, revision: str | None, per_class: int, out: str | None
) -> None:
    """Write a contact sheet of the first images of a variant's classes. Prints its path.

    NAME may be the file of a class map.
    """
    from builders.variants.class_maps import find_variant, read_variant
    from builders.yaml import is_yaml_name
    from hfsyn.runs.sheets import peek

    variant, folder = read_variant(name) if is_yaml_name(name) else (find_variant(name), None)
    split = split or next(iter(variant.splits))
    out = out or f"{variant.name.partition('@')[0]}-{split}.png"
    click.echo(peek(variant.name, split, out, path=path or folder, revision=revision, per_class=per_class))


@variants.command("new")
@click.argument("name")
@click.option("--from", "source", required=True, metavar="FOLDER|USER/NAME", help="Where the images are.")
@click.option("--config", metavar="NAME", help="Which configuration of its tables, if they have several.")
@click.option("--revision", help="Hub revision.")
@click.option("--image-column", metavar="COLUMN", help="Where its tables have the images, if not found by name.")
@click.option("--label-column", metavar="COLUMN", help="Where its tables have the labels, if not found by name.")
def variants_new(name: str, source: str, **columns: str | None) -> None:
    """Write NAME.yaml, the class map of images of your own, to read over. Prints its path.

    The images are in class folders, in Parquet files or on the Hub; the class map keeps what is said of the tables.
    A recipe then names the file: `hfsyn build imagenette-cip --set source.variant=NAME.yaml`.
    """
    from builders.sources.new_class_map import new_variant

    click.echo(new_variant(name, source, **columns))


@click.group()
def strategies() -> None:
    """The ways to write a prompt."""


@strategies.command("ls")
@as_json_option
def strategies_ls(as_json: bool) -> None:
    """List the strategies."""
    from hfsyn.recipes.strategies import STRATEGIES

    fields = ("name", "template", "text_from", "source")
    _table([{field: getattr(s, field) or None for field in fields} for s in STRATEGIES.values()], as_json)


@strategies.command("show")
@click.argument("name")
@click.option(
    "--variant", default="imagenette", show_default=True, metavar="NAME", help="Whose classes; or a class map's file."
)
@click.option(
    "--caption",
    "text",
    type=Word(empty=True),
    default="a person standing next to it in a field",
    show_default=True,
    help="A caption to try.",
)
@click.option("--domain", metavar="WORD", help="The word of the strategy domain.")
@click.option(
    "--recipe", default="imagenette-cip", show_default=True, metavar="RECIPE", help="Whose generator counts the tokens."
)
@as_json_option
def strategies_show(name: str, variant: str, text: str, domain: str | None, recipe: str, as_json: bool) -> None:
    """What a strategy makes of the first ten classes of a variant, with token counts.

    NAME is one of `strategies ls`, or a function of yours: path/to/file.py:function.
    """
    from hfsyn.outlook.prompt_examples import examples

    found = examples(name, variant, text, domain=domain, recipe=recipe)
    _table(found.rows, as_json)
    for remark in found.remarks:
        click.echo(remark, err=True)


@click.group()
def captioners() -> None:
    """The captioners that `--captioner NAME` puts into a recipe."""


@captioners.command("ls")
@as_json_option
def captioners_ls(as_json: bool) -> None:
    """List the captioners that come with hfsyn."""
    _table(_fragments("captioner"), as_json)


@captioners.command("show")
@click.argument("name")
@as_json_option
def captioners_show(name: str, as_json: bool) -> None:
    """The caption part of a captioner, every field written out, and where its settings are from."""
    _show_fragment("captioner", name, as_json)


@click.group()
def generators() -> None:
    """The generators that `--generator NAME` puts into a recipe."""


@generators.command("ls")
@as_json_option
def generators_ls(as_json: bool) -> None:
    """List the generators that come with hfsyn."""
    _table(_fragments("generator"), as_json)


@generators.command("show")
@click.argument("name")
@as_json_option
def generators_show(name: str, as_json: bool) -> None:
    """The generate part of a generator, every field written out, and where its settings are from."""
    _show_fragment("generator", name, as_json)


def _fragments(kind: FragmentKind) -> list[dict[str, Any]]:
    from hfsyn.recipes.loading import fragments, load_fragment

    found = [load_fragment(kind, name) for name in fragments(kind)]
    return [{"name": f.name, "model": f.part["model"], "about": f.about} for f in found]


def _show_fragment(kind: FragmentKind, name: str, as_json: bool) -> None:
    from hfsyn.recipes.loading import FRAGMENT_PART, load_fragment
    from hfsyn.recipes.recipe import check_part

    found = load_fragment(kind, name)
    part = check_part(FRAGMENT_PART[kind], found.part, name).model_dump()
    about = {"name": found.name, "title": found.title, "about": found.about, **found.facts}
    if as_json:
        click.echo(json.dumps({**about, FRAGMENT_PART[kind]: part}, indent=1, ensure_ascii=False))
        return
    for key, value in about.items():
        click.echo(f"{key}: {value}")
    click.echo(f"{FRAGMENT_PART[kind]}:")
    for key, value in part.items():
        click.echo(f"  {key}: {json.dumps(value, ensure_ascii=False)}")


@click.group()
def recipes() -> None:
    """The recipes that come with hfsyn."""


@recipes.command("ls")
@as_json_option
def recipes_ls(as_json: bool) -> None:
    """List the shipped recipes."""
    from hfsyn.recipes.recipe import RECIPES, load_recipe

    rows = []
    for name in RECIPES.names():
        r = load_recipe(name)
        rows.append(
            {
                "name": name,
                "variant": r.source.variant,
                "strategy": r.prompt.strategy,
                "captioner": r.caption.model if r.caption else None,
                "generator": r.generate.model,
                "guidance": r.generate.guidance_scale,
            }
        )
    _table(rows, as_json)


@recipes.command("show")
@click.argument("name")
def recipes_show(name: str) -> None:
    """Print a recipe, what it extends filled in. NAME is one of `recipes ls`, a YAML file, or hf://..."""
    from hfsyn.recipes.recipe import dump_recipe, load_recipe, read_recipe

    recipe = load_recipe(name)
    text, _ = read_recipe(name)
    if "\nextends:" in f"\n{text}":
        text = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#")) + dump_recipe(recipe)
    click.echo(text, nl=False)


@recipes.command("new")
@click.argument("name")
@click.option(
    "--from", "base", default="imagenette-cip", show_default=True, metavar="RECIPE", help="The recipe to start from."
)
def recipes_new(name: str, base: str) -> None:
    """Write NAME.yaml, every field written out with its meaning, to edit. Prints its path."""
    from hfsyn.recipes.recipe import new_recipe

    click.echo(new_recipe(name, base))


CATALOGUE: tuple[click.Command, ...] = (variants, strategies, captioners, generators, recipes)
"""The groups of this module, for `hfsyn.cli`."""


def _table(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Rows as an aligned table with a heading, or as a JSON list of objects."""
    if as_json:
        click.echo(json.dumps(list(rows), indent=1, ensure_ascii=False))
        return
    heads = list(rows[0])
    lines = [heads, *([_cell(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
