"""How good a classifier's answers are: accuracy (also masked to a set's classes), calibration, confusion, intervals.

Everything here is a pure function of numbers. Formulas:

- A proportion (top-1, top-5, an accuracy of one class): Wilson's score interval (E. B. Wilson, 1927), which stays
  within 0 and 1 and has a width even if no answer or every answer is right.
- Calibration: the expected calibration error (ECE) of Guo et al., "On calibration of modern neural networks" (2017),
  over 15 equal-width bins of the confidence; its interval is the percentile bootstrap with 1,000 resamples and a fixed
  seed. The ECE of a finite sample is biased upwards, and its resamples more so: for a well calibrated model the
  interval may lie above the value.
- A mean over seeds, and the mean difference of two arms over the same seeds: Student's t. Its distribution function for
  whole degrees of freedom is the finite sum 26.7.3 and 26.7.4 of Abramowitz and Stegun, "Handbook of Mathematical
  Functions" (1964), inverted by bisection.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from hfsyn.errors import HfsynError

ECE_BINS = 15
RESAMPLES = 1000  # bootstrap resamples; enough for the second digit of an interval's ends
_BLOCK = 512  # images of which there are float64 copies at a time
_Z = 1.959963984540054  # the normal distribution's 97.5 % point
_BOOTSTRAP_SEED = 20230708

Interval = dict[str, Any]
"""``{"value", "low", "high"}``: floats, or None if there is nothing to measure; then a "note" says why."""


def dump_result(result: Any) -> str:
    """A result as indented JSON, with a list of numbers on one line: the confusion of 1,000 classes has 1,000 lines."""
    return _json(result, "") + "\n"


def _json(value: Any, margin: str) -> str:
    inner = f"{margin} "
    if isinstance(value, Mapping) and value:
        items = [f"{json.dumps(str(key), ensure_ascii=False)}: {_json(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + item for item in items) + f"\n{margin}}}"
    if isinstance(value, list | tuple) and value and not all(isinstance(item, int | float) for item in value):
        return "[\n" + ",\n".join(inner + _json(item, inner) for item in value) + f"\n{margin}]"
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Decisions:
    """What a classifier decides about n images, among all of its c columns or some: all that its measures need.

    `labels` and `answers` are int64 (n,), numbers among these columns; `ranks` int64 (n,), how many columns come before
    the true one (of equal logits the first column wins, as in argmax); `confidence` float64 (n,), the softmax of the
    answer.
    """

    labels: np.ndarray
    answers: np.ndarray
    ranks: np.ndarray
    confidence: np.ndarray


def decide(logits: np.ndarray, labels: np.ndarray, columns: np.ndarray | None = None) -> Decisions:
    """Decide among all columns of logits (n, c), or among `columns` (sorted); `labels` are columns, int (n,)."""
    labels = np.asarray(labels, dtype=np.int64)
    if columns is not None:
        labels = np.searchsorted(columns, labels)
    answers, ranks, confidence = np.empty_like(labels), np.empty_like(labels), np.empty(len(labels))
    for rows, part in _blocks(logits, columns):
        own = np.take_along_axis(part, labels[rows, None], 1)
        earlier = np.arange(part.shape[1])[None] < labels[rows, None]
        ranks[rows] = (part > own).sum(1) + ((part == own) & earlier).sum(1)
        answers[rows] = part.argmax(1)
        confidence[rows] = softmax(part).max(1)
    return Decisions(labels, answers, ranks, confidence)


def metrics_of(
    whole: Decisions,
    wnids: Sequence[str],
    names: Sequence[str],
    columns: np.ndarray | None = None,
    masked: Decisions | None = None,
) -> dict[str, Any]:
    """The measures of decisions.

    Args:
        whole: among all c columns.
        wnids, names: of these columns.
        columns, masked: some of the columns, sorted, and the decisions among these.

    Returns:
        ``n``, ``classes``, ``top1``, ``top5``, ``ece`` (intervals), ``ece_bins``, ``per_class`` (``wnid``, ``name``,
        ``n``, ``top1``) and ``confusion`` (c rows of c counts: true class, then answer), all c-way; ``masked`` holds
        ``classes``, ``top1``, ``top5``, ``ece`` and ``per_class`` of the k-way decision among the mask's columns, and
        is None without a mask.
    """
    c = len(wnids)
    confusion = np.bincount(whole.labels * c + whole.answers, minlength=c**2)
    found = {"n": len(whole.labels), **_summary(whole, wnids, names), "confusion": confusion.reshape(c, -1).tolist()}
    if masked is None or columns is None:
        return {**found, "masked": None}
    return {**found, "masked": _summary(masked, [wnids[c] for c in columns], [names[c] for c in columns])}


def check_finite(logits: np.ndarray) -> None:
    """Refuse NaN and infinity, which a network answers whose training diverged."""
    if not np.isfinite(logits).all():
        raise HfsynError("The classifier answers with NaN or infinity.", "Its training diverged: lower the rate.")


def _blocks(logits: np.ndarray, columns: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows at a time as float64, all columns or some: 50,000 images of 1,000 classes would be 400 MB a copy."""
    for start in range(0, len(logits), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(logits)))
        part = logits[rows] if columns is None else logits[rows, columns]
        yield rows, np.ascontiguousarray(part, dtype=np.float64)


def _summary(decided: Decisions, wnids: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The numbers of one decision among these classes."""
    n, c, hits = len(decided.labels), len(wnids), decided.ranks == 0
    totals, right = np.bincount(decided.labels, minlength=c), np.bincount(decided.labels[hits], minlength=c)
    top5 = wilson(int((decided.ranks < 5).sum()), n)
    if c < 5:
        top5 = {"value": None, "low": None, "high": None, "note": f"there are only {c} classes"}
    return {
        "classes": c,
        "top1": wilson(int(hits.sum()), n),
        "top5": top5,
        "ece": expected_calibration_error(decided.confidence, hits),
        "ece_bins": ECE_BINS,
        "per_class": [
            {"wnid": wnid, "name": name, "n": int(total), "top1": wilson(int(hit), int(total))}
            for wnid, name, total, hit in zip(wnids, names, totals, right, strict=True)
        ],
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64 (n, c), without overflow."""
    shifted = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits, axis=1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(1, keepdims=True)
    return probabilities


def wilson(hits: int, n: int) -> Interval:
    """The proportion of `hits` in `n` with Wilson's 95 % interval; None if n is 0."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "note": "no image"}
    p, z2 = hits / n, _Z * _Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # Rounding must not move an end past the value itself at 0 and 1.
    return {"value": p, "low": min(p, max(0.0, middle - half)), "high": max(p, min(1.0, middle + half))}


def expected_calibration_error(confidence: np.ndarray, hits: np.ndarray) -> Interval:
    """The mean distance between confidence, float (n,), and accuracy over equal-width bins, weighted by their images;
    `hits` says which answers are right, bool (n,).
    """
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    gap = hits - confidence

    def error(chosen: np.ndarray) -> float:
        return float(np.abs(np.bincount(bins[chosen], weights=gap[chosen], minlength=ECE_BINS)).sum() / len(chosen))

    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    resampled = [error(rng.integers(0, len(hits), len(hits))) for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": error(np.arange(len(hits))), "low": float(low), "high": float(high)}


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean over seeds with Student's t interval, None for one value: ``{"mean", "low", "high", "sd", "n"}``."""
    n = len(values)
    if n < 2:
        return {"mean": float(values[0]) if n else None, "low": None, "high": None, "sd": None, "n": n}
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    half = student_quantile(n - 1) * sd / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "sd": sd, "n": n}


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Mean of ``a - b`` over the same seeds with Student's t interval: what is common to a seed cancels."""
    return mean_interval([x - y for x, y in zip(a, b, strict=True)])


@cache
def student_quantile(freedom: int) -> float:
    """The t beyond which 2.5 % lie on either side, for 1 or more degrees of freedom (12.706 for 1, 4.303 for 2)."""
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _student_within(t: float, freedom: int) -> float:
    """The probability that a t variable lies between -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = total = (math.cos(angle) if odd else 1.0) if freedom > 1 else 0.0
    for k in range(2 if odd else 1, freedom - 1, 2):
        # The factors 2/3, 4/5, ... for odd degrees of freedom and 1/2, 3/4, ... for even ones.
        term *= square * k / (k + 1)
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
