"""The ways to write a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfsyn.outlook.prompt_examples import Examples


def ls() -> list[dict[str, Any]]:
    """The strategies, each with its name, template, who writes the text in it, and its source."""
    from hfsyn.recipes.strategies import STRATEGIES

    fields = ("name", "template", "text_from", "source")
    return [{field: getattr(s, field) or None for field in fields} for s in STRATEGIES.values()]


def show(
    name: str,
    *,
    variant: str = "imagenette",
    caption: str = "a person standing next to it in a field",
    domain: str | None = None,
    recipe: str = "imagenette-cip",
) -> Examples:
    """What a strategy makes of the first ten classes of a variant, with token counts.

    Args:
        name: one of `ls`, or a function of yours: ``path/to/file.py:function``.
        variant: whose classes; or the file of a class map.
        caption: a caption to try.
        domain: the word of the strategy ``domain``.
        recipe: whose generator counts the tokens.

    Raises:
        HfsynError: as `hfsyn.outlook.prompt_examples.examples`.
    """
    from hfsyn.outlook.prompt_examples import examples

    return examples(name, variant, caption, domain=domain, recipe=recipe)
