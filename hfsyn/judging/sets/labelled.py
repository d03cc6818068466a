"""The classes and names of the rows of tables: of Parquet files on the disk, and of rows of `datasets`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from builders.sources.cards import Tables
from builders.sources.columns import Columns, UnknownLabelsError, find_columns, wnids_of
from builders.sources.parquet import ParquetSource, different_images
from builders.variants import Choice, Variant, get_variant, own_class
from builders.wording import quoted
from hfsyn.errors import HfsynError

T = TypeVar("T")


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Keep the progress bars of `datasets` out of logs."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


@dataclass(frozen=True)
class Parts:
    """The Parquet files of one split, on the disk."""

    root: Path
    files: tuple[str, ...]
    """Relative to `root`."""
    split: str
    revision: str | None
    """A run folder's recipe fingerprint, or a commit."""
    tables: Tables | None = None
    """What is known of them; None for those of a run, which say all themselves."""
    choice: Choice = field(default_factory=Choice)
    trusted: bool = False
    """Whether they are from the own repository of the variant that is asked for."""
    foreign: bool = False
    """Whether they come from elsewhere, so that the paths in them mean nothing here."""

    columns: Columns | None = None
    """Those of all files, where they must be the same."""

    @property
    def paths(self) -> list[str]:
        """The files, to be opened."""
        return [str(self.root / name) for name in self.files]

    @property
    def named(self) -> bool:
        """Whether the split is the data's own."""
        return self.tables is None or self.tables.named


@dataclass(frozen=True)
class Labelled:
    """The rows with a label."""

    image: str
    """The column of the images."""
    wnids: Sequence[str]
    ids: Sequence[str]
    rows: Sequence[int] | None
    """Which rows they are, None where all are."""
    folders: Sequence[Path] | None = None
    """The folder of each row's file, where paths in it may be followed."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Class names that the rows themselves say."""
    left_out: Mapping[str, int] = field(default_factory=dict)


def table_rows(parts: Parts, sizes: Sequence[int], columns: Sequence[str]) -> Any:
    """Some columns of Parquet files as a memory-mapped `datasets.Dataset`; `sizes` are their numbers of rows."""
    from datasets import Dataset

    # `datasets` stumbles over a file without rows.
    paths = [path for path, size in zip(parts.paths, sizes, strict=True) if size]
    with bars_on_terminals_only():
        return Dataset.from_parquet(paths, split=parts.split, columns=list(columns))


def label_files(parts: Parts, sizes: Sequence[int], variant: str | None, where: str) -> Labelled:
    """The labels of the rows of Parquet files, each file by its own columns; `sizes` are their numbers of rows.

    Raises:
        HfsynError: the files have no rows or no such columns, or labels match no variant.
    """
    import fsspec
    import pyarrow.parquet as pq

    schemas = [pq.read_schema(path) for path in parts.paths]
    names = parts.tables.names if parts.tables else {}
    there = [find_columns(schema, where, choice=parts.choice, names=names) for schema in schemas]
    if not sum(sizes):
        raise HfsynError(f"The split {parts.split!r} of {where} is empty.", "Name another split or dataset.")
    if len(images := sorted({columns.image for columns in there})) > 1:
        raise different_images(where, images)
    if all(map(_ours, schemas)):
        wanted = sorted({"wnid", "class_name", str(there[0].id), *(label.column for label in there[0].labels)})
        rows = table_rows(parts, sizes, wanted)
        return label_rows(rows, there[0], variant, parts.split)
    tables = parts.tables or Tables({parts.split: parts.files})

    def opened(found: Variant) -> ParquetSource:
        source = ParquetSource(
            found,
            fsspec.filesystem("file"),
            str(parts.root),
            parts.files,
            where,
            tables=tables,
            choice=parts.choice,
            trusted=parts.trusted,
        )
        source.check()
        return source

    source = of_some_variant(opened, variant, where)
    starts = dict(zip(parts.files, accumulate([0, *sizes]), strict=False))
    entries = list(source.index())
    numbers = [starts[entry.location] + entry.row for entry in entries]
    # The same rows in a file of another name are the same images: what is called by its row has the row's number alone.
    named = source.rows_have_names
    ids = [entry.source_id if named else f"{parts.split}/{n}" for entry, n in zip(entries, numbers, strict=True)]
    folders = None if parts.foreign else [(parts.root / entry.location).parent for entry in entries]
    return Labelled(images[0], [entry.wnid for entry in entries], ids, numbers, folders, left_out=source.left_out)


def label_rows(rows: Any, columns: Columns, variant: str | None, split: str) -> Labelled:
    """The labels of the rows of a `datasets.Dataset`.

    Raises:
        HfsynError: labels match no variant.
    """
    wanted = dict.fromkeys([*(label.column for label in columns.labels), *([columns.id] if columns.id else [])])
    table = rows.select_columns(list(wanted)).with_format("arrow")[:]
    own = _own_names(rows) if variant is None else {}
    if own:
        found: Sequence[str | None] = table.column("wnid").to_pylist()
    else:
        found = of_some_variant(lambda one: wnids_of(columns, table, one)[0], variant, columns.where)
    names = columns.names(table) if columns.id else _names(rows, columns.image, split)
    keep = [number for number, wnid in enumerate(found) if wnid is not None]
    without = len(found) - len(keep)
    return Labelled(
        columns.image,
        [str(found[number]) for number in keep],
        [str(names[number]) for number in keep],
        keep if without else None,
        names=own,
        left_out={"row without a label": without} if without else {},
    )


def of_some_variant(read: Callable[[Variant], T], variant: str | None, where: str) -> T:
    """What `read` gives for the stated variant, or else for the first known one that has all of the labels.

    Raises:
        HfsynError: some labels are no class of it, or of any; they are listed.
    """
    missing: list[tuple[str, ...]] = []
    for candidate in [variant] if variant else ["imagenet-1k", "shapes"]:
        try:
            return read(get_variant(candidate))
        except UnknownLabelsError as error:
            missing.append(error.labels)
    fewest = min(missing, key=len)
    meant = f"of the variant {variant!r}" if variant else "of ImageNet-1k"
    raise HfsynError(
        f"{len(fewest)} of the labels of {where} are not classes {meant}: {quoted(fewest)}.",
        "A label is matched by wnid, or by a class name or WordNet lemma that means one class only. Add a column "
        "'wnid', rename the labels, or state the variant: VARIANT=PLACE, or CLASSMAP.yaml=PLACE.",
    )


def class_names(wnids: Iterable[str], variant: str | None = None) -> dict[str, str]:
    """The class name of each wnid, sorted by wnid: as the stated variant has it, where there is one; of an id that
    nobody here has described, the id.
    """
    stated = get_variant(variant).by_wnid if variant else {}
    drawn, known = get_variant("shapes").by_wnid, get_variant("imagenet-1k").by_wnid
    found = {w: stated.get(w) or own_class(w) or known.get(w) or drawn.get(w) for w in sorted(wnids)}
    return {wnid: info.name if info else wnid for wnid, info in found.items()}


def _ours(schema: Any) -> bool:
    """Whether rows say class and id themselves, as those do that hfsyn wrote."""
    return {"wnid", "class_name"} <= {*schema.names} and bool({"sample_id", "source_id"} & {*schema.names})


def _own_names(rows: Any) -> dict[str, str]:
    """Id -> name of the classes of rows that hfsyn wrote, where some are of a class map that need not be here.

    Such rows say the identity of their class themselves. Empty for any others.
    """
    if not {"wnid", "class_name"} <= rows.features.keys() or not {"sample_id", "source_id"} & rows.features.keys():
        return {}
    table = rows.select_columns(["wnid", "class_name"]).with_format("arrow")[:]
    pairs = table.group_by(["wnid", "class_name"]).aggregate([]).to_pylist()
    names = {pair["wnid"]: pair["class_name"] for pair in pairs}
    known = {*get_variant("imagenet-1k").by_wnid, *get_variant("shapes").by_wnid}
    told = None not in names and all(names.values()) and len(names) == len(pairs)
    return dict(sorted(names.items())) if told and not names.keys() <= known else {}


def _names(rows: Any, column: str, split: str) -> list[str]:
    """The files' own names where the images have them, each its own; else their numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    images = rows.data.column(column)
    if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
        names = pc.struct_field(images, "path").to_pylist()
        if all(names) and len(set(names)) == len(rows):
            return [f"{split}/{name}" for name in names]
    return [f"{split}/{number}" for number in range(len(rows))]
