"""Training on streams: sets that are read while they are used, shuffled in a buffer, mixed by chance.

A stream is read in **passes**; each pass shuffles the order of the files and the buffer anew from the seed. What a
process shows depends on the seed, its rank, the number of processes and of workers: with the same ones a training
that was killed goes on exactly where it was (it reads the current pass again up to there), with others it is another
order. An image's augmentation depends on the seed, the pass and the image's own bytes. Of several sets the weights are
chances, and the shares in an epoch come out only nearly so.

Classes are those that the label column declares, since which of them occur is not known before everything is read.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from builders.images.decoding import ImageRejected, decode_rgb
from builders.sources.columns import Columns, Label, find_columns, label_words, meanings, unknown_labels
from builders.sources.labels import spelling
from builders.sources.parquet import in_parallel, stored_image
from builders.variants import Variant, get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.batches import (
    Transform,
    Unreadable,
    check_weights,
    collate,
    derive,
    one_thread,
    own_generator,
    seeded,
    unwrapped,
)
from hfsyn.judging.sets.image_set import TRAIN, ImageSet, local_tables
from hfsyn.judging.sets.labelled import Parts, class_names, of_some_variant
from hfsyn.judging.sets.references import Reference, pick_split
from hfsyn.judging.sets.shared_classes import same_classes
from hfsyn.judging.train.feed import Slice, need_budget
from hfsyn.recipes.training_recipe import TrainConfig

_log = logging.getLogger(__name__)

_NO_CLASS, _DISAGREE = -1, -2
"""In the place of a label: one that is not a class of the stream; two columns that name different classes."""


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
    """Where paths in a table lead; None for one from elsewhere."""
    hub: str | None = None
    """The repository on the Hub that it is read from."""

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Class name of each wnid that is declared, sorted by wnid."""
        return class_names(set(self.wnids.values()), self.variant.name)

    @property
    def classes(self) -> tuple[str, ...]:
        """The wnids that are declared, sorted."""
        return tuple(self.names)


def open_stream(found: Reference, split: str | None, token: str | bool | None = None) -> Stream:
    """Open one split of a dataset as a stream.

    Raises:
        HfsynError: as `open_images`; or a folder of image files; or a label column that declares no names.
    """
    from datasets import Image

    rows, split, revision, parts = _rows(found, split, token)
    if rows.features is None:
        rows = rows._resolve_features()
    columns = parts.columns if parts else None
    columns = columns or find_columns(rows.features.arrow_schema, str(found))
    labels = sorted(columns.labels, key=lambda label: label.names is None)  # a name for each class, before any words
    if labels[0].names is None:
        raise HfsynError(
            f"The label column {labels[0].column!r} of {found} declares no class names, so that a stream cannot tell "
            "its classes.",
            "Leave --streaming out, or give the column a ClassLabel feature.",
        )
    if isinstance(rows.features[columns.image], Image):
        rows = rows.cast_column(columns.image, Image(decode=False))
    rows = rows.select_columns([columns.image, *(label.column for label in labels)])

    def declared(variant: Variant) -> tuple[Variant, dict[int, str]]:
        label = labels[0]
        known = range(len(label.names or ()))
        trusted = parts.trusted if parts else False
        found_wnids, _ = meanings(label, known, variant, trusted=trusted, where=columns.where)
        if unmatched := [label.spoken(number) for number, wnid in found_wnids.items() if wnid is None]:
            raise unknown_labels(variant, unmatched, columns.where)
        return variant, {number: str(wnid) for number, wnid in found_wnids.items()}

    variant, wnids = of_some_variant(declared, found.variant, str(found))
    source = get_variant(found.place).hub if found.kind == "variant" else None
    hub = found.place if found.kind == "hub" else source.repo_id if source else None
    folder = parts.root if parts and not parts.foreign else None
    return Stream(str(found), split, revision, rows, columns.image, tuple(labels), wnids, variant, folder, hub)


def _rows(found: Reference, split: str | None, token: str | bool | None) -> tuple[Any, str, str | None, Parts | None]:
    """Rows, their split and revision; and the tables that they are in, where those are not our own."""
    from hfsyn.judging.sets.hub_sets import HubTables, find_rows, find_variant_rows, stream_tables

    if found.kind == "local":
        parts = local_tables(found, split, TRAIN)
        if parts is None:
            raise HfsynError(
                f"{found.place} is a folder of image files.", "They need no stream: leave --streaming out."
            )
        parts = replace(parts, columns=_columns_of_all(parts.paths, parts, str(found), open))
        return stream_tables(parts.paths), parts.split, parts.revision, parts
    if found.kind == "variant":
        variant = get_variant(found.place)
        split = pick_split(list(variant.splits), split, TRAIN, f"The variant {variant.name!r}")
        if variant.drawn:
            from builders.shapes import Shapes

            return Shapes(config_name=variant.name).as_streaming_dataset(split), split, None, None
        there: Any = find_variant_rows(variant, split, found.revision, token=token)
        revision = there.commit
    else:
        there, split, revision = find_rows(found, split, TRAIN, streaming=True, token=token)
        if not isinstance(there, HubTables):
            return there, split, revision, None
    parts = Parts(Path(), there.files, split, revision, there.tables, there.choice, there.trusted, foreign=True)
    columns = _columns_of_all(there.urls(), parts, str(found), there.open)
    return stream_tables(there.urls(), token), split, revision, replace(parts, columns=columns)


def _columns_of_all(files: Sequence[str], parts: Parts, where: str, opened: Any) -> Columns:
    """The columns of all files. Refuses files that number their classes differently: a stream has one set of them."""
    import pyarrow.parquet as pq

    def columns(file: str) -> Columns:
        with opened(file, "rb") as stream:
            names = parts.tables.names if parts.tables else {}
            return find_columns(pq.read_schema(stream), where, choice=parts.choice, names=names)

    first: Columns | None = None
    for file, other in zip(files, in_parallel(columns, files), strict=True):
        first = first or other
        if (other.image, other.labels) != (first.image, first.labels):
            raise HfsynError(
                f"The files of {where} have other columns or label names than one another, such as "
                f"{file.rsplit('/', 1)[-1]}.",
                "They can be read, but not as a stream: leave --streaming out.",
            )
    assert first is not None  # a split has a file
    return first


class StreamFeed:
    """A training's batches from streams. Satisfies `hfsyn.judging.train.feed.Feed`."""

    def __init__(self, config: TrainConfig, streams: Sequence[Stream], weights: Sequence[float]) -> None:
        self.classes = same_classes([(s.reference, s.names) for s in streams])
        self.names: Mapping[str, str] = {wnid: name for s in streams for wnid, name in s.names.items()}
        self.budget = need_budget(config, None)
        self.unread: dict[str, str] = {}
        self._config, self._streams = config, streams
        check_weights(weights, self.budget)
        self._weights = [weight / sum(weights) for weight in weights]
        self._pass, self._taken = 0, 0

    @classmethod
    def open(cls, config: TrainConfig, references: Sequence[Reference]) -> StreamFeed:
        """Open the streams; see `hfsyn.judging.train.training_sets.open_feed`."""
        if config.data.limit_per_class is not None:
            raise HfsynError("A stream cannot be limited to some images a class.", "Leave --limit or --streaming out.")
        streams = [open_stream(found, config.data.train_split) for found in references]
        return cls(config, streams, [found.weight for found in references])

    @property
    def fingerprints(self) -> list[str]:
        """What is known of a stream before it is read: its name and revision."""
        return [f"{s.reference} {s.split} {s.revision}" for s in self._streams]

    def facts(self) -> list[dict[str, Any]]:
        """See `Feed`."""
        return [
            {
                "reference": s.reference,
                "split": s.split,
                "revision": s.revision,
                "classes": len(s.names),
                "share": weight * self.budget,
                "streaming": True,
                "hub": s.hub,
            }
            for s, weight in zip(self._streams, self._weights, strict=True)
        ]

    def overlap(self, test: ImageSet) -> int | None:
        """See `Feed`: it is known where the test is one of the streams, and not else, as no image has been read."""
        named = {(s.reference, s.split, s.revision) for s in self._streams}
        return len(test) if (test.reference, test.split, test.revision) in named else None

    def state(self) -> dict[str, Any]:
        """The pass that is being read, and how many batches of it were taken."""
        return {"pass": self._pass, "taken": self._taken}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._pass, self._taken = int(state["pass"]), int(state["taken"])

    def batches(self, transform: Transform, wanted: Slice) -> Iterator[tuple[Any, Any]]:
        """See `Feed`; without end, as the loop stops by itself."""
        from torch.utils.data import DataLoader

        rows = self._mixed(wanted)
        size = self._config.optimise.batch_size // wanted.parts // wanted.world
        while True:
            rows.set_epoch(self._pass)
            loader: Any = DataLoader(
                rows,
                batch_size=size,
                drop_last=True,
                num_workers=min(wanted.workers, rows.num_shards),
                collate_fn=_Decode(transform, self._config.seed, self._pass),
                generator=own_generator(),
                worker_init_fn=one_thread,
                pin_memory=wanted.pin,
            )
            skip, got = self._taken, 0
            for pixels, labels in self._whole(loader, size):
                got += 1
                if got <= skip:
                    continue
                self._taken = got
                yield pixels, labels
            if got == 0:
                unread = f", of which {len(self.unread)} could not be read" if self.unread else ""
                raise HfsynError(
                    f"A pass through the streams gives a process fewer than one batch of {size} images{unread}.",
                    "Look at the files."
                    if unread
                    else "Lower --batch-size, or leave --streaming out for so small a set.",
                )
            self._pass, self._taken = self._pass + 1, 0

    def _whole(self, loader: Any, size: int) -> Iterator[tuple[Any, Any]]:
        """Batches of the size wanted: those of the loader are shorter where images could not be read."""
        import torch

        left: tuple[Any, Any] | None = None
        for batch in loader:
            *more, unread = unwrapped(batch)
            self.unread.update(unread)
            if more[0] is None:
                continue
            pixels, labels = more if left is None else (torch.cat(pair) for pair in zip(left, more, strict=True))
            left = (pixels, labels)
            if len(labels) >= size:
                yield pixels[:size], labels[:size]
                left = (pixels[size:], labels[size:]) if len(labels) > size else None

    def _mixed(self, wanted: Slice) -> Any:
        """All streams as one, with labels that are columns of the classifier, this process's part of it."""
        from datasets import Features, Image, Value, interleave_datasets
        from datasets.distributed import split_dataset_by_node

        column = {wnid: number for number, wnid in enumerate(self.classes)}
        mapped = []
        for stream in self._streams:
            names = [label.column for label in stream.labels]
            features = Features({"image": Image(decode=False), "label": Value("int64")})
            targets = {value: column[wnid] for value, wnid in stream.wnids.items()}
            relabel = _Relabel(stream.image, stream.labels, targets, stream.wnids, stream.variant, stream.folder)
            labelled = stream.rows.filter(_HasLabel(names[0]))
            mapped.append(
                labelled.map(
                    relabel,
                    features=features,
                    remove_columns=[name for name in (stream.image, *names) if name not in features],
                )
            )
        rows = mapped[0]
        if len(mapped) > 1:
            rows = interleave_datasets(
                mapped, probabilities=self._weights, seed=self._config.seed, stopping_strategy="all_exhausted"
            )
        rows = rows.shuffle(seed=self._config.seed, buffer_size=self._config.data.shuffle_buffer)
        return split_dataset_by_node(rows, wanted.rank, wanted.world) if wanted.world > 1 else rows


@dataclass(frozen=True)
class _HasLabel:
    """Whether a row has a label; at module level, so that it can be sent to other processes."""

    column: str
    told: list[bool] = field(default_factory=list)

    def __call__(self, row: Mapping[str, Any]) -> bool:
        value = row[self.column]
        there = value is not None and value != -1 and value == value
        if not there and not self.told:
            self.told.append(True)
            _log.warning("Rows of a stream have no label (column '%s'): they are passed over.", self.column)
        return there


@dataclass(frozen=True)
class _Relabel:
    """Rows of any set to ``{"image", "label"}``; at module level, so that it can be sent to other processes."""

    image: str
    labels: tuple[Label, ...]
    targets: Mapping[int, int]
    wnids: Mapping[int, str]
    variant: Variant
    folder: Path | None
    known: dict[Any, bool] = field(default_factory=dict)
    """What was found out about other columns: few labels, many rows."""

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        value = row[self.labels[0].column]
        label = self.targets.get(value, _NO_CLASS)
        if label != _NO_CLASS and any(self._disagrees(other, row, self.wnids[value]) for other in self.labels[1:]):
            label = _DISAGREE
        data, _ = stored_image(row[self.image], self.folder)
        return {"image": {"bytes": data, "path": None}, "label": label}

    def _disagrees(self, other: Label, row: Mapping[str, Any], wnid: str) -> bool:
        value = row[other.column]
        if value is None or value == -1 or value == "":
            return False
        key = (other.column, value, wnid)
        if key not in self.known:
            meant = meanings(other, [value], self.variant)[0][value]
            words = label_words(self.variant, wnid)
            self.known[key] = meant not in (None, wnid) and spelling(other.spoken(value)) not in words
        return self.known[key]


@dataclass(frozen=True)
class _Decode:
    """Collate rows to pixels. Images that cannot be read are left out, so that no class is shown for another.

    What is wrong is handed on as a value: see `hfsyn.judging.sets.batches.Augmented`.
    """

    transform: Transform
    seed: int
    number: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any, Unreadable] | HfsynError:
        if any(row["label"] == _DISAGREE for row in rows):
            return HfsynError(
                "Two columns of the stream could be the label, and they disagree.",
                "Say which: `hfsyn variants new NAME --from PLACE --label-column COLUMN`, then NAME.yaml=PLACE.",
            )
        if any(row["label"] == _NO_CLASS for row in rows):
            return HfsynError("A row of the stream has a label that is not one of its classes.", "Leave it out.")
        items: list[tuple[Any, int, Unreadable]] = []
        unread = []
        for row in rows:
            data = row["image"]["bytes"] or b""
            try:
                picture = decode_rgb(data)
            except ImageRejected as problem:
                unread.append((_id_of(row["image"], data), problem.reason))
                continue
            with seeded(derive(self.seed, "stream", self.number, zlib.crc32(data))):
                items.append((self.transform(picture), int(row["label"]), ()))
        if not items:
            return None, None, tuple(unread)
        pixels, labels, _ = unwrapped(collate(items))
        return pixels, labels, tuple(unread)


def _id_of(stored: Any, data: bytes) -> str:
    """A name for an image of a stream, which has no ids: the file's, as far as it has one, and the bytes' hash."""
    path = stored.get("path") if isinstance(stored, Mapping) else None
    return f"{path or 'image'} ({hashlib.sha256(data).hexdigest()[:12]})"
