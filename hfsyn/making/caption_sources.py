"""Who gives the texts of a run: a captioner, a language model, a file, somebody's earlier captions, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from builders.sources import SourceRow
from builders.variants import ClassInfo
from hfsyn.making.captioner import Captioner, TransformersCaptioner
from hfsyn.making.captions_files import FileTexts
from hfsyn.making.known_captions import KnownCaptions
from hfsyn.making.prompts import get_strategy
from hfsyn.making.runs import Run
from hfsyn.making.specs import seed_of
from hfsyn.making.text_writer import TextWriter
from hfsyn.workers import pick_device

Pair = tuple[SourceRow, Image.Image]
Answer = Callable[[], Sequence[str | None]]
"""Asks the model for the texts of some images, one for each, in order; None where the recipe has none."""
TextSource = Callable[[Sequence[Pair], int], Answer]
"""Prepares some images for the model, in any thread, and gives what asks it: at most `size` of them, the batch's size,
up to which a short batch is padded, so that rounding stays the same.
"""


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
            it has a `TransformersCaptioner.prepare`.

    Raises:
        HfsynError: the model, the file or the captions cannot be had.
    """
    part, prompt = run.recipe.caption, run.recipe.prompt
    if part is None:
        if prompt.captions_file is None:
            return _at_once(lambda batch: [None] * len(batch)), "cpu"
        file = FileTexts(prompt)
        return _at_once(lambda batch: [file.of(row.source_id) for row, _ in batch]), "cpu"
    if captions is not None:
        known = KnownCaptions(captions, run.recipe)
        return _at_once(lambda batch: [known.of(row) for row, _ in batch]), "cpu"
    if captioner is not None:
        if hasattr(captioner, "prepare"):
            return _prepared_by(captioner, run), "cpu"
        return _padded(lambda batch: lambda: captioner.caption([image for _, image in batch])), "cpu"
    where = pick_device(device)
    if get_strategy(prompt.strategy).text_from == "class":
        writer = TextWriter(part, prompt.strategy, where, allow_pickle=allow_pickle)
        return _padded(lambda batch: lambda: writer.write(*_classes_and_seeds(run, batch))), where
    return _prepared_by(TransformersCaptioner(part, where, allow_pickle=allow_pickle), run), where


def _prepared_by(captioner: Any, run: Run) -> TextSource:
    return _padded(lambda batch: captioner.prepare([image for _, image in batch], *_classes_and_seeds(run, batch)))


def _classes_and_seeds(run: Run, batch: Sequence[Pair]) -> tuple[list[ClassInfo], list[int]]:
    """The class of each image, and its seed by the rule of `hfsyn.making.token_drawing`."""
    return (
        [run.classes[row.wnid] for row, _ in batch],
        [seed_of(run.recipe.seed, row.source_id, purpose="caption") for row, _ in batch],
    )


def _at_once(texts: Callable[[Sequence[Pair]], Sequence[str | None]]) -> TextSource:
    """No model is asked: nothing to prepare, nothing to pad."""
    return lambda batch, size: lambda: texts(batch)


def _padded(prepare: Callable[[Sequence[Pair]], Answer]) -> TextSource:
    """A short batch is padded with its last image."""

    def prepared(batch: Sequence[Pair], size: int) -> Answer:
        answer = prepare([*batch, *[batch[-1]] * (size - len(batch))])
        return lambda: answer()[: len(batch)]

    return prepared
