"""Fields of a recipe that decide nothing."""

from __future__ import annotations

from collections.abc import Callable

from hfsyn.errors import HfsynError
from hfsyn.recipes.parts import PARTS, GeneratePart, PromptPart, StorePart


def refuse_idle(prompt: PromptPart, generate: GeneratePart, store: StorePart, written: Callable[[str], bool]) -> None:
    """Refuse fields that decide nothing and would give the same dataset another fingerprint.

    Recipes that are stored or published already may have them: only what the user writes now is looked at.

    Args:
        prompt, generate, store: of the checked recipe.
        written: whether the user wrote the field of this dotted name.

    Raises:
        HfsynError: naming the first.
    """
    lossless = f"store.format is {store.format!r}, which is lossless" if store.format != "jpeg" else ""
    scale = generate.guidance_scale
    unguided = f"generate.guidance_scale is {scale:g}, which turns guidance off" if scale <= 1 else ""
    idle = {
        "prompt.negative": unguided,
        "generate.guidance_start": unguided,
        "generate.guidance_stop": unguided,
        "generate.lora": "generate.lora_scale is 0" if generate.lora_scale == 0 else "",
        "generate.strength": "generate.init is 'none'" if generate.init == "none" else "",
        "generate.lora_scale": "there is no generate.lora" if generate.lora is None else "",
        "store.quality": lossless,
        "store.subsampling": lossless,
    }
    for key, why in idle.items():
        part, _, name = key.partition(".")
        value = getattr({"prompt": prompt, "generate": generate, "store": store}[part], name)
        default = PARTS[part].model_fields[name].default
        if why and value != default and (written(key) or (written("generate.guidance_scale") and why == unguided)):
            shown = "null" if default is None else default
            raise HfsynError(
                f"{key} is {value!r} and decides nothing, because {why}.", f"Leave it out, or --set {key}={shown}"
            )
    start, stop = generate.guidance_start, generate.guidance_stop
    if start >= stop and (written("generate.guidance_start") or written("generate.guidance_stop")):
        raise HfsynError(
            f"generate.guidance_start is {start:g} and generate.guidance_stop {stop:g}, which leaves no step with "
            "guidance.",
            "Start before the stop; without guidance at all: --set generate.guidance_scale=1",
        )
