"""The table of variants: named sets of ImageNet classes, and where their images are.

    get_variant("imagenette").classes      # ClassInfo by ClassInfo, in index order
    get_variant("imagenet-r").splits       # {"test": 30000}

The rows are in `builders.variants.table` (sets to train on, and the drawn ones) and `builders.variants.evaluation_sets`
(sets that only test a classifier); what a row can say is in `builders.variants.variant`. Every fact about a dataset
that is not ours has an entry in `Variant.facts` which says where it was read, or that it could not be verified. To add
a variant: add its class list to `data/subsets.json` and one row to one of the tables.

Only the standard library is imported.
"""

from __future__ import annotations

from builders.errors import DataError, did_you_mean
from builders.variants.evaluation_sets import EVALUATION_SETS
from builders.variants.table import DRAWN_SETS, TRAINING_SETS
from builders.variants.variant import SPLIT_WORDS, Choice, ClassInfo, HubSource, Variant, usual_split

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

VARIANTS: dict[str, Variant] = {row.name: row for row in (*TRAINING_SETS, *EVALUATION_SETS, *DRAWN_SETS)}
"""Every variant by name."""

_OWN: dict[str, Variant] = {}
"""Variants of people's own that this process has read, by name, which says their content."""


def register(variant: Variant) -> None:
    """Let `get_variant` know a variant that a class map describes (see `builders.variants.class_maps`)."""
    _OWN[variant.name] = variant


def own_class(wnid: str) -> ClassInfo | None:
    """A class of people's own by its id, as some class map that this process has read describes it."""
    return next((variant.by_wnid[wnid] for variant in _OWN.values() if wnid in variant.by_wnid), None)


def get_variant(name: str) -> Variant:
    """The variant of that name. Raises DataError, with the nearest name, for an unknown one."""
    if found := VARIANTS.get(name) or _OWN.get(name):
        return found
    asked = str(name)
    family = [known for known in VARIANTS if known.startswith(f"{asked.lower()}-")]  # "imagenet-v2" is three sets
    some = 0 < len(family) <= 3
    guess = f" Did you mean {' or '.join(map(repr, family))}?" if some else did_you_mean(asked, VARIANTS)
    raise DataError(
        f"There is no variant '{asked[:100]}'.{guess}",
        f"There are: {', '.join(VARIANTS)}. Classes of your own: hfsyn variants new",
    )
