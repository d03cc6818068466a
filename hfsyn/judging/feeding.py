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

from builders.images import ImageRejected, decode_rgb
from hfsyn.errors import HfsynError
from hfsyn.judging.imagesets import ImageSet

Transform = Callable[[Any], Any]
"""A PIL image in, a tensor out; see `hfsyn.judging.augmenting`."""


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


class Augmented:
    """A map-style dataset over positions: decoded, augmented, labelled. Used by torch's DataLoader.

    An item is ``(tensor, label, unread)``. Where an image cannot be decoded, the next one of its set stands in, and
    `unread` says how many were passed over. What is wrong with a whole set is handed on as a value: torch would glue
    the traceback of the worker into an error that is raised there.
    """

    def __init__(
        self, sets: Sequence[ImageSet], order: Order, labels: dict[str, int], transform: Transform, seed: int
    ) -> None:
        self._sets, self._order, self._transform, self._seed = sets, order, transform, seed
        self._labels = [[labels[wnid] for wnid in opened.wnids] for opened in sets]

    def __getitem__(self, position: int) -> tuple[Any, int, int] | HfsynError:
        number, image = self._order[position]
        size = len(self._sets[number])
        for unread in range(size):
            now = (image + unread) % size
            try:
                picture = decode_rgb(self._sets[number].images[now])
            except ImageRejected:
                continue
            with seeded(derive(self._seed, "augment", position)):
                return self._transform(picture), self._labels[number][now], unread
        return HfsynError(f"No image of {self._sets[number].reference} can be decoded.", "Look at the files.")


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
) -> Iterator[tuple[Any, Any, int]]:
    """This process's batches ``(tensors, labels, unread)`` of the steps from `first_step` up to `steps`.

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
        items, batch_sampler=wanted, num_workers=workers, collate_fn=collate, generator=own_generator(),
        worker_init_fn=one_thread if workers else None, pin_memory=pin,
    )  # fmt: skip
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


def collate(items: Sequence[tuple[Any, int, int] | HfsynError]) -> tuple[Any, Any, int] | HfsynError:
    """Stack items to ``(tensors (n, ...), labels (n,), unread)``; an error among them stands for all."""
    import torch

    if (wrong := next((item for item in items if isinstance(item, HfsynError)), None)) is not None:
        return wrong
    pixels, labels, unread = zip(*cast("Sequence[tuple[Any, int, int]]", items), strict=True)
    return torch.stack(pixels), torch.tensor(labels), sum(unread)
