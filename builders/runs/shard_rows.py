"""The rows of shards as `datasets` builders give them; see `builders.runs.shard` for how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
from datasets.builder import Key

from builders.runs.layout import ShardEntry
from builders.runs.shard import Shard

Files = Sequence[tuple[str, ShardEntry | None]]
"""A path or address of each shard, and what the manifest states of it."""


@dataclass
class ShardRowsConfig(datasets.BuilderConfig):
    """The shards of one split."""

    files: Sequence[str] = ()
    """Paths or addresses. Of a published version the commit is in them, so that each has a cache of its own."""
    entries: Sequence[ShardEntry] = ()
    split: str = "train"


class ShardRows(datasets.ArrowBasedBuilder):
    """Rows in the order of the shards; one shard of the builder for each of them."""

    BUILDER_CONFIG_CLASS = ShardRowsConfig

    def _shards(self) -> dict[str, Files]:
        """The shards of each split."""
        return {self.config.split: list(zip(self.config.files, self.config.entries, strict=True))}

    def _info(self) -> datasets.DatasetInfo:
        path, entry = next(iter(self._shards().values()))[0]
        with _open(path) as handle:
            return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(Shard(handle, entry, path).schema))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"files": list(files)})
            for split, files in self._shards().items()
        ]

    def _generate_tables(self, files: Files) -> Iterator[tuple[Key, pa.Table]]:
        for number, (path, entry) in enumerate(files):
            with _open(path) as handle:
                for portion, batch in enumerate(Shard(handle, entry, path).portions()):
                    yield Key(number, portion), pa.Table.from_batches([batch])


def _open(path: str) -> Any:
    """A file on the disk, or one at a commit on the Hub, which is read by ranges."""
    return fsspec.open(path, "rb").open() if path.startswith("hf://") else Path(path).open("rb")
