"""plan.parquet: the plan of a run, written once from its finished captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from builders import layout
from hfsyn.errors import HfsynError
from hfsyn.making.claims import lock
from hfsyn.making.runs import Run, incomplete
from hfsyn.making.shards import pending, write_parquet
from hfsyn.making.specs import Caption, plan

PLAN_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()), ("source_id", pa.string()), ("wnid", pa.string()), ("class_name", pa.string()),
        ("label", pa.int64()), ("prompt", pa.string()), ("caption", pa.string()),
        ("caption_flags", pa.list_(pa.string())), ("seed", pa.int64()),
    ]
)  # fmt: skip


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


def _read_captions(shards: Sequence[Path]) -> Iterator[Caption]:
    for shard in shards:
        for row in pq.read_table(shard, columns=["source_id", "wnid", "caption", "caption_flags"]).to_pylist():
            yield Caption(row["source_id"], row["wnid"], row["caption"], tuple(row["caption_flags"]))
