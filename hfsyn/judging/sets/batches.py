"""From opened datasets to batches of pixels, in an order that belongs to the seed and to nobody's speed.

Images are numbered by their **position**: epoch e shows positions e * budget to (e + 1) * budget. Which image stands at
a position depends on the seed alone, and an image's augmentation on the seed and its position. So neither the number of
processes nor of workers nor a restart changes what the network is shown; a step is a range of positions.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np

from builders.images.decoding import ImageRejected
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.image_set import ImageSet
from hfsyn.judging.sets.unreadable import picture

Transform = Callable[[Any], Any]
"""A PIL image in, a tensor out; see `hfsyn.judging.train.augmentation`."""


def derive(*parts: int | str) -> int:
    """A number below 2**32 for a place in the training: the same on every machine."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


def share_out(budget: int, weights: Sequence[float]) -> list[int]:
    """Divide `budget` images in proportion to the weights: whole numbers that add up, the largest remainders first.

    Raises:
        HfsynError: the weights are too large to be added up.
    """
    check_weights(weights, budget)
    exact = [budget * weight / sum(weights) for weight in weights]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares


def check_weights(weights: Sequence[float], budget: int) -> None:
    """Refuse weights that cannot be counted with.

    Raises:
        HfsynError: they are too large, or so small that nothing is left of them.
    """
    if not 0 < sum(weights) <= sys.float_info.max / budget:
        raise HfsynError(
            f"The weights {', '.join(f'{weight:g}' for weight in weights)} cannot be added up.",
            "Only their proportions count: 1 and 2 do as well.",
        )


@dataclass(frozen=True)
class Order:
    """Which image stands at which position."""

    sizes: tuple[int, ...]
    """Images of each set."""
    shares: tuple[int, ...]
    """Images of each set in one epoch."""
    seed: int

    @property
    def budget(self) -> int:
        """Images of one epoch."""
        return sum(self.shares)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Set and image at a position."""
        epoch, place = divmod(position, self.budget)
        found = _epoch(self, epoch)[place]
        return int(found[0]), int(found[1])


@lru_cache(maxsize=4)  # a step may span two epochs, and workers run ahead
def _epoch(order: Order, epoch: int) -> Any:
    """The ``(set, image)`` of every place of an epoch, an int64 array (budget, 2).

    A set that is larger than its share goes on where the last epoch ended, so that all its images are shown in turn;
    one that is smaller is repeated. Each pass through a set has an order of its own.
    """
    columns = []
    for number, (size, share) in enumerate(zip(order.sizes, order.shares, strict=True)):
        start, stop = epoch * share, (epoch + 1) * share
        passes = [
            np.random.default_rng([order.seed, number, p]).permutation(size)
            for p in range(start // size, -(-stop // size))
        ] or [np.empty(0, np.int64)]
        offset = start - (start // size) * size
        images = np.concatenate(passes)[offset : offset + share]
        columns.append(np.stack([np.full(share, number), images], axis=1))
    rows = np.concatenate(columns)
    return rows[np.random.default_rng([order.seed, len(order.sizes), epoch]).permutation(len(rows))]


Unreadable = tuple[tuple[str, str], ...]
"""The id and the reason of each image that could not be read."""


class Augmented:
    """A map-style dataset over positions: decoded, augmented, labelled. Used by torch's DataLoader.

    An item is ``(tensor, label, unreadable)``. For an image that cannot be read another of its class and set stands in:
    which one, the seed and the position decide. A class of which none can be read is an error, and handed on as a
    value: torch would glue the traceback of the worker into one that is raised there.
    """

    def __init__(
        self, sets: Sequence[ImageSet], order: Order, labels: dict[str, int], transform: Transform, seed: int
    ) -> None:
        self._sets, self._order, self._transform, self._seed = sets, order, transform, seed
        self._labels = [[labels[wnid] for wnid in opened.wnids] for opened in sets]
        self._bad: set[tuple[int, int]] = set()
        self._classes: dict[tuple[int, int], Any] = {}

    def __getitem__(self, position: int) -> tuple[Any, int, Unreadable] | HfsynError:
        number, image = self._order[position]
        opened, unread = self._sets[number], []
        for now in self._candidates(number, image, position):
            if (number, now) in self._bad:
                continue
            try:
                found = picture(opened, now)
            except ImageRejected as problem:
                self._bad.add((number, now))
                unread.append((opened.ids[now], problem.reason))
                continue
            with seeded(derive(self._seed, "augment", position)):
                return self._transform(found), self._labels[number][image], tuple(unread)
        wnid = opened.wnids[image]
        return HfsynError(
            f"No image of the class {wnid} ({opened.names.get(wnid, wnid)}) of {opened.reference} can be decoded.",
            "Look at its files, or leave the class out.",
        )

    def _candidates(self, number: int, image: int, position: int) -> Iterator[int]:
        """The image, then the others of its class in an order that belongs to the position."""
        yield image
        chance = np.random.default_rng(derive(self._seed, "stand-in", position))
        yield from map(int, chance.permutation(self._of_class(number, self._labels[number][image])))

    def _of_class(self, number: int, label: int) -> Any:
        """The images of a class in a set, int64 (n,); remembered, as one bad file is met in every pass."""
        if (number, label) not in self._classes:
            self._classes[number, label] = np.flatnonzero(np.array(self._labels[number]) == label)
        return self._classes[number, label]


class seeded:  # noqa: N801 (reads as a statement: `with seeded(n):`)
    """Within it, the generators of `random`, numpy and torch (on the CPU) start from a seed; after it, as before.

    In a loader's worker, where nobody else draws from them, they are not put back: that takes longer than seeding.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        import torch

        self._state = None
        if torch.utils.data.get_worker_info() is None:
            self._state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(self._seed)
        np.random.seed(self._seed)
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *error: object) -> None:
        import torch

        if self._state is not None:
            random.setstate(self._state[0])
            np.random.set_state(self._state[1])
            torch.set_rng_state(self._state[2])


def local_positions(start: int, count: int, rank: int, world: int) -> list[int]:
    """This process's part of the positions `start` to `start + count`.

    Mixup pairs the first image of a batch with the last, and so on inwards. Each process gets whole such pairs, in the
    order in which they are pairs again: so they do not depend on the number of processes.
    """
    local = count // world
    half, odd = divmod(local, 2)
    if odd:  # no pairs to keep
        return list(range(start + rank * local, start + (rank + 1) * local))
    front = range(start + rank * half, start + (rank + 1) * half)
    back = range(start + count - (rank + 1) * half, start + count - rank * half)
    return [*front, *back]


def training_batches(
    dataset: Augmented,
    *,
    first_step: int,
    steps: int,
    batch_size: int,
    parts: int,
    rank: int,
    world: int,
    workers: int,
    pin: bool = False,
) -> Iterator[tuple[Any, Any, Unreadable]]:
    """This process's batches ``(tensors, labels, unreadable)`` of the steps from `first_step` up to `steps`.

    `batch_size` images make a step; it comes in `parts` batches, each of ``batch_size / parts / world`` images.
    """
    from torch.utils.data import DataLoader

    size = batch_size // parts
    wanted = (  # not a list: a long training has a hundred million positions
        local_positions(step * batch_size + part * size, size, rank, world)
        for step in range(first_step, steps)
        for part in range(parts)
    )
    items: Any = dataset  # a map-style dataset need only have __getitem__
    loader: Any = DataLoader(
        items,
        batch_sampler=wanted,
        num_workers=workers,
        collate_fn=collate,
        generator=own_generator(),
        worker_init_fn=one_thread if workers else None,
        pin_memory=pin,
    )
    for batch in loader:
        yield unwrapped(batch)


def unwrapped(batch: Any) -> Any:
    """A loader's batch.

    Raises:
        HfsynError: the one that was handed on in its place.
    """
    if isinstance(batch, HfsynError):
        raise batch
    return batch


def own_generator() -> Any:
    """A generator of the loader's own: without it each loader would draw from the global one."""
    import torch

    return torch.Generator().manual_seed(0)


def one_thread(worker: int) -> None:
    """Workers share the cores: one thread each."""
    import torch

    torch.set_num_threads(1)


def collate(items: Sequence[tuple[Any, int, Unreadable] | HfsynError]) -> tuple[Any, Any, Unreadable] | HfsynError:
    """Stack items to ``(tensors (n, ...), labels (n,), unreadable)``; an error among them stands for all."""
    import torch

    if (wrong := next((item for item in items if isinstance(item, HfsynError)), None)) is not None:
        return wrong
    pixels, labels, unread = zip(*cast("Sequence[tuple[Any, int, Unreadable]]", items), strict=True)
    return torch.stack(pixels), torch.tensor(labels), tuple(one for some in unread for one in some)
