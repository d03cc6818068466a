"""The options that say how a command's recipe differs from the one it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hfsyn.recipes.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS = (
    click.option("--captioner", metavar="NAME", help="Caption with this model of `hfsyn captioners ls`, or a file."),
    click.option("--generator", metavar="NAME", help="Generate with this model of `hfsyn generators ls`, or a file."),
    click.option("--strategy", metavar="NAME", help="Write prompts with this one of `hfsyn strategies ls`."),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a field: generate.steps=20."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N real images a class."),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="The recipe's seed."),
)
_FIELDS = {"strategy": "prompt.strategy", "limit": "source.limit_per_class", "seed": "seed"}
"""Options that are fields by another name."""


def recipe_options(function: F) -> F:
    """All of these options, in the order of the help."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def chosen_recipe(recipe: str, given: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that a command's arguments describe, and the keywords that were none of these options.

    Raises:
        HfsynError: as `load_recipe`.
    """
    from hfsyn.recipes.recipe import load_recipe

    overrides = [*given["overrides"]]
    overrides += [f"{field}={given[name]}" for name, field in _FIELDS.items() if given[name] is not None]
    names = {"overrides", "captioner", "generator", *_FIELDS}
    loaded = load_recipe(recipe, overrides, captioner=given["captioner"], generator=given["generator"])
    return loaded, {name: value for name, value in given.items() if name not in names}
