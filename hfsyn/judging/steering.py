"""The classifier that steers a generator: opened, pinned by all of it that decides its answers, and fitting the set."""

import hashlib
import json
from dataclasses import asdict

from builders.errors import quoted
from builders.sources.rows import is_wnid, spelling
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import ZERO_SHOT, Classifier, open_classifier
from hfsyn.recipes.loading import check_content
from hfsyn.recipes.recipe import GeneratePart, Recipe

OFF = "--set generate.entropy_weight=0 draws without."
"""How to go on without it."""


def pin_entropy(recipe: Recipe) -> Recipe:
    """The recipe with the classifier of its entropy guidance, if it has one, opened and named by its content.

    Raises HfsynError if there is none, its content is not the one that the recipe says, or it lacks a class of the
    recipe's variant.
    """
    part = recipe.generate
    if not part.entropy_weight:
        return recipe
    classifier = opened(part)
    columns_of(classifier, recipe.source.variant)
    part = part.model_copy(update={"entropy_revision": content_of(classifier)})
    return recipe.model_copy(update={"generate": part})


def opened(part: GeneratePart, device: str = "cpu") -> Classifier:
    """The classifier of a recipe. Raises HfsynError as `pin_entropy`."""
    name = str(part.entropy_classifier)
    if name.startswith(ZERO_SHOT):
        said = f"generate.entropy_classifier is {name!r}, a zero-shot classifier, through which no gradient is taken."
        raise HfsynError(said, "Name the folder of a training, a network of timm, or hf_hub:USER/NAME.")
    try:
        classifier = open_classifier(name, device=device)
    except HfsynError as error:
        raise HfsynError(f"generate.entropy_classifier: {error.message}", error.hint, code=error.code) from None
    if part.entropy_revision is not None:
        what = f"The classifier {name} is not the one"
        check_content(content_of(classifier), part.entropy_revision, what, "generate.entropy_revision")
    return classifier


def content_of(classifier: Classifier) -> str:
    """``sha256:`` and the hash of all of a classifier that decides its answers: weights, classes, preprocessing."""
    facts = [classifier.name, dict(classifier.options), classifier.wnids, classifier.sha256]
    text = json.dumps([*facts, asdict(classifier.preprocessing)], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def columns_of(classifier: Classifier, variant: str) -> list[int]:
    """The outputs that are classes of a variant, among which alone the entropy is taken: so one classifier of ImageNet
    serves each of its parts. Raises HfsynError if the classifier lacks one of them, or there are fewer than two.
    """
    wanted, there = get_variant(variant).by_wnid, classifier.classes
    lacking = [
        f"{wnid} {info.name}"
        for wnid, info in wanted.items()
        if wnid not in there or not (is_wnid(wnid) or spelling(there[wnid]) == spelling(info.name))
    ]
    if lacking or len(wanted) < 2:
        said = f"{len(lacking)} of the {len(wanted)} classes of {variant} are not among the {len(there)} of the "
        said += f"classifier {classifier.source or classifier.name}: {quoted(lacking)}."
        if not lacking:
            said = f"{variant} has one class, of which no classifier is unsure."
        raise HfsynError(said, f"Name a generate.entropy_classifier that has them all. {OFF}")
    return [at for at, wnid in enumerate(classifier.wnids) if wnid in wanted]
