"""plan.parquet: the plan of a run, written once from its finished captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.files import digest_of
from builders.runs import layout
from builders.runs.layout import sidecar_of
from builders.runs.run_files import has_table, marker_of, write_marker
from hfsyn.errors import HfsynError
from hfsyn.runs.claims import lock
from hfsyn.runs.run import Run, incomplete
from hfsyn.runs.shards import pending
from hfsyn.runs.specs import Caption, SampleSpec, plan
from hfsyn.runs.tables import write_groups

_TYPES = {"label": pa.int64(), "caption_flags": pa.list_(pa.string()), "seed": pa.int64()}
PAIRED_SCHEMA = pa.schema([(field.name, _TYPES.get(field.name, pa.string())) for field in fields(SampleSpec)])
PLAN_SCHEMA = pa.schema([field for field in PAIRED_SCHEMA if field.name != "caption_source_id"])


def write_plan(run: Run) -> None:
    """Write plan.parquet from the finished captions, unless it is there; one of several processes does it.

    Raises:
        HfsynError: captions are missing (exit code 4), or no image of the source can be read.
    """
    target = run.folder / layout.PLAN
    if has_table(target):
        return
    shards = run.caption_shards()
    if left := pending(shards):
        raise incomplete("caption", len(shards) - len(left), len(shards), run)
    with lock(run.folder, "plan"):
        if has_table(target):
            return
        lines = plan(run.recipe, read_captions(shards))
        if not lines:
            raise HfsynError(
                f"None of the {run.source_rows} images of {run.folder} can be read.",
                f"The reasons are in the sidecars: {run.folder / layout.SIDECARS / layout.CAPTIONS}.",
            )
        before = marker_of(target, run.fingerprint) if sidecar_of(target).exists() else None
        paired = run.recipe.prompt.pairing != "own"
        write_lines(target, lines, run.recipe.store.shard_rows, PAIRED_SCHEMA if paired else PLAN_SCHEMA)
        if before is not None and digest_of(target) != before.sha256:
            target.unlink()
            raise HfsynError(
                f"The captions of {run.folder} are not those that its plan was made from.",
                f"Find what has changed: hfsyn verify {run.folder}",
            )
        write_marker(target, len(lines), run.fingerprint)


def write_lines(target: Path, lines: Sequence[SampleSpec], rows: int, schema: pa.Schema = PLAN_SCHEMA) -> None:
    """Write lines of a plan, `rows` in a row group, so that a shard reads only its own."""

    def groups() -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(lines), rows):
            specs = lines[start : start + rows]
            yield {name: [getattr(spec, name) for spec in specs] for name in schema.names}

    write_groups(target, groups(), schema)


def read_captions(shards: Sequence[Path]) -> Iterator[Caption]:
    """What finished caption shards say, shard by shard."""
    for shard in shards:
        columns = pq.read_table(shard, columns=["source_id", "wnid", "caption", "caption_flags"]).to_pydict()
        for source_id, wnid, text, flags in zip(*columns.values(), strict=True):
            yield Caption(source_id, wnid, text, tuple(flags))
