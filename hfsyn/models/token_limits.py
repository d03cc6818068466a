"""How many prompts a generator's text encoders would truncate, counted by their tokenizers if these are here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hfsyn.models.finding import configuration, locate
from hfsyn.recipes.recipe import GeneratePart, is_content_hash

SEQUENCES = {
    "StableDiffusion3Pipeline": 256,
    "FluxPipeline": 512,
    "PixArtAlphaPipeline": 120,
    "PixArtSigmaPipeline": 300,
    "IFPipeline": 77,
}
"""Tokens of a prompt that a pipeline of diffusers passes on to its T5: its default ``max_sequence_length``, or what its
code says.
"""
_MARKERS = 8  # tokens that a tokenizer may add to those of the text, at most
_KNOWN = 100_000  # words whose tokens are remembered
_BATCH = 2048


@dataclass(frozen=True, slots=True)
class Limit:
    """What one text encoder takes of the prompts."""

    encoder: str  # its tokenizer's name in the pipeline: ``tokenizer``, ``tokenizer_2``, ``tokenizer_3``
    max_tokens: int
    truncated: int  # prompts over that


def limits(part: GeneratePart, prompts: Iterable[tuple[str, int]]) -> tuple[Limit, ...]:
    """How many prompts, each given with its number of images, a generator's text encoders would truncate; the encoder
    that takes the most first, none if its tokenizers are not on this machine.

    A row of the result is flagged as truncated when the first one truncates its prompt: then no encoder has seen all of
    it.
    """
    found = _encoders(part)
    if not found:
        return ()
    over = [0] * len(found)
    left = iter(prompts)
    while batch := list(islice(left, _BATCH)):
        different = list(dict.fromkeys(prompt for prompt, _ in batch))
        for number, encoder in enumerate(found):
            cut = dict(zip(different, encoder.cut(different), strict=True))
            over[number] += sum(images for prompt, images in batch if cut[prompt])
    return tuple(Limit(encoder.name, encoder.limit, n) for encoder, n in zip(found, over, strict=True))


def _encoders(part: GeneratePart) -> list[_Encoder]:
    """The text encoders, the one that takes the most first; empty if a tokenizer is not here."""
    index = configuration(part.model, part.revision, "model_index.json")
    names = [name for name, entry in index.items() if name.startswith("tokenizer") and entry != [None, None]]
    if not names:
        return []
    from transformers import AutoTokenizer

    sequence = part.max_sequence_length or SEQUENCES.get(index.get("_class_name", ""))
    revision = None if is_content_hash(part.revision) else part.revision
    place = locate(part.model, "generator")
    found = []
    for name in names:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                place, subfolder=name, revision=revision or "main", local_files_only=True
            )
        except (OSError, ValueError):
            return []
        found.append(_Encoder(name, tokenizer, min(int(tokenizer.model_max_length), sequence or 10**9)))
    return sorted(found, key=lambda encoder: -encoder.limit)


class _Encoder:
    def __init__(self, name: str, tokenizer: Any, limit: int) -> None:
        self.name, self.limit = name, limit
        self._tokenizer = tokenizer
        self._words: dict[str, int] = {}
        # CLIP's splits a text at every space first, so that the tokens of its words are those of the text.
        self._adds_up = "CLIPTokenizer" in type(tokenizer).__name__
        self._markers = len(tokenizer("").input_ids)
        self._spell = spelled_out(tokenizer)

    def cut(self, prompts: list[str]) -> list[bool]:
        """Whether each prompt has more tokens than the limit.

        Few are tokenized whole: the length of a short one is enough, and for others the tokens of its words, each of
        which is counted once.
        """
        prompts = [self._spell(prompt) for prompt in prompts]
        doubtful = [prompt for prompt in prompts if not prompt.isascii() or len(prompt) + _MARKERS > self.limit]
        self._learn(doubtful)
        over = [text for text in doubtful if self._most(text) > self.limit]
        if not self._adds_up:
            lengths = self._lengths(over, markers=True)
            over = [text for text, length in zip(over, lengths, strict=True) if length > self.limit]
        wanted = set(over)
        return [prompt in wanted for prompt in prompts]

    def _most(self, text: str) -> int:
        """Tokens of a text: how many there are if its words add up, otherwise at most."""
        words = text.split()
        tokens = sum(map(self._words.__getitem__, words))
        if self._adds_up:
            return tokens + self._markers
        return tokens + _MARKERS + len(text) - len(" ".join(words))  # some take two spaces for two tokens

    def _learn(self, texts: list[str]) -> None:
        if len(self._words) > _KNOWN:
            self._words.clear()
        new = list(dict.fromkeys(word for text in texts for word in text.split() if word not in self._words))
        # With the space before a word in a text, which many tokenizers count in.
        self._words.update(zip(new, self._lengths([f" {word}" for word in new], markers=False), strict=True))

    def _lengths(self, texts: list[str], *, markers: bool) -> list[int]:
        if not texts:
            return []
        found = self._tokenizer(texts, truncation=False, add_special_tokens=markers, verbose=False).input_ids
        return [len(ids) for ids in found]


def spelled_out(tokenizer: Any) -> Callable[[str], str]:
    """How to spell a prompt for a tokenizer in which a word stands for several learned vectors (textual inversion).

    ``<cat>`` becomes ``<cat> <cat>_1 <cat>_2`` if the tokenizer has these three, as in the pipelines of diffusers.
    Longer words come first, so that the result does not depend on their order if one contains another.
    """
    added = set(tokenizer.get_added_vocab()) if hasattr(tokenizer, "get_added_vocab") else set()
    words = {}
    for word in added:
        tokens = [word]
        while (following := f"{word}_{len(tokens)}") in added:
            tokens.append(following)
        if len(tokens) > 1:
            words[word] = " ".join(tokens)

    def spell(prompt: str) -> str:
        if words:
            for word in sorted(words.keys() & set(tokenizer.tokenize(prompt)), key=lambda word: (-len(word), word)):
                prompt = prompt.replace(word, words[word])
        return prompt

    return spell
