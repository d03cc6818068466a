"""How many prompts a generator's text encoders would cut, counted by their tokenizers where these are at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hfsyn.models.finding import locate
from hfsyn.models.learned_words import spelled_out
from hfsyn.models.single_files import configuration
from hfsyn.recipes.recipe import GeneratePart, is_content_hash

SEQUENCES = {
    "StableDiffusion3Pipeline": 256,
    "FluxPipeline": 512,
    "PixArtAlphaPipeline": 120,
    "PixArtSigmaPipeline": 300,
    "IFPipeline": 77,
}
"""What a pipeline of diffusers passes on of a longer prompt, in tokens of its T5: its ``max_sequence_length``, or what
stands in its code.
"""

_MARKERS = 8
"""Tokens that a tokenizer may add to those of the text, at most."""
_KNOWN = 100_000
"""Prompts and words that are remembered: those of a class are the same many times over."""
_BATCH = 2048


@dataclass(frozen=True, slots=True)
class Limit:
    """What one text encoder takes of the prompts."""

    encoder: str
    """Its tokenizer's name in the pipeline: ``tokenizer``, ``tokenizer_2``, ``tokenizer_3``."""
    max_tokens: int
    truncated: int
    """Prompts over that, of all."""


def limits(part: GeneratePart, prompts: Iterable[tuple[str, int]]) -> tuple[Limit, ...]:
    """How many prompts each text encoder of a generator would cut, the encoder that takes the most first.

    A row of the result is flagged as truncated when the first one cuts its prompt: then no encoder has seen it whole.

    Args:
        part: the generator; empty is returned where its tokenizers are not at hand.
        prompts: each with the number of images that are made from it.
    """
    found = _encoders(part)
    if not found:
        return ()
    over = [0] * len(found)
    known: dict[str, tuple[bool, ...]] = {}
    for batch in _batches(prompts, _BATCH):
        fresh = list(dict.fromkeys(prompt for prompt, _ in batch if prompt not in known))
        columns = [encoder.cut(fresh) for encoder in found]
        verdicts = {prompt: tuple(column[i] for column in columns) for i, prompt in enumerate(fresh)}
        for prompt, images in batch:
            for number, cut in enumerate(verdicts.get(prompt) or known[prompt]):
                over[number] += images * cut
        if len(known) < _KNOWN:
            known |= verdicts
    return tuple(Limit(encoder.name, encoder.limit, n) for encoder, n in zip(found, over, strict=True))


def _encoders(part: GeneratePart) -> list[_Encoder]:
    """The text encoders, the one that takes the most first; empty where a tokenizer is not here."""
    index = configuration(part.model, part.revision, "model_index.json")
    names = [name for name, entry in index.items() if name.startswith("tokenizer") and entry != [None, None]]
    if not names:
        return []
    from transformers import AutoTokenizer

    sequence = part.max_sequence_length or SEQUENCES.get(index.get("_class_name", ""))
    revision = None if is_content_hash(part.revision) else part.revision
    found = []
    for name in names:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                locate(part.model, "generator"), subfolder=name, revision=revision or "main", local_files_only=True
            )
        except (OSError, ValueError):
            return []
        found.append(_Encoder(name, tokenizer, min(int(tokenizer.model_max_length), sequence or 10**9)))
    return sorted(found, key=lambda encoder: -encoder.limit)


class _Encoder:
    """One tokenizer and its limit."""

    def __init__(self, name: str, tokenizer: Any, limit: int) -> None:
        self.name, self.limit = name, limit
        self._tokenizer = tokenizer
        self._words: dict[str, int] = {}
        # CLIP's cuts a text at every space before anything else, so that the tokens of its words are those of the text.
        self._adds_up = "CLIPTokenizer" in type(tokenizer).__name__
        self._markers = len(tokenizer("").input_ids)
        self._spell = spelled_out(tokenizer)

    def cut(self, prompts: list[str]) -> list[bool]:
        """Whether each prompt has more tokens than the limit. Few have to be counted whole: of a short one the letters
        say that it has not, and of others the tokens of its words, each of which is counted once.
        """
        prompts = [self._spell(prompt) for prompt in prompts]
        doubtful = [prompt for prompt in prompts if not prompt.isascii() or len(prompt) + _MARKERS > self.limit]
        self._learn(doubtful)
        sums = [sum(map(self._words.__getitem__, text.split())) for text in doubtful]
        if self._adds_up:
            over = {text for text, tokens in zip(doubtful, sums, strict=True) if tokens + self._markers > self.limit}
            return [prompt in over for prompt in prompts]
        # Others may take two spaces for two tokens.
        spaces = [len(text) - len(" ".join(text.split())) for text in doubtful]
        most = [tokens + more + _MARKERS for tokens, more in zip(sums, spaces, strict=True)]
        doubtful = [text for text, tokens in zip(doubtful, most, strict=True) if tokens > self.limit]
        lengths = self._lengths(doubtful, markers=True)
        over = {text for text, length in zip(doubtful, lengths, strict=True) if length > self.limit}
        return [prompt in over for prompt in prompts]

    def _learn(self, texts: list[str]) -> None:
        """Count the tokens of words that are new."""
        if len(self._words) > _KNOWN:
            self._words.clear()
        new = list(dict.fromkeys(word for text in texts for word in text.split() if word not in self._words))
        # With the space that stands before a word in a text: many tokenizers count it in.
        self._words.update(zip(new, self._lengths([f" {word}" for word in new], markers=False), strict=True))

    def _lengths(self, texts: list[str], *, markers: bool) -> list[int]:
        if not texts:
            return []
        found = self._tokenizer(texts, truncation=False, add_special_tokens=markers, verbose=False).input_ids
        return [len(ids) for ids in found]


def _batches(items: Iterable[tuple[str, int]], size: int) -> Iterator[list[tuple[str, int]]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
