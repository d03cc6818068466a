"""The table of variants: named sets of ImageNet classes, and where their images are.

    get_variant("imagenette").classes      # ClassInfo by ClassInfo, in index order
    get_variant("imagenet-r").splits       # {"test": 30000}

The rows are in `data/variants.json`, the class lists in `data/subsets.json`. Each fact about a dataset that is not ours
says where it was read, or that it could not be verified. Only the standard library is imported.
"""

from __future__ import annotations

from typing import Any

from builders.errors import DataError, did_you_mean
from builders.variants.variant import SPLIT_WORDS, Choice, ClassInfo, HubSource, Variant, data, usual_split

__all__ = [
    "SPLIT_WORDS",
    "VARIANTS",
    "Choice",
    "ClassInfo",
    "HubSource",
    "Variant",
    "get_variant",
    "own_class",
    "register",
    "usual_split",
]


def _table() -> dict[str, Variant]:
    rows: dict[str, dict[str, Any]] = {}
    for row in data("variants.json")["variants"]:
        base = rows.get(row.get("like"), {})
        nested = {key: {**base.get(key, {}), **(row.get(key) or {})} or None for key in ("hub", "facts")}
        rows[row["name"]] = {**base, **row, **nested}
    return {
        name: Variant(
            hub=row["hub"] and HubSource(**row["hub"]),
            facts=row["facts"] or {},
            **{key: value for key, value in row.items() if key not in ("hub", "facts", "like")},
        )
        for name, row in rows.items()
    }


VARIANTS: dict[str, Variant] = _table()
"""Every variant by name: sets to train on, sets that only test a classifier, and the drawn ones."""

_OWN: dict[str, Variant] = {}
"""Variants of class maps that this process has read, by name, which includes a hash of their content."""


def register(variant: Variant) -> None:
    """Let `get_variant` know a variant that a class map describes (see `builders.variants.class_maps`)."""
    _OWN[variant.name] = variant


def own_class(wnid: str) -> ClassInfo | None:
    """A custom class by its id, as described by some class map that this process has read."""
    return next((variant.by_wnid[wnid] for variant in _OWN.values() if wnid in variant.by_wnid), None)


def get_variant(name: str) -> Variant:
    """The variant of that name. Raises DataError, with the nearest name, for an unknown one."""
    if found := VARIANTS.get(name) or _OWN.get(name):
        return found
    asked = str(name)
    family = [known for known in VARIANTS if known.startswith(f"{asked.lower()}-")]  # "imagenet-v2" is three sets
    some = 0 < len(family) <= 3
    guess = f" Did you mean {' or '.join(map(repr, family))}?" if some else did_you_mean(asked, VARIANTS)
    said = f"There is no variant '{asked[:100]}'.{guess}"
    raise DataError(said, f"There are: {', '.join(VARIANTS)}. Classes of your own: hfsyn variants new")
