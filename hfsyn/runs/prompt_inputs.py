"""What the prompts of a run are made of beside its recipe; `hfsyn.runs.pins` says which content is meant."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from hfsyn.recipes.recipe import Recipe
from hfsyn.recipes.strategies import get_strategy, is_user_strategy, source_of
from hfsyn.runs.given_texts import FileTexts
from hfsyn.runs.specs import Caption


def check_texts(recipe: Recipe, source_ids: Collection[str]) -> None:
    """Refuse a captions file that has no text for some of the images; see `FileTexts.check`."""
    if recipe.prompt.captions_file is not None:
        FileTexts(recipe.prompt).check(source_ids)


def takes_text(recipe: Recipe) -> bool:
    """Whether the recipe's prompts depend on texts; a function of the user's is given those that there are."""
    if is_user_strategy(recipe.prompt.strategy):
        return recipe.caption is not None or recipe.prompt.captions_file is not None
    return get_strategy(recipe.prompt.strategy).needs_caption


def with_texts(recipe: Recipe, captions: Iterable[Caption]) -> list[Caption]:
    """The captions with the texts of the recipe's captions file.

    Raises:
        HfsynError: see `FileTexts.check`.
    """
    found, texts = list(captions), FileTexts(recipe.prompt)
    texts.check([caption.source_id for caption in found])
    return [replace(caption, text=texts.of(caption.source_id)) for caption in found]


def strategy_source(recipe: Recipe) -> str | None:
    """The text of the file of the user's own function, to be kept beside the recipe; None where there is none."""
    return source_of(recipe.prompt.strategy) if is_user_strategy(recipe.prompt.strategy) else None
