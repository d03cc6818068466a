"""Opened datasets: labels by wnid in memory, images as stored bytes, whatever kind of place they are in.

Nothing is decoded here, and nothing is ever decoded by `datasets`, whose decoder ends the process at a corrupt image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from builders.errors import DataError
from builders.files import disk_error
from builders.runs import layout, run_files
from builders.sources import open_source
from builders.sources.columns import find_columns
from builders.sources.folders import FolderSource, local_splits
from builders.sources.on_disk import local_choice, tables_of
from builders.sources.rows import Source
from builders.variants import VARIANTS, Choice, get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.labelled import Labelled, Parts, class_names, label_files, label_rows, table_rows
from hfsyn.judging.sets.references import Reference, parse_dataset, pick_split
from hfsyn.judging.sets.stored_images import Bytes, Drawn, Files, Some, Table

_LOOKED_AT = 8
TRAIN, TEST = ("train",), ("validation", "test")
"""Splits that are looked for, in this order, where none is named: to train on, and to be tested on."""


@dataclass(frozen=True)
class ImageSet:
    """One split of a dataset, with a class for each image."""

    reference: str
    """As the user wrote it, without a weight."""
    split: str
    wnids: Sequence[str]
    """The class of each image."""
    names: Mapping[str, str]
    """Class name of each wnid that occurs."""
    images: Bytes
    ids: Sequence[str]
    """What identifies each image in its set."""
    revision: str | None = None
    """The commit on the Hub, or the run's recipe fingerprint; None for local files and drawn variants."""
    complete: bool = True
    """Whether it must have the number of images that its variant states: all classes are there, or it is the variant's
    own repository; and no limit was set.
    """
    variant: str | None = None
    hub: str | None = None
    """The repository on the Hub that it was read from."""
    named_split: bool = True
    """Whether the split is the data's own; a file without one is called as what it is used for."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What lies in the split and is not in the set, by reason."""

    def __len__(self) -> int:
        return len(self.wnids)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The wnids that occur, sorted."""
        return tuple(sorted(set(self.wnids)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids and classes in order, and of a few images.

        The same images in the same order have the same one, whatever they are used for. Ids that are row numbers say
        nothing of the images, so that some of these count too.
        """
        prefix = "" if self.named_split else f"{self.split}/"
        text = "\n".join(f"{n.removeprefix(prefix)}\t{wnid}" for n, wnid in zip(self.ids, self.wnids, strict=True))
        found = hashlib.sha256(text.encode())
        for number in spread(len(self), _LOOKED_AT):
            found.update(hashlib.sha256(self.images[number]).digest())
        return found.hexdigest()

    def facts(self) -> dict[str, Any]:
        """What a result says of the set."""
        return {
            "reference": self.reference,
            "split": self.split,
            "revision": self.revision,
            "images": len(self),
            "classes": len(self.classes),
            "fingerprint": self.fingerprint,
            "variant": self.variant,
            "hub": self.hub,
            "left_out": dict(self.left_out),
        }


def spread(size: int, count: int) -> list[int]:
    """At most `count` numbers below `size`, evenly spread, the first and the last among them."""
    if size <= count:
        return list(range(size))
    return [round(place * (size - 1) / (count - 1)) for place in range(count)]


def open_images(
    reference: str | Reference,
    split: str | None = None,
    *,
    default: Sequence[str] = TEST,
    limit: int | None = None,
    token: str | bool | None = None,
) -> ImageSet:
    """Open one split of a dataset.

    Args:
        reference: see `hfsyn.judging.sets.references`.
        split: None takes the first of `default` that is there, or the only one.
        default: `TRAIN` or `TEST`.
        limit: at most so many images a class, the first ones.
        token: for the Hub, as everywhere in huggingface_hub.

    Raises:
        HfsynError: nothing of that name, split or revision; no images; no column of images or of classes; or
            labels that are no class of a known variant, with the list.
    """
    found = parse_dataset(reference) if isinstance(reference, str) else reference
    if found.kind == "hub":
        opened = _open_hub(found, split, default, token)
    elif found.kind == "local":
        opened = _open_local(found, split, default)
    else:
        opened = _open_variant(found, split, default, token)
    if limit is not None:
        opened = _limited(opened, limit)
    if not len(opened):
        raise HfsynError(f"The split {opened.split!r} of {opened.reference} is empty.", "Name another with --*-split.")
    return opened


def _limited(opened: ImageSet, limit: int) -> ImageSet:
    counts: dict[str, int] = {}
    keep = []
    for number, wnid in enumerate(opened.wnids):
        counts[wnid] = counts.get(wnid, 0) + 1
        if counts[wnid] <= limit:
            keep.append(number)
    return replace(
        opened,
        wnids=[opened.wnids[i] for i in keep],
        images=Some(opened.images, keep),
        ids=[opened.ids[i] for i in keep],
        complete=False,
    )


def _open_variant(found: Reference, split: str | None, default: Sequence[str], token: str | bool | None) -> ImageSet:
    variant = get_variant(found.place)
    split = pick_split(list(variant.splits), split, default, f"The variant {variant.name!r}")
    if not variant.drawn:
        return _open_variant_on_hub(found, split, token)
    source = open_source(variant.name, split)
    return _from_source(source, str(found), split, variant.name)


def _from_source(source: Source, reference: str, split: str, variant: str) -> ImageSet:
    entries = list(source.index())
    images: Bytes = Files(source.root, entries) if isinstance(source, FolderSource) else Drawn(source, entries)
    known = get_variant(variant)
    return ImageSet(
        reference,
        split,
        [entry.wnid for entry in entries],
        {info.wnid: info.name for info in source.classes},
        images,
        [entry.source_id for entry in entries],
        None,
        known.tests_only or len(source.classes) == len(known.classes),
        variant,
        left_out=source.left_out,
    )


def _open_local(found: Reference, split: str | None, default: Sequence[str]) -> ImageSet:
    tables = local_tables(found, split, default)
    if tables is not None:
        return replace(_from_files(tables, found), named_split=tables.named)
    # Class folders that are named by wnid need no variant: ImageNet-1k has them all.
    path, variant = Path(found.place).expanduser(), found.variant or "imagenet-1k"
    try:
        split = pick_split(local_splits(get_variant(variant), path), split, default, found.place)
        return _from_source(open_source(variant, split, path=path), str(found), split, variant)
    except DataError as error:
        hint = f"{error.hint} A variant is stated as VARIANT={found.place}." if found.variant is None else error.hint
        raise DataError(error.message, hint, error.code) from None


def local_tables(found: Reference, split: str | None, default: Sequence[str]) -> Parts | None:
    """The Parquet files of one split of a local dataset; None where it has image files instead.

    Raises:
        HfsynError: there is no such split, or a run is not finished.
    """
    path = Path(found.place).expanduser()
    if path.is_dir() and layout.is_run_folder(path):
        return _run_tables(path, found, split, default)
    variant = get_variant(found.variant or "imagenet-1k")
    there = tables_of(variant, path, found.config) if path.suffix.lower() == ".parquet" or path.is_dir() else None
    if there is None:
        return None
    root, tables = there
    if not tables.named:
        # Called as what it is used for.
        tables = replace(tables, splits={split or default[0]: next(iter(tables.splits.values()))})
    split = pick_split(list(tables.splits), split, default, found.place)
    choice = local_choice(variant, tables.splits[split], root) if found.variant else Choice()
    return Parts(root, tables.splits[split], split, None, tables, choice)


def _run_tables(path: Path, found: Reference, split: str | None, default: Sequence[str]) -> Parts:
    manifest = run_files.finished(path)
    shards: dict[str, list[Path]] = {}
    for shard in run_files.shards(path, layout.DATA):
        shards.setdefault((layout.shard_number(shard) or ("",))[0], []).append(shard)
    if not shards:
        raise HfsynError(f"{found.place} has no finished shard yet.", f"Run: hfsyn generate {found.place}")
    if manifest is None:
        raise HfsynError(
            f"The run {found.place} is not finished: its images are not all there.",
            f"`hfsyn status {found.place}` says what is missing.",
        )
    split = pick_split(sorted(shards), split, default, f"The run {found.place}")
    fingerprint = layout.load_sidecar(layout.sidecar_of(shards[split][0])).fingerprint
    return Parts(path, tuple(shard.relative_to(path).as_posix() for shard in shards[split]), split, fingerprint)


def _from_files(parts: Parts, found: Reference, *, whole: bool = False) -> ImageSet:
    """An ImageSet over Parquet files on the disk: labels file by file, images in one memory-mapped table."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.exceptions import DatasetGenerationError

    try:
        sizes = [pq.read_metadata(path).num_rows for path in parts.paths]
        labelled = label_files(parts, sizes, found.variant, str(found))
        rows = table_rows(parts, sizes, [labelled.image])
    except (DatasetGenerationError, pa.ArrowException, OSError) as error:
        if disk_error(error) is not None:  # a full cache, say: the files are well
            raise
        said = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise HfsynError(f"{found} cannot be read: {said[:300]}.", "Copy the files again.") from None
    return _labelled_set(labelled, rows, str(found), parts.split, found.variant, parts.revision, whole=whole)


def _labelled_set(
    labelled: Labelled, rows: Any, reference: str, split: str, variant: str | None, revision: str | None, *, whole: bool
) -> ImageSet:
    """`whole` says that it is a variant's own repository, of which no class may be missing; a copy may be a part."""
    known = None if variant is None else get_variant(variant)
    names = labelled.names or class_names(set(labelled.wnids), variant)
    complete = whole or (known is not None and (known.tests_only or len(names) == len(known.classes)))
    images = Table(rows, labelled.image, labelled.rows, labelled.folders)
    return ImageSet(
        reference,
        split,
        labelled.wnids,
        names,
        images,
        labelled.ids,
        revision,
        complete,
        variant,
        left_out=labelled.left_out,
    )


def from_table(rows: Any, reference: str, split: str, variant: str | None, revision: str | None) -> ImageSet:
    """An ImageSet over a `datasets.Dataset` with an image column and a class column.

    Raises:
        HfsynError: there is no such column, no rows, or labels match no variant.
    """
    columns = find_columns(rows.features.arrow_schema, reference)
    if len(rows) == 0:
        raise HfsynError(f"The split {split!r} of {reference} is empty.", "Name another split or dataset.")
    return _labelled_set(
        label_rows(rows, columns, variant, split), rows, reference, split, variant, revision, whole=False
    )


def _open_variant_on_hub(found: Reference, split: str, token: str | bool | None) -> ImageSet:
    from hfsyn.judging.sets.hub_sets import find_variant_rows

    there = find_variant_rows(get_variant(found.place), split, found.revision, token=token)
    opened = _from_files(there.parts(token), found, whole=True)
    return replace(opened, split=split, hub=there.repo_id)


def _open_hub(found: Reference, split: str | None, default: Sequence[str], token: str | bool | None) -> ImageSet:
    from hfsyn.judging.sets.hub_sets import HubTables, find_rows

    found = replace(found, variant=found.variant or variant_of_repository(found.place))
    rows, split, revision = find_rows(found, split, default, token=token)
    if isinstance(rows, HubTables):
        return replace(_from_files(rows.parts(token), found), hub=found.place)
    return replace(from_table(rows, str(found), split, found.variant, revision), hub=found.place)


def variant_of_repository(repo_id: str) -> str | None:
    """The variant for tests alone whose own repository this is; None where it is none's, or that of several."""
    owned = [v.name for v in VARIANTS.values() if v.tests_only and v.hub is not None and v.hub.repo_id == repo_id]
    return owned[0] if len(owned) == 1 else None
