"""The first costly stage: read every real image, and caption it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from builders.layout import load_sidecar, sidecar_of
from builders.schema import captioned_features
from hfsyn.making.batch_sizes import BatchSize
from hfsyn.making.budget import Budget
from hfsyn.making.caption_sources import Seen, TextSource, texts_of
from hfsyn.making.caption_texts import caption_flags
from hfsyn.making.captioner import Captioner
from hfsyn.making.claims import Claims, Patience
from hfsyn.making.options import DEFAULTS, WorkOptions
from hfsyn.making.overwriting import working_in
from hfsyn.making.reading import Batch, Reading, batches
from hfsyn.making.refusals import Reason, Tally
from hfsyn.making.runs import Run, load_run, select
from hfsyn.making.shards import is_done, pending
from hfsyn.making.stages import Stage
from hfsyn.progress import teller
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
    source = run.open_source()
    schema = captioned_features(run.class_names).arrow_schema
    stage = Stage(run, "caption", where)
    what = "reading source" if part is None else "captioning"
    size = BatchSize(part.batch_size if part else 64)
    tally = Tally(texts.model)
    _say_unused(texts, quiet=quiet)
    with (
        working_in(run.folder, run.mark),
        stage.progress(what, paths, run.source_rows, quiet=quiet) as progress,
        ThreadPoolExecutor(1, "write") as writer,
    ):

        def write(reading: Reading) -> None:
            try:
                stage.write(
                    reading.claim.path, reading.start, reading.stop, reading.rows, reading.set_aside(), schema,
                    time.monotonic() - reading.started, grid=tuple(reading.grid) if part else (),
                    unused_weights=texts.unused_weights,
                )  # fmt: skip
            finally:
                reading.claim.release()
            progress.shard_done(len(reading.rows))

        taking = Claims(run.folder, stage.mine(paths), stage="caption")
        patience = Patience(taking, look=progress.look)
        written: Future[None] | None = None
        coming = batches(run, source, taking, patience, Budget(options), texts, size.size, tally)
        with contextlib.closing(_past_doubt(coming, tally, run)) as ready:
            for batch in ready:
                if batch.answer is None:
                    if written is not None:
                        written.result()
                    written = writer.submit(write, batch.reading)
                    continue
                for seen, text in zip(batch.seen, _answers(batch, texts, size, tally), strict=True):
                    if isinstance(text, Reason):
                        batch.reading.rejected.append({"id": seen.source_id, "wnid": seen.wnid, "reason": str(text)})
                    else:
                        batch.reading.rows.append(_caption_row(run, seen, text))
                progress.add(len(batch.seen))
        if written is not None:
            written.result()


def _say_unused(texts: TextSource, *, quiet: bool) -> None:
    if texts.unused_weights and current_worker().is_main:
        counts = ", ".join(f"{count} {kind}" for kind, count in texts.unused_weights.items())
        teller(quiet)(f"hfsyn: weights of {texts.model} that play no part: {counts}")


def _past_doubt(coming: Generator[Batch, None, None], tally: Tally, run: Run) -> Generator[Batch, None, None]:
    """The batches; but the end of a shard in which the model refused an image waits until the model has taken one.

    Raises:
        HfsynError: it has not taken any, here or elsewhere.
    """
    held: list[Batch] = []
    try:
        with contextlib.closing(coming):
            for batch in coming:
                if batch.answer is not None:
                    yield batch
                elif tally.doubtful:
                    held.append(batch)
                else:
                    while held:
                        yield held.pop(0)
                    yield batch
        done = [load_sidecar(sidecar_of(shard)) for shard in run.caption_shards() if held and is_done(shard)]
        if held and tally.doubtful and not any(sidecar.rows for sidecar in done):
            raise tally.broken()
        while held:
            yield held.pop(0)
    finally:
        for batch in held:
            batch.reading.claim.release()


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
