"""Which content a recipe means: a revision that it leaves open is pinned here, once, for the whole run.

Models, LoRA weights and classifiers, the source, the captions file and the user's own function are each named by a
commit or by their content. A run that continues, here or from the Hub, keeps its pins, since any of these places may
have changed since it began.
"""

import re
from pathlib import Path

from builders.variants import get_variant
from hfsyn.recipes.parts import HUB
from hfsyn.recipes.recipe import BUILTIN, Recipe, is_content_hash
from hfsyn.recipes.strategies import absolute, check_function, content_of, get_strategy, is_user_strategy
from hfsyn.runs.inputs import FileTexts, content_of_file

_PINS = {
    ("source", "revision"): ("variant", "path"),
    ("caption", "revision"): ("model",),
    ("prompt", "captions_revision"): ("captions_file",),
    ("generate", "revision"): ("model",),
    ("generate", "variant"): ("model",),
    ("generate", "tuned_on"): ("model",),
    ("generate", "lora_revision"): ("lora", "lora_file"),
    ("generate", "lora_tuned_on"): ("lora", "lora_file"),
    ("generate", "entropy_revision"): ("entropy_classifier",),
}
"""Part and field of each pin -> the fields of the part that say what is pinned."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(recipe: Recipe, stored: Recipe | None = None) -> Recipe:
    """The loaded recipe with its revisions pinned and its places on this machine made absolute. A user's function is
    called for each class of the variant.

    `stored` is the recipe of the run that is continued or looked at. Its pins of the same things are kept, and the Hub
    is only asked what the branches and tags mean that `recipe` names; anything else stays open, and so shows up in
    `difference`. None asks for everything.

    Raises HfsynError if a model, a source, a file or a function is not there, or is not the one that the recipe means.
    """
    if recipe.source.path is not None:
        recipe = recipe.with_fields("source", path=str(Path(recipe.source.path).expanduser().resolve()))
    if (steers := recipe.generate.entropy_classifier) is not None and (folder := Path(steers).expanduser()).is_dir():
        recipe = recipe.with_fields("generate", entropy_classifier=str(folder.resolve()))
    if stored is not None:
        recipe = _as_begun(recipe, stored)
    recipe = pin_prompt(recipe)  # the cheap checks come before a look at a large model
    return _pin_models(recipe, everything=stored is None)


def pinned_here(recipe: Recipe) -> Recipe | None:
    """As `pinned`, for a recipe whose models and source are on this machine for sure; None if the Hub must be asked."""
    models = [part.model for part in (recipe.caption, recipe.generate) if part is not None]
    source = recipe.source
    on_hub = source.path is None and get_variant(source.variant).hub is not None
    if (
        on_hub
        or recipe.generate.lora is not None
        or recipe.generate.entropy_weight
        or any(model != BUILTIN for model in models)
    ):
        return None
    return pinned(recipe)


def _as_begun(recipe: Recipe, stored: Recipe) -> Recipe:
    """The recipe with the pins of the stored one, where it leaves them open and means the same thing."""
    if stored.generate.lora_by_class and recipe.generate.lora is not None and recipe.generate.lora_file is None:
        recipe = recipe.with_fields("generate", lora_file=stored.generate.lora_file)  # as it was found then
    for (part, pin), names in _PINS.items():
        mine, theirs = getattr(recipe, part), getattr(stored, part)
        if mine is None or theirs is None or getattr(mine, pin) is not None:
            continue
        if part == "prompt" and not (mine.captions_file or "").startswith(HUB):
            continue  # a file of this machine is looked at again
        if all(getattr(mine, name) == getattr(theirs, name) for name in names):
            recipe = recipe.with_fields(part, **{pin: getattr(theirs, pin)})
    return recipe


def pin_prompt(recipe: Recipe) -> Recipe:
    """The recipe with its own function and captions file checked, and named by absolute path and content."""
    part = recipe.prompt
    if is_user_strategy(part.strategy):
        name = absolute(part.strategy)
        has_text = recipe.caption is not None or part.captions_file is not None
        check_function(name, part.strategy_sha256, recipe.source.variant, captions=has_text)
        recipe = recipe.with_fields("prompt", strategy=name, strategy_sha256=content_of(name))
    if (file := part.captions_file) is None:
        return recipe
    revision = part.captions_revision
    if not file.startswith(HUB):
        file, revision = str(Path(file).expanduser().resolve()), None
        FileTexts(part.model_copy(update={"captions_file": file}))
    if not _is_exact(revision):
        revision = content_of_file(file, revision)
    return recipe.with_fields("prompt", captions_file=file, captions_revision=revision)


def _pin_models(recipe: Recipe, *, everything: bool) -> Recipe:
    """The recipe with its models, LoRA weights and source pinned: all of them, or those that a branch or tag names."""
    # Imported here, so that asking for the status of a run does not load the Hub's client.
    from builders.sources import resolve_revision
    from hfsyn.models.finding import pin
    from hfsyn.models.loras import pin_lora

    def is_open(revision: str | None) -> bool:
        return everything or (revision is not None and not _is_exact(revision))

    if (caption := recipe.caption) is not None and is_open(caption.revision):
        of_class = get_strategy(recipe.prompt.strategy).text_from == "class"
        if is_user_strategy(caption.model):
            caption = caption.model_copy(update={"model": absolute(caption.model, "captioner")})
        revision = pin(caption.model, caption.revision, "language model" if of_class else "captioner")
        recipe = recipe.with_fields("caption", model=caption.model, revision=revision)
    draw, source = recipe.generate, recipe.source
    if is_open(draw.revision):
        recipe = pin_generator(recipe)
    if is_open(draw.lora_revision):
        recipe = recipe.model_copy(update={"generate": pin_lora(recipe.generate)})
    if is_open(draw.entropy_revision):
        from hfsyn.judging.steering import pin_entropy  # which loads torch

        recipe = pin_entropy(recipe)
    if is_open(source.revision) and source.path is None and get_variant(source.variant).hub is not None:
        recipe = recipe.with_fields("source", revision=resolve_revision(source.variant, source.revision))
    return recipe


def pin_generator(recipe: Recipe) -> Recipe:
    """The recipe with the revision of its generator pinned, the variant of its weights, and what they were tuned on.
    Raises HfsynError as `pinned`.
    """
    from hfsyn.models.finding import files_of, found_variant, pin
    from hfsyn.models.loras import TUNING, told_on

    draw = recipe.generate
    revision = pin(draw.model, draw.revision, "generator")
    files = files_of(draw.model, revision, "generator", cached=True)
    known = draw.tuned_on or (told_on(draw.model, revision) if TUNING in files else None)
    variant = draw.variant or found_variant(draw.model, files)
    return recipe.with_fields("generate", revision=revision, variant=variant, tuned_on=known)


def _is_exact(revision: str | None) -> bool:
    """Whether a revision will always mean the same: a commit, or the content of something local."""
    return is_content_hash(revision) or (revision is not None and _COMMIT.fullmatch(revision) is not None)
