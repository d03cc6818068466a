"""Where the image and the class are in a table, and which wnid each label is: by wnid, or by a name that means one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builders.labels import hub_labels, label_map, shorten
from builders.variants import VARIANTS, Variant, get_variant, own_class
from hfsyn.errors import HfsynError

_IMAGES = ("image", "img", "jpg", "image_bytes")
_LABELS = ("wnid", "synset", "label", "labels", "fine_label", "class", "class_name")
"""Columns that may hold the class, the surest first."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that matter."""

    image: str
    label: str
    id: str | None
    names: tuple[str, ...] | None
    """The label names of a ClassLabel column, None for a column of text."""


def find_columns(features: Mapping[str, Any], where: str, *, prefer_names: bool = False) -> Columns:
    """The columns of images and classes by `datasets` features.

    A column of wnids is the surest; `prefer_names` takes a ClassLabel before it, since that declares all classes.

    Raises:
        HfsynError: there is none, or the labels are numbers without names.
    """
    from datasets import ClassLabel, Image, Value

    by_type = [name for name, kind in features.items() if isinstance(kind, Image)]
    by_name = [name for name in _IMAGES if _holds_bytes(features.get(name))]
    image = next(iter([*[n for n in _IMAGES if n in by_type], *by_type, *by_name]), None)
    if image is None:
        raise HfsynError(
            f"{where} has no column of images; its columns are {shorten(features)}.",
            f"Expected a column of the Image feature, or one of {shorten(_IMAGES)} with bytes.",
        )
    text = [name for name in _LABELS if getattr(features.get(name), "dtype", "") in ("string", "large_string")]
    labelled = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    first = [name for name in text if name in ("wnid", "synset")]
    first = [] if prefer_names and labelled else first
    label = next(iter([*first, *[n for n in _LABELS if n in labelled], *labelled, *text]), None)
    if label is None:
        numbers = [name for name in _LABELS if isinstance(features.get(name), Value)]
        if numbers:
            raise HfsynError(
                f"The labels of {where} are numbers without names (column {numbers[0]!r}).",
                "Give the column a ClassLabel feature, or add a column 'wnid'.",
            )
        raise HfsynError(
            f"{where} has no column of classes; its columns are {shorten(features)}.",
            f"Expected a ClassLabel column, or one of {shorten(_LABELS)} with text.",
        )
    kind = features[label]
    identity = next((name for name in ("sample_id", "source_id") if name in features), None)
    return Columns(image, label, identity, tuple(kind.names) if isinstance(kind, ClassLabel) else None)


def _holds_bytes(kind: Any) -> bool:
    if isinstance(kind, Mapping):
        return "bytes" in kind
    return getattr(kind, "dtype", "") in ("binary", "large_binary")


def table_wnids(rows: Any, columns: Columns, variant: str | None, where: str) -> tuple[list[str], dict[str, str]]:
    """The wnid of each row of a `datasets.Dataset`, and the class names of those that occur.

    Raises:
        HfsynError: some labels are no class of the variant (stated, or else any that we know); they are listed.
    """
    if variant is None and (own := _own_names(rows, columns)):
        table = rows.select_columns([columns.label]).with_format("arrow")[:]
        return table.column(columns.label).to_pylist(), dict(sorted(own.items()))
    table = rows.select_columns([columns.label]).with_format("arrow")[:]
    column = table.column(columns.label)
    values = column.unique().to_pylist()
    wnid_of = label_wnids(values, columns, variant, where)
    wnids = [wnid_of[value] for value in column.to_pylist()]
    return wnids, class_names(set(wnids), variant)


def _own_names(rows: Any, columns: Columns) -> dict[str, str]:
    """Id -> name of the classes of rows that hfsyn wrote, where some are of a class map that need not be here.

    Such rows say the identity of their class themselves. Empty for any others.
    """
    if columns.label != "wnid" or columns.id is None or "class_name" not in rows.features:
        return {}
    table = rows.select_columns(["wnid", "class_name"]).with_format("arrow")[:]
    pairs = table.group_by(["wnid", "class_name"]).aggregate([]).to_pylist()
    names = {pair["wnid"]: pair["class_name"] for pair in pairs}
    known = {*get_variant("imagenet-1k").by_wnid, *get_variant("shapes").by_wnid}
    told = None not in names and all(names.values()) and len(names) == len(pairs)
    return names if told and not names.keys() <= known else {}


def label_wnids(values: Iterable[Any], columns: Columns, variant: str | None, where: str) -> dict[Any, str]:
    """Stored label -> wnid. A stated variant decides; else the first known one that has all of the labels.

    Raises:
        HfsynError: as `table_wnids`.
    """
    values = list(values)
    candidates = [get_variant(variant)] if variant else [VARIANTS[name] for name in ("imagenet-1k", "shapes")]
    missing: list[str] = []
    for candidate in candidates:
        found = _match(values, columns, candidate)
        wrong = [_spoken(value, columns.names) for value in values if found[value] is None]
        if not wrong:
            return {value: str(wnid) for value, wnid in found.items()}
        missing = wrong if not missing or len(wrong) < len(missing) else missing
    meant = f"of the variant {variant!r}" if variant else "of ImageNet-1k"
    raise HfsynError(
        f"{len(missing)} of the labels of {where} are no classes {meant}: {shorten(sorted(missing))}.",
        "A label is matched by wnid, or by a class name or WordNet lemma that means one class only. Add a column "
        "'wnid', rename the labels, or state the variant: VARIANT=PLACE, or CLASSMAP.yaml=PLACE.",
    )


def _match(values: Sequence[Any], columns: Columns, variant: Variant) -> dict[Any, str | None]:
    if columns.names is None:
        return dict(label_map(variant, values))
    explicit = hub_labels(variant, columns.names) if variant.hub else None
    named = label_map(variant, columns.names)
    by_number: Sequence[str | None] = explicit or tuple(named[name] for name in columns.names)
    return {v: by_number[v] if v is not None and 0 <= v < len(by_number) else None for v in values}


def _spoken(value: Any, names: Sequence[str] | None) -> str:
    if names is not None and value is not None and 0 <= value < len(names):
        return names[value]
    return "no label" if value is None or value == -1 else str(value)


def class_names(wnids: Iterable[str], variant: str | None = None) -> dict[str, str]:
    """The class name of each wnid, sorted by wnid: as the stated variant has it, where there is one; of an id that
    nobody here has described, the id.
    """
    stated = get_variant(variant).by_wnid if variant else {}
    drawn, known = get_variant("shapes").by_wnid, get_variant("imagenet-1k").by_wnid
    found = {w: stated.get(w) or own_class(w) or known.get(w) or drawn.get(w) for w in sorted(wnids)}
    return {wnid: info.name if info else wnid for wnid, info in found.items()}
