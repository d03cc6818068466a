"""What the prompts of a run are made of beside its recipe, pinned and checked before anything is spent."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from hfsyn.making.captions_files import FileTexts, content_of_file
from hfsyn.making.prompts import get_strategy, is_user_strategy
from hfsyn.making.recipe import Recipe
from hfsyn.making.recipe_prompts import HUB
from hfsyn.making.specs import Caption
from hfsyn.making.user_strategies import absolute, check_function, content_of, source_of


def pin_prompt(recipe: Recipe, stored: Recipe | None = None) -> Recipe:
    """The recipe with its own function and captions file named by an absolute path and by their content.

    Args:
        recipe: as it was loaded; a function of the user's is called for each class of the variant.
        stored: that of a run which is continued: where the Hub would have to be asked, its answer of then stands.

    Raises:
        HfsynError: the function or file is not there, is no good, or is another than the recipe means.
    """
    part = recipe.prompt
    if is_user_strategy(part.strategy):
        part = part.model_copy(update={"strategy": absolute(part.strategy)})
        has_text = recipe.caption is not None or part.captions_file is not None
        check_function(part.strategy, part.strategy_sha256, recipe.source.variant, captions=has_text)
        part = part.model_copy(update={"strategy_sha256": content_of(part.strategy)})
    if part.captions_file is not None:
        file, revision = part.captions_file, part.captions_revision
        if not file.startswith(HUB):
            file = str(Path(file).expanduser().resolve())
            FileTexts(part.model_copy(update={"captions_file": file}))
            revision = content_of_file(file, None)
        elif revision is None and stored is not None and stored.prompt.captions_file == file:
            revision = stored.prompt.captions_revision
        else:
            revision = content_of_file(file, revision)
        part = part.model_copy(update={"captions_file": file, "captions_revision": revision})
    return recipe.model_copy(update={"prompt": part})


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
