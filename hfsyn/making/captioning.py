"""The first costly stage: read every real image, and caption it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from builders.schema import captioned_features
from hfsyn.making.batch_sizes import BatchSize
from hfsyn.making.budget import Budget
from hfsyn.making.caption_sources import Answer, Seen, TextSource, texts_of
from hfsyn.making.caption_texts import caption_flags
from hfsyn.making.captioner import Captioner
from hfsyn.making.claims import Claims, Patience
from hfsyn.making.options import DEFAULTS, WorkOptions
from hfsyn.making.overwriting import working_in
from hfsyn.making.reading import Batch, Reading, batches
from hfsyn.making.runs import Run, load_run, select
from hfsyn.making.shards import pending
from hfsyn.making.stages import Stage


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

    An image that cannot be read is set aside with its reason in the shard's sidecar. Afterwards the plan can be
    written.

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
    source = run.open_source()
    schema = captioned_features(run.class_names).arrow_schema
    stage = Stage(run, "caption", where)
    what = "reading source" if part is None else "captioning"
    size = BatchSize(part.batch_size if part else 64)
    with (
        working_in(run.folder, run.mark),
        stage.progress(what, paths, run.source_rows, quiet=quiet) as progress,
        ThreadPoolExecutor(1, "write") as writer,
    ):

        def write(reading: Reading) -> None:
            try:
                stage.write(
                    reading.claim.path, reading.start, reading.stop, reading.rows, reading.rejected, schema,
                    time.monotonic() - reading.started, grid=tuple(reading.grid) if part else (),
                )  # fmt: skip
            finally:
                reading.claim.release()
            progress.shard_done(len(reading.rows))

        taking = Claims(run.folder, stage.mine(paths), stage="caption")
        patience = Patience(taking, look=progress.look)
        written: Future[None] | None = None
        with contextlib.closing(batches(run, source, taking, patience, Budget(options), texts, size.size)) as coming:
            for batch in coming:
                if batch.answer is None:
                    if written is not None:
                        written.result()
                    written = writer.submit(write, batch.reading)
                    continue
                answers = _answers(batch, batch.answer.result(), texts, size)
                lines = zip(batch.seen, answers, strict=True)
                batch.reading.rows += [_caption_row(run, seen, text) for seen, text in lines]
                progress.add(len(batch.seen))
        if written is not None:
            written.result()


def _answers(batch: Batch, answer: Answer, texts: TextSource, size: BatchSize) -> list[str | None]:
    """The texts of a batch: as it was prepared, or in smaller ones where memory runs out."""
    found: list[str | None] = []
    reading = batch.reading
    while len(found) < len(batch.seen):
        left = batch.seen[len(found) :]

        def ask(now: int, left: list[Seen] = left, whole: bool = not found) -> Sequence[str | None]:
            return answer() if whole and now == batch.size else texts.answer(left[:now], now)()

        outcome = size.run(ask)
        if outcome is None:
            continue
        some, used = outcome
        if not reading.grid or reading.grid[-1][2] != used:
            reading.grid.append((0, len(reading.rows) + len(found), used))
        found += some
    return found


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
