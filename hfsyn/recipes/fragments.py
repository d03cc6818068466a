"""Fragments: one part of a recipe, ready made for one model, to be put into any recipe by its name.

``hfsyn build imagenette-cip --captioner blip-large`` is the recipe with its caption part replaced by that of
``hfsyn/recipes/captioners/blip-large.yaml``; ``--generator`` does the same with the generate part. A fragment is::

    title: BLIP large
    about: one sentence for lists
    facts: {source: where its settings are from}    # anything else that a reader should know, by name
    caption: {model: ..., max_new_tokens: 30}       # or generate: the whole part; fields left out are at their defaults

The result is a plain recipe: a fragment's name is written down nowhere, and its fields are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hfsyn.errors import HfsynError
from hfsyn.recipes.loading import Shelf

FragmentKind = Literal["captioner", "generator"]
FRAGMENT_PART: dict[str, str] = {"captioner": "caption", "generator": "generate"}
"""The part of a recipe that each kind of fragment replaces."""
_KEYS = {"title", "about", "facts"}


@dataclass(frozen=True, slots=True)
class Fragment:
    """One part of a recipe, and what people read about it."""

    name: str
    kind: FragmentKind
    title: str
    about: str
    facts: Mapping[str, str]
    part: Mapping[str, Any]
    """Fields of the caption or generate part; those left out are at their defaults."""


def fragments(kind: FragmentKind) -> list[str]:
    """Names of the fragments of a kind that come with hfsyn, sorted."""
    return _shelf(kind).names()


def load_fragment(kind: FragmentKind, name: str) -> Fragment:
    """A fragment by its name, or from a YAML file.

    Raises:
        HfsynError: there is none (the nearest name is told), or the file is not such a fragment.
    """
    key = FRAGMENT_PART[kind]
    fields, where = _shelf(kind).fields(name)
    part: Any = fields.get(key)
    facts = fields.get("facts") or {}
    if not isinstance(part, dict):
        what = f"it needs the key {key!r}, with a mapping of fields"
    elif unknown := sorted(set(fields) - _KEYS - {key}):
        what = f"its key {unknown[0][:80]!r} is unknown"
    elif not isinstance(facts, dict):
        what = "its facts have no names"
    else:
        what = ""
    if what:
        raise HfsynError(f"{where} is not a {kind}: {what}.", f"Its keys are title, about, facts and {key}.")
    told = {name: str(value) for name, value in facts.items()}
    return Fragment(name, kind, str(fields.get("title", name)), str(fields.get("about", "")), told, part)


def _shelf(kind: FragmentKind) -> Shelf:
    return Shelf(kind, "hfsyn.recipes", f"{kind}s", f"Any other model: --set {FRAGMENT_PART[kind]}.model=ORG/NAME")
