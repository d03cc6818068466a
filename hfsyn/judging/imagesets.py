"""Opened datasets: labels by wnid in memory, images as stored bytes, whatever kind of place they are in.

Nothing is decoded here, and nothing is ever decoded by `datasets`, whose decoder ends the process at a corrupt image.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from builders import layout
from builders.errors import DataError
from builders.folders import FolderSource, images_first, layout_of, local_splits
from builders.parquet import find_parquet, list_parquet, split_of
from builders.rows import Source
from builders.sources import open_source
from builders.variants import VARIANTS, get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.columns import find_columns, table_wnids
from hfsyn.judging.references import Reference, parse_dataset
from hfsyn.judging.stored_images import Bytes, Drawn, Files, Some, Table

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
            "reference": self.reference, "split": self.split, "revision": self.revision, "images": len(self),
            "classes": len(self.classes), "fingerprint": self.fingerprint, "variant": self.variant, "hub": self.hub,
        }  # fmt: skip


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
        reference: see `hfsyn.judging.references`.
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


def pick_split(there: Sequence[str], split: str | None, default: Sequence[str], where: str) -> str:
    """The split that is meant.

    Raises:
        HfsynError: it is not there, or none was named and several are there.
    """
    wanted = {"val": "validation", "valid": "validation"}.get(split or "", split)
    if wanted is None:
        wanted = next((name for name in default if name in there), there[0] if len(there) == 1 else None)
    if wanted is None or wanted not in there:
        raise HfsynError(
            f"{where} has no split {' or '.join(repr(n) for n in ([split] if split else default))}.",
            f"It has: {', '.join(there) or 'none'}. Name one with --train-split or --eval-split.",
        )
    return wanted


def _limited(opened: ImageSet, limit: int) -> ImageSet:
    counts: dict[str, int] = {}
    keep = []
    for number, wnid in enumerate(opened.wnids):
        counts[wnid] = counts.get(wnid, 0) + 1
        if counts[wnid] <= limit:
            keep.append(number)
    return replace(
        opened, wnids=[opened.wnids[i] for i in keep], images=Some(opened.images, keep),
        ids=[opened.ids[i] for i in keep], complete=False,
    )  # fmt: skip


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
        reference, split, [entry.wnid for entry in entries], {info.wnid: info.name for info in source.classes}, images,
        [entry.source_id for entry in entries], None,
        known.tests_only or len(source.classes) == len(known.classes), variant,
    )  # fmt: skip


def _open_local(found: Reference, split: str | None, default: Sequence[str]) -> ImageSet:
    tables = local_tables(found, split, default)
    if tables is not None:
        return replace(_from_files(tables.files, found, tables.split, tables.revision), named_split=tables.named)
    # Class folders that are named by wnid need no variant: ImageNet-1k has them all.
    path, variant = Path(found.place).expanduser(), found.variant or "imagenet-1k"
    try:
        split = pick_split(local_splits(get_variant(variant), path), split, default, found.place)
        return _from_source(open_source(variant, split, path=path), str(found), split, variant)
    except DataError as error:
        hint = f"{error.hint} A variant is stated as VARIANT={found.place}." if found.variant is None else error.hint
        raise DataError(error.message, hint, error.code) from None


@dataclass(frozen=True)
class Tables:
    """The Parquet files of one split on the disk."""

    files: tuple[str, ...]
    split: str
    revision: str | None
    """A run folder's recipe fingerprint."""
    named: bool = True
    """Whether the files' names say the split."""


def local_tables(found: Reference, split: str | None, default: Sequence[str]) -> Tables | None:
    """The Parquet files of a local dataset; None where it has image files instead.

    Raises:
        HfsynError: there is no such split, or a run is not finished.
    """
    path = Path(found.place).expanduser()
    if path.is_dir() and layout.is_run_folder(path):
        return _run_tables(path, found, split, default)
    parquet = [path.name] if path.suffix == ".parquet" and path.is_file() else []
    if path.is_dir() and not images_first(layout_of(path)):
        parquet = list_parquet(path, None)
    if not parquet:
        return None
    root = path.parent if path.is_file() else path
    named = sorted({name for file in parquet if (name := split_of(file))})
    split = pick_split(named or [split or default[0]], split, default, found.place)
    names = parquet if path.is_file() else find_parquet(root, split, None)
    return Tables(tuple(str(root / name) for name in names), split, None, bool(named))


def _run_tables(path: Path, found: Reference, split: str | None, default: Sequence[str]) -> Tables:
    shards: dict[str, list[Path]] = {}
    for shard in layout.finished_shards(path / layout.DATA):
        shards.setdefault((layout.shard_number(shard) or ("",))[0], []).append(shard)
    if not shards:
        raise HfsynError(f"{found.place} has no finished shard yet.", f"Run: hfsyn generate {found.place}")
    if not (path / layout.MANIFEST).exists():
        raise HfsynError(
            f"The run {found.place} is not finished: its images are not all there.",
            f"`hfsyn status {found.place}` says what is missing.",
        )
    split = pick_split(sorted(shards), split, default, f"The run {found.place}")
    fingerprint = layout.load_sidecar(layout.sidecar_of(shards[split][0])).fingerprint
    return Tables(tuple(map(str, shards[split])), split, fingerprint)


def _from_files(files: Sequence[str], found: Reference, split: str, revision: str | None) -> ImageSet:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    if not files:
        raise HfsynError(f"{found} has no Parquet files of the split {split!r}.", "Name another split.")
    try:
        find_columns(_features(files[0]), str(found))  # before anything is copied into the cache
        if not sum(pq.read_metadata(file).num_rows for file in files):
            raise HfsynError(f"The split {split!r} of {found} is empty.", "Name another split or dataset.")
        with bars_on_terminals_only():
            rows = Dataset.from_parquet(list(files), split=split)
    except (DatasetGenerationError, pa.ArrowException, OSError) as error:
        raise HfsynError(f"{found} cannot be read: {str(error).splitlines()[0]}", "Copy the files again.") from None
    return from_table(rows, str(found), split, found.variant, revision)


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


def _features(file: str) -> Any:
    import pyarrow.parquet as pq
    from datasets import Features

    return Features.from_arrow_schema(pq.read_schema(file))


def from_table(
    rows: Any, reference: str, split: str, variant: str | None, revision: str | None, *, whole: bool = False
) -> ImageSet:
    """An ImageSet over a `datasets.Dataset` with an image column and a class column.

    `whole` says that it is a variant's own repository, of which no class may be missing; a local copy may be a part.

    Raises:
        HfsynError: there is no such column, no rows, or labels match no variant.
    """
    columns = find_columns(rows.features, reference)
    if len(rows) == 0:
        raise HfsynError(f"The split {split!r} of {reference} is empty.", "Name another split or dataset.")
    wnids, names = table_wnids(rows, columns, variant, reference)
    ids = rows[columns.id][:] if columns.id else _names(rows, columns.image, split)
    known = None if variant is None else get_variant(variant)
    complete = whole or (known is not None and (known.tests_only or len(names) == len(known.classes)))
    return ImageSet(reference, split, wnids, names, Table(rows, columns.image), ids, revision, complete, variant)


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


def _open_variant_on_hub(found: Reference, split: str, token: str | bool | None) -> ImageSet:
    from hfsyn.judging.hubsets import load_variant

    variant = get_variant(found.place)
    assert variant.hub is not None  # it is not drawn
    rows, revision = load_variant(variant, split, found.revision, token=token)
    return replace(from_table(rows, str(found), split, found.place, revision, whole=True), hub=variant.hub.repo_id)


def _open_hub(found: Reference, split: str | None, default: Sequence[str], token: str | bool | None) -> ImageSet:
    from hfsyn.judging.hubsets import load_rows

    rows, split, revision = load_rows(found, split, default, token=token)
    variant = found.variant or variant_of_repository(found.place)
    return replace(from_table(rows, str(found), split, variant, revision), hub=found.place)


def variant_of_repository(repo_id: str) -> str | None:
    """The variant for tests alone whose own repository this is; None where it is none's, or that of several."""
    owned = [v.name for v in VARIANTS.values() if v.tests_only and v.hub is not None and v.hub.repo_id == repo_id]
    return owned[0] if len(owned) == 1 else None
