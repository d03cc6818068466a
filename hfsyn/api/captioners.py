"""The captioners that the word ``captioner`` puts into a recipe."""

from __future__ import annotations

from typing import Any

from hfsyn.api.fragments import listed, shown


def ls() -> list[dict[str, Any]]:
    """The captioners that come with hfsyn, each with its name, model, and what it is good for."""
    return listed("captioner")


def show(name: str) -> dict[str, Any]:
    """What is known of a captioner, and its caption part of a recipe, every field written out.

    Args:
        name: one of `ls`, or a YAML file.

    Raises:
        HfsynError: there is none, or the file is not a captioner.
    """
    return shown("captioner", name)
