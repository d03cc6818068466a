"""The first costly stage: read every real image, and caption it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from builders.runs.layout import load_sidecar, sidecar_of
from builders.runs.schema import captioned_features
from hfsyn.captions.captioner import Captioner
from hfsyn.captions.cleaning import caption_flags
from hfsyn.captions.prefetch import Batch, Reading, batches
from hfsyn.captions.providers import Seen, TextSource, texts_of
from hfsyn.captions.refusals import Reason, Tally
from hfsyn.models.batch_sizes import BatchSize
from hfsyn.progress import Progress, teller
from hfsyn.runs.budget import Budget
from hfsyn.runs.claims import Claims, Patience
from hfsyn.runs.options import DEFAULTS, WorkOptions
from hfsyn.runs.overwriting import working_in
from hfsyn.runs.run import Run, load_run, select
from hfsyn.runs.shards import is_done, pending
from hfsyn.runs.stage import Stage
from hfsyn.workers import current_worker


def caption(
    run: Run | str | Path,
    *,
    device: str | None = None,
    shards: str | None = None,
    quiet: bool = False,
    options: WorkOptions = DEFAULTS,
    captions: str | None = None,
    captioner: Captioner | None = None,
) -> None:
    """Read every real image of the source index, and give it a text where the recipe says whose.

    An image that cannot be read, or that the model refuses, is set aside with its reason in the shard's sidecar; a
    model that refuses all ends the stage. Afterwards the plan can be written.

    Args:
        run: a prepared run or its folder.
        device: a torch device; None picks one.
        shards: ``A:B`` works on these shards only.
        quiet: no progress.
        options: how fast and how long to work; with a budget that is spent the stage ends before all shards are done.
        captions: take those of a published dataset or another run instead; see `KnownCaptions`.
        captioner: in place of the recipe's model (for tests).
    """
    run = run if isinstance(run, Run) else load_run(run)
    paths = select(run.caption_shards(), shards)
    if not pending(paths):
        return
    part = run.recipe.caption
    texts, where = texts_of(
        run, device=device, allow_pickle=options.allow_pickle, captions=captions, captioner=captioner
    )
    stage = Stage(run, "caption", where)
    what = "reading source" if part is None else "captioning"
    _say_unused(texts, quiet=quiet)
    with working_in(run.folder, run.mark), stage.progress(what, paths, run.source_rows, quiet=quiet) as progress:
        work = _Work(run, stage, texts, options, progress, BatchSize(part.batch_size if part else 64))
        left = [path for path in work.over(stage.mine(paths)) if not is_done(path)]
        if left and work.tally.doubtful:
            raise work.tally.broken()
        if left:
            work.over(left)


@dataclass
class _Work:
    """What one process does at shards of captions."""

    run: Run
    stage: Stage
    texts: TextSource
    options: WorkOptions
    progress: Progress
    size: BatchSize

    def __post_init__(self) -> None:
        self.tally = Tally(self.texts.model, self._taken_elsewhere)
        self._schema = captioned_features(self.run.class_names).arrow_schema

    def over(self, paths: Sequence[Path]) -> list[Path]:
        """Make those of the shards that can be had. Returned are those that were given back, as the model has refused
        images of them and taken none so far: who knows whether it takes any.
        """
        taking = Claims(self.run.folder, paths, stage="caption")
        patience, budget = Patience(taking, look=self.progress.look), Budget(self.options)
        coming = batches(
            self.run, self.run.open_source(), taking, patience, budget, self.texts, self.size.size, self.tally
        )
        written: Future[None] | None = None
        doubted: list[Path] = []
        with ThreadPoolExecutor(1, "write") as writer, contextlib.closing(coming):
            for batch in coming:
                if batch.answer is not None:
                    self._ask(batch)
                elif self.tally.doubtful:
                    batch.reading.claim.release()
                    doubted.append(batch.reading.claim.path)
                else:
                    if written is not None:
                        written.result()
                    written = writer.submit(self._write, batch.reading)
            if written is not None:
                written.result()
        return doubted

    def _ask(self, batch: Batch) -> None:
        for seen, text in zip(batch.seen, _answers(batch, self.texts, self.size, self.tally), strict=True):
            if isinstance(text, Reason):
                batch.reading.rejected.append({"id": seen.source_id, "wnid": seen.wnid, "reason": str(text)})
            else:
                batch.reading.rows.append(_caption_row(self.run, seen, text))
        self.progress.add(len(batch.seen))

    def _write(self, reading: Reading) -> None:
        grid = tuple(reading.grid) if self.run.recipe.caption else ()
        try:
            self.stage.write(
                reading.claim.path,
                reading.start,
                reading.stop,
                reading.rows,
                reading.set_aside(),
                self._schema,
                time.monotonic() - reading.started,
                grid=grid,
                unused_weights=self.texts.unused_weights,
            )
        finally:
            reading.claim.release()
        self.progress.shard_done(len(reading.rows))

    def _taken_elsewhere(self) -> bool:
        """Whether the model has given a text in another process, or earlier."""
        return any(load_sidecar(sidecar_of(shard)).rows for shard in self.run.caption_shards() if is_done(shard))


def _say_unused(texts: TextSource, *, quiet: bool) -> None:
    if texts.unused_weights and current_worker().is_main:
        counts = ", ".join(f"{count} {kind}" for kind, count in texts.unused_weights.items())
        teller(quiet)(f"hfsyn: weights of {texts.model} that play no part: {counts}")


def _answers(batch: Batch, texts: TextSource, size: BatchSize, tally: Tally) -> list[str | Reason | None]:
    """The texts of a batch, or why there is none: as it was prepared, or in smaller ones where memory runs out."""
    found: list[str | Reason | None] = []
    reading = batch.reading
    while len(found) < len(batch.seen):
        left = batch.seen[len(found) :]

        def ask(now: int, left: list[Seen] = left) -> list[str | Reason | None]:
            return tally.asked(partial(_ask, batch, texts, now), left[:now])

        outcome = size.run(ask)
        if outcome is None:
            continue
        some, used = outcome
        if not reading.grid or reading.grid[-1][2] != used:
            reading.grid.append((0, reading.asked, used))
        reading.asked += len(some)
        found += some
    return found


def _ask(batch: Batch, texts: TextSource, size: int, seen: Sequence[Seen]) -> Sequence[str | None]:
    if batch.answer is not None and size == batch.size and len(seen) == len(batch.seen):
        return batch.answer.result()()
    return texts.answer(seen, size)()


def _caption_row(run: Run, seen: Seen, text: str | None) -> dict[str, Any]:
    info = run.classes[seen.wnid]
    return {
        "source_id": seen.source_id,
        "wnid": seen.wnid,
        "label": info.index,
        "class_name": info.name,
        "caption": text,
        "caption_flags": [] if text is None else list(caption_flags(text, info)),
        "source_sha256": seen.sha256,
        "width": seen.width,
        "height": seen.height,
    }
