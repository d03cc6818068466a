"""The sets of ImageNet classes that can be a source, and those of your own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def ls() -> list[dict[str, Any]]:
    """The variants, each with its name, number of classes and images, place on the Hub, and title."""
    from builders.variants import VARIANTS

    return [
        {
            "name": v.name,
            "classes": len(v.classes),
            "images": sum(v.splits.values()),
            "hub": v.hub.repo_id if v.hub else None,
            "title": v.title,
        }
        for v in VARIANTS.values()
    ]


def info(name: str, *, classes: bool = False) -> dict[str, Any]:
    """All that is known about a variant, and where each fact is from.

    Args:
        name: a variant, or the file of a class map.
        classes: list the classes too.

    Raises:
        DataError: there is no such variant, or the file is not a class map.
    """
    from builders.variants import facts_of
    from builders.variants.class_maps import find_variant

    found = find_variant(name)
    fields: dict[str, Any] = facts_of(found)
    if classes:
        fields["classes"] = [{"wnid": c.wnid, "name": c.name, "definition": c.definition} for c in found.classes]
    return fields


def peek(
    name: str,
    *,
    split: str | None = None,
    path: str | None = None,
    revision: str | None = None,
    per_class: int = 6,
    out: str | Path | None = None,
) -> Path:
    """Write a contact sheet of the first images of a variant's classes; return its path.

    Args:
        name: a variant, or the file of a class map.
        split: None is the variant's first.
        path: a local folder or Parquet file; None reads the Hub, or the folder that the class map names.
        revision: of the dataset on the Hub.
        per_class: images per class, 1 to 20.
        out: the picture; None is ``NAME-SPLIT.png``.

    Raises:
        DataError: there is no such variant or split, or its images cannot be read.
    """
    from builders.variants.class_maps import find_variant, read_variant
    from builders.yaml import is_yaml_name
    from hfsyn.runs import sheets

    variant, folder = read_variant(name) if is_yaml_name(name) else (find_variant(name), None)
    split = split or next(iter(variant.splits))
    out = out or f"{variant.name.partition('@')[0]}-{split}.png"
    return sheets.peek(variant.name, split, out, path=path or folder, revision=revision, per_class=per_class)


def new(
    name: str,
    source: str,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Path:
    """Write NAME.yaml, the class map of images of your own, to read over; return its path.

    A recipe then names the file: ``overrides="source.variant=NAME.yaml"``.

    Args:
        name: of the variant.
        source: a folder with a subfolder per class, a folder of Parquet files, or USER/NAME on the Hub.
        config_name: which configuration of its tables, if they have several.
        revision: of the dataset on the Hub.
        image_column: where its tables have the images, if not found by name.
        label_column: where its tables have the labels, if not found by name.

    Raises:
        DataError: there is nothing to read at `source`, or the file exists.
    """
    from builders.sources.new_class_map import new_variant

    columns = {"image_column": image_column, "label_column": label_column}
    return new_variant(name, source, config=config_name, revision=revision, **columns)
