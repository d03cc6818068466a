"""What the two costly stages of a run have in common: shards, progress, and writing a shard with its sidecar.

A stage is: pending shards, their lines, batches, rows, ``write_shard``. Any number of processes may run a stage at
once, each in its own time: they share shards by claims (see `hfsyn.runs.claims`), and what one of them makes
does not depend on the others. Running a stage again continues it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from builders.runs import layout
from builders.runs.layout import Sidecar, shard_number
from hfsyn.progress import Progress
from hfsyn.runs.run import Run
from hfsyn.runs.shards import is_done, write_shard
from hfsyn.software import describe_device, software
from hfsyn.workers import current_worker


@dataclass(frozen=True)
class Stage:
    """What the two costly stages have in common: shares, progress, and writing a shard with its sidecar."""

    run: Run
    name: str
    device: str

    def mine(self, paths: Sequence[Path]) -> list[Path]:
        """The shards in the order in which this process prefers them."""
        return current_worker().share(paths)

    def progress(self, what: str, paths: Sequence[Path], total: int, *, quiet: bool) -> Progress:
        """Progress over the lines of these shards; what other processes finish is counted too."""
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
        seconds: float,
        grid: tuple[tuple[int, int, int], ...] = (),
        options: Mapping[str, str] | None = None,
        unused_weights: Mapping[str, int] | None = None,
    ) -> None:
        """Write a shard of lines `start` to `stop` and its sidecar, which says how many seconds it took."""
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
                seconds=round(seconds, 3),
                device=describe_device(self.device),
                worker=f"{worker.rank} of {worker.world}",
                software=software(),
                grid=grid,
                options=dict(options or {}),
                unused_weights=dict(unused_weights or {}),
            )

        columns = {field.name: [row[field.name] for row in rows] for field in schema}
        write_shard(path, columns, schema, sidecar)
