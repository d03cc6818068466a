"""Texts about classes from a language model of transformers, in place of captions of images.

What the model is asked depends on the strategy and the image's own seed. A chat model gets it as turns, the
demonstrations as earlier ones; a model without a chat template continues it as one plain text; an encoder-decoder such
as T5 is asked the question.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from builders.variants import ClassInfo
from hfsyn.captions.texts import clean, filled, longest
from hfsyn.captions.token_drawing import FEW, loaded, new_tokens, room, taken, tried
from hfsyn.errors import HfsynError
from hfsyn.images.tuning import is_out_of_memory
from hfsyn.recipes.recipe import CaptionPart
from hfsyn.recipes.strategies import word_lists

_THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_LABEL = re.compile(r"^(caption|sentence|answer)\s*:\s*", re.IGNORECASE)
_QUOTES = "\"'`“”‘’*"
_SHOWN = 3  # demonstrations for each text, as in SynCLR
_CAPTION = (
    "You write captions of imagined photographs. I name a thing, and sometimes a place or a relation to other things. "
    "Answer with one caption of at most twenty words that names the thing, and with nothing else."
)
_DIVERSE = (
    "You write captions of imagined pictures. I name a thing with its meaning, a scene and a style. Answer with one "
    "caption of at most twenty-five words that names the thing in this meaning, and with nothing else."
)


class TextWriter:
    """A causal language model, or an encoder-decoder, that writes a text about a class by the strategy ``w2s``, ``llm``
    or ``llm-diverse``.

    It is tried with the one of `classes` that makes the longest prompt. Raises HfsynError if the model cannot be
    loaded, has lost weights, is of the wrong kind for the strategy, or cannot write a text about one class.
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
        self._recipe, self._strategy = recipe, strategy
        self._tokenizer, self._model, self.idle = loaded(recipe, "language model", _parts, allow_pickle=allow_pickle)
        self._encodes = bool(self._model.config.is_encoder_decoder)
        if strategy == "w2s" and not self._encodes and recipe.prompt is None:
            said = f"Strategy 'w2s' makes sentences of keywords, which {recipe.model} was not made for."
            raise HfsynError(said, "Name an encoder-decoder (--captioner t5-common-gen), or take --strategy llm.")
        self._model.to(device).eval()
        self._tokenizer.padding_side = "right" if self._encodes else "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._chats = not self._encodes and bool(getattr(self._tokenizer, "chat_template", None))
        self._info = longest(recipe.prompt, classes)
        self._try_out(first=True)

    def _try_out(self, *, first: bool = False) -> None:
        """Refuse a model that cannot write a few tokens about a class."""
        # Questions differ in length by chance: the shortest of some, since no other fits if it does not.
        requests = [request(self._strategy, self._info, random.Random(n), self._recipe.prompt) for n in range(8)]
        seed = min(range(len(requests)), key=lambda n: len(requests[n].plain()))
        tried(lambda: self._written([self._info], [seed], FEW), self._recipe, "language model", self.idle, first=first)

    def write(self, classes: Sequence[ClassInfo], seeds: Sequence[int]) -> list[str]:
        """One text about each class, in order; an empty string if the model said nothing. The seed of a text decides
        what is asked and, where the recipe draws tokens, these too.

        Raises Refused if what is asked is longer than the model's context, or its values are not finite.
        """
        try:
            return self._written(classes, seeds)
        except Exception as error:  # of any kind, where one text is at fault, or all are
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
        # What a row may say must not depend on the others, the longest of which decides how much room is left.
        groups: dict[int, list[int]] = {}
        for row, ids in enumerate(encode(asked, verbose=False).input_ids):
            groups.setdefault(room(self._model, self._recipe, len(ids)), []).append(row)
        said = [""] * len(asked)
        for left, rows in groups.items():
            inputs = taken(self._model, dict(encode([asked[row] for row in rows], return_tensors="pt", padding=True)))
            options: dict[str, Any] = {}
            if not self._chats and not self._encodes:
                options["stopping_criteria"] = [_LineEnds(self._tokenizer, inputs["input_ids"].shape[1])]
            chosen = [seeds[row] for row in rows]
            tokens = new_tokens(self._model, inputs, self._recipe, chosen, min(left, most or left), **options)
            for row, text in zip(rows, self._tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                said[row] = said_line(text)
        return said

    def _asked(self, one: Request) -> str:
        if not self._chats:
            return one.asked() if self._encodes else one.plain()
        # Templates of models that think aloud know `enable_thinking`; others ignore it.
        return str(
            self._tokenizer.apply_chat_template(
                one.turns(), tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )


def _parts(where: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """The tokenizer of a language model, and the class of its network."""
    import transformers

    encodes = transformers.AutoConfig.from_pretrained(where, **options).is_encoder_decoder
    tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
    return tokenizer, transformers.AutoModelForSeq2SeqLM if encodes else transformers.AutoModelForCausalLM


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
    """The caption in a language model's answer: its first line, without thoughts, quotes and labels."""
    lines = [line.strip() for line in _THOUGHT.sub("", text).splitlines() if line.strip()]
    line = lines[0].strip(_QUOTES) if lines else ""
    return clean(_LABEL.sub("", line).strip(_QUOTES))


@dataclass(frozen=True, slots=True)
class Request:
    """What a language model is asked for one text."""

    instruction: str  # what its task is; empty if the question says everything
    demonstrations: tuple[tuple[str, str], ...]  # questions with their answers
    question: str

    def turns(self) -> list[dict[str, str]]:
        """As a chat: the instruction is in the first turn, as not every model knows a system's role."""
        turns: list[dict[str, str]] = []
        for question, answer in (*self.demonstrations, (self.question, "")):
            first = f"{self.instruction}\n\n" if not turns and self.instruction else ""
            turns.append({"role": "user", "content": f"{first}{question}"})
            if answer:
                turns.append({"role": "assistant", "content": answer})
        return turns

    def plain(self) -> str:
        """As a text to continue up to the end of its line."""
        if not self.demonstrations:
            return self.question
        shown = [f"{question}\ncaption: {answer}\n\n" for question, answer in self.demonstrations]
        return f"{''.join(shown)}{self.question}\ncaption:"

    def asked(self) -> str:
        """As one instruction, for models that encode it."""
        return f"{self.instruction}\n\n{self.question}" if self.instruction else self.question


def request(strategy: str, info: ClassInfo, rng: random.Random, prompt: str | None = None) -> Request:
    """What is asked for a text about a class by the strategy ``w2s``, ``llm`` or ``llm-diverse``: `rng` chooses
    demonstrations, place, relation, context and style, unless there is the recipe's ``caption.prompt``.
    """
    if prompt is not None:
        return Request("", (), filled(prompt, info))
    if strategy == "w2s":
        # Keywords are all that a keyword-to-sentence model takes.
        return Request("", (), info.name)
    lists = word_lists("demonstrations.json")
    if strategy == "llm-diverse":
        context, style = rng.choice(lists["contexts"]), rng.choice(lists["styles"])
        scenes = tuple((_scene(*words[:4]), words[4]) for words in rng.sample(lists["diverse"], _SHOWN))
        return Request(_DIVERSE, scenes, _scene(info.name, info.definition, context, style))
    kind = rng.choice(("plain", "background", "relation"))
    place, relation = rng.choice(word_lists("places.json")["places"]), rng.choice(lists["relations"])
    extra = {"plain": "", "background": place, "relation": relation}[kind]
    shown = rng.sample(lists[kind], _SHOWN)
    things = tuple((_thing(kind, words[0], words[1] if kind != "plain" else ""), words[-1]) for words in shown)
    return Request(_CAPTION, things, _thing(kind, info.name, extra))


def _thing(kind: str, name: str, extra: str) -> str:
    label = {"plain": "", "background": "; place: ", "relation": "; relation: "}[kind]
    return f"thing: {name}{label}{extra}"


def _scene(name: str, definition: str, context: str, style: str) -> str:
    meaning = f" ({definition})" if definition else ""
    return f"thing: {name}{meaning}; scene: {context}; style: {style}"
