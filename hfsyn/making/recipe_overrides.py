"""Fields of a recipe that are set on the command line, and what has to be forgotten with them."""

from __future__ import annotations

import re
from typing import Any

import yaml

from hfsyn.errors import HfsynError
from hfsyn.making.recipe_faults import allowed, model_at
from hfsyn.making.recipe_parts import Part
from hfsyn.making.recipe_prompts import drop_stale_pins

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}")


def set_field(fields: dict[str, Any], override: str, top: type[Part]) -> None:
    """Carry out one ``KEY=VALUE``, the key dotted and the value YAML, on the fields of a recipe of the class `top`.

    Raises:
        HfsynError: it is none.
    """
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise HfsynError(f"--set {override!r} is not KEY=VALUE.", "For instance: --set generate.steps=20")
    part: Any = fields
    *parents, last = loc = key.split(".")
    for parent in parents:
        if parent in part and part[parent] is None:
            part[parent] = {}
        part = part.setdefault(parent, {})
        if not isinstance(part, dict):
            raise HfsynError(f"--set {key}: {parent!r} is a value and holds no keys.", allowed(loc, top))
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        read = value
    if isinstance(read, str) and _EXPONENT.fullmatch(read) and _is_number(loc, top):
        # YAML 1.1 knows 1.0e+3 only.
        read = int(float(read)) if float(read).is_integer() else float(read)
    # YAML 1.1 takes 4:4:4 for a number to the base of 60.
    part[last] = value if isinstance(read, int | float) and ":" in value else read


def _is_number(loc: list[str], top: type[Part]) -> bool:
    field = model_at(loc, top).model_fields.get(loc[-1])
    return field is not None and re.search(r"\b(int|float)\b", repr(field.annotation)) is not None


def drop_model_fields(fields: dict[str, Any], overridden: set[str]) -> None:
    """Where a model or a file was overridden, forget the revision, the size and the LoRA that were the other one's."""
    drop_stale_pins(fields, overridden)
    for part in ("caption", "generate"):
        if f"{part}.model" in overridden and isinstance(fields.get(part), dict):
            for key in {"revision", "width", "height"} & set(fields[part]):
                if f"{part}.{key}" not in overridden:
                    fields[part][key] = None
    generate = fields.get("generate")
    if isinstance(generate, dict):
        stale = {"lora", "lora_file", "lora_revision"} if "generate.model" in overridden else set()
        stale |= {"lora_file", "lora_revision"} if "generate.lora" in overridden else set()
        for key in stale & set(generate):
            if f"generate.{key}" not in overridden:
                generate[key] = None
        # It multiplies nothing without them, and a recipe may not say what decides nothing.
        if "generate.model" in overridden and not {"generate.lora", "generate.lora_scale"} & overridden:
            generate.pop("lora_scale", None)
