"""A run: a recipe and the folder in which it is carried out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from builders.runs import layout, run_files
from builders.runs.run_files import Marker
from builders.sources import IndexEntry, Source
from builders.stores.copies import local, present, readable
from builders.variants import ClassInfo, get_variant
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.pages.html import table, tag_of
from hfsyn.recipes.recipe import Recipe, fingerprint, stored_recipe
from hfsyn.runs.claims import Mark, mark_of
from hfsyn.runs.shards import StoredRows, image_of, pending


@dataclass(frozen=True)
class Run:
    """A prepared run folder."""

    folder: Path
    recipe: Recipe
    mark: Mark | None = field(default=None, compare=False, repr=False)  # see `mark_of`

    @cached_property
    def fingerprint(self) -> str:
        """Of the recipe."""
        return fingerprint(self.recipe)

    @property
    def split(self) -> str:
        """Name of the split, here and in the source."""
        return get_variant(self.recipe.source.variant).split(self.recipe.source.split)

    @cached_property
    def classes(self) -> dict[str, ClassInfo]:
        """ClassInfo of each wnid of the variant."""
        return dict(get_variant(self.recipe.source.variant).by_wnid)

    @property
    def class_names(self) -> list[str]:
        """Names of all classes of the variant in label order."""
        return [info.name for info in sorted(self.classes.values(), key=lambda info: info.index)]

    @cached_property
    def source_rows(self) -> int:
        """Real images in the source index."""
        return self.table(layout.SOURCE).rows

    @cached_property
    def left_out(self) -> Mapping[str, int]:
        """What lies in the source and is not in its index: how many by reason."""
        return self.table(layout.SOURCE).left_out

    @property
    def planned_rows(self) -> int | None:
        """Lines of the plan; None before there is one."""
        return self.table(layout.PLAN).rows if run_files.has_table(self.folder / layout.PLAN) else None

    def table(self, name: str) -> Marker:
        """What the marker states of source.parquet or plan.parquet; DataError where that is not as it was written."""
        return run_files.table(self.folder / name, self.fingerprint)

    def check(self) -> None:
        """Raise DataError if one of the tables is damaged."""
        self.table(layout.SOURCE)
        _ = self.planned_rows

    def checked(self, name: str) -> Path:
        """The path of source.parquet or plan.parquet, which is as it was written."""
        present(self.folder / name)
        self.table(name)
        return self.folder / name

    def caption_shards(self) -> list[Path]:
        """Paths of all caption shards, made or not."""
        return self._shards(layout.CAPTIONS, self.source_rows)

    def data_shards(self) -> list[Path]:
        """Paths of all data shards, made or not; the plan must be there."""
        rows = self.planned_rows
        if rows is None:
            said = f"{self.folder} has no plan yet: its captions are not finished."
            raise HfsynError(said, f"Run: hfsyn caption {self.folder}")
        return self._shards(layout.DATA, rows)

    def _shards(self, folder: str, rows: int) -> list[Path]:
        count = layout.shard_count(rows, self.recipe.store.shard_rows)
        return [self.folder / folder / layout.shard_name(self.split, number, count) for number in range(count)]

    def open_source(self) -> Source:
        """The real images."""
        return self.recipe.source.open()

    def dataset(self) -> Any:
        """The rows of the finished shards as a `datasets.Dataset`, in the order of the plan; see the card for columns.

        Raises HfsynError if no shard is finished, or a file of a finished run is missing.
        """
        from builders.runs.rows import ShardRows

        paths = run_files.shards(self.folder, layout.DATA)
        if not paths:
            raise HfsynError(f"{self.folder} has no finished shard yet.", f"Run: hfsyn generate {self.folder}")
        marks = [layout.load_sidecar(layout.sidecar_of(path)) for path in paths]
        entries = [
            layout.ShardEntry(f"{layout.DATA}/{path.name}", mark.rows, mark.bytes, mark.sha256)
            for path, mark in zip(paths, marks, strict=True)
        ]
        rows = ShardRows(files=[str(path) for path in paths], entries=entries, split=self.split)
        rows.download_and_prepare()
        return rows.as_dataset(self.split)

    def samples(self, count: int = 10) -> list[dict[str, Any]]:
        """At most `count` finished rows, of as many classes as can be, each with its ``image`` as an RGB PIL image."""
        stored = StoredRows(self.folder)
        wnids = stored.table(["wnid"])["wnid"].to_pylist()
        firsts = sorted(dict(zip(reversed(wnids), reversed(range(len(wnids))), strict=True)).values())
        others = sorted(set(range(len(wnids[: 2 * count]))) - set(firsts))
        rows = stored.read((firsts + others)[:count])
        return [{**row, "image": image_of(row)} for row in rows]

    def _repr_html_(self) -> str:
        rows = self.samples()
        keys = ("class_name", "caption", "prompt", "seed")
        shown = ({"image": tag_of(row["image"]), **{key: row[key] for key in keys}} for row in rows)
        return table(shown, f"{self.recipe.name}: {self.folder}{'' if rows else ', no finished shard yet'}")

    def span(self, shard: Path) -> tuple[int, int]:
        """First line, and one past the last, of source.parquet (a shard of captions) or plan.parquet that it covers."""
        total = self.source_rows if shard.parent.name == layout.CAPTIONS else self.planned_rows or 0
        _, number, _ = layout.shard_number(shard) or ("", 0, 0)
        return layout.shard_range(number, total, self.recipe.store.shard_rows)

    def lines(self, shard: Path) -> list[dict[str, Any]]:
        """The lines that a shard covers. Only the row groups that hold them are read."""
        start, stop = self.span(shard)
        rows: list[dict[str, Any]] = []
        first = 0
        name = layout.SOURCE if shard.parent.name == layout.CAPTIONS else layout.PLAN
        with pq.ParquetFile(self.checked(name)) as file:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                if first < stop and start < last:
                    rows += file.read_row_group(group)[max(0, start - first) : stop - first].to_pylist()
                first = last
        return rows


def load_run(folder: str | Path) -> Run:
    """Open a prepared run folder. Raises HfsynError if it is not one."""
    path = layout.run_folder(local(folder))
    mark = mark_of(path)  # before the recipe is read, so that another run that is put there meanwhile is noticed
    found = Run(path, stored_recipe(path), mark)
    if layout.sidecar_of(path / layout.SOURCE).exists():
        run_files.marker_of(path / layout.SOURCE, found.fingerprint)
    return found


def index_entries(lines: Sequence[dict[str, Any]]) -> list[IndexEntry]:
    """Lines of source.parquet as index entries."""
    return [IndexEntry(**line) for line in lines]


REFUSES = "the model refuses it"
"""How the reason begins for an image that could be read, but that the captioner or language model refuses."""


def rejected_lines(run: Run, stages: Sequence[str] = ("caption", "generate")) -> Iterator[dict[str, str]]:
    """One dict for every image that was set aside, in the order of stages and shards."""
    for stage in stages:
        for shard in run.caption_shards() if stage == "caption" else run.data_shards():
            for entry in layout.load_sidecar(layout.sidecar_of(shard)).rejected:
                yield {"stage": stage, **entry}


def unused_weights(sidecars: Iterable[layout.Sidecar]) -> dict[str, dict[str, int]]:
    """How many weights of the models are not used, by stage and kind."""
    found: dict[str, dict[str, int]] = {}
    for sidecar in sidecars:
        if sidecar.unused_weights:
            found.setdefault(sidecar.stage, {}).update(sidecar.unused_weights)
    return found


def unreadable_classes(run: Run, rejected: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """``wnid``, ``name`` and number of ``images`` of each class all of whose images are among these rejected ones; and
    how many of them were ``refused`` by a model, where any were.
    """
    lines = list(rejected)
    if not lines:
        return []
    aside = Counter(line["wnid"] for line in lines)
    refused = Counter(line["wnid"] for line in lines if line["reason"].startswith(REFUSES))
    counted = pq.read_table(readable(run.folder / layout.SOURCE), columns=["wnid"])["wnid"].value_counts().to_pylist()
    there = {count["values"]: count["counts"] for count in counted}
    return [
        {"wnid": wnid, "name": run.classes[wnid].name, "images": images}
        | ({"refused": refused[wnid]} if refused[wnid] else {})
        for wnid, images in sorted(aside.items(), key=lambda item: run.classes[item[0]].index)
        if images == there.get(wnid)
    ]


def check_complete(stage: str, shards: Sequence[Path], run: Run, code: int = ExitCode.PARTIAL) -> None:
    """Refuse to go on before all these shards of a stage are finished."""
    if left := pending(shards):
        said = f"{run.folder} is not complete: {len(shards) - len(left)} of {len(shards)} {stage} shards are done."
        raise HfsynError(said, f"Run: hfsyn {stage} {run.folder}", code=code)
