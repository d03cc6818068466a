"""Tables of a set: its Parquet files, on the disk or at one commit on the Hub, and the class and id of each row."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from builders.errors import first_line, quoted
from builders.sources.cards import Tables
from builders.sources.columns import Columns, UnknownLabelsError, find_columns, wnids_of
from builders.sources.parquet import ParquetSource, different_images
from builders.variants import Choice, Variant, get_variant, own_class
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.sets.references import Reference, pick_split

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """The Parquet files of one split."""

    root: str  # the folder, or the ``hf://`` address of a commit
    tables: Tables
    split: str  # the tables' own name of it
    revision: str | None  # a run folder's recipe fingerprint, or a commit
    choice: Choice = field(default_factory=Choice)  # which columns, as far as that is known
    trusted: bool = False  # whether this is the variant's own repository
    hub: str | None = None  # the repository on the Hub; paths within its tables mean nothing on this machine
    filesystem: Any = None  # of the Hub, until the files are downloaded

    @property
    def files(self) -> tuple[str, ...]:
        """The files, relative to `root`."""
        return self.tables.splits[self.split]

    @property
    def paths(self) -> list[str]:
        """The files' paths or addresses."""
        return [f"{self.root}/{name}" for name in self.files]

    def schema(self, path: str) -> Any:
        """The Arrow schema of one of the files; nothing else of it is read."""
        import pyarrow.parquet as pq

        with self.filesystem.open(path, cache_type="none") if self.filesystem else Path(path).open("rb") as stream:
            return pq.read_schema(stream)

    def group_bytes(self) -> int:
        """Bytes of a row group of the first file, as it is in memory."""
        import pyarrow.parquet as pq

        path = self.paths[0]
        with self.filesystem.open(path, cache_type="none") if self.filesystem else Path(path).open("rb") as stream:
            found = pq.read_metadata(stream)
        return int(found.row_group(0).total_byte_size) if found.num_row_groups else 0

    def columns(self, schema: Any, where: str) -> Columns:
        """The image and label columns of a file with this schema."""
        return find_columns(schema, where, choice=self.choice, names=self.tables.names)

    def downloaded(self) -> Parts:
        """The same files in the local cache."""
        from huggingface_hub import snapshot_download

        from builders.hub import Patience, patiently

        assert self.hub is not None
        repo_id, commit, files = self.hub, self.revision, list(self.files)
        folder = patiently(
            lambda: snapshot_download(repo_id, repo_type="dataset", revision=commit, allow_patterns=files),
            Patience(repo_id, revision=commit),
        )
        return replace(self, root=folder, filesystem=None)


def find_rows(
    found: Reference, split: str | None, default: Sequence[str], *, streaming: bool = False
) -> tuple[Any, str, str]:
    """The rows of a dataset on the Hub (or its `Parts`), their split, and the commit that they are from.

    `datasets` alone would silently take another version from its cache if the Hub does not answer. A dataset that hfsyn
    published is read as such, from the cache too if it is complete there; any other only online. Raises HfsynError if
    there is no such dataset, revision, configuration or split, or if the Hub cannot be asked.
    """
    from builders.hub import Patience, is_offline, patiently, resolve
    from builders.published import find_published, load_version, open_published
    from builders.sources.tables import open_repository

    revision = found.revision or "main"
    entry = find_published(found.place, revision, found.config)
    if entry is not None or is_offline():
        entry = entry or open_published(found.place, revision, found.config)  # which says what is wrong
        rows = load_version(found.place, revision, entry.config_name, split=split, streaming=streaming)
        return rows, entry.manifest().split, entry.sha
    sha, choice = resolve(found.place, revision, None).sha, _choice(found)
    there = patiently(
        lambda: open_repository(found.place, sha, choice.config, converted=False), Patience(found.place, revision=sha)
    )
    if not there.tables.splits:
        return _load_other_formats(found, sha, split, default, streaming)
    picked = pick_split(list(there.tables.splits), split, default, str(found))
    address = f"hf://datasets/{found.place}@{sha}"
    parts = Parts(address, there.tables, picked, sha, choice, hub=found.place, filesystem=there.filesystem)
    return parts, picked, sha


def _choice(found: Reference) -> Choice:
    """What is known of a repository's tables: from the reference, and from the variant if it is its own repository."""
    variant = get_variant(found.variant) if found.variant else None
    hub = variant.hub if variant else None
    if variant is None or hub is None or hub.repo_id != found.place:
        known = variant.tables if variant else Choice()
        return replace(known, config=found.config or known.config)
    return Choice(found.config or hub.config, hub.image_column, hub.label_column)


def find_variant_rows(variant: Variant, split: str, revision: str | None) -> Parts:
    """The tables of a split of a variant's Hub repository; raises as `builders.sources.open_source`."""
    from builders.sources.tables import open_split

    # This reader checks access, revision, files and label names, and reports plainly what is wrong.
    there, theirs = open_split(variant, split, revision=revision)
    hub = variant.hub
    assert hub is not None
    choice = Choice(None, hub.image_column, hub.label_column)
    address = f"hf://datasets/{hub.repo_id}@{there.commit}"
    return Parts(address, there.tables, theirs, there.commit, choice, True, hub.repo_id, there.filesystem)


def _load_other_formats(
    found: Reference, sha: str, split: str | None, default: Sequence[str], streaming: bool
) -> tuple[Any, str, str]:
    """As `find_rows`, of a dataset that has no Parquet files."""
    from datasets import get_dataset_split_names, load_dataset

    try:
        picked = pick_split(
            get_dataset_split_names(found.place, found.config, revision=sha), split, default, str(found)
        )
        rows = load_dataset(found.place, found.config, split=picked, revision=sha, streaming=streaming)
    except (ValueError, OSError, RuntimeError) as error:
        raise HfsynError(f"{found} cannot be read: {first_line(error)}", "Check its page on the Hub.") from None
    return rows, picked, sha


def table_rows(parts: Parts, sizes: Sequence[int], columns: Sequence[str]) -> Any:
    """Some columns of Parquet files as a memory-mapped `datasets.Dataset`; `sizes` are the files' numbers of rows."""
    from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    paths = [path for path, size in zip(parts.paths, sizes, strict=True) if size]  # `datasets` fails on an empty file
    hide_bars = not sys.stderr.isatty() and not are_progress_bars_disabled()  # they do not belong in logs
    if hide_bars:
        disable_progress_bars()
    try:
        return Dataset.from_parquet(paths, split=parts.split, columns=list(columns))
    finally:
        if hide_bars:
            enable_progress_bars()


def stream_tables(files: Sequence[str]) -> Any:
    """The rows of Parquet files, on the Hub or on the disk, as a `datasets.IterableDataset`."""
    from datasets import load_dataset

    try:
        return load_dataset("parquet", data_files={"train": list(files)}, split="train", streaming=True)
    except (ValueError, OSError, RuntimeError) as error:
        said = f"The rows cannot be read: {first_line(error)}"
        raise HfsynError(said, "Check the network and the disk.", code=ExitCode.PREFLIGHT) from None


@dataclass(frozen=True)
class Labelled:
    """The rows with a label."""

    image: str  # the column of the images
    wnids: Sequence[str]
    ids: Sequence[str]
    rows: Sequence[int] | None = None  # row number of each; None if every row has a label
    folders: Sequence[Path] | None = None  # the folder of each row's file; None if paths in the table mean nothing here
    names: Mapping[str, str] = field(default_factory=dict)
    """Class names that the rows themselves give; empty if they are known from the variant."""
    left_out: Mapping[str, int] = field(default_factory=dict)  # what is in the tables and not in these rows, by reason


def label_files(parts: Parts, sizes: Sequence[int], variant: str | None, where: str) -> Labelled:
    """The labels of the rows of local Parquet files, each by its own columns; `sizes` are their numbers of rows."""
    import fsspec

    schemas = [parts.schema(path) for path in parts.paths]
    columns = [parts.columns(schema, where) for schema in schemas]
    if not sum(sizes):
        raise HfsynError(f"The split {parts.split!r} of {where} is empty.", "Name another split or dataset.")
    if len(images := sorted({one.image for one in columns})) > 1:
        raise different_images(where, images)
    if all(_ours(schema.names) for schema in schemas):
        first = columns[0]
        wanted = sorted({"wnid", "class_name", str(first.id), *(label.column for label in first.labels)})
        return label_rows(table_rows(parts, sizes, wanted), first, variant, parts.split)

    def opened(found: Variant) -> ParquetSource:
        known: dict[str, Any] = {"tables": parts.tables, "choice": parts.choice, "trusted": parts.trusted}
        source = ParquetSource(found, fsspec.filesystem("file"), parts.root, parts.files, where, **known)
        source.check()
        return source

    source = of_some_variant(opened, variant, where)
    starts = dict(zip(parts.files, accumulate([0, *sizes]), strict=False))
    entries = list(source.index())
    numbers = [starts[entry.location] + entry.row for entry in entries]
    # Row ids leave out the file's name: the same rows in a renamed file are the same images.
    named = source.rows_have_names
    ids = [entry.source_id if named else f"{parts.split}/{n}" for entry, n in zip(entries, numbers, strict=True)]
    folders = None if parts.hub else [Path(parts.root, entry.location).parent for entry in entries]
    return Labelled(images[0], [entry.wnid for entry in entries], ids, numbers, folders, left_out=source.left_out)


def label_rows(rows: Any, columns: Columns, variant: str | None, split: str) -> Labelled:
    """The labels of the rows of a `datasets.Dataset`; raises as `of_some_variant`."""
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
    wnids, ids = [str(found[number]) for number in keep], [str(names[number]) for number in keep]
    left_out = {"row without a label": without} if without else {}
    return Labelled(columns.image, wnids, ids, keep if without else None, names=own, left_out=left_out)


def of_some_variant(read: Callable[[Variant], T], variant: str | None, where: str) -> T:
    """What `read` returns for the stated variant, or else for the first known one that has all of the labels.

    Labels that are not classes of it, or of any, are an error that lists them.
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
    """The class name of each wnid, sorted by wnid: the stated variant's, else a known one; an unknown id is its own."""
    stated = get_variant(variant).by_wnid if variant else {}
    drawn, known = get_variant("shapes").by_wnid, get_variant("imagenet-1k").by_wnid
    found = {w: stated.get(w) or own_class(w) or known.get(w) or drawn.get(w) for w in sorted(wnids)}
    return {wnid: info.name if info else wnid for wnid, info in found.items()}


def _ours(columns: Iterable[str]) -> bool:
    """Whether rows give their class and id themselves, as those that hfsyn wrote do."""
    there = set(columns)
    return {"wnid", "class_name"} <= there and bool({"sample_id", "source_id"} & there)


def _own_names(rows: Any) -> dict[str, str]:
    """Id -> class name of rows that hfsyn wrote, if some classes are of a class map, which may be missing here."""
    if not _ours(rows.features):
        return {}
    table = rows.select_columns(["wnid", "class_name"]).with_format("arrow")[:]
    pairs = table.group_by(["wnid", "class_name"]).aggregate([]).to_pylist()
    names = {pair["wnid"]: pair["class_name"] for pair in pairs}
    known = {*get_variant("imagenet-1k").by_wnid, *get_variant("shapes").by_wnid}
    told = None not in names and all(names.values()) and len(names) == len(pairs)
    return dict(sorted(names.items())) if told and not names.keys() <= known else {}


def _names(rows: Any, column: str, split: str) -> list[str]:
    """The images' own file names if each has one of its own, else their row numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    images = rows.data.column(column)
    if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
        names = pc.struct_field(images, "path").to_pylist()
        if all(names) and len(set(names)) == len(rows):
            return [f"{split}/{name}" for name in names]
    return [f"{split}/{number}" for number in range(len(rows))]
