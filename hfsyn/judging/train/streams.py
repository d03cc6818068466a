"""One dataset as a stream: rows that are read while they are used, at several places at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from builders.sources.columns import Columns, Label, find_columns, label_words, meanings, unknown_labels
from builders.sources.parquet import in_parallel, stored_image
from builders.sources.rows import spelling
from builders.variants import Variant, get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.sets import tables
from hfsyn.judging.sets.image_set import TRAIN, local_tables
from hfsyn.judging.sets.references import Reference, pick_split

_log = logging.getLogger(__name__)

NO_CLASS, DISAGREE = -1, -2
"""Instead of a label: one that is not a class of the stream; two columns that name different classes."""
PLACES, _FEWEST = 64, 8
"""Most and fewest places at which a stream is read at once."""


@dataclass(frozen=True)
class Stream:
    """One set as a stream."""

    reference: str
    split: str
    revision: str | None
    rows: Any  # a `datasets.IterableDataset` that decodes nothing
    image: str
    labels: tuple[Label, ...]  # the column that declares the classes, then others that could be the label too
    wnids: Mapping[int, str]  # label number -> wnid
    variant: Variant  # whose words the other columns are
    folder: Path | None = None  # what paths in a table are relative to; None for a table from elsewhere
    hub: str | None = None  # the repository on the Hub that it is read from
    held: int = 0  # bytes of a row group, all of which is read at once; 0 if that is not known

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Class name of each wnid that is declared, sorted by wnid."""
        return tables.class_names(set(self.wnids.values()), self.variant.name)

    @property
    def fingerprint(self) -> str:
        """All that is known before the stream is read: its name and revision."""
        return f"{self.reference} {self.split} {self.revision}"

    def facts(self) -> dict[str, Any]:
        """What a result says about the stream."""
        facts = {"reference": self.reference, "split": self.split, "revision": self.revision, "hub": self.hub}
        return {**facts, "classes": len(self.names), "streaming": True}

    @property
    def classes(self) -> tuple[str, ...]:
        """The wnids that are declared, sorted: which of them occur is not known before everything is read."""
        return tuple(self.names)


def open_stream(found: Reference, split: str | None) -> Stream:
    """Open one split of a dataset as a stream.

    Raises HfsynError as `open_images`, for a folder of image files, and for a label column that declares no names.
    """
    from datasets import Image

    rows, split, revision = _find_rows(found, split)
    parts = rows if isinstance(rows, tables.Parts) else None
    columns = None
    if parts:
        columns, rows = _common_columns(parts, str(found)), tables.stream_tables(parts.paths)
    if rows.features is None:
        rows = rows._resolve_features()
    columns = columns or find_columns(rows.features.arrow_schema, str(found))
    labels = sorted(columns.labels, key=lambda label: label.names is None)  # declared names before any others
    first, names = labels[0], labels[0].names
    if names is None:
        raise HfsynError(
            f"The label column {first.column!r} of {found} declares no class names, so that a stream cannot tell "
            "its classes.",
            "Leave --streaming out, or give the column a ClassLabel feature.",
        )
    if isinstance(rows.features[columns.image], Image):
        rows = rows.cast_column(columns.image, Image(decode=False))
    rows = rows.select_columns([columns.image, *(label.column for label in labels)])

    def declared(variant: Variant) -> tuple[Variant, dict[int, str]]:
        trusted = parts.trusted if parts else False
        meant, _ = meanings(first, range(len(names)), variant, trusted=trusted, where=columns.where)
        if unmatched := [first.spoken(number) for number, wnid in meant.items() if wnid is None]:
            raise unknown_labels(variant, unmatched, columns.where)
        return variant, {number: str(wnid) for number, wnid in meant.items()}

    variant, wnids = tables.of_some_variant(declared, found.variant, str(found))
    hub = parts.hub if parts else found.place if found.kind == "hub" else None
    folder = Path(parts.root) if parts and not parts.hub else None
    held = parts.group_bytes() if parts else 0
    return Stream(str(found), split, revision, rows, columns.image, tuple(labels), wnids, variant, folder, hub, held)


def _find_rows(found: Reference, split: str | None) -> tuple[Any, str, str | None]:
    """The rows of a dataset (or its `Parts`), their split and revision."""
    if found.kind == "hub":
        return tables.find_rows(found, split, TRAIN, streaming=True)
    if found.kind == "local":
        parts = local_tables(found, split, TRAIN)
        if parts is None:
            said = f"{found.place} is a folder of image files."
            raise HfsynError(said, "They need no stream: leave --streaming out.")
        return parts, parts.split, parts.revision
    variant = get_variant(found.place)
    split = pick_split(list(variant.splits), split, TRAIN, f"The variant {variant.name!r}")
    if variant.drawn:
        from builders.shapes import Shapes

        return Shapes(config_name=variant.name).as_streaming_dataset(split), split, None
    parts = tables.find_variant_rows(variant, split, found.revision)
    return parts, split, parts.revision


def _common_columns(parts: tables.Parts, where: str) -> Columns:
    """The columns of all files. Refuses files that number their classes differently: a stream has one numbering."""
    first: Columns | None = None
    every = in_parallel(lambda path: parts.columns(parts.schema(path), where), parts.paths)
    for path, other in zip(parts.paths, every, strict=True):
        first = first or other
        if (other.image, other.labels) != (first.image, first.labels):
            raise HfsynError(
                f"The files of {where} have other columns or label names than one another, such as "
                f"{path.rsplit('/', 1)[-1]}.",
                "They can be read, but not as a stream: leave --streaming out.",
            )
    assert first is not None  # a split has a file
    return first


def mixed(streams: Sequence[Stream], classes: Sequence[str], weights: Sequence[float], seed: int, room: int) -> Any:
    """All streams as one `datasets.IterableDataset` of ``{"image", "label"}``, whose labels are numbers of `classes`.

    Each is read at several places at once, row by row in turn, which the seed and the epoch choose: where rows are
    sorted by class, these places are in different classes. `weights` are the probabilities of the streams; they add up
    to 1. `room` is what the rows that are held at all the places may take, in bytes.
    """
    from datasets import Features, Image, Value, interleave_datasets

    column = {wnid: number for number, wnid in enumerate(classes)}
    features = Features({"image": Image(decode=False), "label": Value("int64")})
    relabelled = []
    for stream in streams:
        names = [label.column for label in stream.labels]
        relabel = _Relabel(stream, {value: column[wnid] for value, wnid in stream.wnids.items()})
        old = [name for name in (stream.image, *names) if name not in features]
        # A place is a file or, of few files, a row group, a part of which is held while it is read.
        rows = stream.rows.reshard() if stream.rows.num_shards < PLACES else stream.rows
        places = min(PLACES, max(_FEWEST, room // len(streams) // stream.held)) if stream.held else PLACES
        labelled = rows.filter(partial(_has_label, column=names[0], warned=[]))
        labelled = labelled.map(relabel, features=features, remove_columns=old)
        # A buffer of one row: rows are shuffled by `hfsyn.judging.train.shuffling`, which counts bytes.
        relabelled.append(labelled.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=places))
    if len(relabelled) == 1:
        return relabelled[0]
    return interleave_datasets(relabelled, probabilities=list(weights), seed=seed, stopping_strategy="all_exhausted")


def _has_label(row: Mapping[str, Any], column: str, warned: list[bool]) -> bool:
    """Whether a row has a label; warns once of rows that have none."""
    value = row[column]
    there = value is not None and value != -1 and value == value
    if not there and not warned:
        warned.append(True)
        _log.warning("Rows of a stream have no label (column '%s'): they are skipped.", column)
    return there


class _Relabel:
    """Rows of any set to ``{"image", "label"}``."""

    def __init__(self, stream: Stream, targets: Mapping[int, int]) -> None:
        self._image, self._labels, self._variant = stream.image, stream.labels, stream.variant
        self._wnids, self._folder, self._targets = stream.wnids, stream.folder, targets
        self._known: dict[Any, bool] = {}  # answers of `_disagrees`: few labels, many rows

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        value = row[self._labels[0].column]
        label = self._targets.get(value, NO_CLASS)
        if label != NO_CLASS and any(self._disagrees(other, row, self._wnids[value]) for other in self._labels[1:]):
            label = DISAGREE
        data, _ = stored_image(row[self._image], self._folder)
        return {"image": {"bytes": data, "path": None}, "label": label}

    def _disagrees(self, other: Label, row: Mapping[str, Any], wnid: str) -> bool:
        """Whether another column of a row names another class than `wnid`."""
        value = row[other.column]
        if value is None or value == -1 or value == "":
            return False
        key = (other.column, value, wnid)
        if key not in self._known:
            meant = meanings(other, [value], self._variant)[0][value]
            words = label_words(self._variant, wnid)
            self._known[key] = meant not in (None, wnid) and spelling(other.spoken(value)) not in words
        return self._known[key]
