"""The loop of the costly stages: claim a shard, look at the budget, make it, write it with its sidecar.

Captions and images are made by it, and scores. Between the first two the plan is written, once, from the finished
captions.

Any number of processes may run a stage at once, each in its own time: they share shards by claims (see
`hfsyn.runs.claims`), and what one of them makes does not depend on the others. Running a stage again continues it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from builders.files import digest_of
from builders.runs import layout
from builders.runs.run_files import has_table, marker_of, write_marker
from builders.stores.copies import present, remove
from hfsyn.errors import HfsynError
from hfsyn.progress import Progress
from hfsyn.runs.claims import Claim, Claims, Mark, lock, working_in
from hfsyn.runs.options import Budget, WorkOptions
from hfsyn.runs.run import Run, check_complete
from hfsyn.runs.shards import flags_of, is_done, write_groups, write_shard
from hfsyn.runs.specs import Caption, SampleSpec, plan
from hfsyn.workers import current_worker, describe_device, software

_TYPES = {"label": pa.int64(), "caption_flags": pa.list_(pa.string()), "seed": pa.int64()}
PAIRED_SCHEMA = pa.schema([(field.name, _TYPES.get(field.name, pa.string())) for field in fields(SampleSpec)])
PLAN_SCHEMA = pa.schema([field for field in PAIRED_SCHEMA if field.name != "caption_source_id"])


def write_plan(run: Run) -> None:
    """Write plan.parquet from the finished captions, unless it is there; one of several processes does it.

    Raises HfsynError if captions are missing (exit code 4), or no image of the source can be read.
    """
    target = run.folder / layout.PLAN
    if has_table(target):
        return
    shards = run.caption_shards()
    check_complete("caption", shards, run)
    with lock(run.folder, "plan"):
        if has_table(target):
            return
        lines = plan(run.recipe, read_captions(shards))
        if not lines:
            raise HfsynError(
                f"None of the {run.source_rows} images of {run.folder} can be read.",
                f"The reasons are in the sidecars: {run.folder / layout.SIDECARS / layout.CAPTIONS}.",
            )
        before = marker_of(target, run.fingerprint) if layout.sidecar_of(target).exists() else None
        paired = run.recipe.prompt.pairing != "own"
        write_lines(target, lines, run.recipe.store.shard_rows, PAIRED_SCHEMA if paired else PLAN_SCHEMA)
        if before is not None and digest_of(target) != before.sha256:
            remove(target)
            said = f"The captions of {run.folder} are not those that its plan was made from."
            raise HfsynError(said, f"Find what has changed: hfsyn verify {run.folder}")
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
        columns = pq.read_table(present(shard), columns=["source_id", "wnid", "caption", "caption_flags"]).to_pydict()
        for source_id, wnid, text, flags in zip(*columns.values(), strict=True):
            yield Caption(source_id, wnid, text, tuple(flags))


@dataclass(eq=False)
class Shard:
    """One shard that this process makes."""

    claim: Claim
    start: int  # first line of the source index or the plan that it covers
    stop: int
    lines: list[dict[str, Any]]
    started: float = field(default_factory=time.monotonic)


class Workplace(Protocol):
    """Where a stage works, and on what: a run, or a set that is scored."""

    @property
    def folder(self) -> Path:
        """The folder that holds the shards and the locks."""
        ...

    @property
    def mark(self) -> Mark | None:
        """Tells the run in the folder from another one that is put in its place."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of what decides the bytes."""
        ...

    def span(self, shard: Path) -> tuple[int, int]:
        """First and one-past-last line of a shard."""
        ...

    def lines(self, shard: Path) -> list[dict[str, Any]]:
        """What a shard is made from."""
        ...


@dataclass
class Stage:
    """What one process does in a stage."""

    run: Workplace
    name: str  # ``caption``, ``generate``, or ``score-JUDGE``
    options: WorkOptions
    paths: Sequence[Path]  # of the shards that are asked for
    schema: pa.Schema
    device: str
    tuning: Mapping[str, str] = field(default_factory=dict)  # how the device computes, for the sidecars
    unused_weights: Mapping[str, int] = field(default_factory=dict)

    @contextmanager
    def at_work(self, what: str) -> Iterator[Progress]:
        """Be at work in the run folder, and show how far the stage is, what other processes finish included."""
        rows = {}
        for path in self.paths:
            start, stop = self.run.span(path)
            rows[path] = stop - start

        def finished() -> int:
            return sum(count for path, count in rows.items() if is_done(path))

        total, before = sum(rows.values()), finished()
        quiet = self.options.quiet or not current_worker().is_main
        with (
            working_in(self.run.folder, self.run.mark),
            Progress(what, total, before, others=lambda: finished() - before, quiet=quiet) as self.progress,
        ):
            yield self.progress

    def mine(self) -> list[Path]:
        """The shards in the order in which this process prefers them."""
        return current_worker().share(self.paths)

    def shards(self, paths: Sequence[Path], before_waiting: Callable[[], None] = lambda: None) -> Iterator[Shard]:
        """Claim one of these shards after another, until all are finished, here or elsewhere, or the budget is spent.
        `before_waiting` is called before this process waits for the others.
        """
        budget = Budget(self.options)
        claims = Claims(self.run.folder, paths, stage=self.name)
        for claim in claims.each(before_waiting=before_waiting, look=self.progress.look):
            if not budget.allows_another():
                claim.release()
                return
            yield Shard(claim, *self.run.span(claim.path), self.run.lines(claim.path))

    def write(
        self,
        shard: Shard,
        rows: Sequence[dict[str, Any]],
        rejected: Sequence[dict[str, str]],
        grid: Sequence[tuple[int, int, int]],
        seconds: float,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Write a shard, with a row or a rejection for each line, and its sidecar; count its rows as finished.

        `options` are those of this shard, in place of how the device computes.
        """
        path, lines = shard.claim.path, shard.stop - shard.start
        if len(rows) + len(rejected) != lines:
            raise RuntimeError(f"{path.name}: {len(rows)} rows and {len(rejected)} rejected of {lines} lines")
        flags = Counter(flag for row in rows for flag in flags_of(row))
        number, count = _number(path)
        worker = current_worker()

        def sidecar(sha256: str, size: int) -> layout.Sidecar:
            return layout.Sidecar(
                stage=self.name.partition("-")[0],
                shard=number,
                of=count,
                start=shard.start,
                stop=shard.stop,
                rows=len(rows),
                sha256=sha256,
                bytes=size,
                fingerprint=self.run.fingerprint,
                rejected=tuple(rejected),
                counts=dict(sorted(Counter(row["wnid"] for row in rows if "wnid" in row).items())),
                flags=dict(sorted(flags.items())),
                seconds=round(seconds, 3),
                device=describe_device(self.device),
                worker=f"{worker.rank} of {worker.world}",
                software=software(),
                grid=tuple(grid),
                options=dict(self.tuning if options is None else options),
                unused_weights=dict(self.unused_weights),
            )

        columns = {field.name: [row[field.name] for row in rows] for field in self.schema}
        write_shard(path, columns, self.schema, sidecar)
        self.progress.shard_done(len(rows))


def _number(path: Path) -> tuple[int, int]:
    """Number of a shard, and how many there are."""
    _, number, count = layout.shard_number(path) or ("", 0, 0)
    return number, count
