"""Strategies: named ways to write a prompt from a class, a caption and a random number generator.

A strategy's function sees a `ClassInfo`, a text and a ``random.Random`` that is seeded from the sample's id, and
returns the prompt. The text is None where the recipe has none, and may be empty. Where it is from is the strategy's
`text_from`: a captioner that sees the real image, a language model that is told the class, or a file.

To add one: write the function in `hfsyn.recipes.prompt_templates`, add a row to `STRATEGIES` here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from builders.errors import did_you_mean
from hfsyn.errors import HfsynError
from hfsyn.recipes import prompt_templates as templates
from hfsyn.recipes.parts import PromptPart
from hfsyn.recipes.prompt_templates import PromptFunction

TextSource = Literal["", "image", "class", "file"]


@dataclass(frozen=True, slots=True)
class Strategy:
    """A named way to write a prompt."""

    name: str
    template: str
    """The prompt's shape, for people."""
    source: str
    """Where the template is from."""
    text_from: TextSource
    """Who writes the text that stands in the prompt: nobody; a captioner, which sees the real image; a language model,
    which is told the class; or a file of the user's.
    """
    write: PromptFunction
    negative: str | None = None
    """A negative prompt that its source uses with it: a suggestion, for the recipe's ``prompt.negative``."""

    @property
    def needs_caption(self) -> bool:
        """Whether there is no prompt without a text."""
        return self.text_from != ""


def is_user_strategy(name: str) -> bool:
    """Whether a strategy is a function in a file of the user's, ``path/to/file.py:function``."""
    return ".py:" in name or name.endswith(".py")


def get_strategy(name: str) -> Strategy:
    """The strategy of that name. That of a user's file can only be looked at: `strategy_of` loads it.

    Raises:
        HfsynError: there is none; the message names the nearest.
    """
    if is_user_strategy(name):
        return Strategy(name, "a function of the user's", name.rpartition("/")[2], "", _not_loaded)
    if name not in STRATEGIES:
        raise HfsynError(
            f"Unknown strategy {name[:80]!r}.{did_you_mean(name, STRATEGIES)}",
            f"Strategies: {', '.join(STRATEGIES)}; or a function of yours: path/to/file.py:function.",
        )
    return STRATEGIES[name]


def strategy_of(part: PromptPart) -> Strategy:
    """The strategy of a recipe, bound to the recipe's other words. That of a user's file is loaded, and so run.

    Raises:
        HfsynError: there is none; or the user's function cannot be had, or is another than the recipe means.
    """
    if is_user_strategy(part.strategy):
        from hfsyn.recipes.user_strategies import user_function

        return replace(get_strategy(part.strategy), write=user_function(part.strategy, part.strategy_sha256))
    strategy = get_strategy(part.strategy)
    return replace(strategy, write=templates.domain_of(part.domain)) if part.domain else strategy


def _not_loaded(*_: object) -> str:
    raise HfsynError(
        "The prompts of this recipe are written by a function of somebody's own, which is not loaded here.",
        "Name the file: --strategy path/to/file.py:function",
    )


_REAL_FAKE = "distorted, unrealistic, blurry, out of frame, cropped, deformed"
_SARIYILDIZ = "Fake it till you make it (arXiv 2212.08420)"
STRATEGIES: dict[str, Strategy] = {
    s.name: s
    for s in (
        Strategy("classname", "{c}", "Deliberate Practice (arXiv 2502.15588)", "", templates.classname),
        Strategy("basic", "a photo of {c}", "the baseline of arXiv 2307.08526", "", templates.basic),
        Strategy("article", "a photo of a {c}", "Bansal & Grover (arXiv 2302.02503)", "", templates.article),
        Strategy(
            "clip80", "one of CLIP's 80 templates", "CLIP (arXiv 2103.00020), used in 2302.02503", "", templates.clip80
        ),
        Strategy("domain", "a {domain} photo of a {c}", "DataDream (arXiv 2407.10910)", "", templates.domain_of("")),
        Strategy("definition", "{c}, {definition}", _SARIYILDIZ, "", templates.definition),
        Strategy("hypernym", "{c}, {hypernym}", _SARIYILDIZ, "", templates.hypernym),
        Strategy("background", "{c}, {hypernym} inside {place}", _SARIYILDIZ, "", templates.background),
        Strategy(
            "cip",
            "a photo of {c}, {caption}",
            "Image Captions are Natural Prompts (arXiv 2307.08526)",
            "image",
            templates.cip,
        ),
        Strategy(
            "cip-bare", "{c}, {caption}", "When Pretty Isn't Useful (arXiv 2602.19946)", "image", templates.cip_bare
        ),
        Strategy(
            "cip-quality",
            "photo of {c}, {caption}, best quality",
            "Real-Fake (arXiv 2310.10402)",
            "image",
            templates.cip_quality,
            negative=_REAL_FAKE,
        ),
        Strategy(
            "caption-only", "{caption}", "ablation: the label comes from the source alone", "image", templates.verbatim
        ),
        Strategy("w2s", "{sentence}", "He et al. (arXiv 2210.07574)", "class", templates.said),
        Strategy("llm", "{sentence}", "SynCLR (arXiv 2312.17742)", "class", templates.said),
        Strategy("llm-diverse", "{sentence}", "Diversify, Don't Fine-Tune (arXiv 2312.02253)", "class", templates.said),
        Strategy("captions-file", "{text}", "StableRep (arXiv 2306.00984)", "file", templates.verbatim),
    )
}
