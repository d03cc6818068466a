"""Which content a recipe means: a revision that it leaves open is pinned here, once, and then stands for the whole run.

Models and LoRA weights, the source, the captions file and the user's own function are each named by a commit or by
their content. A run that is there (in this folder, on the Hub) has pinned them already: whoever continues it takes its
pins, since somebody may have committed to any of these places meanwhile.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from builders.variants import get_variant
from hfsyn.recipes.parts import HUB
from hfsyn.recipes.recipe import Recipe, is_content_hash
from hfsyn.recipes.strategies import absolute, check_function, content_of, get_strategy, is_user_strategy
from hfsyn.runs.given_texts import FileTexts, content_of_file

_PINS = {
    ("source", "revision"): ("variant", "path"),
    ("caption", "revision"): ("model",),
    ("prompt", "captions_revision"): ("captions_file",),
    ("generate", "revision"): ("model",),
    ("generate", "variant"): ("model",),
    ("generate", "lora_revision"): ("lora", "lora_file"),
}
"""Part and field of each pin -> the fields of the part that say what is pinned."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(recipe: Recipe, stored: Recipe | None = None) -> Recipe:
    """The recipe with its places on this machine made absolute and its revisions pinned.

    Args:
        recipe: as it was loaded; a function of the user's is called for each class of the variant.
        stored: that of the run which is continued or looked at. What it has pinned of the same thing stands, and the
            Hub is asked only what a branch or a tag is that `recipe` names; what it means otherwise is left open, for
            `difference` to name. None asks for everything.

    Raises:
        HfsynError: a model, a source, a file or a function is not there, or is another than the recipe means.
    """
    recipe = _absolute(recipe)
    if stored is not None:
        recipe = _as_begun(recipe, stored)
    recipe = pin_prompt(recipe)  # the cheap checks first: a missing file must not cost the look at a large model
    return _models(recipe, everything=stored is None)


def _absolute(recipe: Recipe) -> Recipe:
    """So that a run can be continued from anywhere."""
    if recipe.source.path is None:
        return recipe
    return _with(recipe, "source", path=str(Path(recipe.source.path).expanduser().resolve()))


def _as_begun(recipe: Recipe, stored: Recipe) -> Recipe:
    """The recipe with the pins of the stored one where it leaves them open and means the same thing."""
    for (part, pin), names in _PINS.items():
        mine, theirs = getattr(recipe, part), getattr(stored, part)
        if mine is None or theirs is None or getattr(mine, pin) is not None:
            continue
        if part == "prompt" and not (mine.captions_file or "").startswith(HUB):
            continue  # a file of this machine is looked at again
        if all(getattr(mine, name) == getattr(theirs, name) for name in names):
            recipe = _with(recipe, part, **{pin: getattr(theirs, pin)})
    return recipe


def pin_prompt(recipe: Recipe) -> Recipe:
    """The recipe with its own function and captions file named by an absolute path and by their content.

    Raises:
        HfsynError: the function or file is not there, is no good, or is another than the recipe means.
    """
    part = recipe.prompt
    if is_user_strategy(part.strategy):
        name = absolute(part.strategy)
        has_text = recipe.caption is not None or part.captions_file is not None
        check_function(name, part.strategy_sha256, recipe.source.variant, captions=has_text)
        recipe = _with(recipe, "prompt", strategy=name, strategy_sha256=content_of(name))
    if (file := part.captions_file) is None:
        return recipe
    if file.startswith(HUB):
        revision = part.captions_revision
        return _with(
            recipe, "prompt", captions_revision=revision if _is_exact(revision) else content_of_file(file, revision)
        )
    file = str(Path(file).expanduser().resolve())
    FileTexts(part.model_copy(update={"captions_file": file}))
    return _with(recipe, "prompt", captions_file=file, captions_revision=content_of_file(file, None))


def _models(recipe: Recipe, *, everything: bool) -> Recipe:
    """The recipe with its models, LoRA weights and source pinned: all of them, or those that a branch or tag names."""
    # Here, because whoever only asks a run how far it is should not wait for the Hub's client to be loaded.
    from builders.sources import resolve_revision
    from hfsyn.models.finding import found_variant, pin
    from hfsyn.models.loras import pin_lora

    def asked(revision: str | None) -> bool:
        return everything or (revision is not None and not _is_exact(revision))

    if (caption := recipe.caption) is not None and asked(caption.revision):
        of_class = get_strategy(recipe.prompt.strategy).text_from == "class"
        kind: Any = "language model" if of_class else "captioner"
        recipe = _with(recipe, "caption", revision=pin(caption.model, caption.revision, kind))
    draw = recipe.generate
    if asked(draw.revision):
        revision = pin(draw.model, draw.revision, "generator")
        variant = draw.variant or found_variant(draw.model, revision)
        recipe = _with(recipe, "generate", revision=revision, variant=variant)
    if asked(draw.lora_revision):
        recipe = recipe.model_copy(update={"generate": pin_lora(recipe.generate)})
    source = recipe.source
    if asked(source.revision) and source.path is None and get_variant(source.variant).hub is not None:
        recipe = _with(recipe, "source", revision=resolve_revision(source.variant, source.revision))
    return recipe


def _is_exact(revision: str | None) -> bool:
    """Whether a revision can mean nothing else tomorrow: a commit, or the content of something local."""
    return is_content_hash(revision) or (revision is not None and _COMMIT.fullmatch(revision) is not None)


def _with(recipe: Recipe, part: str, **fields: Any) -> Recipe:
    """The recipe with some fields of a part changed."""
    return recipe.model_copy(update={part: getattr(recipe, part).model_copy(update=fields)})
