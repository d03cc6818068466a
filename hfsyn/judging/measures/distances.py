"""Distances between two sets of features, float32 (n, d): Fréchet's, and those to the nearest neighbours.

- Fréchet distance of two Gaussians: Dowson and Landau (1982), for images Heusel et al. (2017). It falls with the number
  of images, so that only sets of one size compare; `floor` is the distance between two random halves of the real set.
- Precision and recall: Kynkäänniemi et al. (2019): the share of synthetic images within the ball of a real image, and
  the reverse, where a ball reaches to the k-th nearest neighbour in its own set.
- Density and coverage: Naeem et al. (2020): in how many real balls a synthetic image lies, over k, and the share of
  real balls that hold a synthetic image.

Distances are computed in blocks along both sets: memory grows with the number of images, not with its square. The
formulas are written out here since no library has them all: torchmetrics lacks density and coverage, prdc holds all
distances at once.
"""

from collections.abc import Callable, Iterator

import numpy as np

NEIGHBOURS = 5  # k of the balls, as Naeem et al. chose it
_BLOCK, _COLUMNS = 512, 8192  # rows and columns of a block of distances: 32 MB


def nobody(images: int) -> None:
    """Hears how many images are done."""


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """``|mean a - mean b|^2 + trace(A + B - 2 (A B)^(1/2))`` with the covariances A and B of (n, d) features."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    left, right = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    # The eigenvalues of A B are those of A^(1/2) B A^(1/2), which is symmetric, so that rounding makes none complex.
    values, vectors = np.linalg.eigh(left)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ right @ root), 0, None)).sum()
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(left) + np.trace(right) - 2 * cross
    return float(max(distance, 0.0))


def frechet_floor(real: np.ndarray) -> float | None:
    """The distance between two random halves of a set, which half as many real images would reach; None below four."""
    if len(real) < 4:
        return None
    first, second = np.array_split(np.random.default_rng(0).permutation(len(real)), 2)
    return frechet_distance(real[first], real[second])


def neighbourhoods(synthetic: np.ndarray, real: np.ndarray, told: Callable[[int], None] = nobody) -> dict[str, float]:
    """``precision``, ``recall``, ``density`` and ``coverage`` of (n, d) synthetic against (m, d) real features."""
    real_reach, synthetic_reach = _reach(real, told), _reach(synthetic, told)
    inside = np.zeros(len(synthetic), dtype=np.int64)
    nearest, recalled = np.full(len(real), np.inf), np.zeros(len(real), dtype=bool)
    for rows, columns, distances in _distances(synthetic, real, told):
        inside[rows] += (distances <= real_reach[None, columns]).sum(1)
        nearest[columns] = np.minimum(nearest[columns], distances.min(0))
        recalled[columns] |= (distances <= synthetic_reach[rows, None]).any(0)
    return {
        "precision": float((inside > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(inside.mean() / NEIGHBOURS),
        "coverage": float((nearest <= real_reach).mean()),
    }


def _reach(features: np.ndarray, told: Callable[[int], None]) -> np.ndarray:
    """Squared distance of each image to its k-th nearest neighbour in its own set, float64 (n,)."""
    found = np.full((len(features), NEIGHBOURS), np.inf)
    for rows, columns, distances in _distances(features, features, told):
        _skip_itself(rows, columns, distances, np.inf)
        candidates = np.concatenate([found[rows], distances], axis=1)
        found[rows] = np.partition(candidates, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    return found.max(1)


def _distances(a: np.ndarray, b: np.ndarray, told: Callable[[int], None]) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Rows of `a`, rows of `b`, and the squared distances between them, block by block."""
    for rows, columns, part, other in _blocks(a, b, told):
        distances = (part * part).sum(1)[:, None] + (other * other).sum(1)[None] - 2 * part @ other.T
        yield rows, columns, np.maximum(distances, 0, out=distances)


def _blocks(
    a: np.ndarray, b: np.ndarray, told: Callable[[int], None]
) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
    """Rows of `a`, rows of `b`, and their features as float64."""
    for start in range(0, len(a), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(a)))
        part = np.asarray(a[rows], dtype=np.float64)
        for left in range(0, len(b), _COLUMNS):
            columns = slice(left, min(left + _COLUMNS, len(b)))
            yield rows, columns, part, np.asarray(b[columns], dtype=np.float64)
        told(len(part))


def _skip_itself(rows: slice, columns: slice, values: np.ndarray, value: float) -> None:
    """Write `value` where a block of a set against itself compares an image with itself."""
    same = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
    values[same - rows.start, same - columns.start] = value


def nearest(a: np.ndarray, b: np.ndarray, told: Callable[[int], None] = nobody) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `a` the first row of `b` with the highest cosine, and this cosine."""
    best, highest = np.zeros(len(a), dtype=np.int64), np.full(len(a), -np.inf)
    for rows, columns, part, other in _blocks(a, b, told):
        cosines = _unit(part) @ _unit(other).T
        found = cosines.argmax(1)
        value = np.take_along_axis(cosines, found[:, None], 1)[:, 0]
        higher = value > highest[rows]
        best[rows] = np.where(higher, found + columns.start, best[rows])
        highest[rows] = np.where(higher, value, highest[rows])
    return best, highest


def _unit(a: np.ndarray) -> np.ndarray:
    unit: np.ndarray = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
    return unit
