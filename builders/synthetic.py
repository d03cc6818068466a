"""Synthetic: the finished shards of a run folder as a `datasets` builder.

>>> from builders.synthetic import Synthetic
>>> rows = Synthetic(run="runs/shapes-cip").as_streaming_dataset("train")  # doctest: +SKIP

A finished run folder also loads with plain ``load_dataset(folder)``. This builder reads unfinished ones too: exactly
the shards whose sidecar stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key

from builders import layout
from builders.errors import DataError


@dataclass
class SyntheticConfig(datasets.BuilderConfig):
    """Where the run folder is."""

    run: str | None = None


class Synthetic(datasets.ArrowBasedBuilder):
    """Rows of a run folder, in the order of the plan; one shard of the builder for each finished shard of the run."""

    BUILDER_CONFIG_CLASS = SyntheticConfig

    def _shards(self) -> dict[str, list[str]]:
        if not self.config.run:
            raise DataError("No run folder was named.", 'For instance: Synthetic(run="runs/shapes-cip").')
        folder = Path(self.config.run)
        if not layout.is_run_folder(folder):
            raise DataError(f"{folder} is no run folder.", "`hfsyn build RECIPE --out RUN` makes one.")
        found: dict[str, list[str]] = {}
        for shard in layout.finished_shards(folder / layout.DATA):
            split, _, _ = layout.shard_number(shard) or ("", 0, 0)
            found.setdefault(split, []).append(str(shard))
        if not found:
            raise DataError(f"{folder} has no finished shard yet.", f"Run: hfsyn generate {folder}")
        return found

    def _info(self) -> datasets.DatasetInfo:
        first = next(iter(self._shards().values()))[0]
        return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(pq.read_schema(first)))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"files": files}) for split, files in self._shards().items()
        ]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[Key, pa.Table]]:
        for number, file in enumerate(files):
            with pq.ParquetFile(file) as parquet:
                for group in range(parquet.num_row_groups):
                    yield Key(number, group), parquet.read_row_group(group)
