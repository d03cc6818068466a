"""Yes or no: a model that looks at an image is asked about its class, and how sure it is of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from builders.variants import ClassInfo
from hfsyn.captions.captioner import TransformersCaptioner
from hfsyn.captions.texts import clean
from hfsyn.captions.token_drawing import new_tokens
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import CaptionPart

_YES, _NO = ("yes", "Yes", "YES", " yes", " Yes"), ("no", "No", "NO", " no", " No")


@dataclass(frozen=True)
class Answer:
    """What a model says to a question."""

    text: str
    yes: float
    """The probability that its answer begins with yes, of those that begin with yes or no."""


class Questioner(TransformersCaptioner):
    """A captioner whose prompt is a question about the class, ``{c}``.

    Raises HfsynError as `TransformersCaptioner`, and if its tokens do not tell yes from no.
    """

    def __init__(self, part: CaptionPart, device: str, *, classes: Sequence[ClassInfo]) -> None:
        super().__init__(part, device, classes=classes)
        tokenizer = getattr(self._inputs.processor, "tokenizer", None)
        yes, no = (_firsts(tokenizer, words) for words in (_YES, _NO))
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise HfsynError(f"The tokens of {part.model} do not tell yes from no.", "Name another model.")

    def answers(self, images: Sequence[Image.Image], classes: Sequence[ClassInfo]) -> list[Answer]:
        """Its answers, one for each RGB image and class; raises as `TransformersCaptioner.caption`."""
        views = [self.look(image, info) for image, info in zip(images, classes, strict=True)]
        found: dict[int, Answer] = {}
        for rows, inputs, room in self._inputs.groups(views):
            first = _First()
            tokens = new_tokens(self._model, inputs, self._recipe, None, room, watches=[first])
            texts = self._inputs.processor.batch_decode(tokens, skip_special_tokens=True)
            for row, text, likely in zip(rows, texts, first.scores.float().softmax(-1).cpu(), strict=True):
                yes, no = float(likely[self._yes].sum()), float(likely[self._no].sum())
                found[row] = Answer(clean(text), yes / (yes + no) if yes + no else 0.5)
        return [found[row] for row in range(len(images))]


class _First:
    """Keeps the scores of the first new token, rows x vocabulary."""

    def __init__(self) -> None:
        self.scores: Any = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self.scores is None:
            self.scores = scores.clone()
        return scores


def _firsts(tokenizer: Any, words: Sequence[str]) -> set[int]:
    """The first token of each of some words that the tokenizer knows."""
    if tokenizer is None:
        return set()
    found = {tokenizer.encode(word, add_special_tokens=False)[0] for word in words}
    return found - {tokenizer.unk_token_id}
