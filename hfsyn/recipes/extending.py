"""What a recipe's text leaves to be filled in: the recipe that it extends, and the class map that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from builders.variants import ClassInfo
from builders.variants.class_maps import OwnVariant, own_variant, read_variant
from builders.yaml import is_yaml_name
from hfsyn.errors import HfsynError

_DEEPEST = 5
Read = Callable[[str], tuple[dict[str, Any], str]]
"""Name of a recipe -> its fields, and how to call it in a message."""


def extended(fields: Mapping[str, Any], where: str, read: Read) -> dict[str, Any]:
    """The fields with those of the recipe that they extend, where they do: ``extends: imagenette-cip``.

    What the extending recipe says goes before; its parts are merged field by field, so that a part names its changes
    only. ``null`` takes a part away. A file is named relative to the extending file.

    Raises:
        HfsynError: there is no such recipe, or recipes extend one another in a circle.
    """
    found, place, seen = dict(fields), where, [where]
    while (base := found.pop("extends", None)) is not None:
        if not isinstance(base, str) or place.startswith("hf://"):
            raise HfsynError(f"{place} extends {base!r}.", "A recipe extends a shipped one, or a YAML file.")
        if is_yaml_name(base) and is_yaml_name(place):
            base = str(Path(place).expanduser().parent / Path(base).expanduser())
        try:
            below, place = read(base)
        except HfsynError as error:
            raise HfsynError(f"{place} extends {base[:80]!r}: {error.message}", error.hint, error.code) from None
        if place in seen or len(seen) > _DEEPEST:
            raise HfsynError(f"{where} extends itself: {' -> '.join([*seen, place])}.", "Leave one `extends` out.")
        seen.append(place)
        found = {**below, **{key: _merged(below.get(key), value) for key, value in found.items()}}
        found.pop("extends", None)
        if "extends" in below:
            found["extends"] = below["extends"]
    return found


def _merged(base: Any, change: Any) -> Any:
    return {**base, **change} if isinstance(base, Mapping) and isinstance(change, Mapping) else change


def with_class_map(fields: dict[str, Any], folder: Path, *, renamed: bool = False) -> None:
    """Where `source.variant` is the file of a class map: put its content and its name by content into the fields.

    Args:
        fields: of a recipe; changed.
        folder: to which the file is relative.
        renamed: whether another variant was set, so that a definition that is there belongs to another.

    Raises:
        HfsynError: there is no such file, or it is no class map.
    """
    source = fields.get("source")
    if not isinstance(source, dict) or not isinstance(name := source.get("variant"), str):
        return
    if not is_yaml_name(name):
        if renamed:
            source["definition"] = None
        return
    variant, path = read_variant(folder / Path(name).expanduser())
    source["variant"], source["definition"] = variant.name, dict(variant.definition)
    if source.get("path") is None and variant.hub is None:
        source["path"] = path


def check_words(classes: Iterable[ClassInfo], strategy: str, template: str) -> None:
    """Refuse a strategy that asks for words which a class map does not give; ImageNet's classes have them all.

    Raises:
        HfsynError: with the first class.
    """
    for word in ("definition", "hypernym"):
        lacking = [info for info in classes if not getattr(info, word)] if f"{{{word}}}" in template else []
        if lacking:
            raise HfsynError(
                f"Strategy {strategy!r} writes each class's {word}, and {len(lacking)} classes have none, such as "
                f"{lacking[0].wnid}.",
                f"Give them one in the class map ({word}: ...), or choose another strategy.",
            )


def check_class_map(variant: str, definition: Mapping[str, Any]) -> OwnVariant:
    """The variant of a recipe's definition, known from now on.

    Raises:
        HfsynError: it is none, or one of another name or content.
    """
    return own_variant(definition, name=variant)
