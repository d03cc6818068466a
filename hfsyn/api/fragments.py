"""What captioners and generators have in common: parts of a recipe, each with the settings of one model."""

from __future__ import annotations

from typing import Any

from hfsyn.recipes.loading import FRAGMENT_PART, FragmentKind, fragments, load_fragment


def listed(kind: FragmentKind) -> list[dict[str, Any]]:
    """Those of a kind that come with hfsyn."""
    found = [load_fragment(kind, name) for name in fragments(kind)]
    return [{"name": f.name, "model": f.part["model"], "about": f.about} for f in found]


def shown(kind: FragmentKind, name: str) -> dict[str, Any]:
    """What is known of one, and its part of a recipe, every field written out."""
    from hfsyn.recipes.recipe import check_part

    found, part = load_fragment(kind, name), FRAGMENT_PART[kind]
    fields = check_part(part, found.part, name).model_dump()
    return {"name": found.name, "title": found.title, "about": found.about, **found.facts, part: fields}
