"""Where the batches of a training come from: sets on the disk, or streams that are read while they are used.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from builders.images.decoding import ImageRejected, decode_rgb
from builders.sources.columns import Columns, Label, find_columns, label_words, meanings, unknown_labels
from builders.sources.parquet import in_parallel, stored_image
from builders.sources.rows import spelling
from builders.variants import Variant, get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.sets import batches as loading
from hfsyn.judging.sets import tables
from hfsyn.judging.sets.batches import Slice, Transform, Unreadable
from hfsyn.judging.sets.image_set import TRAIN, ImageSet, local_tables, open_images
from hfsyn.judging.sets.kept import kept_part
from hfsyn.judging.sets.references import Reference, parse_dataset, pick_split
from hfsyn.judging.sets.shared import same_classes, shared_images
from hfsyn.recipes.training_recipe import TrainConfig

_log = logging.getLogger(__name__)

_NO_CLASS, _DISAGREE = -1, -2
"""Instead of a label: one that is not a class of the stream; two columns that name different classes."""


class Feed:
    """The training sets of a recipe, which must have the same classes, and their batches."""

    def __init__(self, config: TrainConfig, sets: Sequence[ImageSet | Stream]) -> None:
        self.classes = same_classes([(one.reference, one.names) for one in sets])  # the wnid of each label, sorted
        self.names: Mapping[str, str] = {wnid: name for one in sets for wnid, name in one.names.items()}
        self.budget = config.data.budget or 0  # images of an epoch
        self.images: int | None = None  # of all sets; None where they are streams
        self.sets: Sequence[ImageSet] | None = None  # opened; None where they are streams
        self.unread: dict[str, str] = {}  # id -> reason of images that this process could not read so far
        self._config, self._all = config, sets
        self._shares: Sequence[float] = ()

    @property
    def fingerprints(self) -> list[str]:
        """What identifies the sets, for a checkpoint."""
        return [one.fingerprint for one in self._all]

    def facts(self) -> list[dict[str, Any]]:
        """What a result says about each set; ``share`` is its images in an epoch."""
        return [{**one.facts(), "share": share} for one, share in zip(self._all, self._shares, strict=True)]

    def overlap(self, test: ImageSet) -> int | None:
        """How many images of a test set are trained on; None if that cannot be known."""
        raise NotImplementedError

    def batches(self, transform: Transform, wanted: Slice) -> Iterator[tuple[Any, Any]]:
        """This process's batches ``(tensors, labels)`` on the CPU, in order; `transform` makes the tensors."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What this process must know beside the step to continue from here."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""


class _MapFeed(Feed):
    """Sets on the disk, or small enough to be kept in memory."""

    def __init__(self, config: TrainConfig, references: Sequence[Reference]) -> None:
        part = config.data
        sets = [
            kept_part(
                open_images(found, part.train_split, default=TRAIN, limit=limit), found, part.keep, config.seed
            ).without_fold(part.fold_of)
            for found, limit in zip(references, part.limit_of_each, strict=True)
        ]
        super().__init__(config, sets)
        sizes = [len(opened) for opened in sets]
        self.images = sum(sizes)
        if not self.budget and len(sizes) > 1:
            raise HfsynError(
                f"{len(sizes)} training sets and no budget: how many images does an epoch show?",
                f"Set it, so that trainings can be compared: --budget {sum(sizes)} is as many as they hold.",
            )
        self.budget = self.budget or sizes[0]
        shares = loading.share_out(self.budget, [found.weight for found in references])
        self.sets, self._shares, self._order = sets, shares, loading.Order(tuple(sizes), tuple(shares), config.seed)

    def overlap(self, test: ImageSet) -> int | None:
        return len(set().union(*(shared_images(opened, test) for opened in self.sets or ())))

    def batches(self, transform: Transform, wanted: Slice) -> Iterator[tuple[Any, Any]]:
        labels = {wnid: number for number, wnid in enumerate(self.classes)}
        dataset = loading.Augmented(self.sets or (), self._order, labels, transform, self._config.seed)
        for pixels, targets, unread in loading.training_batches(dataset, wanted):
            self.unread.update(unread)
            yield pixels, targets


class _StreamFeed(Feed):
    """Sets that are read while they are used; see the module."""

    def __init__(self, config: TrainConfig, references: Sequence[Reference]) -> None:
        if any(config.data.limit_of_each):
            raise HfsynError("A stream cannot be limited per class.", "Leave --limit or --streaming out.")
        self._streams = [open_stream(found, config.data.train_split) for found in references]
        super().__init__(config, self._streams)
        if not self.budget:
            raise HfsynError("A stream has no known size.", "Set the number of images that an epoch shows: --budget N")
        weights = [found.weight for found in references]
        loading.check_weights(weights, self.budget)
        self._weights = [weight / sum(weights) for weight in weights]
        self._shares = [weight * self.budget for weight in self._weights]
        self._pass, self._taken = 0, 0  # the pass that is being read, and how many of its batches were taken

    def overlap(self, test: ImageSet) -> int | None:
        """See `Feed`: all if the test is one of the streams, else unknown, as no image has been read."""
        named = {(s.reference, s.split, s.revision) for s in self._streams}
        return len(test) if (test.reference, test.split, test.revision) in named else None

    def state(self) -> dict[str, Any]:
        return {"pass": self._pass, "taken": self._taken}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._pass, self._taken = int(state["pass"]), int(state["taken"])

    def batches(self, transform: Transform, wanted: Slice) -> Iterator[tuple[Any, Any]]:
        """See `Feed`; without end, as the training loop stops by itself."""
        from datasets.distributed import split_dataset_by_node

        seed, buffer = self._config.seed, self._config.data.shuffle_buffer
        rows = _mixed(self._streams, self.classes, self._weights, seed, buffer)
        if wanted.world > 1:
            rows = split_dataset_by_node(rows, wanted.rank, wanted.world)
        size = wanted.batch_size // wanted.parts // wanted.world
        while True:
            rows.set_epoch(self._pass)
            collate = partial(_decode, transform=transform, seed=seed, number=self._pass)
            workers = min(wanted.workers, rows.num_shards)
            loader = loading.loader(rows, workers, collate, batch_size=size, drop_last=True, pin_memory=wanted.pin)
            # A training that continues has taken the first batches of this pass already.
            skip, got = self._taken, 0
            for got, batch in enumerate(self._whole(loader, size), start=1):
                if got > skip:
                    self._taken = got
                    yield batch
            if got == 0:
                unread = f", of which {len(self.unread)} could not be read" if self.unread else ""
                hint = "Lower --batch-size, or leave --streaming out for so small a set."
                said = f"A pass through the streams gives a process fewer than one batch of {size} images{unread}."
                raise HfsynError(said, "Look at the files." if unread else hint)
            self._pass, self._taken = self._pass + 1, 0

    def _whole(self, loader: Any, size: int) -> Iterator[tuple[Any, Any]]:
        """Batches of the right size: those of the loader are shorter if images could not be read."""
        import torch

        left: tuple[Any, Any] | None = None
        for batch in loader:
            *more, unread = loading.unwrapped(batch)
            self.unread.update(unread)
            if more[0] is None:
                continue
            pixels, labels = more if left is None else (torch.cat(pair) for pair in zip(left, more, strict=True))
            left = (pixels, labels)
            if len(labels) >= size:
                yield pixels[:size], labels[:size]
                left = (pixels[size:], labels[size:]) if len(labels) > size else None


def open_feed(config: TrainConfig) -> Feed:
    """Open the training sets; raises as `open_images`, `open_stream`, `same_classes`, and if there must be a budget."""
    references = [parse_dataset(text) for text in config.data.train]
    return _StreamFeed(config, references) if config.data.streaming else _MapFeed(config, references)


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
    return Stream(str(found), split, revision, rows, columns.image, tuple(labels), wnids, variant, folder, hub)


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


def _mixed(
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
        labelled = stream.rows.filter(partial(_has_label, column=names[0], warned=[]))
        relabelled.append(labelled.map(relabel, features=features, remove_columns=old))
    rows = relabelled[0]
    if len(relabelled) > 1:
        rows = interleave_datasets(
            relabelled, probabilities=list(weights), seed=seed, stopping_strategy="all_exhausted"
        )
    return rows.shuffle(seed=seed, buffer_size=shuffle_buffer)


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


@loading.generators_kept()
def _decode(
    rows: Sequence[Mapping[str, Any]], *, transform: Transform, seed: int, number: int
) -> tuple[Any, Any, Unreadable] | HfsynError:
    """Collate rows of `_mixed` to ``(tensors, labels, unreadable)``, the first two None if no image can be read.

    `number` is that of the pass. An error is returned as a value: see `hfsyn.judging.sets.loading.Augmented`.
    """
    labels = {row["label"] for row in rows}
    if _DISAGREE in labels:
        return HfsynError(
            "Two columns of the stream could be the label, and they disagree.",
            "Name one: `hfsyn variants new NAME --from PLACE --label-column COLUMN`, then NAME.yaml=PLACE.",
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
        loading.seed_all(loading.derive(seed, "stream", number, zlib.crc32(data)))
        items.append((transform(picture), int(row["label"]), ()))
    if not items:
        return None, None, tuple(unread)
    pixels, targets, _ = loading.unwrapped(loading.collate(items))
    return pixels, targets, tuple(unread)
