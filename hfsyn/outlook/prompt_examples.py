"""What a strategy writes, looked at before a recipe is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from builders.variants.class_maps import find_variant
from hfsyn.errors import HfsynError
from hfsyn.models.finding import locate
from hfsyn.recipes.parts import PromptPart, check_domain, strategy_of
from hfsyn.recipes.recipe import BUILTIN, GeneratePart, is_content_hash, load_recipe
from hfsyn.recipes.strategies import absolute, check_function, check_words, get_strategy, is_user_strategy
from hfsyn.rules import seed_of

_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Examples:
    """Prompts of the first classes of a variant."""

    rows: tuple[dict[str, Any], ...]
    """``wnid``, ``class``, ``tokens`` and ``prompt`` of each."""
    remarks: tuple[str, ...]
    """What a reader should know: whose tokens, whose texts, what else belongs to the strategy."""


def examples(name: str, variant: str, text: str, *, domain: str | None = None, recipe: str) -> Examples:
    """What a strategy writes for the first ten classes of a variant.

    Args:
        name: of a strategy, or ``path/to/file.py:function``.
        variant: whose classes; the file of a class map too.
        text: stands for a caption, or for what a language model or a file would say.
        domain: the word of the strategy ``domain``; None is ``pet`` there.
        recipe: whose generator's tokens are counted, if its tokenizer is at hand.

    Raises:
        HfsynError: there is no such strategy or recipe, or the function is no good; or the strategy has no place for
            the domain.
        DataError: there is no such variant, or the file is no class map.
    """
    known = find_variant(variant)
    classes, variant = known.classes, known.name
    if is_user_strategy(name):
        name = absolute(name)
        check_function(name, None, variant, captions=True)
    part = PromptPart(strategy=name, domain="pet" if domain is None and name == "domain" else domain)
    strategy = strategy_of(part)
    check_domain(part)
    check_words(classes, strategy)
    given = text if strategy.needs_caption or is_user_strategy(name) else None
    prompts = [
        strategy.write(info, given, Random(seed_of(0, info.wnid, purpose="prompt"))) for info in classes[:_EXAMPLES]
    ]
    tokenizer, whose = _tokenizer(load_recipe(recipe).generate)
    counts = [len(ids) for ids in tokenizer(prompts, truncation=False, verbose=False).input_ids]
    rows = tuple(
        {"wnid": info.wnid, "class": info.name, "tokens": count, "prompt": prompt}
        for info, count, prompt in zip(classes, counts, prompts, strict=False)
    )
    return Examples(rows, (f"tokens are counted by {whose}", *_remarks(name, given)))


def _remarks(name: str, given: str | None) -> list[str]:
    strategy = get_strategy(name)
    who = {
        "image": "a captioner writes of each real image",
        "class": "a language model writes of the class",
        "file": "the captions file says of each image",
    }
    found = []
    if strategy.text_from:
        found.append(f"{given!r} stands for what {who[strategy.text_from]}")
    if strategy.negative:
        found.append(f"its source uses a negative prompt with it: --set prompt.negative={strategy.negative!r}")
    return found


def _tokenizer(part: GeneratePart) -> tuple[Any, str]:
    """The tokenizer of a generator, or of the small one where it is not at hand; and whose it is."""
    from transformers import AutoTokenizer

    revision = None if is_content_hash(part.revision) else part.revision or "main"
    try:
        found = AutoTokenizer.from_pretrained(
            locate(part.model, "generator"), subfolder="tokenizer", revision=revision, local_files_only=True
        )
        return found, f"the tokenizer of {part.model}, which takes {found.model_max_length}"
    except (OSError, ValueError, HfsynError):
        return (
            AutoTokenizer.from_pretrained(locate(BUILTIN, "generator"), subfolder="tokenizer", local_files_only=True),
            f"the tokenizer of the small generator, as that of {part.model} is not at hand; it spells the words that "
            "it does not know, and so counts more than CLIP's",
        )
