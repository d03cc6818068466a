"""Prompts filled with a class's words, and captions cleaned and flagged (empty, repeated, no class word)."""

import re
from collections import Counter
from collections.abc import Sequence

from builders.variants import ClassInfo

_SMALL = frozenset({"a", "an", "and", "at", "for", "from", "in", "of", "on", "or", "s", "the", "to", "with"})


def filled(prompt: str, info: ClassInfo) -> str:
    """A recipe's ``caption.prompt`` with the words of a class for ``{c}``, ``{definition}`` and ``{hypernym}``."""
    words = {"{c}": info.name, "{definition}": info.definition, "{hypernym}": info.hypernym}
    for placeholder, word in words.items():
        prompt = prompt.replace(placeholder, word)
    return prompt


def longest(prompt: str | None, classes: Sequence[ClassInfo]) -> ClassInfo:
    """The class that makes the longest prompt; a made-up one if there are none."""
    known = classes or (ClassInfo("n00000000", 0, "thing", ("thing",), "a thing", "thing"),)
    return max(known, key=lambda info: len(filled(prompt or "{c} {definition}", info)))


def clean(text: str) -> str:
    """One line, single spaces, no control characters, no space or full stop or comma at the ends.

    A caption is put after other words, and others may be put after it.
    """
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split()).strip(" .,;:")


def caption_flags(caption: str, info: ClassInfo) -> tuple[str, ...]:
    """What looks wrong with a caption: any of ``empty``, ``repeated``, ``no-class-word``; flags are data, not errors.

    `repeated` is a word or a pair of words three times in a row, or one word making up half of six or more, which is
    how captioners fail (small function words do not count there). `no-class-word` means that no word of the class's
    name or lemmas occurs, even in its plural, which is common and not a fault by itself.
    """
    words = _words(caption)
    if not words:
        return ("empty",)
    flags = []
    if _repeats(words):
        flags.append("repeated")
    if not _stems(_words(" ".join((info.name, *info.lemmas)))) & _stems(words):
        flags.append("no-class-word")
    return tuple(flags)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


def _stems(words: Sequence[str]) -> set[str]:
    """Content words, each with what it may be the regular English plural or possessive of."""
    stems = {word.removesuffix("'s") for word in words if word not in _SMALL}
    for word in tuple(stems):
        if word.endswith("s") and not word.endswith("ss"):
            stems.add(word[:-1])
        if word.endswith("es"):
            stems.add(word[:-2])
        if word.endswith("ies"):
            stems.add(word[:-3] + "y")
    return stems


def _repeats(words: Sequence[str]) -> bool:
    singles = any(words[i] == words[i + 1] == words[i + 2] for i in range(len(words) - 2))
    pairs = any(words[i : i + 2] == words[i + 2 : i + 4] == words[i + 4 : i + 6] for i in range(len(words) - 5))
    content = [word for word in words if word not in _SMALL]
    most = Counter(content).most_common(1)
    return singles or pairs or (len(content) >= 6 and most[0][1] * 2 >= len(content))
