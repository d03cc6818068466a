"""Where the text of a recipe is: shipped with hfsyn, in a file, or in a published dataset."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from builders.errors import DataError
from hfsyn.errors import HfsynError

_HUB = "hf://datasets/"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with hfsyn, sorted."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("hfsyn.recipes").iterdir() if p.name.endswith(".yaml")
    )


def recipe_text(name: str) -> str:
    """The YAML text of a shipped recipe, comments included.

    Raises:
        HfsynError: no shipped recipe of that name.
    """
    if name not in shipped_recipes():
        near = difflib.get_close_matches(name, shipped_recipes(), n=1)
        raise HfsynError(
            f"Unknown recipe {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
            f"Shipped recipes: {', '.join(shipped_recipes())}. A file is named with its .yaml.",
        )
    return (resources.files("hfsyn.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def read_recipe(name: str) -> tuple[str, str]:
    """Text of a recipe and how to call it in a message.

    Args:
        name: of a shipped recipe, a YAML file, or ``hf://datasets/USER/NAME@REVISION``.

    Raises:
        HfsynError: it is not there.
    """
    if name.startswith("hf://"):
        return _published(name), name
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise HfsynError(f"There is no recipe file {name}.", "`hfsyn recipes new NAME` writes one to start from.")
        return text_of(path, f"The recipe file {name}"), name
    return recipe_text(name), f"recipe {name!r}"


def text_of(path: Path, what: str) -> str:
    """The text of a file of the user's; `what` begins the message.

    Raises:
        HfsynError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HfsynError(f"{what} is no UTF-8 text.", "Save it as UTF-8.") from None
    except OSError as error:
        raise HfsynError(f"{what} cannot be read: {error.strerror}.", "Make it readable, or name another.") from None


def _published(address: str) -> str:
    from builders import layout
    from builders.published import open_published, parse_reference

    try:
        if not address.startswith(_HUB):
            raise DataError(f"{address!r} is no dataset.")
        return open_published(*parse_reference(address)).text(layout.RECIPE)
    except DataError as error:
        raise HfsynError(
            f"No recipe could be read from {address}: {error.message}",
            error.hint or f"It looks like {_HUB}USER/NAME@v1.0.0",
        ) from None
