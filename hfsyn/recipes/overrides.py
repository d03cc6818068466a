"""What has to be forgotten of a recipe where something is set on the command line."""

from __future__ import annotations

from typing import Any

from hfsyn.recipes.prompt_part import drop_stale_pins


def drop_model_fields(fields: dict[str, Any], overridden: set[str]) -> None:
    """Where a model or a file was overridden, forget the revision, the size and the LoRA that were the other one's."""
    drop_stale_pins(fields, overridden)
    for part in ("caption", "generate"):
        if f"{part}.model" in overridden and isinstance(fields.get(part), dict):
            for key in {"revision", "variant", "width", "height"} & set(fields[part]):
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
