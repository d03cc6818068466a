"""Texts about classes from a language model of transformers, in place of captions of images.

A chat model is asked through its chat template; a model without one continues a text that shows how it is done; an
encoder-decoder such as T5 is given the question. What is asked is in `hfsyn.captions.instructions`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from builders.variants import ClassInfo
from hfsyn.captions.cleaning import clean
from hfsyn.captions.instructions import Request, longest, request
from hfsyn.captions.token_drawing import FEW, loaded, new_tokens, room, taken, tried
from hfsyn.errors import HfsynError
from hfsyn.models.batch_sizes import is_out_of_memory
from hfsyn.models.finding import loading, unloadable
from hfsyn.recipes.recipe import CaptionPart

_THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_LABEL = re.compile(r"^(caption|sentence|answer)\s*:\s*", re.IGNORECASE)
_QUOTES = "\"'`“”‘’*"


class TextWriter:
    """A causal language model, or an encoder-decoder, that writes a text about a class.

    Args:
        recipe: model, revision, prompt, length, beams, drawing and dtype.
        strategy: ``w2s``, ``llm`` or ``llm-diverse``.
        device: a torch device.
        allow_pickle: read weights that are no safetensors too.
        classes: about which it has to write: it is tried with the one of which most is asked.

    Raises:
        HfsynError: the model cannot be loaded, has lost weights, is of the wrong kind for the strategy, or cannot write
            a text about one class.
    """

    def __init__(
        self,
        recipe: CaptionPart,
        strategy: str,
        device: str,
        *,
        allow_pickle: bool = False,
        classes: Sequence[ClassInfo] = (),
    ) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._recipe = recipe
        self._strategy = strategy
        where, options = loading(recipe.model, recipe.revision, "language model", allow_pickle=allow_pickle)
        plain = {k: v for k, v in options.items() if k != "use_safetensors"}
        try:
            config = transformers.AutoConfig.from_pretrained(where, **plain)
            self._encodes = bool(config.is_encoder_decoder)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(where, **plain)
            auto = transformers.AutoModelForSeq2SeqLM if self._encodes else transformers.AutoModelForCausalLM
            self._model, self.idle = loaded(auto, where, recipe, "language model", options)
        except HfsynError:
            raise
        except Exception as error:  # whatever is wrong with a model's files, each library has its own exception for it
            raise unloadable(recipe.model, "language model", error) from error
        if strategy == "w2s" and not self._encodes and recipe.prompt is None:
            raise HfsynError(
                f"Strategy 'w2s' makes sentences of keywords, which {recipe.model} was not made for.",
                "Name an encoder-decoder (--captioner t5-common-gen), or take --strategy llm.",
            )
        self._model.to(device).eval()
        self._tokenizer.padding_side = "right" if self._encodes else "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._chats = not self._encodes and bool(getattr(self._tokenizer, "chat_template", None))
        self._info = longest(recipe.prompt, classes)
        self._try_out(first=True)

    def _try_out(self, *, first: bool = False) -> None:
        """Refuse a model that cannot write a few tokens about a class."""
        # Questions differ in length by chance: one of the shorter ones, since no other would fit if it does not.
        requests = [request(self._strategy, self._info, random.Random(n), self._recipe.prompt) for n in range(8)]
        seed = min(range(len(requests)), key=lambda n: len(requests[n].plain()))
        tried(lambda: self._written([self._info], [seed], FEW), self._recipe, "language model", self.idle, first=first)

    def write(self, classes: Sequence[ClassInfo], seeds: Sequence[int]) -> list[str]:
        """One text about each class, in order; an empty string where the model said nothing.

        Args:
            classes: of each text.
            seeds: of each text: what is asked, and where the recipe draws tokens these too, follow from it.

        Raises:
            Refused: what is asked is longer than the model's context, or its values are not finite.
        """
        try:
            return self._written(classes, seeds)
        except Exception as error:  # whatever the libraries raise where one text is at fault, or all are
            if not is_out_of_memory(error):
                self._try_out()
            raise

    def _written(self, classes: Sequence[ClassInfo], seeds: Sequence[int], most: int | None = None) -> list[str]:
        asked = [
            self._asked(request(self._strategy, info, random.Random(seed), self._recipe.prompt))
            for info, seed in zip(classes, seeds, strict=True)
        ]
        # A chat template has written the markers itself.
        encode = partial(self._tokenizer, add_special_tokens=not self._chats)
        # What a row may say must not depend on its companions, the longest of which decides how much room is left.
        groups: dict[int, list[int]] = {}
        for row, ids in enumerate(encode(asked, verbose=False).input_ids):
            groups.setdefault(room(self._model, self._recipe, len(ids)), []).append(row)
        said = [""] * len(asked)
        for left, rows in groups.items():
            inputs = taken(self._model, dict(encode([asked[row] for row in rows], return_tensors="pt", padding=True)))
            options: dict[str, Any] = {}
            if not self._chats and not self._encodes:
                options["stopping_criteria"] = [_LineEnds(self._tokenizer, inputs["input_ids"].shape[1])]
            chances = [seeds[row] for row in rows]
            tokens = new_tokens(self._model, inputs, self._recipe, chances, min(left, most or left), **options)
            for row, text in zip(rows, self._tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                said[row] = said_line(text)
        return said

    def _asked(self, one: Request) -> str:
        if self._chats:
            # Templates of models that think aloud know `enable_thinking`; others pass over it.
            return str(
                self._tokenizer.apply_chat_template(
                    one.turns(), tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
            )
        return one.asked() if self._encodes else one.plain()


class _LineEnds:
    """A stopping criterion of each row: its line has ended, after something was said."""

    def __init__(self, tokenizer: Any, given: int) -> None:
        self._tokenizer = tokenizer
        self._given = given

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        texts = self._tokenizer.batch_decode(input_ids[:, self._given :], skip_special_tokens=True)
        return torch.tensor(["\n" in text.lstrip() for text in texts], device=input_ids.device)


def said_line(text: str) -> str:
    """The caption in what a language model answered: its first line, without thoughts, quotes and labels."""
    lines = [line.strip() for line in _THOUGHT.sub("", text).splitlines() if line.strip()]
    line = lines[0].strip(_QUOTES) if lines else ""
    return clean(_LABEL.sub("", line).strip(_QUOTES))
