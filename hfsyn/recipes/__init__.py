"""Recipes: one loader for all that people write in YAML, the parts of a recipe, strategies, and what is shipped."""

from pathlib import Path
from typing import Any


def ls() -> list[dict[str, Any]]:
    """The recipes that come with hfsyn, each with its name, variant, strategy, captioner, generator and guidance."""
    from hfsyn.recipes.recipe import RECIPES, load_recipe

    return [
        {
            "name": name,
            "variant": r.source.variant,
            "strategy": r.prompt.strategy,
            "captioner": r.caption.model if r.caption else None,
            "generator": r.generate.model,
            "guidance": r.generate.guidance_scale,
        }
        for name, r in ((name, load_recipe(name)) for name in RECIPES.names())
    ]


def show(name: str) -> str:
    """A recipe as YAML, what it extends filled in; or a training recipe that comes with hfsyn.

    Args:
        name: one of `ls`, a shipped training recipe, a YAML file, or ``hf://datasets/REPO_ID@REVISION``.

    Raises:
        HfsynError: as `load_recipe`.
    """
    from hfsyn.recipes.recipe import dump_recipe, load_recipe, read_recipe
    from hfsyn.recipes.training_recipe import TRAINING_RECIPES

    if name in TRAINING_RECIPES.names():
        return TRAINING_RECIPES.read(name)[0]
    recipe = load_recipe(name)
    text, _ = read_recipe(name)
    if "\nextends:" in f"\n{text}":
        text = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#")) + dump_recipe(recipe)
    return text


def new(name: str, base: str = "imagenette-cip") -> Path:
    """Write NAME.yaml into the current folder, every field written out with its meaning, to edit; return its path.

    Args:
        name: of the recipe.
        base: the recipe to start from.

    Raises:
        HfsynError: the file exists, or there is no such base.
    """
    from hfsyn.recipes.recipe import new_recipe

    return new_recipe(name, base)
