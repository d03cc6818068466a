"""Rows of a stream in another order: through a buffer that is as large as its images' bytes allow."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_ROW = 200  # bytes that a row takes beside its image


class Shuffled(torch.utils.data.IterableDataset[Any]):
    """Rows of a `datasets.IterableDataset`, each drawn from those of the buffer, which are `room` bytes.

    The order depends on the seed and, where a loader has several workers, on the worker.
    """

    def __init__(self, rows: Any, room: int, seed: tuple[int, ...]) -> None:
        self._rows, self._room, self._seed = rows, room, seed

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([*self._seed, worker.id if worker else 0])
        buffer: list[Any] = []
        held = 0
        for row in self._rows:
            buffer.append(row)
            held += _size(row)
            while held > self._room and len(buffer) > 1:
                drawn = _taken(buffer, int(rng.integers(len(buffer))))
                held -= _size(drawn)
                yield drawn
        for number in rng.permutation(len(buffer)):
            yield buffer[number]


def _taken(buffer: list[Any], number: int) -> Any:
    """A row that is taken out; the last one comes into its place, so that none is moved."""
    buffer[number], buffer[-1] = buffer[-1], buffer[number]
    return buffer.pop()


def _size(row: Any) -> int:
    return len(row["image"]["bytes"] or b"") + _ROW
