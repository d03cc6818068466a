"""Who gives the texts of a run: a captioner, a language model, a file, somebody's earlier captions, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from builders.variants import ClassInfo
from hfsyn.captions.captioner import Captioner, TransformersCaptioner
from hfsyn.captions.reuse import KnownCaptions
from hfsyn.captions.text_writer import TextWriter
from hfsyn.recipes.strategies import get_strategy
from hfsyn.rules import seed_of
from hfsyn.runs.inputs import FileTexts
from hfsyn.runs.run import Run
from hfsyn.workers import pick_device


@dataclass(frozen=True)
class Seen:
    """What is kept of a real image once it has been read: a photograph itself takes fifty megabytes."""

    source_id: str
    wnid: str
    sha256: str
    """Of the file, in hex."""
    width: int
    height: int
    view: Any = None
    """What the model will see of it; see `TextSource.view`."""


Answer = Callable[[], Sequence[str | None]]
"""Asks the model for the texts of some images, one for each, in order; None where the recipe has none."""


@dataclass(frozen=True)
class TextSource:
    """Who gives the texts: looks at one image after the other, in any threads, and then answers for several."""

    answer: Callable[[Sequence[Seen], int], Answer]
    """Prepares what asks the model, in any thread: for at most as many images as the number, the batch's size, up to
    which a short batch is padded, so that rounding stays the same."""
    view: Callable[[Image.Image, ClassInfo], Any] = lambda image, info: None
    """What the model sees of an image, which need not be kept any longer. What it raises is why the image is set aside,
    but for `HfsynError`, which ends the run."""
    model: str = ""
    """Its name; empty where no model is asked."""
    unused_weights: Mapping[str, int] = field(default_factory=dict)
    """Weights of the model that play no part: how many of each kind."""


def texts_of(
    run: Run,
    *,
    device: str | None = None,
    allow_pickle: bool = False,
    captions: str | None = None,
    captioner: Captioner | None = None,
) -> tuple[TextSource, str]:
    """Who gives the texts, ready to be asked, and the device on which this is done.

    Args:
        run: a prepared run.
        device: a torch device; None picks one.
        allow_pickle: read weights that are no safetensors too.
        captions: see `KnownCaptions`.
        captioner: in place of the recipe's model (for tests and benchmarks); prepared for ahead, like the recipe's, if
            it has `TransformersCaptioner.look` and `ask`.

    Raises:
        HfsynError: the model, the file or the captions cannot be had.
    """
    part, prompt = run.recipe.caption, run.recipe.prompt
    if part is None:
        if prompt.captions_file is None:
            return _at_once(lambda seen: None), "cpu"
        file = FileTexts(prompt)
        return _at_once(lambda seen: file.of(seen.source_id)), "cpu"
    if captions is not None:
        known = KnownCaptions(captions, run.recipe)
        return _at_once(lambda seen: known.of(seen.source_id, seen.sha256)), "cpu"
    if captioner is not None:
        if hasattr(captioner, "look"):
            return _looking(captioner, run, part.model), "cpu"
        asking = _padded(lambda batch: lambda: captioner.caption([seen.view for seen in batch]))
        return TextSource(asking, lambda image, info: image.copy(), part.model), "cpu"
    where, classes = pick_device(device), run.classes
    infos = list(classes.values())
    if get_strategy(prompt.strategy).text_from == "class":
        writer = TextWriter(part, prompt.strategy, where, allow_pickle=allow_pickle, classes=infos)
        writing = _padded(
            lambda batch: lambda: writer.write([classes[seen.wnid] for seen in batch], _seeds(run, batch))
        )
        return TextSource(writing, model=part.model, unused_weights=writer.idle.counts()), where
    found = TransformersCaptioner(part, where, allow_pickle=allow_pickle, classes=infos)
    return replace(_looking(found, run, part.model), unused_weights=found.idle.counts()), where


def _looking(captioner: Any, run: Run, model: str) -> TextSource:
    asking = _padded(lambda batch: captioner.ask([seen.view for seen in batch], _seeds(run, batch)))
    return TextSource(asking, captioner.look, model)


def _seeds(run: Run, batch: Sequence[Seen]) -> list[int]:
    """The seed of each image, by the rule of `hfsyn.captions.token_drawing`."""
    return [seed_of(run.recipe.seed, seen.source_id, purpose="caption") for seen in batch]


def _at_once(text: Callable[[Seen], str | None]) -> TextSource:
    """No model is asked: nothing to prepare, nothing to pad."""
    return TextSource(lambda batch, size: lambda: [text(seen) for seen in batch])


def _padded(prepare: Callable[[Sequence[Seen]], Answer]) -> Callable[[Sequence[Seen], int], Answer]:
    """A short batch is padded with its last image."""

    def prepared(batch: Sequence[Seen], size: int) -> Answer:
        answer = prepare([*batch, *[batch[-1]] * (size - len(batch))])
        return lambda: answer()[: len(batch)]

    return prepared
