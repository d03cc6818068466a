"""What a training is fed with: its sets opened, their classes compared, the budget shared out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hfsyn.judging.sets.batches import Augmented, Order, Transform, share_out, training_batches
from hfsyn.judging.sets.image_set import TRAIN, ImageSet, open_images
from hfsyn.judging.sets.overlaps import shared_images
from hfsyn.judging.sets.references import Reference, parse_dataset
from hfsyn.judging.sets.shared_classes import same_classes
from hfsyn.judging.train.feed import Feed, Slice, need_budget
from hfsyn.recipes.training_recipe import TrainConfig


class MapFeed:
    """Sets that are on the disk, or small enough to be kept in memory."""

    def __init__(self, config: TrainConfig, sets: Sequence[ImageSet], weights: Sequence[float]) -> None:
        self.classes = same_classes([(opened.reference, opened.names) for opened in sets])
        self.names: Mapping[str, str] = {wnid: name for opened in sets for wnid, name in opened.names.items()}
        self.budget = need_budget(config, [len(opened) for opened in sets])
        self.unread: dict[str, str] = {}
        self._config, self._sets = config, sets
        shares = share_out(self.budget, weights)
        self._order = Order(tuple(len(opened) for opened in sets), tuple(shares), config.seed)

    @classmethod
    def open(cls, config: TrainConfig, references: Sequence[Reference]) -> MapFeed:
        """Open the sets; see `open_feed`."""
        part = config.data
        sets = [open_images(found, part.train_split, default=TRAIN, limit=part.limit_per_class) for found in references]
        return cls(config, sets, [found.weight for found in references])

    @property
    def fingerprints(self) -> list[str]:
        """Of the sets, in order."""
        return [opened.fingerprint for opened in self._sets]

    def facts(self) -> list[dict[str, Any]]:
        """See `Feed`."""
        return [
            {**opened.facts(), "share": share} for opened, share in zip(self._sets, self._order.shares, strict=True)
        ]

    def overlap(self, test: ImageSet) -> int | None:
        """See `Feed`."""
        return len(set().union(*(shared_images(opened, test) for opened in self._sets)))

    def batches(self, transform: Transform, wanted: Slice) -> Iterator[tuple[Any, Any]]:
        """See `Feed`."""
        labels = {wnid: number for number, wnid in enumerate(self.classes)}
        dataset = Augmented(self._sets, self._order, labels, transform, self._config.seed)
        for pixels, targets, unread in training_batches(
            dataset,
            first_step=wanted.first,
            steps=wanted.steps,
            batch_size=self._config.optimise.batch_size,
            parts=wanted.parts,
            rank=wanted.rank,
            world=wanted.world,
            workers=wanted.workers,
            pin=wanted.pin,
        ):
            self.unread.update(unread)
            yield pixels, targets

    def state(self) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `state`."""


def open_feed(config: TrainConfig) -> Feed:
    """Open the training sets.

    Raises:
        HfsynError: see `open_images`; the sets have different classes (they are listed), or several sets or
            a stream and no budget.
    """
    references = [parse_dataset(text) for text in config.data.train]
    if config.data.streaming:
        from hfsyn.judging.train.streams import StreamFeed

        return StreamFeed.open(config, references)
    return MapFeed.open(config, references)
