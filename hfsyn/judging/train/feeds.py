"""Where the batches of a training come from: sets on the disk, or streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.judging.sets.batches import (
    Augmented,
    Order,
    Slice,
    Transform,
    check_weights,
    loader,
    share_out,
    training_batches,
    unwrapped,
)
from hfsyn.judging.sets.image_set import TRAIN, ImageSet, open_images
from hfsyn.judging.sets.references import Reference, parse_dataset
from hfsyn.judging.sets.shared import same_classes, shared_images
from hfsyn.judging.train.streams import Decode, Stream, mixed, open_stream
from hfsyn.recipes.training_recipe import TrainConfig


class Feed:
    """The training sets of a recipe, which must have the same classes, and their batches."""

    def __init__(self, config: TrainConfig, sets: Sequence[ImageSet | Stream]) -> None:
        self.classes = same_classes([(one.reference, one.names) for one in sets])  # the wnid of each label, sorted
        self.names: Mapping[str, str] = {wnid: name for one in sets for wnid, name in one.names.items()}
        self.budget = config.data.budget or 0  # images of an epoch
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
        sets = [open_images(found, part.train_split, default=TRAIN, limit=part.limit_per_class) for found in references]
        super().__init__(config, sets)
        sizes = [len(opened) for opened in sets]
        if not self.budget and len(sizes) > 1:
            raise HfsynError(
                f"{len(sizes)} training sets and no budget: how many images does an epoch show?",
                f"Say it, so that trainings can be compared: --budget {sum(sizes)} is as many as they hold.",
            )
        self.budget = self.budget or sizes[0]
        shares = share_out(self.budget, [found.weight for found in references])
        self._sets, self._shares, self._order = sets, shares, Order(tuple(sizes), tuple(shares), config.seed)

    def overlap(self, test: ImageSet) -> int | None:
        return len(set().union(*(shared_images(opened, test) for opened in self._sets)))

    def batches(self, transform: Transform, wanted: Slice) -> Iterator[tuple[Any, Any]]:
        labels = {wnid: number for number, wnid in enumerate(self.classes)}
        dataset = Augmented(self._sets, self._order, labels, transform, self._config.seed)
        for pixels, targets, unread in training_batches(dataset, wanted):
            self.unread.update(unread)
            yield pixels, targets


class _StreamFeed(Feed):
    """Sets that are read while they are used; see `hfsyn.judging.train.streams`."""

    def __init__(self, config: TrainConfig, references: Sequence[Reference]) -> None:
        if config.data.limit_per_class is not None:
            raise HfsynError("A stream cannot be limited to some images a class.", "Leave --limit or --streaming out.")
        self._streams = [open_stream(found, config.data.train_split) for found in references]
        super().__init__(config, self._streams)
        if not self.budget:
            raise HfsynError("A stream has no known size.", "Say how many images an epoch shows: --budget N")
        weights = [found.weight for found in references]
        check_weights(weights, self.budget)
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
        rows = mixed(self._streams, self.classes, self._weights, seed, buffer)
        if wanted.world > 1:
            rows = split_dataset_by_node(rows, wanted.rank, wanted.world)
        size = wanted.batch_size // wanted.parts // wanted.world
        while True:
            rows.set_epoch(self._pass)
            decode, workers = Decode(transform, seed, self._pass), min(wanted.workers, rows.num_shards)
            batches = loader(rows, workers, decode, batch_size=size, drop_last=True, pin_memory=wanted.pin)
            # A training that continues has taken the first batches of this pass already.
            skip, got = self._taken, 0
            for got, batch in enumerate(self._whole(batches, size), start=1):
                if got > skip:
                    self._taken = got
                    yield batch
            if got == 0:
                unread = f", of which {len(self.unread)} could not be read" if self.unread else ""
                hint = "Lower --batch-size, or leave --streaming out for so small a set."
                raise HfsynError(
                    f"A pass through the streams gives a process fewer than one batch of {size} images{unread}.",
                    "Look at the files." if unread else hint,
                )
            self._pass, self._taken = self._pass + 1, 0

    def _whole(self, batches: Any, size: int) -> Iterator[tuple[Any, Any]]:
        """Batches of the right size: those of the loader are shorter if images could not be read."""
        import torch

        left: tuple[Any, Any] | None = None
        for batch in batches:
            *more, unread = unwrapped(batch)
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
