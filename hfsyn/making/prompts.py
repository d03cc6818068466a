"""Strategies: pure functions that write a prompt from a class, a caption and a random number generator.

A strategy sees a `ClassInfo`, the caption of the real image (None where the recipe has no captions, possibly empty
where the captioner said nothing) and a `random.Random` that is seeded from the sample's id. It returns the prompt. The
class comes first in each of them, so that a text encoder's length limit (77 tokens for CLIP) never cuts it off.

To add one: write the function, add a row to `STRATEGIES` at the end of this file.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable
from dataclasses import dataclass

from builders.variants import ClassInfo
from hfsyn.errors import HfsynError

PromptFunction = Callable[[ClassInfo, str | None, random.Random], str]


@dataclass(frozen=True, slots=True)
class Strategy:
    """A named way to write a prompt."""

    name: str
    template: str
    """The prompt's shape, for people."""
    source: str
    """Where the template is from."""
    needs_caption: bool
    write: PromptFunction


def with_article(noun: str) -> str:
    """``a tench``, ``an axolotl``: by the first letter, which is right for all but a few of ImageNet's names."""
    exceptions_an = ("hourglass",)
    exceptions_a = ("unicycle", "uniform", "ukulele", "u-boat", "ewer", "european")
    first = noun.lower()
    vowel = first.startswith(("a", "e", "i", "o", "u", *exceptions_an)) and not first.startswith(exceptions_a)
    return f"{'an' if vowel else 'a'} {noun}"


def _join(head: str, tail: str | None) -> str:
    """`head`, then the tail after a comma; an empty tail leaves no comma behind."""
    tail = " ".join((tail or "").split())
    return f"{head}, {tail}" if tail else head


def _classname(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    return c.name


def _basic(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    return f"a photo of {c.name}"


def _article(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    return f"a photo of {with_article(c.name)}"


def _cip(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    return _join(f"a photo of {c.name}", caption)


def _cip_bare(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    return _join(c.name, caption)


def _caption_only(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    # An empty prompt would make an unconditional image under this class's label: the class name stands in.
    return " ".join((caption or "").split()) or c.name


def _definition(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    return _join(c.name, c.definition)


def _hypernym(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    return _join(c.name, c.hypernym)


def _clip80(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    return rng.choice(CLIP80).replace("{}", c.name)


def _clip_templates() -> tuple[str, ...]:
    """The 80 templates of CLIP's ImageNet evaluation, built from their regular parts (their order there is another)."""
    qualities = (
        "bad", "low resolution", "cropped", "bright", "dark", "close-up", "black and white", "pixelated",
        "jpeg corrupted", "blurry", "good",
    )  # fmt: skip
    looks = ("hard to see", "clean", "dirty", "nice", "weird", "cool", "small", "large")
    media = ("sculpture", "rendering", "tattoo", "drawing", "painting", "doodle", "sketch", "rendition")
    materials = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")
    both = ("a", "the")
    return (
        *(f"a {q} photo of {d} {{}}." for q in qualities for d in both),
        *(f"a photo of {d} {look} {{}}." for look in looks for d in both),
        *(f"a photo of {d} {{}}." for d in ("a", "the", "many", "my", "one")),
        *(f"a {m} of {d} {{}}." for m in media for d in both),
        *(f"{m} of {d} {{}}." for m in ("graffiti", "art") for d in both),
        *(f"itap of {d} {{}}." for d in ("a", "the", "my")),
        *(f"{d} {m} {{}}." for m in materials for d in both),
        *(f"{d} {{}} in a video game." for d in both),
    )


CLIP80 = _clip_templates()


def get_strategy(name: str) -> Strategy:
    """The strategy of that name.

    Raises:
        HfsynError: there is none; the message names the nearest.
    """
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        raise HfsynError(
            f"Unknown strategy {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
            f"Strategies: {', '.join(STRATEGIES)}.",
        )
    return STRATEGIES[name]


STRATEGIES: dict[str, Strategy] = {
    s.name: s
    for s in (
        Strategy("classname", "{c}", "Deliberate Practice (arXiv 2502.15588)", False, _classname),
        Strategy("basic", "a photo of {c}", "the baseline of arXiv 2307.08526", False, _basic),
        Strategy("article", "a photo of a {c}", "Bansal & Grover (arXiv 2302.02503)", False, _article),
        Strategy(
            "cip", "a photo of {c}, {caption}", "Image Captions are Natural Prompts (arXiv 2307.08526)", True, _cip
        ),
        Strategy("cip-bare", "{c}, {caption}", "When Pretty Isn't Useful (arXiv 2602.19946)", True, _cip_bare),
        Strategy("caption-only", "{caption}", "ablation: the label comes from the source alone", True, _caption_only),
        Strategy("definition", "{c}, {definition}", "Fake it till you make it (arXiv 2212.08420)", False, _definition),
        Strategy("hypernym", "{c}, {hypernym}", "Fake it till you make it (arXiv 2212.08420)", False, _hypernym),
        Strategy("clip80", "one of CLIP's 80 templates", "CLIP (arXiv 2103.00020), used in 2302.02503", False, _clip80),
    )
}
