"""The commands that list what there is: variants, strategies, captioners, generators, recipes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from hfsyn.commands.menu import menu
from hfsyn.commands.options import Word, as_json_option, echo_json, echo_table

if TYPE_CHECKING:
    from hfsyn.recipes.loading import FragmentKind


@menu()
def variants() -> None:
    """The sets of ImageNet classes that can be a source."""


@variants.command("ls")
@as_json_option
def variants_ls(as_json: bool) -> None:
    """List the variants."""
    from builders.variants import VARIANTS

    rows = [
        {
            "name": v.name,
            "classes": len(v.classes),
            "images": sum(v.splits.values()),
            "hub": v.hub.repo_id if v.hub else None,
            "title": v.title,
        }
        for v in VARIANTS.values()
    ]
    echo_table(rows, as_json)


@variants.command("info")
@click.argument("name")
@click.option("--classes", is_flag=True, help="List the classes too.")
@as_json_option
def variants_info(name: str, classes: bool, as_json: bool) -> None:
    """All that is known about a variant, and where each fact is from. NAME may be the file of a class map."""
    from builders.variants import facts_of
    from builders.variants.class_maps import find_variant

    found = find_variant(name)
    fields: dict[str, Any] = facts_of(found)
    if classes:
        fields["classes"] = [{"wnid": c.wnid, "name": c.name, "definition": c.definition} for c in found.classes]
    if as_json:
        echo_json(fields)
        return
    for key, value in fields.items():
        if isinstance(value, dict):
            click.echo("\n".join([f"{key}:", *(f"  {inner}: {text}" for inner, text in value.items())]))
        elif isinstance(value, list):
            lines = (f"  {c['wnid']}  {c['name']}: {c['definition']}" for c in value)
            click.echo("\n".join([f"{key}: {len(value)}", *lines]))
        elif value is not None:
            click.echo(f"{key}: {value}")


@variants.command("peek")
@click.argument("name")
@click.option("--split", help="Default: the variant's first.")
@click.option("--path", metavar="DIR", help="A local folder or Parquet file; without it the Hub is read.")
@click.option("--revision", help="Hub revision.")
@click.option("-n", "--per-class", type=click.IntRange(1, 20), default=6, show_default=True, help="Images per class.")
@click.option("--out", metavar="FILE", help="Where to write the picture.  [default: NAME-SPLIT.png]")
def variants_peek(name: str, split: str | None, path: str | None, out: str | None, **how: Any) -> None:
    """Write a contact sheet of the first images of a variant's classes. Prints its path.

    NAME may be the file of a class map.
    """
    from builders.variants.class_maps import find_variant, read_variant
    from builders.yaml import is_yaml_name
    from hfsyn.runs.sheets import peek

    variant, folder = read_variant(name) if is_yaml_name(name) else (find_variant(name), None)
    split = split or next(iter(variant.splits))
    out = out or f"{variant.name.partition('@')[0]}-{split}.png"
    click.echo(peek(variant.name, split, out, path=path or folder, **how))


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


@menu()
def strategies() -> None:
    """The ways to write a prompt."""


@strategies.command("ls")
@as_json_option
def strategies_ls(as_json: bool) -> None:
    """List the strategies."""
    from hfsyn.recipes.strategies import STRATEGIES

    fields = ("name", "template", "text_from", "source")
    echo_table([{field: getattr(s, field) or None for field in fields} for s in STRATEGIES.values()], as_json)


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
def strategies_show(name: str, variant: str, text: str, as_json: bool, **how: Any) -> None:
    """What a strategy makes of the first ten classes of a variant, with token counts.

    NAME is one of `strategies ls`, or a function of yours: path/to/file.py:function.
    """
    from hfsyn.outlook.prompt_examples import examples

    found = examples(name, variant, text, **how)
    echo_table(found.rows, as_json)
    for remark in found.remarks:
        click.echo(remark, err=True)


def _fragments(kind: FragmentKind, part: str) -> click.Group:
    """The group of commands about captioners or generators."""

    @menu(f"{kind}s", help=f"The {kind}s that `--{kind} NAME` puts into a recipe.")
    def group() -> None: ...

    @group.command("ls", help=f"List the {kind}s that come with hfsyn.")
    @as_json_option
    def ls(as_json: bool) -> None:
        from hfsyn.recipes.loading import fragments, load_fragment

        found = [load_fragment(kind, name) for name in fragments(kind)]
        echo_table([{"name": f.name, "model": f.part["model"], "about": f.about} for f in found], as_json)

    @group.command(
        "show", help=f"The {part} part of a {kind}, every field written out, and where its settings are from."
    )
    @click.argument("name")
    @as_json_option
    def show(name: str, as_json: bool) -> None:
        from hfsyn.recipes.loading import load_fragment
        from hfsyn.recipes.recipe import check_part

        found = load_fragment(kind, name)
        fields = check_part(part, found.part, name).model_dump()
        about = {"name": found.name, "title": found.title, "about": found.about, **found.facts}
        if as_json:
            echo_json({**about, part: fields})
            return
        lines = [f"{key}: {value}" for key, value in about.items()]
        lines += [f"{part}:", *(f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())]
        click.echo("\n".join(lines))

    return group


@menu()
def recipes() -> None:
    """The recipes that come with hfsyn."""


@recipes.command("ls")
@as_json_option
def recipes_ls(as_json: bool) -> None:
    """List the shipped recipes."""
    from hfsyn.recipes.recipe import RECIPES, load_recipe

    loaded = {name: load_recipe(name) for name in RECIPES.names()}
    rows = [
        {
            "name": name,
            "variant": r.source.variant,
            "strategy": r.prompt.strategy,
            "captioner": r.caption.model if r.caption else None,
            "generator": r.generate.model,
            "guidance": r.generate.guidance_scale,
        }
        for name, r in loaded.items()
    ]
    echo_table(rows, as_json)


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


CATALOGUE: tuple[click.Command, ...] = (
    variants,
    strategies,
    _fragments("captioner", "caption"),
    _fragments("generator", "generate"),
    recipes,
)
