"""How many tokens the prompts of a pipeline have."""

from collections.abc import Sequence
from typing import Any

from hfsyn.models.pipelines import tokenizer_of
from hfsyn.models.token_limits import spelled_out
from hfsyn.recipes.recipe import GeneratePart

_KNOWN = 1024  # prompts whose tokens are remembered; covers the class-name prompts of ImageNet-1K


class TokenCounter:
    """Counts by the text encoder that takes the most tokens, `most`. Raises HfsynError if there is no tokenizer."""

    def __init__(self, pipe: Any, recipe: GeneratePart) -> None:
        self._tokenizer, self.most = tokenizer_of(pipe, recipe.model, recipe.max_sequence_length)
        # Only if the pipeline does it too: others give such a word to their tokenizer as it is.
        self._spell = spelled_out(self._tokenizer) if hasattr(pipe, "maybe_convert_prompt") else str
        self._lengths: dict[str, int] = {}

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt with the markers at its ends, before any truncation."""
        if unknown := list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._lengths)):
            texts = [self._spell(prompt) for prompt in unknown]
            ids = self._tokenizer(texts, truncation=False, padding=False, verbose=False).input_ids
            self._lengths.update(zip(unknown, map(len, ids), strict=True))
        counts = [self._lengths[prompt] for prompt in prompts]
        if len(self._lengths) > _KNOWN:
            self._lengths.clear()
        return counts
