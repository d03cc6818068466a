"""The first costly stage: read every real image, and caption it."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from builders import layout
from builders.images import ImageRejected, decode_rgb
from builders.schema import captioned_features
from builders.sources import SourceRow
from hfsyn.making.budget import Budget
from hfsyn.making.caption_sources import texts_of
from hfsyn.making.caption_texts import caption_flags
from hfsyn.making.captioner import Captioner
from hfsyn.making.claims import claims
from hfsyn.making.options import DEFAULTS, WorkOptions
from hfsyn.making.runs import Run, index_entries, load_run, select
from hfsyn.making.shards import pending
from hfsyn.making.stages import Stage

_DECODE_THREADS = 2


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
    with stage.progress(what, paths, run.source_rows, quiet=quiet) as progress:
        budget = Budget(options)
        for path in claims(run.folder, stage.mine(paths), stage="caption", waiting=progress.look):
            if not budget.allows_another():
                break  # the claim falls with the loop
            started = time.monotonic()
            start, stop, lines = run.shard_lines(path, layout.SOURCE, run.source_rows)
            rows: list[dict[str, Any]] = []
            rejected: list[dict[str, str]] = []
            for batch in _chunks(
                _decoded(source.read(index_entries(lines)), rejected), part.batch_size if part else 64
            ):
                pairs = zip(batch, texts(batch), strict=True)
                rows += [_caption_row(run, row, image, text) for (row, image), text in pairs]
                progress.add(len(batch))
            stage.write(path, start, stop, rows, rejected, schema, time.monotonic() - started)
            progress.shard_done()


def _decoded(rows: Iterable[SourceRow], rejected: list[dict[str, str]]) -> Iterator[tuple[SourceRow, Image.Image]]:
    """Readable rows with their images, in order, decoded in threads a little ahead; the others go into `rejected`."""
    ahead: deque[tuple[SourceRow, Future[Image.Image]]] = deque()
    with ThreadPoolExecutor(_DECODE_THREADS, "decode") as pool:

        def settle() -> Iterator[tuple[SourceRow, Image.Image]]:
            row, future = ahead.popleft()
            try:
                yield row, future.result()
            except ImageRejected as problem:
                rejected.append({"id": row.source_id, "wnid": row.wnid, "reason": problem.reason})

        for row in rows:
            ahead.append((row, pool.submit(decode_rgb, row.image)))
            if len(ahead) > 64:
                yield from settle()
        while ahead:
            yield from settle()


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _caption_row(run: Run, row: SourceRow, image: Image.Image, text: str | None) -> dict[str, Any]:
    info = run.classes[row.wnid]
    return {
        "source_id": row.source_id,
        "wnid": row.wnid,
        "label": info.index,
        "class_name": info.name,
        "caption": text,
        "caption_flags": [] if text is None else list(caption_flags(text, info)),
        "source_sha256": hashlib.sha256(row.image).hexdigest(),
        "width": image.width,
        "height": image.height,
    }
