"""A classifier as a judge: how sure it is that an image shows its label, among the classes of the set."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from hfsyn.judging.classifier import Classifier, open_classifier
from hfsyn.judging.scores.pictures import Row, in_batches
from hfsyn.judging.sets.image_set import ImageSet
from hfsyn.judging.sets.shared import check_classes
from hfsyn.runs.scores import Judge

COLUMNS = {"p_label": "number", "margin": "number", "entropy": "number", "predicted": "text"}
"""Probability of the label; that minus the largest one of another class; entropy in nats; the likeliest class, by wnid.
All among the classes of the set alone.
"""


def classifier_judge(name: str, model: str, classes: Mapping[str, str], label: str, device: str) -> Judge:
    """A judge from anything that `open_classifier` opens. `classes` are those of the set `label`, wnid -> name.

    Raises HfsynError if there is no such classifier, or it does not have all of these classes.
    """
    classifier = open_classifier(model, device=device, among=classes)
    columns = check_set(classifier, classes, label)
    wnids = [classifier.wnids[column] for column in columns]
    facts = {
        "kind": "classifier",
        "model": classifier.name,
        "weights": classifier.sha256,
        "prepared": str(asdict(classifier.preprocessing)),
        "classes": str(len(wnids)),
    }

    def of(rows: Sequence[Row]) -> Any:
        return in_batches(rows, _prepare(classifier), lambda pixels, seen: answers(logits(pixels), wnids, seen))

    def logits(pixels: Sequence[Any]) -> np.ndarray:
        return answers_of(classifier, pixels, device)[:, columns]

    return Judge(name, COLUMNS, facts, of, device)


def check_set(classifier: Classifier, classes: Mapping[str, str], label: str) -> list[int]:
    """The outputs for a set's classes; raises as `check_classes`."""
    there = ImageSet(label, "", list(classes), dict(classes), [], [])  # type: ignore[arg-type]  # of no image
    return check_classes(classifier.classes, there, classifier.source or classifier.name)


def _prepare(classifier: Classifier) -> Any:
    from hfsyn.judging.preprocessing import plain_transform

    transform = plain_transform(classifier.preprocessing)
    return lambda picture, row: transform(picture)


def answers_of(classifier: Classifier, pixels: Sequence[Any], device: str) -> np.ndarray:
    """The logits of a batch of prepared pictures, float32 (n, outputs)."""
    import torch

    with torch.inference_mode():
        found: np.ndarray = classifier.network(torch.stack(list(pixels)).to(device)).float().cpu().numpy()
    return found


def answers(logits: np.ndarray, wnids: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """`COLUMNS` of some rows from their logits, float32 (n, classes of the set)."""
    scores = logits.astype(np.float64)
    scores -= scores.max(1, keepdims=True)
    likely = np.exp(scores)
    likely /= likely.sum(1, keepdims=True)
    place = {wnid: number for number, wnid in enumerate(wnids)}
    found: list[Row] = []
    for one, row in zip(likely, rows, strict=True):
        label = place[row["wnid"]]
        others = np.delete(one, label)
        entropy = float(-(one * np.log(np.clip(one, 1e-300, None))).sum())
        margin = float(one[label] - others.max()) if len(others) else float(one[label])
        said = {"p_label": float(one[label]), "margin": margin, "entropy": entropy}
        found.append({**said, "predicted": wnids[int(one.argmax())]})
    return found
