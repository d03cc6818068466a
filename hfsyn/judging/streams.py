"""Training on streams: sets that are read while they are used, shuffled in a buffer, mixed by chance.

A stream is read in **passes**; each pass shuffles the order of the files and the buffer anew from the seed. What a
process shows depends on the seed, its rank, the number of processes and of workers: with the same ones a training
that was killed goes on exactly where it was (it reads the current pass again up to there), with others it is another
order. An image's augmentation depends on the seed, the pass and the image's own bytes. Of several sets the weights are
chances, and the shares in an epoch come out only nearly so.

Classes are those that the label column declares, since which of them occur is not known before everything is read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builders.images import ImageRejected, decode_rgb
from builders.variants import get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.columns import Columns, class_names, find_columns, label_wnids
from hfsyn.judging.feeding import (
    Transform,
    check_weights,
    collate,
    derive,
    one_thread,
    own_generator,
    seeded,
    unwrapped,
)
from hfsyn.judging.feeds import Slice, need_budget
from hfsyn.judging.imagesets import TRAIN, ImageSet, local_tables, pick_split
from hfsyn.judging.meeting import same_classes
from hfsyn.judging.references import Reference
from hfsyn.judging.stored_images import stored_bytes
from hfsyn.judging.train_config import TrainConfig

_NO_CLASS = -1


@dataclass(frozen=True)
class Stream:
    """One set as a stream."""

    reference: str
    split: str
    revision: str | None
    rows: Any
    """A `datasets.IterableDataset` that decodes nothing."""
    columns: Columns
    wnids: Mapping[Any, str]
    """Stored label -> wnid."""
    names: Mapping[str, str]
    """Class name of each wnid that is declared."""
    hub: str | None = None
    """The repository on the Hub that it is read from."""


def open_stream(found: Reference, split: str | None, token: str | bool | None = None) -> Stream:
    """Open one split of a dataset as a stream.

    Raises:
        HfsynError: as `open_images`; or a folder of image files; or a label column that declares no names.
    """
    from datasets import Image

    rows, split, revision = _rows(found, split, token)
    if rows.features is None:
        rows = rows._resolve_features()
    columns = find_columns(rows.features, str(found), prefer_names=True)
    if columns.names is None:
        raise HfsynError(
            f"The label column {columns.label!r} of {found} declares no class names, so that a stream cannot tell its "
            "classes.",
            "Leave --streaming out, or give the column a ClassLabel feature.",
        )
    if isinstance(rows.features[columns.image], Image):
        rows = rows.cast_column(columns.image, Image(decode=False))
    rows = rows.select_columns([columns.image, columns.label])
    wnids = label_wnids(range(len(columns.names)), columns, found.variant, str(found))
    source = get_variant(found.place).hub if found.kind == "variant" else None
    hub = found.place if found.kind == "hub" else source.repo_id if source else None
    names = class_names(set(wnids.values()), found.variant)
    return Stream(str(found), split, revision, rows, columns, wnids, names, hub)


def _rows(found: Reference, split: str | None, token: str | bool | None) -> tuple[Any, str, str | None]:
    from datasets import load_dataset

    from hfsyn.judging.hubsets import load_rows, load_variant

    if found.kind == "hub":
        return load_rows(found, split, TRAIN, streaming=True, token=token)
    if found.kind == "variant":
        variant = get_variant(found.place)
        split = pick_split(list(variant.splits), split, TRAIN, f"The variant {variant.name!r}")
        if variant.drawn:
            from builders.shapes import Shapes

            return Shapes(config_name=variant.name).as_streaming_dataset(split), split, None
        rows, revision = load_variant(variant, split, found.revision, streaming=True, token=token)
        return rows, split, revision
    tables = local_tables(found, split, TRAIN)
    if tables is None:
        raise HfsynError(f"{found.place} is a folder of image files.", "They need no stream: leave --streaming out.")
    rows = load_dataset("parquet", data_files={tables.split: list(tables.files)}, split=tables.split, streaming=True)
    return rows, tables.split, tables.revision


class StreamFeed:
    """A training's batches from streams. Satisfies `hfsyn.judging.feeds.Feed`."""

    def __init__(self, config: TrainConfig, streams: Sequence[Stream], weights: Sequence[float]) -> None:
        self.classes = same_classes([(s.reference, s.names) for s in streams])
        self.names: Mapping[str, str] = {wnid: name for s in streams for wnid, name in s.names.items()}
        self.budget = need_budget(config, None)
        self.unread = 0
        self._config, self._streams = config, streams
        check_weights(weights, self.budget)
        self._weights = [weight / sum(weights) for weight in weights]
        self._pass, self._taken = 0, 0

    @classmethod
    def open(cls, config: TrainConfig, references: Sequence[Reference]) -> StreamFeed:
        """Open the streams; see `hfsyn.judging.feeds.open_feed`."""
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
                "reference": s.reference, "split": s.split, "revision": s.revision, "classes": len(s.classes),
                "share": weight * self.budget, "streaming": True, "hub": s.hub,
            }
            for s, weight in zip(self._streams, self._weights, strict=True)
        ]  # fmt: skip

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
                rows, batch_size=size, drop_last=True, num_workers=min(wanted.workers, rows.num_shards),
                collate_fn=_Decode(transform, self._config.seed, self._pass), generator=own_generator(),
                worker_init_fn=one_thread, pin_memory=wanted.pin,
            )  # fmt: skip
            skip, got = self._taken, 0
            for number, batch in enumerate(loader):
                pixels, labels, unread = unwrapped(batch)
                got += 1
                if number < skip:
                    continue
                self.unread += unread
                self._taken = number + 1
                yield pixels, labels
            if got == 0:
                raise HfsynError(
                    f"A pass through the streams gives a process fewer than one batch of {size} images.",
                    "Lower --batch-size, or leave --streaming out for so small a set.",
                )
            self._pass, self._taken = self._pass + 1, 0

    def _mixed(self, wanted: Slice) -> Any:
        """All streams as one, with labels that are columns of the classifier, this process's part of it."""
        from datasets import Features, Value, interleave_datasets
        from datasets.distributed import split_dataset_by_node

        column = {wnid: number for number, wnid in enumerate(self.classes)}
        mapped = []
        for stream in self._streams:
            image, label = stream.columns.image, stream.columns.label
            features = Features({"image": stream.rows.features[image], "label": Value("int64")})
            targets = {value: column[wnid] for value, wnid in stream.wnids.items()}
            mapped.append(stream.rows.map(_Relabel(image, label, targets), features=features, remove_columns=[
                name for name in (image, label) if name not in features
            ]))  # fmt: skip
        rows = mapped[0]
        if len(mapped) > 1:
            rows = interleave_datasets(
                mapped, probabilities=self._weights, seed=self._config.seed, stopping_strategy="all_exhausted"
            )
        rows = rows.shuffle(seed=self._config.seed, buffer_size=self._config.data.shuffle_buffer)
        return split_dataset_by_node(rows, wanted.rank, wanted.world) if wanted.world > 1 else rows


@dataclass(frozen=True)
class _Relabel:
    """Rows of any set to ``{"image", "label"}``; at module level, so that it can be sent to other processes."""

    image: str
    label: str
    targets: Mapping[Any, int]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"image": row[self.image], "label": self.targets.get(row[self.label], _NO_CLASS)}


@dataclass(frozen=True)
class _Decode:
    """Collate rows to pixels. In the place of an image that cannot be decoded stands the batch's first good one.

    What is wrong is handed on as a value: see `hfsyn.judging.feeding.Augmented`.
    """

    transform: Transform
    seed: int
    number: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any, int] | HfsynError:
        if any(row["label"] == _NO_CLASS for row in rows):
            return HfsynError("A row of the stream has a label that is none of its classes.", "Leave it out.")
        items: list[tuple[Any, int, int]] = []
        for row in rows:
            data = stored_bytes(row["image"])
            try:
                picture = decode_rgb(data)
            except ImageRejected:
                continue
            with seeded(derive(self.seed, "stream", self.number, zlib.crc32(data))):
                items.append((self.transform(picture), int(row["label"]), 0))
        if not items:
            return HfsynError("No image of a whole batch of the stream can be decoded.", "Look at the files.")
        missing = len(rows) - len(items)
        pixels, labels, _ = unwrapped(collate([*items, *[items[0]] * missing]))
        return pixels, labels, missing
