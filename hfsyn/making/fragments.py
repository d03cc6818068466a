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

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from builders.strict_yaml import strict_load
from hfsyn.errors import HfsynError
from hfsyn.making.recipe_texts import text_of

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
    folder = resources.files("hfsyn.recipes") / f"{kind}s"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_fragment(kind: FragmentKind, name: str) -> Fragment:
    """A fragment by its name, or from a YAML file.

    Raises:
        HfsynError: there is none (the nearest name is told), or the file is no such fragment.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise HfsynError(f"There is no {kind} file {name}.", f"Shipped: {', '.join(fragments(kind))}.")
        text = text_of(path, f"The {kind} file {name}")
    elif name in fragments(kind):
        text = (resources.files("hfsyn.recipes") / f"{kind}s" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(name, fragments(kind), n=1)
        raise HfsynError(
            f"Unknown {kind} {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
            f"{kind.capitalize()}s: {', '.join(fragments(kind))}. "
            f"Any other model: --set {FRAGMENT_PART[kind]}.model=ORG/NAME",
        )
    return _parsed(kind, name, text)


def _parsed(kind: FragmentKind, name: str, text: str) -> Fragment:
    key = FRAGMENT_PART[kind]
    try:
        fields = strict_load(text)
    except yaml.YAMLError as error:
        raise HfsynError(f"{name} is not YAML: {' '.join(str(error).split())}", "Mend the line it names.") from None
    fields = fields if isinstance(fields, dict) else {}
    part: Any = fields.get(key)
    facts = fields.get("facts") or {}
    if not isinstance(part, dict):
        what = f"it needs the key {key!r}"
    elif unknown := sorted(set(fields) - _KEYS - {key}):
        what = f"its key {unknown[0]!r} is unknown"
    elif not isinstance(facts, dict):
        what = "its facts have no names"
    else:
        what = ""
    if what:
        raise HfsynError(
            f"{name} is no {kind}: {what}.", f"Its keys are title, about, facts, and {key}, a mapping of fields."
        )
    return Fragment(
        name, kind, str(fields.get("title", name)), str(fields.get("about", "")),
        {str(k): str(v) for k, v in facts.items()}, part,
    )  # fmt: skip
