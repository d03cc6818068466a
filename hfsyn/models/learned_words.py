"""Words of a tokenizer that stand for several learned vectors (textual inversion)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def spelled_out(tokenizer: Any) -> Callable[[str], str]:
    """How a prompt is written before this tokenizer reads it: ``<cat>`` as ``<cat> <cat>_1 <cat>_2``, where it has
    these three, as the pipelines of diffusers do it. The longest words come first, so that one within another does not
    make the result depend on their order.
    """
    words = _words(tokenizer)
    if not words:
        return lambda prompt: prompt

    def spell(prompt: str) -> str:
        for word in sorted(words.keys() & set(tokenizer.tokenize(prompt)), key=lambda word: (-len(word), word)):
            prompt = prompt.replace(word, words[word])
        return prompt

    return spell


def _words(tokenizer: Any) -> Mapping[str, str]:
    """The words that stand for several tokens, and these."""
    added = set(tokenizer.get_added_vocab()) if hasattr(tokenizer, "get_added_vocab") else set()
    found = {}
    for word in added:
        tokens = [word]
        while (following := f"{word}_{len(tokens)}") in added:
            tokens.append(following)
        if len(tokens) > 1:
            found[word] = " ".join(tokens)
    return found
