"""Sets as streams: opened with the classes that their label column declares, then shuffled, mixed and decoded.

A stream is read in **passes**; each pass shuffles the files and the buffer again from the seed. What a process shows
depends on the seed, its rank, and the numbers of processes and workers: with the same ones a killed training continues
exactly where it was (it reads the current pass again up to there), with others the order is another. An image's
augmentation depends on the seed, the pass and the image's own bytes. Of several sets the weights are probabilities, so
that their shares in an epoch are approximate.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from builders.images.decoding import ImageRejected, decode_rgb
from builders.sources.columns import Columns, Label, find_columns, label_words, meanings, unknown_labels
from builders.sources.labels import spelling
from builders.sources.parquet import in_parallel, stored_image
from builders.variants import Variant, get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.batches import Transform, Unreadable, collate, derive, seeded, unwrapped
from hfsyn.judging.sets.image_set import TRAIN, local_tables
from hfsyn.judging.sets.references import Reference, pick_split
from hfsyn.judging.sets.tables import Parts, class_names, find_rows, find_variant_rows, of_some_variant, stream_tables

_log = logging.getLogger(__name__)

_NO_CLASS, _DISAGREE = -1, -2
"""Instead of a label: one that is not a class of the stream; two columns that name different classes."""


@dataclass(frozen=True)
class Stream:
    """One set as a stream."""

    reference: str
    split: str
    revision: str | None
    rows: Any
    """A `datasets.IterableDataset` that decodes nothing."""
    image: str
    labels: tuple[Label, ...]
    """The column that declares the classes, then others that could be the label too."""
    wnids: Mapping[int, str]
    """Label number -> wnid."""
    variant: Variant
    """Whose words the other columns are."""
    folder: Path | None = None
    """What paths in a table are relative to; None for a table from elsewhere."""
    hub: str | None = None
    """The repository on the Hub that it is read from."""

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Class name of each wnid that is declared, sorted by wnid."""
        return class_names(set(self.wnids.values()), self.variant.name)

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

    Raises:
        HfsynError: as `open_images`; or a folder of image files; or a label column that declares no names.
    """
    from datasets import Image

    rows, split, revision = _find_rows(found, split)
    parts = rows if isinstance(rows, Parts) else None
    columns = None
    if parts:
        columns, rows = _common_columns(parts, str(found)), stream_tables(parts.paths)
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

    variant, wnids = of_some_variant(declared, found.variant, str(found))
    hub = parts.hub if parts else found.place if found.kind == "hub" else None
    folder = Path(parts.root) if parts and not parts.hub else None
    return Stream(str(found), split, revision, rows, columns.image, tuple(labels), wnids, variant, folder, hub)


def _find_rows(found: Reference, split: str | None) -> tuple[Any, str, str | None]:
    """The rows of a dataset (or its `Parts`), their split and revision."""
    if found.kind == "hub":
        return find_rows(found, split, TRAIN, streaming=True)
    if found.kind == "local":
        parts = local_tables(found, split, TRAIN)
        if parts is None:
            raise HfsynError(
                f"{found.place} is a folder of image files.", "They need no stream: leave --streaming out."
            )
        return parts, parts.split, parts.revision
    variant = get_variant(found.place)
    split = pick_split(list(variant.splits), split, TRAIN, f"The variant {variant.name!r}")
    if variant.drawn:
        from builders.shapes import Shapes

        return Shapes(config_name=variant.name).as_streaming_dataset(split), split, None
    parts = find_variant_rows(variant, split, found.revision)
    return parts, split, parts.revision


def _common_columns(parts: Parts, where: str) -> Columns:
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


def mixed(
    streams: Sequence[Stream], classes: Sequence[str], weights: Sequence[float], seed: int, shuffle_buffer: int
) -> Any:
    """All streams as one `datasets.IterableDataset` of ``{"image", "label"}``, whose labels are numbers of `classes`.

    `weights` are the probabilities of the streams; they add up to 1.
    """
    from datasets import Features, Image, Value, interleave_datasets

    column = {wnid: number for number, wnid in enumerate(classes)}
    features = Features({"image": Image(decode=False), "label": Value("int64")})
    relabelled = []
    for stream in streams:
        names = [label.column for label in stream.labels]
        relabel = _Relabel(stream, {value: column[wnid] for value, wnid in stream.wnids.items()})
        old = [name for name in (stream.image, *names) if name not in features]
        labelled = stream.rows.filter(_HasLabel(names[0]))
        relabelled.append(labelled.map(relabel, features=features, remove_columns=old))
    rows = relabelled[0]
    if len(relabelled) > 1:
        rows = interleave_datasets(
            relabelled, probabilities=list(weights), seed=seed, stopping_strategy="all_exhausted"
        )
    return rows.shuffle(seed=seed, buffer_size=shuffle_buffer)


# The classes below are sent to other processes, as functions within functions could not be.


@dataclass(frozen=True)
class _HasLabel:
    """Whether a row has a label; warns once of rows that have none."""

    column: str
    told: list[bool] = field(default_factory=list)

    def __call__(self, row: Mapping[str, Any]) -> bool:
        value = row[self.column]
        there = value is not None and value != -1 and value == value
        if not there and not self.told:
            self.told.append(True)
            _log.warning("Rows of a stream have no label (column '%s'): they are skipped.", self.column)
        return there


class _Relabel:
    """Rows of any set to ``{"image", "label"}``."""

    def __init__(self, stream: Stream, targets: Mapping[int, int]) -> None:
        self._image, self._labels, self._variant = stream.image, stream.labels, stream.variant
        self._wnids, self._folder, self._targets = stream.wnids, stream.folder, targets
        self._known: dict[Any, bool] = {}  # answers of `_disagrees`: few labels, many rows

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        value = row[self._labels[0].column]
        label = self._targets.get(value, _NO_CLASS)
        if label != _NO_CLASS and any(self._disagrees(other, row, self._wnids[value]) for other in self._labels[1:]):
            label = _DISAGREE
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


@dataclass(frozen=True)
class Decode:
    """Decodes, augments and collates rows of `mixed`. Images that cannot be read are left out."""

    transform: Transform
    seed: int
    number: int
    """Of the pass."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any, Unreadable] | HfsynError:
        """``(tensors, labels, unreadable)``, the first two None if no image can be read; an error is a value."""
        labels = {row["label"] for row in rows}
        if _DISAGREE in labels:
            return HfsynError(
                "Two columns of the stream could be the label, and they disagree.",
                "Say which: `hfsyn variants new NAME --from PLACE --label-column COLUMN`, then NAME.yaml=PLACE.",
            )
        if _NO_CLASS in labels:
            return HfsynError("A row of the stream has a label that is not one of its classes.", "Leave it out.")
        items: list[tuple[Any, int, Unreadable]] = []
        unread = []
        for row in rows:
            data = row["image"]["bytes"] or b""
            try:
                picture = decode_rgb(data)
            except ImageRejected as problem:
                # A stream has no ids: the bytes' hash stands for the image.
                unread.append((f"image ({hashlib.sha256(data).hexdigest()[:12]})", problem.reason))
                continue
            with seeded(derive(self.seed, "stream", self.number, zlib.crc32(data))):
                items.append((self.transform(picture), int(row["label"]), ()))
        if not items:
            return None, None, tuple(unread)
        pixels, targets, _ = unwrapped(collate(items))
        return pixels, targets, tuple(unread)
