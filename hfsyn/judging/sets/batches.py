"""From opened datasets to batches of pixels, in an order that depends on the seed alone.

Images are numbered by their **position**: epoch e shows positions e * budget to (e + 1) * budget. The image at a
position depends only on the seed, its augmentation on the seed and the position. So neither the number of processes or
workers nor a restart changes what the network is shown; a step is a range of positions.
"""

import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np

from builders.images.decoding import ImageRejected
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.image_set import ImageSet

Transform = Callable[[Any], Any]  # a PIL image in, a tensor out
Unreadable = tuple[tuple[str, str], ...]  # the id of each image that could not be read, and why


def derive(*parts: int | str) -> int:
    """A seed below 2**32 for a place in the training, the same on every machine."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


def share_out(budget: int, weights: Sequence[float]) -> list[int]:
    """Divide `budget` images in proportion to the weights into whole numbers, by the largest remainders."""
    check_weights(weights, budget)
    exact = [budget * weight / sum(weights) for weight in weights]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares


def check_weights(weights: Sequence[float], budget: int) -> None:
    """Refuse weights whose sum overflows, or underflows to 0."""
    if not 0 < sum(weights) <= sys.float_info.max / budget:
        said = f"The weights {', '.join(f'{weight:g}' for weight in weights)} cannot be added up."
        raise HfsynError(said, "Only their proportions count: 1 and 2 do as well.")


@dataclass(frozen=True)
class Order:
    """Which image is at which position."""

    sizes: tuple[int, ...]  # images of each set
    shares: tuple[int, ...]  # images of each set in one epoch
    seed: int

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Set and image at a position."""
        epoch, place = divmod(position, sum(self.shares))
        found = _epoch(self, epoch)[place]
        return int(found[0]), int(found[1])


@dataclass(frozen=True)
class Halves(Order):
    """Two sets in turn: even positions are of the first, odd ones of the second, each in an order of its own."""

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Set and image at a position."""
        place, number = divmod(position, 2)
        done, image = divmod(place, self.sizes[number])
        return number, int(_pass(self, number, done)[image])


@lru_cache(maxsize=4)
def _pass(order: Order, number: int, done: int) -> Any:
    """The images of a set in the order of its pass `done`, an int64 array."""
    return np.random.default_rng([order.seed, number, done]).permutation(order.sizes[number])


@lru_cache(maxsize=4)  # a step may span two epochs, and workers run ahead
def _epoch(order: Order, epoch: int) -> Any:
    """The ``(set, image)`` of every place of an epoch, an int64 array (budget, 2).

    A set larger than its share continues where the last epoch ended, so that all its images are shown in turn; a
    smaller one is repeated. Each pass through a set has an order of its own.
    """
    columns = []
    for number, (size, share) in enumerate(zip(order.sizes, order.shares, strict=True)):
        first, offset = divmod(epoch * share, size)
        passes = [_pass(order, number, p) for p in range(first, -(-(epoch + 1) * share // size))] or [
            np.empty(0, np.int64)
        ]
        images = np.concatenate(passes)[offset : offset + share]
        columns.append(np.stack([np.full(share, number), images], axis=1))
    rows = np.concatenate(columns)
    return rows[np.random.default_rng([order.seed, len(order.sizes), epoch]).permutation(len(rows))]


class Augmented:
    """A map-style dataset over positions: decoded, augmented, labelled. Used by torch's DataLoader.

    An item is ``(tensor, label, unreadable)``. An image that cannot be read is replaced by another of its class and
    set, which the seed and the position decide. If no image of the class can be read, the item is an error: as a value,
    since torch would add the worker's traceback to one that is raised.
    """

    def __init__(
        self, sets: Sequence[ImageSet], order: Order, labels: dict[str, int], transform: Transform, seed: int
    ) -> None:
        self._sets, self.order, self._transform, self._seed = sets, order, transform, seed
        self._labels = [np.array([labels[wnid] for wnid in opened.wnids]) for opened in sets]
        self._bad: set[tuple[int, int]] = set()

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[Any, int, Unreadable] | HfsynError]:
        """The items of a batch; torch's DataLoader asks for them so."""
        with generators_kept():
            return [self._item(position) for position in positions]

    def __getitem__(self, position: int) -> tuple[Any, int, Unreadable] | HfsynError:
        return self.__getitems__([position])[0]

    def _item(self, position: int) -> tuple[Any, int, Unreadable] | HfsynError:
        number, image = self.order[position]
        opened, unread = self._sets[number], []
        label = int(self._labels[number][image])
        for candidate in self._candidates(number, image, label, position):
            if (number, candidate) in self._bad:
                continue
            try:
                picture = opened.picture(candidate)
            except ImageRejected as problem:
                self._bad.add((number, candidate))
                unread.append((opened.ids[candidate], problem.reason))
                continue
            seed_all(derive(self._seed, "augment", position))
            return self._transform(picture), label, tuple(unread)
        wnid = opened.wnids[image]
        said = f"No image of the class {wnid} ({opened.names.get(wnid, wnid)}) of {opened.reference} can be decoded."
        return HfsynError(said, "Look at its files, or leave the class out.")

    def _candidates(self, number: int, image: int, label: int, position: int) -> Iterator[int]:
        """The image, then the others of its class in an order that depends on the position."""
        yield image
        rng = np.random.default_rng(derive(self._seed, "stand-in", position))
        yield from map(int, rng.permutation(np.flatnonzero(self._labels[number] == label)))


def seed_all(seed: int) -> None:
    """Seed the generators of `random`, numpy and torch (on the CPU)."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore these generators after a block.

    Not in a loader's worker, where nothing else draws from them. It takes ten times as long as seeding: an image each
    would wait for it, a batch does not notice.
    """
    import torch

    kept = None
    if torch.utils.data.get_worker_info() is None:
        kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        if kept is not None:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.set_rng_state(kept[2])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators for a block, and restore them after it."""
    with generators_kept():
        seed_all(seed)
        yield


def local_positions(start: int, count: int, rank: int, world: int) -> list[int]:
    """This process's part of the positions `start` to `start + count`.

    Mixup pairs the first image of a batch with the last, and so on inwards. Each process gets whole pairs, in an order
    that keeps them pairs, so that they do not depend on the number of processes.
    """
    local = count // world
    half, odd = divmod(local, 2)
    if odd:  # no pairs to keep
        return list(range(start + rank * local, start + (rank + 1) * local))
    front = range(start + rank * half, start + (rank + 1) * half)
    back = range(start + count - (rank + 1) * half, start + count - rank * half)
    return [*front, *back]


def local_halves(start: int, count: int, rank: int, world: int) -> list[int]:
    """The same of `Halves`: first this process's positions of the first set, then as many of the second."""
    local = range(start + rank * (count // world), start + (rank + 1) * (count // world))
    return sorted(local, key=lambda position: position % 2)


@dataclass(frozen=True)
class Slice:
    """Which batches of a training a process wants: of the steps `first` up to `steps`."""

    first: int
    steps: int
    batch_size: int  # images of a step over all processes
    parts: int = 1  # batches of a step in each process
    rank: int = 0
    world: int = 1
    workers: int = 0  # decoding processes beside this one
    pin: bool = False  # use pinned memory, from which a GPU copies without waiting


def training_batches(dataset: Augmented, wanted: Slice) -> Iterator[tuple[Any, Any, Unreadable]]:
    """This process's batches ``(tensors, labels, unreadable)``, each of ``batch_size / parts / world`` images."""
    size = wanted.batch_size // wanted.parts
    mine = local_halves if isinstance(dataset.order, Halves) else local_positions
    positions = (  # lazily: a long training has a hundred million of them
        mine(step * wanted.batch_size + part * size, size, wanted.rank, wanted.world)
        for step in range(wanted.first, wanted.steps)
        for part in range(wanted.parts)
    )
    for batch in loader(dataset, wanted.workers, collate, batch_sampler=positions, pin_memory=wanted.pin):
        yield unwrapped(batch)


def loader(dataset: Any, workers: int, collate_fn: Callable[..., Any], **options: Any) -> Any:
    """A DataLoader whose workers use one thread each, and which draws nothing from the global generator."""
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset, num_workers=workers, collate_fn=collate_fn, worker_init_fn=_one_thread, generator=generator, **options
    )


def _one_thread(worker: int) -> None:
    import torch

    torch.set_num_threads(1)


def unwrapped(batch: Any) -> Any:
    """A loader's batch; raises the error that was returned in its place."""
    if isinstance(batch, HfsynError):
        raise batch
    return batch


def collate(items: Sequence[tuple[Any, int, Unreadable] | HfsynError]) -> tuple[Any, Any, Unreadable] | HfsynError:
    """Stack items to ``(tensors (n, ...), labels (n,), unreadable)``; an error among them replaces the batch."""
    import torch
    from torch.utils.data import default_collate

    if (wrong := next((item for item in items if isinstance(item, HfsynError)), None)) is not None:
        return wrong
    pixels, labels, unread = zip(*cast("Sequence[tuple[Any, int, Unreadable]]", items), strict=True)
    # In a worker torch's own function stacks them where the other process reads them: one copy less.
    return default_collate(list(pixels)), torch.tensor(labels), tuple(one for some in unread for one in some)
