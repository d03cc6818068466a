"""The prompts that a strategy writes for some classes, to look at before choosing it."""

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

    rows: tuple[dict[str, Any], ...]  # `wnid`, `class`, `tokens` and `prompt` of each
    remarks: tuple[str, ...]  # which tokenizer, what the text stands for, what else the strategy needs, whose classes


def examples(name: str, variant: str, text: str, *, domain: str | None = None, recipe: str) -> Examples:
    """What a strategy, or a function ``path/to/file.py:function``, writes for the first ten classes of a variant.

    Args:
        variant: a variant, or the file of a class map.
        text: stands for a caption, or for what a language model or a file would say.
        domain: the word of the strategy ``domain``; None is ``pet`` there.
        recipe: whose generator's tokenizer counts the tokens, if it is on this machine.

    Raises:
        HfsynError: there is no such strategy or recipe, the function cannot be used, or the strategy has no place for
            the domain.
        DataError: there is no such variant, or the file is not a class map.
    """
    known = find_variant(variant)
    if is_user_strategy(name):
        name = absolute(name)
        check_function(name, None, known.name, captions=True)
    part = PromptPart(strategy=name, domain="pet" if domain is None and name == "domain" else domain)
    strategy = strategy_of(part)
    check_domain(part)
    check_words(known.classes, strategy)
    given = text if strategy.needs_caption or is_user_strategy(name) else None
    classes = known.classes[:_EXAMPLES]
    prompts = [strategy.write(info, given, Random(seed_of(0, info.wnid, purpose="prompt"))) for info in classes]
    tokenizer, whose = _tokenizer(load_recipe(recipe).generate)
    counts = [len(ids) for ids in tokenizer(prompts, truncation=False, verbose=False).input_ids]
    rows = tuple(
        {"wnid": info.wnid, "class": info.name, "tokens": count, "prompt": prompt}
        for info, count, prompt in zip(classes, counts, prompts, strict=True)
    )
    of = f"the first {len(rows)} classes of {known.name}; of another variant or class map: --variant NAME"
    return Examples(rows, (f"tokens are counted by {whose}", *_remarks(name, given), of))


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
    """The tokenizer of a generator, or the small generator's if that is not on this machine; and which one it is."""
    from transformers import AutoTokenizer

    revision = None if is_content_hash(part.revision) else part.revision or "main"
    options: dict[str, Any] = {"subfolder": "tokenizer", "local_files_only": True}
    try:
        found = AutoTokenizer.from_pretrained(locate(part.model, "generator"), revision=revision, **options)
        return found, f"the tokenizer of {part.model}, which takes {found.model_max_length}"
    except (OSError, ValueError, HfsynError):
        whose = (
            f"the tokenizer of the small generator, as that of {part.model} is not on this machine; it spells out "
            "words that it does not know, and so counts more tokens than CLIP's"
        )
        return AutoTokenizer.from_pretrained(locate(BUILTIN, "generator"), **options), whose
