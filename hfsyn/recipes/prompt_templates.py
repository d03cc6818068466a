"""The templates of the strategies: pure functions ``(ClassInfo, caption, rng) -> prompt``.

The class comes first in each of them, so that a text encoder's length limit (77 tokens for CLIP) never cuts it off; in
`said` and `verbatim` the words are somebody else's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from builders.variants import ClassInfo

PromptFunction = Callable[[ClassInfo, str | None, random.Random], str]


@cache
def word_lists(name: str) -> dict[str, Any]:
    """A JSON file of `builders/variants/data`, with its provenance."""
    found: dict[str, Any] = json.loads(files("builders.variants").joinpath("data", name).read_text(encoding="utf-8"))
    return found


def with_article(noun: str) -> str:
    """``a tench``, ``an axolotl``: by the first letter, which is right for all but a few of ImageNet's names."""
    exceptions_an = ("hourglass",)
    exceptions_a = ("unicycle", "uniform", "ukulele", "u-boat", "ewer", "european")
    first = noun.lower()
    vowel = first.startswith(("a", "e", "i", "o", "u", *exceptions_an)) and not first.startswith(exceptions_a)
    return f"{'an' if vowel else 'a'} {noun}"


def _line(text: str | None) -> str:
    """The text on one line, single spaces; nothing for None."""
    return " ".join((text or "").split())


def _join(*parts: str | None) -> str:
    """The parts, commas between them; an empty part leaves no comma behind."""
    return ", ".join(line for part in parts if (line := _line(part)))


def classname(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """``{c}``."""
    return c.name


def basic(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """``a photo of {c}``."""
    return f"a photo of {c.name}"


def article(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """``a photo of a {c}``, or an."""
    return f"a photo of {with_article(c.name)}"


def domain_of(domain: str) -> PromptFunction:
    """``a {domain} photo of a {c}``, for one word of the recipe."""

    def domain_photo(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
        return f"{with_article(_join(domain) + ' photo') if domain else 'a photo'} of {with_article(c.name)}"

    return domain_photo


def cip(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """``a photo of {c}, {caption}``."""
    return _join(f"a photo of {c.name}", caption)


def cip_bare(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """``{c}, {caption}``."""
    return _join(c.name, caption)


def cip_quality(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """``photo of {c}, {caption}, best quality``."""
    return _join(f"photo of {c.name}", caption, "best quality")


def verbatim(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """``{caption}``. An empty prompt would make an unconditional image under this class: its name stands in."""
    return _line(caption) or c.name


def said(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """A language model's sentence about the class; with the class before it where it does not name it."""
    text = _line(caption)
    return text if c.name.casefold() in text.casefold() else _join(c.name, text)


def definition(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """``{c}, {definition}``."""
    return _join(c.name, c.definition)


def hypernym(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """``{c}, {hypernym}``."""
    return _join(c.name, c.hypernym)


def background(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """``{c}, {hypernym} inside {place}``."""
    return f"{_join(c.name, c.hypernym)} inside {rng.choice(word_lists('places.json')['places'])}"


def clip80(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """One of CLIP's 80 templates."""
    return rng.choice(CLIP80).replace("{}", c.name)


def _clip_templates() -> tuple[str, ...]:
    """The 80 templates of CLIP's ImageNet evaluation, built from their regular parts (their order there is another)."""
    qualities = (
        "bad",
        "low resolution",
        "cropped",
        "bright",
        "dark",
        "close-up",
        "black and white",
        "pixelated",
        "jpeg corrupted",
        "blurry",
        "good",
    )
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
