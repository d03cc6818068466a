"""Where the batches of a training come from: sets on the disk, or streams that are read while they are used.

A stream is read in **passes**, at several places at once, through a buffer; each pass shuffles places and buffer again
from the seed. What a process shows
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
from functools import partial
from typing import Any

import numpy as np

from builders.images.decoding import ImageRejected, decode_rgb
from hfsyn.errors import HfsynError
from hfsyn.judging.sets import batches as loading
from hfsyn.judging.sets.batches import Slice, Transform, Unreadable
from hfsyn.judging.sets.image_set import TRAIN, ImageSet, open_images
from hfsyn.judging.sets.kept import kept_part
from hfsyn.judging.sets.references import Reference, parse_dataset
from hfsyn.judging.sets.shared import same_classes, shared_images
from hfsyn.judging.train.streams import DISAGREE, NO_CLASS, Stream, mixed, open_stream
from hfsyn.recipes.training_recipe import TrainConfig

_log = logging.getLogger(__name__)
_WATCHED = 10  # batches of which the classes are counted


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

    def counted(self) -> list[tuple[ImageSet, float]]:
        """The sets, each with how often one of its images is shown in an epoch; none where they are streams."""
        return [(one, share / len(one)) for one, share in zip(self.sets or (), self._shares, strict=True)]

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
        if config.model.split_bn and shares[0] != shares[1]:
            said = f"model.split_bn takes as many images of either set, and these are {shares[0]} and {shares[1]}."
            raise HfsynError(said, "Give both the same weight, and an even --budget.")
        order = loading.Halves if config.model.split_bn else loading.Order
        self.sets, self._shares, self._order = sets, shares, order(tuple(sizes), tuple(shares), config.seed)

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
        self.classes_of_batches: list[int] = []  # classes that each of the first batches held
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

        from hfsyn.judging.train.shuffling import Shuffled

        seed, room = self._config.seed, self._config.data.shuffle_mb * 10**6 // max(1, wanted.workers)
        rows = mixed(self._streams, self.classes, self._weights, seed, room)
        if wanted.world > 1:
            rows = split_dataset_by_node(rows, wanted.rank, wanted.world)
        size = wanted.batch_size // wanted.parts // wanted.world
        while True:
            rows.set_epoch(self._pass)
            collate = partial(_decode, transform=transform, seed=seed, number=self._pass)
            workers = min(wanted.workers, rows.num_shards)
            shuffled = Shuffled(rows, room, (seed, self._pass, wanted.rank))
            loader = loading.loader(shuffled, workers, collate, batch_size=size, drop_last=True, pin_memory=wanted.pin)
            # A training that continues has taken the first batches of this pass already.
            skip, got = self._taken, 0
            for got, batch in enumerate(self._whole(loader, size), start=1):
                if got > skip:
                    self._taken = got
                    self._watch(batch[1], wanted.rank == 0)
                    yield batch
            if got == 0:
                unread = f", of which {len(self.unread)} could not be read" if self.unread else ""
                hint = "Lower --batch-size, or leave --streaming out for so small a set."
                said = f"A pass through the streams gives a process fewer than one batch of {size} images{unread}."
                raise HfsynError(said, "Look at the files." if unread else hint)
            self._pass, self._taken = self._pass + 1, 0

    def _watch(self, labels: Any, talks: bool) -> None:
        """Warn once if the first batches hold far fewer classes than of shuffled rows they would."""
        if len(self.classes_of_batches) >= _WATCHED:
            return
        self.classes_of_batches.append(len(set(labels.tolist())))
        if len(self.classes_of_batches) == _WATCHED and talks:
            found, count, size = np.mean(self.classes_of_batches), len(self.classes), len(labels)
            expected = count * (1 - (1 - 1 / count) ** size)
            if found < expected / 2:
                _log.warning(
                    "Batches of %d images hold %.0f of %d classes, of which shuffled ones hold %.0f: the stream is "
                    "sorted by class. Raise data.shuffle_mb (%d), or leave --streaming out.",
                    *(size, found, count, expected, self._config.data.shuffle_mb),
                )

    def facts(self) -> list[dict[str, Any]]:
        """See `Feed`; and how many classes each of the first batches held."""
        return [{**one, "classes_of_batches": self.classes_of_batches} for one in super().facts()]

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


@loading.generators_kept()
def _decode(
    rows: Sequence[Mapping[str, Any]], *, transform: Transform, seed: int, number: int
) -> tuple[Any, Any, Unreadable] | HfsynError:
    """Collate rows of `_mixed` to ``(tensors, labels, unreadable)``, the first two None if no image can be read.

    `number` is that of the pass. An error is returned as a value: see `hfsyn.judging.sets.loading.Augmented`.
    """
    labels = {row["label"] for row in rows}
    if DISAGREE in labels:
        return HfsynError(
            "Two columns of the stream could be the label, and they disagree.",
            "Name one: `hfsyn variants new NAME --from PLACE --label-column COLUMN`, then NAME.yaml=PLACE.",
        )
    if NO_CLASS in labels:
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
