"""The real images that a generator was tuned on, for a set that was drawn with it: which, and whether they are here."""

from pathlib import Path
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.models.loras import OF_SPLIT


def named_by(images: Any, reference: str) -> str | None:
    """What the LoRA, or else the model, was tuned on that a run or a published dataset was drawn with; None if neither
    says so.
    """
    from builders.runs import layout
    from hfsyn.judging.sets.references import without_weight
    from hfsyn.recipes.recipe import load_recipe, stored_recipe

    folder = Path(without_weight(reference)).expanduser()
    try:
        if layout.is_run_folder(folder):
            draw = stored_recipe(folder).generate
        elif images.hub is not None and images.revision is not None:
            draw = load_recipe(f"hf://datasets/{images.hub}@{images.revision}").generate
        else:
            return None
    except HfsynError:  # not a dataset of ours
        return None
    return draw.lora_tuned_on or draw.tuned_on


def opened_if_here(tuned_on: str, real: Any, limit: int | None) -> Any:
    """The images that a generator was tuned on, opened; `real` itself if they are these; a text, why they cannot be
    compared with, if they are not here or have no classes.
    """
    from hfsyn.judging.sets.image_set import TRAIN, open_images

    name, _, split = tuned_on.partition(OF_SPLIT)
    if (real.reference, real.split) == (name, split or TRAIN[0]):
        return real
    if "./" in name:  # see `Examples.reference`
        return "it is a folder on the machine that tuned it"
    try:
        return open_images(name, split or None, default=TRAIN, limit=limit)
    except HfsynError as error:
        return error.message.rstrip(".")
