"""The real images that a LoRA was tuned on, for a set that was drawn with it: which, and whether they are here."""

from pathlib import Path
from typing import Any

from hfsyn.errors import HfsynError


def named_by(images: Any, reference: str) -> str | None:
    """What the LoRA was tuned on that a run or a published dataset was drawn with; None if there was none."""
    from builders.runs import layout
    from hfsyn.judging.sets.references import without_weight
    from hfsyn.recipes.recipe import load_recipe, stored_recipe

    folder = Path(without_weight(reference)).expanduser()
    try:
        if layout.is_run_folder(folder):
            return stored_recipe(folder).generate.lora_tuned_on
        if images.hub is not None and images.revision is not None:
            return load_recipe(f"hf://datasets/{images.hub}@{images.revision}").generate.lora_tuned_on
    except HfsynError:  # not a dataset of ours
        pass
    return None


def opened_if_here(tuned_on: str, limit: int | None) -> Any:
    """The images that a LoRA was tuned on; None if they are not here, which `remarks` says."""
    from hfsyn.judging.sets.image_set import TRAIN, open_images

    try:
        return open_images(tuned_on, default=TRAIN, limit=limit)
    except HfsynError:
        return None
