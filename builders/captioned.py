"""Captioned: the real images of a run with their captions, joined by source id.

>>> from builders.captioned import Captioned
>>> rows = Captioned(run="runs/shapes-cip").as_streaming_dataset("train")  # doctest: +SKIP
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.builder import Key

from builders.errors import DataError
from builders.runs import layout
from builders.runs.rows import source_features
from builders.runs.run_files import shards, table
from builders.sources import IndexEntry, open_source
from builders.variants import get_variant
from builders.variants.class_maps import own_variant
from builders.yaml import read_text


@dataclass
class CaptionedConfig(datasets.BuilderConfig):
    """The run folder, whose recipe names the source."""

    run: str | None = None


class Captioned(datasets.GeneratorBasedBuilder):
    """Readable source rows (image, label, wnid, class_name, source_id) with ``caption``, of finished caption shards.

    Raises DataError for an image that has changed since it was captioned.
    """

    BUILDER_CONFIG_CLASS = CaptionedConfig

    def _source(self) -> dict[str, Any]:
        file = layout.run_folder(str(self.config.run or None)) / layout.RECIPE
        fields = layout.recipe_fields(read_text(file, "recipe", "It is what makes a folder a run."), str(file))
        part: dict[str, Any] = fields.get("source") or {}
        if missing := {"variant", "split", "path", "revision"} - set(part):
            raise DataError(f"{file} is damaged: its source has no {min(missing)}.", "Build the run again.")
        if part.get("definition") is not None:
            own_variant(part["definition"], name=part["variant"])
        return part

    def _info(self) -> datasets.DatasetInfo:
        names = [info.name for info in get_variant(self._source()["variant"]).classes]
        features = source_features(names)
        features["caption"] = datasets.Value("string")
        return datasets.DatasetInfo(features=features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        split = self._source()["split"]
        folder = Path(self.config.run)
        files = [str(shard) for shard in shards(folder, layout.CAPTIONS)]
        if not files:
            raise DataError(f"{folder} has no finished captions yet.", f"Run: hfsyn caption {folder}")
        return [datasets.SplitGenerator(name=split, gen_kwargs={"files": files})]

    def _generate_examples(self, files: list[str]) -> Iterator[tuple[Key, dict[str, Any]]]:
        part = self._source()
        classes = get_variant(part["variant"]).by_wnid
        source = open_source(part["variant"], part["split"], path=part["path"], revision=part["revision"])
        for number, file in enumerate(files):
            captions = {row["source_id"]: row for row in pq.read_table(file).to_pylist()}
            for item, row in enumerate(source.read(_entries(Path(file), captions))):
                caption = captions[row.source_id]
                if hashlib.sha256(row.image).hexdigest() != caption["source_sha256"]:
                    raise DataError(f"{row.source_id} is not the image that was captioned.", "The source has changed.")
                yield Key(number, item), {**row.columns(classes[row.wnid]), "caption": caption["caption"]}


def _entries(shard: Path, captions: dict[str, Any]) -> list[IndexEntry]:
    sidecar = layout.load_sidecar(layout.sidecar_of(shard))
    path = shard.parent.parent / layout.SOURCE
    table(path, sidecar.fingerprint)
    index = pq.read_table(path).slice(sidecar.start, sidecar.stop - sidecar.start)
    return [IndexEntry(**line) for line in index.to_pylist() if line["source_id"] in captions]
