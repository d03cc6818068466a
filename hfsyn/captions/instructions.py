"""What a language model is asked, so that it writes a text about a class: pure, by the image's own chance.

Each strategy whose texts a language model writes has a `Request` of its own. A chat model gets it as turns, the
demonstrations as earlier ones; any other model continues it as one plain text; an encoder-decoder is asked the
question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from builders.variants import ClassInfo
from hfsyn.recipes.strategies import word_lists

_KINDS = ("plain", "background", "relation")
_SHOWN = 3
"""Demonstrations for each text, as in SynCLR."""
_CAPTION = (
    "You write captions of imagined photographs. I name a thing, and sometimes a place or a relation to other things. "
    "Answer with one caption of at most twenty words that names the thing, and with nothing else."
)
_DIVERSE = (
    "You write captions of imagined pictures. I name a thing with its meaning, a scene and a style. Answer with one "
    "caption of at most twenty-five words that names the thing in this meaning, and with nothing else."
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a language model is asked for one text."""

    instruction: str
    """What its task is; empty where the question says it all."""
    demonstrations: tuple[tuple[str, str], ...]
    """Questions with their answers."""
    question: str

    def turns(self) -> list[dict[str, str]]:
        """As a chat: the instruction stands in the first turn, as not every model knows a system's role."""
        pairs = [*self.demonstrations, (self.question, "")]
        turns = []
        for number, (question, answer) in enumerate(pairs):
            first = f"{self.instruction}\n\n" if number == 0 and self.instruction else ""
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


def filled(prompt: str, info: ClassInfo) -> str:
    """A recipe's ``caption.prompt`` with the words of a class for ``{c}``, ``{definition}`` and ``{hypernym}``."""
    words = {"{c}": info.name, "{definition}": info.definition, "{hypernym}": info.hypernym}
    for placeholder, word in words.items():
        prompt = prompt.replace(placeholder, word)
    return prompt


def longest(prompt: str | None, classes: Sequence[ClassInfo]) -> ClassInfo:
    """The class of which most is asked; a made-up one where nothing was asked for."""
    known = classes or (ClassInfo("n00000000", 0, "thing", ("thing",), "a thing", "thing"),)
    return max(known, key=lambda info: len(filled(prompt or "{c} {definition}", info)))


def request(strategy: str, info: ClassInfo, rng: random.Random, prompt: str | None = None) -> Request:
    """What is asked for a text about a class.

    Args:
        strategy: ``w2s``, ``llm`` or ``llm-diverse``.
        info: the class.
        rng: chooses demonstrations, place, relation, context and style.
        prompt: the recipe's ``caption.prompt``, which stands in place of all that.
    """
    if prompt is not None:
        return Request("", (), filled(prompt, info))
    if strategy == "w2s":
        # Keywords are all that a keyword-to-sentence model takes.
        return Request("", (), info.name)
    lists = word_lists("demonstrations.json")
    if strategy == "llm-diverse":
        context, style = rng.choice(lists["contexts"]), rng.choice(lists["styles"])
        shown = rng.sample(lists["diverse"], _SHOWN)
        return Request(
            _DIVERSE,
            tuple((_scene(*words[:4]), words[4]) for words in shown),
            _scene(info.name, info.definition, context, style),
        )
    kind = rng.choice(_KINDS)
    extra = {
        "plain": "",
        "background": rng.choice(word_lists("places.json")["places"]),
        "relation": rng.choice(lists["relations"]),
    }[kind]
    shown = rng.sample(lists[kind], _SHOWN)
    return Request(
        _CAPTION,
        tuple((_thing(kind, words[0], words[1] if kind != "plain" else ""), words[-1]) for words in shown),
        _thing(kind, info.name, extra),
    )


def _thing(kind: str, name: str, extra: str) -> str:
    label = {"plain": "", "background": "; place: ", "relation": "; relation: "}[kind]
    return f"thing: {name}{label}{extra}"


def _scene(name: str, definition: str, context: str, style: str) -> str:
    meaning = f" ({definition})" if definition else ""
    return f"thing: {name}{meaning}; scene: {context}; style: {style}"
