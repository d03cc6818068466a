"""Where the text of a recipe is: shipped with hfsyn, in a file, or in a published dataset."""

from __future__ import annotations

from hfsyn.errors import HfsynError
from hfsyn.recipes.loading import Shelf

_HUB = "hf://datasets/"
RECIPES = Shelf(
    "recipe", "hfsyn.recipes", otherwise="A file is named with its .yaml; `hfsyn recipes new NAME` writes one."
)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with hfsyn, sorted."""
    return RECIPES.names()


def read_recipe(name: str) -> tuple[str, str]:
    """Text of a recipe and how to call it in a message.

    Args:
        name: of a shipped recipe, a YAML file, or ``hf://datasets/USER/NAME@REVISION``.

    Raises:
        HfsynError: it is not there.
    """
    return (_published(name), name) if name.startswith("hf://") else RECIPES.read(name)


def _published(address: str) -> str:
    from builders.published.versions import open_published, parse_reference
    from builders.runs import layout

    if not address.startswith(_HUB):
        raise HfsynError(f"{address!r} is not a dataset.", f"It looks like {_HUB}USER/NAME@v1.0.0")
    return open_published(*parse_reference(address)).text(layout.RECIPE)
