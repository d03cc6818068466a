"""The generators that the word ``generator`` puts into a recipe."""

from __future__ import annotations

from typing import Any

from hfsyn.api.fragments import listed, shown


def ls() -> list[dict[str, Any]]:
    """The generators that come with hfsyn, each with its name, model, and what it is good for."""
    return listed("generator")


def show(name: str) -> dict[str, Any]:
    """What is known of a generator, and its generate part of a recipe, every field written out.

    Args:
        name: one of `ls`, or a YAML file.

    Raises:
        HfsynError: there is none, or the file is not a generator.
    """
    return shown("generator", name)
