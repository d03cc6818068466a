"""The first costly stage: read every real image, and caption it."""

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from builders.runs.rows import captioned_features
from hfsyn.captions.captioner import Captioner
from hfsyn.captions.prefetch import Batch, Reading, batches
from hfsyn.captions.providers import Seen, TextSource, texts_of
from hfsyn.captions.refusals import Reason, Tally
from hfsyn.captions.texts import caption_flags
from hfsyn.images.tuning import BatchSize
from hfsyn.progress import teller
from hfsyn.runs.options import WorkOptions, select
from hfsyn.runs.run import Run, load_run
from hfsyn.runs.shards import is_done, pending, sidecars
from hfsyn.runs.stage import Stage
from hfsyn.workers import current_worker


def caption(
    run: Run | str | Path,
    *,
    captioner: Captioner | None = None,
    options: WorkOptions | None = None,
    **more_options: Any,
) -> None:
    """Read every real image of the source index, and give it a text if the recipe asks for one.

    An image that cannot be read, or that the model refuses, is set aside with its reason in the shard's sidecar; a
    model that refuses all ends the stage. Afterwards the plan can be written.

    Args:
        run: a prepared run or its folder.
        captioner: in place of the recipe's model (for tests).
        options: where, how fast and how long to work; when the budget is spent the stage ends with shards left.
        more_options: fields of `WorkOptions` in place of those of `options`.
    """
    run = run if isinstance(run, Run) else load_run(run)
    options = replace(options or WorkOptions(), **more_options)
    paths = select(run.caption_shards(), options.shards)
    if not pending(paths):
        return
    texts, device = texts_of(run, options=options, captioner=captioner)
    schema = captioned_features(run.class_names).arrow_schema
    stage = Stage(run, "caption", options, paths, schema, device, unused_weights=texts.unused_weights)
    if texts.unused_weights and current_worker().is_main:
        counts = ", ".join(f"{count} {kind}" for kind, count in texts.unused_weights.items())
        teller(options.quiet)(f"hfsyn: weights of {texts.model} that are not used: {counts}")
    with stage.at_work("reading source" if run.recipe.caption is None else "captioning"):
        work = _Work(run, stage, texts)
        left = [path for path in work.over(stage.mine()) if not is_done(path)]
        if left and work.tally.doubtful:
            raise work.tally.broken()
        if left:
            work.over(left)


class _Work:
    def __init__(self, run: Run, stage: Stage, texts: TextSource) -> None:
        part = run.recipe.caption
        self._stage, self._run, self._texts = stage, run, texts
        self._size = BatchSize(part.batch_size if part else 64)
        shards = self._run.caption_shards()
        self.tally = Tally(texts.model, lambda: any(sidecar.rows for sidecar in sidecars(shards)))

    def over(self, paths: Sequence[Path]) -> list[Path]:
        """Make those of the shards that are free. Returned are those that were given back, as the model has refused
        images of them and taken none so far, so that it is not known whether it takes any.
        """
        coming = batches(self._stage.shards(paths), self._run, self._texts, self._size.size, self.tally)
        written: Future[None] | None = None
        doubted: list[Path] = []
        with ThreadPoolExecutor(1, "write") as writer, contextlib.closing(coming):
            for batch in coming:
                if batch.answer is not None:
                    self._ask(batch)
                elif self.tally.doubtful:
                    batch.reading.shard.claim.release()
                    doubted.append(batch.reading.shard.claim.path)
                else:
                    if written is not None:
                        written.result()
                    written = writer.submit(self._write, batch.reading)
            if written is not None:
                written.result()
        return doubted

    def _ask(self, batch: Batch) -> None:
        """Add the texts of a batch to its shard: in smaller batches than it was prepared for if memory runs out."""
        reading, asked = batch.reading, 0
        while asked < len(batch.seen):
            left = batch.seen[asked:]

            def ask(size: int, left: list[Seen] = left) -> list[str | Reason | None]:
                return self.tally.asked(partial(_answers, batch, self._texts, size), left[:size])

            outcome = self._size.run(ask)
            if outcome is None:
                continue
            texts, size = outcome
            if not reading.grid or reading.grid[-1][2] != size:
                reading.grid.append((0, reading.asked, size))
            reading.asked += len(texts)
            asked += len(texts)
            for seen, text in zip(left, texts, strict=False):
                if isinstance(text, Reason):
                    reading.rejected.append({"id": seen.source_id, "wnid": seen.wnid, "reason": str(text)})
                else:
                    reading.rows.append(self._row(seen, text))
        self._stage.progress.add(len(batch.seen))

    def _row(self, seen: Seen, text: str | None) -> dict[str, Any]:
        info = self._run.classes[seen.wnid]
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

    def _write(self, reading: Reading) -> None:
        shard = reading.shard
        grid = reading.grid if self._run.recipe.caption else ()
        # The lines come from two threads; they are written in the order of the source.
        places = {line["source_id"]: place for place, line in enumerate(shard.lines)}
        rejected = sorted(reading.rejected, key=lambda line: places[line["id"]])
        try:
            self._stage.write(shard, reading.rows, rejected, grid, time.monotonic() - shard.started)
        finally:
            shard.claim.release()


def _answers(batch: Batch, texts: TextSource, size: int, seen: Sequence[Seen]) -> Sequence[str | None]:
    """The texts of some images of a batch, as it was prepared if these are all of them."""
    if batch.answer is not None and size == batch.size and len(seen) == len(batch.seen):
        return batch.answer.result()()
    return texts.answer(seen, size)()
