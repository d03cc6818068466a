"""What a pipeline is conditioned on: embeddings of the prompts, each computed once; and how many tokens a prompt has.

For Stable Diffusion and SDXL the prompts are tokenized and encoded here, in one pass each, to the bit as the pipelines
do it (which tokenize each prompt twice more, and encode the empty prompt for every image). Other pipelines get text.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from hfsyn.models.pipelines import tokenizer_of
from hfsyn.models.token_limits import spelled_out
from hfsyn.recipes.recipe import GeneratePart

CACHED_PROMPTS = 1024  # at 77 x 768 values of 2 bytes about 120 MB; covers the class-name prompts of ImageNet-1K
_EMBEDDINGS = {
    "StableDiffusionPipeline": ("prompt_embeds",),
    "StableDiffusionXLPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
}
"""The pipelines whose embeddings are made here, and the names under which they take them."""


def makes_embeddings(pipe: Any) -> bool:
    """Whether a pipeline's prompts are encoded here."""
    return type(pipe).__name__ in _EMBEDDINGS


class Conditioning:
    """Conditions batches of prompts for a pipeline that is on its device.

    A `negative` prompt of None is the pipeline's own default (the empty text, or zeros for SDXL); `guided` is whether
    there is classifier-free guidance; `encodes` whether prompts of Stable Diffusion and SDXL are encoded here. Raises
    HfsynError if the pipeline has no tokenizer.
    """

    def __init__(
        self, pipe: Any, recipe: GeneratePart, negative: str | None, *, guided: bool, encodes: bool = True
    ) -> None:
        self._pipe, self._negative, self._guided = pipe, negative, guided
        self._tokenizer, self.max_tokens = tokenizer_of(pipe, recipe.model, recipe.max_sequence_length)
        self._names = _EMBEDDINGS.get(type(pipe).__name__) if encodes else None
        self._cache: OrderedDict[str, tuple[Any, ...]] = OrderedDict()
        self._lengths: dict[str, int] = {}
        self._unconditional: tuple[Any, ...] | None = None
        self._spell: dict[int, Callable[[str], str]] = {}

    def of(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The pipeline's arguments for a batch. Each prompt is encoded once, as part of a batch of this one's size."""
        import torch

        if self._names is None:
            return {"prompt": list(prompts)}
        # Always a full batch: a text encoder's last bits depend on the batch's shape, and must not on what is cached.
        # Cloned, because a row would keep its whole batch in memory.
        if missing := list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._cache)):
            encoded = self._encode(missing, len(prompts))
            for i, prompt in enumerate(missing):
                self._cache[prompt] = tuple(member[i].clone() for member in encoded)
        for prompt in prompts:
            self._cache.move_to_end(prompt)
        chosen = [self._cache[prompt] for prompt in prompts]
        while len(self._cache) > max(CACHED_PROMPTS, len(prompts)):
            self._cache.popitem(last=False)
        given = {name: torch.stack(rows) for name, rows in zip(self._names, zip(*chosen, strict=True), strict=True)}
        if self._guided:
            if self._unconditional is None:
                self._unconditional = self._steered_from(self._negative, len(prompts))
            for name, row in zip(self._names, self._unconditional, strict=True):
                given[f"negative_{name}"] = row.expand(len(prompts), *row.shape[1:])
        return given

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt with the markers at its ends, before any truncation."""
        if unknown := list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._lengths)):
            self._tokenize(self._tokenizer, unknown)
        counts = [self._lengths[prompt] for prompt in prompts]
        if len(self._lengths) > CACHED_PROMPTS:
            self._lengths.clear()
        return counts

    def _tokenize(self, tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
        if id(tokenizer) not in self._spell:
            # Only if the pipeline does it too: others give such a word to their tokenizer as it is.
            known = hasattr(self._pipe, "maybe_convert_prompt")
            self._spell[id(tokenizer)] = spelled_out(tokenizer) if known else str
        texts = [self._spell[id(tokenizer)](prompt) for prompt in prompts]
        ids: list[list[int]] = tokenizer(texts, truncation=False, padding=False, verbose=False).input_ids
        if tokenizer is self._tokenizer:
            self._lengths.update(zip(prompts, map(len, ids), strict=True))
        return ids

    def _encode(self, prompts: Sequence[str], rows: int) -> tuple[Any, ...]:
        """Embeddings of the prompts (and, for SDXL, the pooled ones), computed in a batch of at least `rows`."""
        import torch

        pipe = self._pipe
        if self._names == ("prompt_embeds",):
            ids, mask = self._inputs(pipe.tokenizer, prompts, rows)
            masked = getattr(pipe.text_encoder.config, "use_attention_mask", False)
            return (pipe.text_encoder(ids, attention_mask=mask if masked else None)[0],)
        states, pooled = [], None
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            if encoder is None:
                continue
            found = encoder(self._inputs(tokenizer, prompts, rows)[0], output_hidden_states=True)
            if pooled is None and found[0].ndim == 2:
                pooled = found[0]
            # SDXL takes the layer before the last.
            states.append(found.hidden_states[-2])
        return torch.concat(states, dim=-1), pooled

    def _inputs(self, tokenizer: Any, prompts: Sequence[str], rows: int) -> tuple[Any, Any]:
        """Token ids and mask, rows x limit: cut to the limit with the end marker kept, padded with empty prompts."""
        import torch

        # A tokenizer that was not told of a limit states an absurd one; the text encoder has that many positions.
        encoder: Any = self._pipe.text_encoder or getattr(self._pipe, "text_encoder_2", None)
        positions = getattr(encoder.config, "max_position_embeddings", None) or sys.maxsize
        limit = int(min(tokenizer.model_max_length, positions))
        cut = [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in self._tokenize(tokenizer, prompts)]
        if rows > len(cut):
            cut += self._tokenize(tokenizer, [""]) * (rows - len(cut))
        # The encoder's own: for the pipeline's, diffusers looks through every module of its networks.
        fill, device = tokenizer.pad_token_id, encoder.device
        ids = torch.tensor([[*row, *[fill] * (limit - len(row))] for row in cut], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (limit - len(row)) for row in cut], device=device)
        return ids, mask

    def forget(self) -> None:
        """Encode everything again: the last bits of an embedding depend on the size of its batch."""
        self._cache.clear()
        self._unconditional = None

    def heeds_negative(self) -> bool:
        """Whether the negative prompt changes the embeddings of a pipeline whose prompts are encoded here."""
        import torch

        with torch.inference_mode():
            pairs = zip(self._steered_from(self._negative, 1), self._steered_from(None, 1), strict=True)
        return self._guided and any(not torch.equal(mine, none) for mine, none in pairs)

    def _steered_from(self, negative: str | None, rows: int) -> tuple[Any, ...]:
        """What guidance steers away from, as a batch of one; encoded in a batch of `rows`."""
        import torch

        encoded = self._encode([negative or ""] * rows, rows)
        if negative is None and getattr(self._pipe.config, "force_zeros_for_empty_prompt", False):
            encoded = tuple(torch.zeros_like(member) for member in encoded)
        return tuple(member[:1].clone() for member in encoded)
