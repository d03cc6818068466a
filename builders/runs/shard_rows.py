"""The base of `datasets` builders that read shards; see `builders.runs.shard`."""

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
"""The path or URL of each shard, and its entry in the manifest."""


@dataclass
class ShardRowsConfig(datasets.BuilderConfig):
    """The shards of one split."""

    files: Sequence[str] = ()
    """Paths or URLs; those of a published version contain the commit, so that each has a separate cache."""
    entries: Sequence[ShardEntry] = ()
    split: str = "train"


class ShardRows(datasets.ArrowBasedBuilder):
    """Rows in the order of the shards; one shard of the builder for each of them."""

    BUILDER_CONFIG_CLASS = ShardRowsConfig

    def _shards(self) -> dict[str, Files]:
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
    """A local file, or one on the Hub, which is read by ranges."""
    return fsspec.open(path, "rb").open() if path.startswith("hf://") else Path(path).open("rb")
