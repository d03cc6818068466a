"""How many prompts a generator's text encoders would cut, counted by their tokenizers where these are at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hfsyn.making.hub_models import locate
from hfsyn.making.model_files import configuration
from hfsyn.making.recipe import GeneratePart, is_content_hash

SEQUENCES = {
    "StableDiffusion3Pipeline": 256, "FluxPipeline": 512, "PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300,
}  # fmt: skip
"""What a pipeline of diffusers passes on of a longer prompt, in tokens of its T5: its ``max_sequence_length``."""

_MARKERS = 8
"""Tokens that a tokenizer may add to those of the text, at most."""
_KNOWN = 100_000
"""Prompts whose length is remembered: those of a class are the same many times over."""
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
    found = _tokenizers(part)
    if not found:
        return ()
    over = [0] * len(found)
    known: dict[str, tuple[bool, ...]] = {}
    for batch in _batches(prompts, _BATCH):
        fresh = list(dict.fromkeys(prompt for prompt, _ in batch if prompt not in known))
        columns = [_cut(tokenizer, limit, fresh) for _, tokenizer, limit in found]
        verdicts = {prompt: tuple(column[i] for column in columns) for i, prompt in enumerate(fresh)}
        for prompt, images in batch:
            for encoder, cut in enumerate(verdicts.get(prompt) or known[prompt]):
                over[encoder] += images * cut
        if len(known) < _KNOWN:
            known |= verdicts
    return tuple(Limit(name, limit, n) for (name, _, limit), n in zip(found, over, strict=True))


def _tokenizers(part: GeneratePart) -> list[tuple[str, Any, int]]:
    """``(name, tokenizer, tokens)`` of each text encoder, the longest first; empty where one of them is not here."""
    index = configuration(part.model, part.revision, "model_index.json")
    names = [name for name, entry in index.items() if name.startswith("tokenizer") and entry != [None, None]]
    if not names:
        return []
    from transformers import AutoTokenizer

    sequence = SEQUENCES.get(index.get("_class_name", ""))
    revision = None if is_content_hash(part.revision) else part.revision
    found = []
    for name in names:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                locate(part.model, "generator"), subfolder=name, revision=revision or "main", local_files_only=True
            )
        except (OSError, ValueError):
            return []
        found.append((name, tokenizer, min(int(tokenizer.model_max_length), sequence or 10**9)))
    return sorted(found, key=lambda entry: -entry[2])


def _cut(tokenizer: Any, limit: int, prompts: list[str]) -> list[bool]:
    """Whether each prompt has more tokens than the limit; what is shorter in letters need not be counted."""
    doubtful = [not prompt.isascii() or len(prompt) + _MARKERS > limit for prompt in prompts]
    texts = [prompt for prompt, doubt in zip(prompts, doubtful, strict=True) if doubt]
    lengths = iter([len(ids) for ids in tokenizer(texts, truncation=False, verbose=False).input_ids] if texts else [])
    return [doubt and next(lengths) > limit for doubt in doubtful]


def _batches(items: Iterable[tuple[str, int]], size: int) -> Iterator[list[tuple[str, int]]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
