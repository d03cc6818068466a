"""A run: a recipe and the folder in which it is carried out. Prepare it, open it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import and_more, near_path
from builders.files import atomic_text, make_folder
from builders.runs import layout, run_files
from builders.runs.layout import load_sidecar, shard_count, shard_name, shard_range, sidecar_of
from builders.runs.run_files import Marker
from builders.sources import IndexEntry, Source
from builders.variants import ClassInfo, get_variant
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.pages.html import table, tag_of
from hfsyn.recipes.recipe import Recipe, difference, dump_recipe, fingerprint, stored_recipe
from hfsyn.runs.claims import Mark, clear_remains, lock, mark_of, put_away, removable, replaced
from hfsyn.runs.inputs import check_order, check_texts, opened, strategy_source
from hfsyn.runs.pins import pinned
from hfsyn.runs.shards import StoredRows, image_of, write_groups
from hfsyn.workers import current_worker

SOURCE_SCHEMA = pa.schema(
    [("source_id", pa.string()), ("wnid", pa.string()), ("location", pa.string()), ("row", pa.int64())]
)


@dataclass(frozen=True)
class Run:
    """A prepared run folder."""

    folder: Path
    recipe: Recipe
    mark: Mark | None = field(default=None, compare=False, repr=False)
    """See `mark_of`."""

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
        """Lines of the plan; None as long as there is none."""
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
        self.table(name)
        return self.folder / name

    def caption_shards(self) -> list[Path]:
        """Paths of all caption shards, made or not."""
        return self._shards(layout.CAPTIONS, self.source_rows)

    def data_shards(self) -> list[Path]:
        """Paths of all data shards, made or not; the plan must be there."""
        rows = self.planned_rows
        if rows is None:
            raise HfsynError(
                f"{self.folder} has no plan yet: its captions are not finished.", f"Run: hfsyn caption {self.folder}"
            )
        return self._shards(layout.DATA, rows)

    def _shards(self, folder: str, rows: int) -> list[Path]:
        count = shard_count(rows, self.recipe.store.shard_rows)
        return [self.folder / folder / shard_name(self.split, number, count) for number in range(count)]

    def open_source(self) -> Source:
        """The real images."""
        return opened(self.recipe.source)

    def dataset(self) -> Any:
        """The rows of the finished shards as a `datasets.Dataset`, in the order of the plan; see the card for columns.

        Raises:
            HfsynError: no shard is finished, or a file of a finished run is missing.
        """
        from builders.runs.rows import ShardRows

        paths = run_files.shards(self.folder, layout.DATA)
        if not paths:
            raise HfsynError(f"{self.folder} has no finished shard yet.", f"Run: hfsyn generate {self.folder}")
        marks = [load_sidecar(sidecar_of(path)) for path in paths]
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

    def shard_lines(self, shard: Path, name: str, total: int) -> tuple[int, int, list[dict[str, Any]]]:
        """First line, one past the last, and the lines of source.parquet or plan.parquet that a shard covers. Only the
        row groups that hold them are read.
        """
        _, number, _ = layout.shard_number(shard) or ("", 0, 0)
        start, stop = shard_range(number, total, self.recipe.store.shard_rows)
        rows: list[dict[str, Any]] = []
        first = 0
        with pq.ParquetFile(self.checked(name)) as file:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                if first < stop and start < last:
                    rows += file.read_row_group(group)[max(0, start - first) : stop - first].to_pylist()
                first = last
        return start, stop, rows


def prepare(recipe: Recipe, out: str | Path, *, overwrite: bool = False) -> Run:
    """Make a run folder ready, or open the one that is there if it belongs to this recipe.

    Everything is checked before anything is written or, with `overwrite`, deleted: the source is indexed, models are
    found and their revisions pinned. Then the source index and the recipe are written. Several processes may call this
    at once.

    Raises:
        HfsynError: the folder holds another recipe's run (the differing fields are named) or files that are not ours;
            the source is missing or empty; a model is not there; with `overwrite`, another process works in the folder,
            or has put another run there meanwhile.
    """
    folder = Path(out).expanduser()
    clear_remains(folder)
    old = removable(folder) if overwrite else None
    if old is None and (found := run_in(recipe, folder)) is not None:
        if found.recipe.name != recipe.name and current_worker().is_main:
            print(f"{folder} keeps the name that it began with, {found.recipe.name}.", file=sys.stderr)
        if not run_files.has_table(folder / layout.SOURCE):
            index, left_out = _indexed(found.recipe)
            with lock_new(folder):
                _write_index(found, index, left_out)
        return found
    check_order(recipe)
    recipe = pinned(recipe)
    index, left_out = _indexed(recipe)
    check_texts(recipe, index["source_id"])
    if old is not None:
        put_away(folder, old)
    with lock_new(folder):
        if layout.is_run_folder(folder):  # another process was faster
            if overwrite:
                raise replaced(folder)
            _refuse_other(load_run(folder), recipe)
        else:
            new = Run(folder, recipe)
            _refuse_remains(folder, new.fingerprint)
            _write_index(new, index, left_out)
            if (source := strategy_source(recipe)) is not None:
                atomic_text(folder / layout.STRATEGY, source)
            # Last: the recipe is what makes the folder a run.
            atomic_text(folder / layout.RECIPE, dump_recipe(recipe))
    return load_run(folder)


def run_in(recipe: Recipe, folder: Path) -> Run | None:
    """The run of a recipe that a folder holds; None where there is room for one. HfsynError where the folder holds
    another recipe's run, or files that are not ours.
    """
    if folder.exists() and not folder.is_dir():
        raise HfsynError(f"{folder} is a file.", "Name a folder for --out.")
    if layout.is_run_folder(folder):
        found = load_run(folder)
        _refuse_other(found, pinned(recipe, found.recipe))
        return found
    if alien := layout.strangers(folder):
        shown = ", ".join(alien[:5]) + and_more(len(alien), 5)
        raise HfsynError(
            f"{folder} holds files that are not of a run of hfsyn: {shown}.", "Name an empty or new folder for --out."
        )
    if not run_files.has_table(folder / layout.SOURCE):
        _refuse_remains(folder, None)
    return None


def _refuse_remains(folder: Path, fingerprint: str | None) -> None:
    """Refuse a folder that holds parts of a run without its recipe, unless its index was made for this recipe."""
    index, begun = folder / layout.SOURCE, (layout.SOURCE, "source.json", layout.STRATEGY)  # before there is a recipe
    parts = [name for name in sorted(layout.KNOWN) if name not in begun and not name.startswith(".")]
    found = [name for name in parts if (folder / name).exists()]
    if index.exists():
        try:
            names = pq.read_schema(index).names
        except pa.ArrowException:
            names = []
        found += [layout.SOURCE] if names != SOURCE_SCHEMA.names else []
    if not found or (run_files.has_table(index) and run_files.marker_of(index).fingerprint == fingerprint):
        return
    raise HfsynError(
        f"{folder} holds parts of a run ({', '.join(found)}) without the {layout.RECIPE} that they were made with.",
        f"Put that {layout.RECIPE} back, remove the folder yourself, or name another --out.",
    )


def lock_new(folder: Path) -> Any:
    """The lock under which a run folder is made, with its parents."""
    try:
        make_folder(folder)
    except OSError as error:
        raise HfsynError(
            f"The folder {folder} cannot be made: {error.strerror}.", "Name another --out.", code=ExitCode.PREFLIGHT
        ) from None
    return lock(folder, "prepare")


def load_run(folder: str | Path) -> Run:
    """Open a prepared run folder.

    Raises:
        HfsynError: it is not one.
    """
    path = Path(folder).expanduser()
    if not layout.is_run_folder(path):
        raise HfsynError(
            f"{path} is not a run folder: there is no {layout.RECIPE} in it.{near_path(path)}",
            "`hfsyn build RECIPE --out RUN` makes one.",
        )
    mark = mark_of(path)  # before the recipe is read, so that another run that is put there meanwhile is noticed
    found = Run(path, stored_recipe(path), mark)
    if sidecar_of(path / layout.SOURCE).exists():
        run_files.marker_of(path / layout.SOURCE, found.fingerprint)
    return found


def _refuse_other(found: Run, recipe: Recipe) -> None:
    if fields := difference(found.recipe, recipe):
        shown = "; ".join(f"{key} is {old!r} there, {new!r} here" for key, old, new in fields[:6])
        raise HfsynError(
            f"{found.folder} holds another recipe's run: {shown}{and_more(len(fields), 6)}.",
            "Name another --out, or --overwrite to delete that run.",
        )


def _indexed(recipe: Recipe) -> tuple[dict[str, list[Any]], Mapping[str, int]]:
    """The index of a recipe's source, as the columns of source.parquet (less memory), and what it leaves out."""
    index: dict[str, list[Any]] = {name: [] for name in SOURCE_SCHEMA.names}
    source = opened(recipe.source)
    for entry in source.index():
        for name, column in index.items():
            column.append(getattr(entry, name))
    if not index["source_id"]:
        raise HfsynError(
            f"The source {recipe.source.variant} ({recipe.source.split}) holds no image.",
            "Check source.path and source.split.",
        )
    return index, source.left_out


def _write_index(run: Run, index: dict[str, list[Any]], left_out: Mapping[str, int]) -> None:
    """Write source.parquet and its marker; captions that are there already must be of the same images."""
    for shard in layout.finished_shards(run.folder / layout.CAPTIONS):
        sidecar = load_sidecar(sidecar_of(shard))
        if sidecar.fingerprint != run.fingerprint:
            raise HfsynError(
                f"{run.folder} holds captions of another recipe, or of an hfsyn with another format.",
                "Name another --out, or --overwrite to delete that run.",
            )
        known = pq.read_table(shard, columns=["source_id"])["source_id"].to_pylist()
        aside = {entry["id"] for entry in sidecar.rejected}
        if [i for i in index["source_id"][sidecar.start : sidecar.stop] if i not in aside] != known:
            raise HfsynError(
                f"The source of {run.folder} is not what it was when this run began: {shard.name} is of other images.",
                "Put the source back as it was, or build into another folder.",
            )
    path, size = run.folder / layout.SOURCE, run.recipe.store.shard_rows
    groups = (
        {name: column[start : start + size] for name, column in index.items()}
        for start in range(0, len(index["source_id"]), size)
    )
    rows = write_groups(path, groups, SOURCE_SCHEMA)
    run_files.write_marker(path, rows, run.fingerprint, left_out)


def index_entries(lines: Sequence[dict[str, Any]]) -> list[IndexEntry]:
    """Lines of source.parquet as index entries."""
    return [IndexEntry(**line) for line in lines]


REFUSES = "the model refuses it"
"""How the reason begins for an image that could be read, but that the captioner or language model refuses."""


def rejected_lines(run: Run, stages: Sequence[str] = ("caption", "generate")) -> Iterator[dict[str, str]]:
    """One dict for every image that was set aside, in the order of stages and shards."""
    for stage in stages:
        for shard in run.caption_shards() if stage == "caption" else run.data_shards():
            for entry in load_sidecar(sidecar_of(shard)).rejected:
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
    counted = pq.read_table(run.folder / layout.SOURCE, columns=["wnid"])["wnid"].value_counts().to_pylist()
    there = {count["values"]: count["counts"] for count in counted}
    return [
        {"wnid": wnid, "name": run.classes[wnid].name, "images": images}
        | ({"refused": refused[wnid]} if refused[wnid] else {})
        for wnid, images in sorted(aside.items(), key=lambda item: run.classes[item[0]].index)
        if images == there.get(wnid)
    ]


def incomplete(stage: str, done: int, total: int, run: Run) -> HfsynError:
    """The error of a stage that needs all shards of the one before."""
    return HfsynError(
        f"{run.folder} is not complete: {done} of {total} {stage} shards are done.",
        f"Run: hfsyn {stage} {run.folder}",
        code=ExitCode.PARTIAL,
    )
