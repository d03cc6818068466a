"""Known logits give known numbers."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from hfsyn.judging.measures import metrics
from hfsyn.judging.measures.metrics import (
    decide,
    dump_result,
    expected_calibration_error,
    mean_interval,
    metrics_of,
    paired_difference,
    softmax,
    student_quantile,
    wilson,
)


def names(count: int) -> dict[str, list[str]]:
    return {"wnids": [f"n{i:08d}" for i in range(count)], "names": [f"class {i}" for i in range(count)]}


def classification_metrics(
    logits: np.ndarray, labels: np.ndarray, *, mask: list[int] | None = None, **words: list[str]
) -> dict[str, Any]:
    """The measures of logits, as an evaluation puts them together."""
    if mask is None:
        return metrics_of(decide(logits, labels), **words)
    columns = np.unique(mask)
    return metrics_of(decide(logits, labels), columns=columns, masked=decide(logits, labels, columns), **words)


def calibration(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    found = decide(logits, labels)
    return expected_calibration_error(found.confidence, found.answers == labels)


def logits_with_ranks(labels: np.ndarray, ranks: np.ndarray, classes: int) -> np.ndarray:
    """Logits in which exactly `ranks` classes stand before the true one."""
    logits = np.zeros((len(labels), classes))
    for i, (label, rank) in enumerate(zip(labels, ranks, strict=True)):
        order = [c for c in range(classes) if c != label]
        order.insert(rank, label)
        logits[i, order] = np.arange(classes, 0, -1)
    return logits


def test_known_ranks_give_known_accuracies() -> None:
    labels = np.arange(20) % 10
    ranks = np.array([0] * 10 + [3] * 4 + [7] * 6)
    found = classification_metrics(logits_with_ranks(labels, ranks, 10), labels, **names(10))
    assert (found["n"], found["classes"]) == (20, 10)
    assert found["top1"]["value"] == 0.5
    assert found["top5"]["value"] == 0.7
    assert [row["top1"]["value"] for row in found["per_class"]] == [0.5] * 10
    assert found["per_class"][3]["wnid"] == "n00000003"
    confusion = np.array(found["confusion"])
    assert confusion.sum(1).tolist() == [2] * 10
    assert confusion.trace() == 10
    assert found["masked"] is None
    json.dumps(found)


def test_a_thousand_classes_need_little_more_memory_than_their_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 10)
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(0, 2, (3000, 1000)).astype(np.float32), rng.integers(0, 1000, 3000)
    tracemalloc.start()
    found = classification_metrics(logits, labels, **names(1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * logits.nbytes  # a block, and the confusion of a million numbers
    monkeypatch.setattr(metrics, "_BLOCK", len(logits))
    assert classification_metrics(logits, labels, **names(1000)) == found


def test_a_result_as_text_has_one_line_for_each_row_of_the_confusion() -> None:
    found = classification_metrics(np.eye(40), np.arange(40), **names(40))
    found |= {"empty": [], "none": {}, "mixed": [1, "für", None, [2.5, True]], "path": 'a"b\n'}
    text = dump_result(found)
    assert json.loads(text) == json.loads(json.dumps(found))
    assert "für" in text
    assert text.endswith("}\n")
    rows = text.split('"confusion": [\n')[1].split("\n ]")[0].splitlines()
    assert len(rows) == 40
    assert rows[1] == "  [0, 1, " + ", ".join(["0"] * 38) + "],"


def test_a_mask_asks_among_fewer_classes_and_keeps_the_full_number() -> None:
    """Class 9 wins everywhere; among classes 2, 4 and 6 the true one wins in three of four rows."""
    labels = np.array([2, 4, 6, 6])
    logits = np.zeros((4, 10))
    logits[:, 9] = 9
    logits[np.arange(4), [2, 4, 6, 2]] = 5
    found = classification_metrics(logits, labels, mask=[6, 2, 4], **names(10))
    assert found["top1"]["value"] == 0.0
    assert found["masked"]["top1"]["value"] == 0.75
    assert found["masked"]["classes"] == 3
    assert found["masked"]["top5"]["value"] is None
    assert "3 classes" in found["masked"]["top5"]["note"]
    assert [(row["wnid"], row["n"], row["top1"]["value"]) for row in found["masked"]["per_class"]] == [
        ("n00000002", 1, 1.0),
        ("n00000004", 1, 1.0),
        ("n00000006", 2, 0.5),
    ]


def test_the_calibration_of_a_mask_is_that_of_the_decision_among_its_classes() -> None:
    rng = np.random.default_rng(5)
    columns, labels = np.array([1, 4, 5, 8]), rng.integers(0, 4, 300)
    logits = rng.normal(0, 2, (300, 10))
    found = classification_metrics(logits, columns[labels], mask=[8, 4, 1, 5], **names(10))
    alone = calibration(logits[:, columns], labels)
    assert found["masked"]["ece"] == alone
    assert abs(found["ece"]["value"] - alone["value"]) > 0.005


def test_a_constant_model_is_right_for_one_class_only() -> None:
    labels = np.arange(10)
    found = classification_metrics(np.zeros((10, 10)), labels, **names(10))
    assert found["top1"]["value"] == 0.1
    assert found["top5"]["value"] == 0.5


def test_a_class_without_images_has_no_accuracy() -> None:
    found = classification_metrics(np.eye(3)[[0, 1]], np.array([0, 1]), **names(3))
    assert found["per_class"][2]["top1"]["value"] is None
    assert found["top1"]["value"] == 1.0


@pytest.mark.parametrize(
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_the_literature(hits: int, n: int, low: float, high: float) -> None:
    found = wilson(hits, n)
    assert (round(found["low"], 4), round(found["high"], 4)) == (low, high)


def test_calibration_is_the_distance_of_confidence_from_accuracy() -> None:
    """Confidence 0.8 everywhere and half of the answers right: 0.3, whatever the bins."""
    sure = math.log(4)
    logits = np.tile([sure, 0.0], (400, 1))
    labels = np.arange(400) % 2
    found = calibration(logits, labels)
    assert found["value"] == pytest.approx(0.3)
    assert found["low"] < 0.3 < found["high"]
    assert found == calibration(logits, labels)


def test_calibration_agrees_with_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    rng = np.random.default_rng(3)
    logits, labels = rng.normal(0, 2, (500, 7)), rng.integers(0, 7, 500)
    theirs = multiclass_calibration_error(
        torch.tensor(softmax(logits)), torch.tensor(labels), num_classes=7, n_bins=15, norm="l1"
    )
    assert calibration(logits, labels)["value"] == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (31, 2.0395)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, t: float) -> None:
    assert student_quantile(freedom) == pytest.approx(t, abs=5e-5)


def test_a_mean_over_seeds_has_an_interval_from_two_values_on() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["high"] - found["mean"] == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert mean_interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "sd": None, "n": 1}
    assert mean_interval([])["mean"] is None


def test_what_is_common_to_a_seed_cancels_in_a_paired_difference() -> None:
    a, b = [0.9, 0.5, 0.1], [0.8, 0.4, 0.0]
    found = paired_difference(a, b)
    assert found["mean"] == pytest.approx(0.1)
    assert found["high"] - found["low"] < 1e-9
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 2.0])
