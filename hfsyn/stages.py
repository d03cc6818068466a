"""The two costly stages of a run: caption and generate, and the plan between them.

A stage is: pending shards, their lines, batches, rows, ``write_shard``. Any number of processes may run a stage at
once, each in its own time: they share shards by claims (`hfsyn.shards.claims`), and what one of them makes does not
depend on the others. Running a stage again continues it.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from builders import layout
from builders.images import ImageRejected, decode_rgb
from builders.layout import Sidecar, shard_number
from builders.schema import captioned_features, synthetic_features
from builders.sources import SourceRow
from hfsyn.captioner import Captioner, TransformersCaptioner, caption_flags
from hfsyn.errors import HfsynError
from hfsyn.generator import DiffusersGenerator, ImageGenerator
from hfsyn.known_captions import KnownCaptions
from hfsyn.progress import Progress
from hfsyn.rows import draw, synthetic_rows
from hfsyn.runs import Run, incomplete, index_entries, load_run, select
from hfsyn.shards import claims, is_done, lock, pending, write_parquet, write_shard
from hfsyn.software import describe_device, software
from hfsyn.specs import Caption, SampleSpec, plan
from hfsyn.workers import current_worker, pick_device

_DECODE_THREADS = 2
_ENCODE_THREADS = 2

PLAN_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()), ("source_id", pa.string()), ("wnid", pa.string()), ("class_name", pa.string()),
        ("label", pa.int64()), ("prompt", pa.string()), ("caption", pa.string()),
        ("caption_flags", pa.list_(pa.string())), ("seed", pa.int64()),
    ]
)  # fmt: skip


def caption(
    run: Run | str | Path,
    *,
    device: str | None = None,
    shards: str | None = None,
    quiet: bool = False,
    allow_pickle: bool = False,
    captions: str | None = None,
    captioner: Captioner | None = None,
) -> None:
    """Read every real image of the source index, and caption it where the recipe has a captioner.

    An image that cannot be read is set aside with its reason in the shard's sidecar. Afterwards the plan can be
    written.

    Args:
        run: a prepared run or its folder.
        device: a torch device; None picks one.
        shards: ``A:B`` works on these shards only.
        quiet: no progress.
        allow_pickle: read weights that are no safetensors too.
        captions: take those of a published dataset or another run instead; see `KnownCaptions`.
        captioner: in place of the recipe's model (for tests).
    """
    run = run if isinstance(run, Run) else load_run(run)
    paths = select(run.caption_shards(), shards)
    if not pending(paths):
        return
    part = run.recipe.caption
    where = "cpu"
    known = KnownCaptions(captions, run.recipe) if captions is not None and part is not None else None
    if captioner is None and part is not None and known is None:
        where = pick_device(device)
        captioner = TransformersCaptioner(part, where, allow_pickle=allow_pickle)
    source = run.open_source()
    schema = captioned_features(run.class_names).arrow_schema
    stage = _Stage(run, "caption", where)
    what = "reading source" if part is None else "captioning"
    with stage.progress(what, paths, run.source_rows, quiet=quiet) as progress:
        for path in claims(run.folder, stage.mine(paths), stage="caption", waiting=progress.look):
            started = time.monotonic()
            start, stop, lines = run.shard_lines(path, layout.SOURCE, run.source_rows)
            rows: list[dict[str, Any]] = []
            rejected: list[dict[str, str]] = []
            for batch in _chunks(
                _decoded(source.read(index_entries(lines)), rejected), part.batch_size if part else 64
            ):
                if known is not None:
                    texts = [known.of(row) for row, _ in batch]
                else:
                    texts = _captions([image for _, image in batch], captioner, part.batch_size if part else 0)
                rows += [_caption_row(run, row, image, text) for (row, image), text in zip(batch, texts, strict=True)]
                progress.add(len(batch))
            stage.write(path, start, stop, rows, rejected, schema, started)
            progress.shard_done()


def generate(
    run: Run | str | Path,
    *,
    device: str | None = None,
    shards: str | None = None,
    quiet: bool = False,
    allow_pickle: bool = False,
    generator: ImageGenerator | None = None,
) -> None:
    """Make the images of the plan. The plan is written first, if it is not there and all captions are.

    Args:
        run: a prepared run or its folder.
        device: a torch device; None picks one.
        shards: ``A:B`` works on these shards only.
        quiet: no progress.
        allow_pickle: read weights that are no safetensors too.
        generator: in place of the recipe's model (for tests).

    Raises:
        HfsynError: captions are missing.
    """
    run = run if isinstance(run, Run) else load_run(run)
    write_plan(run)
    paths = select(run.data_shards(), shards)
    if not pending(paths):
        return
    where = "cpu"
    if generator is None:
        where = pick_device(device)
        part = run.recipe.generate
        generator = DiffusersGenerator(part, run.recipe.prompt.negative, where, allow_pickle=allow_pickle)
    stage = _Stage(run, "generate", where)
    total = run.planned_rows or 0
    schema = synthetic_features(run.class_names).arrow_schema
    with (
        stage.progress("generating", paths, total, quiet=quiet) as progress,
        ThreadPoolExecutor(_ENCODE_THREADS, "encode") as pool,
    ):
        for path in claims(run.folder, stage.mine(paths), stage="generate", waiting=progress.look):
            started = time.monotonic()
            start, stop, lines = run.shard_lines(path, layout.PLAN, total)
            specs = [SampleSpec(**{**line, "caption_flags": tuple(line["caption_flags"])}) for line in lines]
            results = draw(specs, generator, run.recipe, pool, progress.add)
            rows, rejected = synthetic_rows(specs, results, generator, run.recipe)
            stage.write(path, start, stop, rows, rejected, schema, started)
            progress.shard_done()


def write_plan(run: Run) -> None:
    """Write plan.parquet from the finished captions, once, whoever comes first.

    Raises:
        HfsynError: captions are missing (exit code 4), or no image of the source can be read.
    """
    target = run.folder / layout.PLAN
    if target.exists():
        return
    shards = run.caption_shards()
    if left := pending(shards):
        raise incomplete("caption", len(shards) - len(left), len(shards), run)
    with lock(run.folder, "plan"):
        if target.exists():
            return
        specs = plan(run.recipe, _read_captions(shards)).specs
        if not specs:
            raise HfsynError(
                f"None of the {run.source_rows} images of {run.folder} can be read.",
                f"The reasons stand in the sidecars of {run.folder / layout.CAPTIONS}.",
            )
        columns = {f.name: [getattr(spec, f.name) for spec in specs] for f in PLAN_SCHEMA}
        write_parquet(target, columns, PLAN_SCHEMA, group_rows=run.recipe.store.shard_rows)


@dataclass(frozen=True)
class _Stage:
    """What the two costly stages have in common: shares, progress, and writing a shard with its sidecar."""

    run: Run
    name: str
    device: str

    def mine(self, paths: Sequence[Path]) -> list[Path]:
        return current_worker().share(paths)

    def progress(self, what: str, paths: Sequence[Path], total: int, *, quiet: bool) -> Progress:
        rows = {path: self._lines(path, total) for path in paths}
        before = sum(n for path, n in rows.items() if is_done(path))
        return Progress(
            what,
            sum(rows.values()),
            before,
            others=lambda: sum(n for path, n in rows.items() if is_done(path)) - before,
            quiet=quiet or not current_worker().is_main,
        )

    def _lines(self, path: Path, total: int) -> int:
        _, number, _ = shard_number(path) or ("", 0, 0)
        start, stop = layout.shard_range(number, total, self.run.recipe.store.shard_rows)
        return stop - start

    def write(
        self,
        path: Path,
        start: int,
        stop: int,
        rows: Sequence[dict[str, Any]],
        rejected: Sequence[dict[str, str]],
        schema: pa.Schema,
        started: float,
    ) -> None:
        if len(rows) + len(rejected) != stop - start:
            raise RuntimeError(f"{path.name}: {len(rows)} rows and {len(rejected)} rejected of {stop - start} lines")
        _, number, count = shard_number(path) or ("", 0, 0)
        flags = Counter(flag for row in rows for flag in row["caption_flags"])
        for name in ("truncated", "safety"):
            flags[name] += sum(bool(row.get(name)) for row in rows)
        flags["retried"] += sum(bool(row.get("retries")) for row in rows)

        worker = current_worker()

        def sidecar(sha256: str, size: int) -> Sidecar:
            return Sidecar(
                stage=self.name,
                shard=number,
                of=count,
                start=start,
                stop=stop,
                rows=len(rows),
                sha256=sha256,
                bytes=size,
                fingerprint=self.run.fingerprint,
                rejected=tuple(rejected),
                counts=dict(sorted(Counter(row["wnid"] for row in rows).items())),
                flags={name: n for name, n in sorted(flags.items()) if n},
                seconds=round(time.monotonic() - started, 3),
                device=describe_device(self.device),
                worker=f"{worker.rank} of {worker.world}",
                software=software(),
            )

        columns = {field.name: [row[field.name] for row in rows] for field in schema}
        write_shard(path, columns, schema, sidecar)


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


def _captions(images: Sequence[Image.Image], captioner: Captioner | None, size: int) -> list[str | None]:
    """A caption for each image; a short batch is padded with its last image, so that rounding stays the same."""
    if captioner is None:
        return [None] * len(images)
    padded = [*images, *[images[-1]] * (size - len(images))]
    return list(captioner.caption(padded)[: len(images)])


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


def _read_captions(shards: Sequence[Path]) -> Iterator[Caption]:
    for shard in shards:
        for row in pq.read_table(shard, columns=["source_id", "wnid", "caption", "caption_flags"]).to_pylist():
            yield Caption(row["source_id"], row["wnid"], row["caption"], tuple(row["caption_flags"]))
