"""Networks that judge what they have not seen: N trainings on one set, each without one of its N parts.

A network that was trained on wrong labels has learnt some of them, and would call them right. So each image is judged
by the one that was trained without it; the method's usual name is cross-fitting, and what it is used for is confident
learning (Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from builders.errors import near_path
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import Classifier, open_classifier
from hfsyn.judging.preprocessing import plain_transform
from hfsyn.judging.scores.classifiers import COLUMNS, answers, answers_of, check_set
from hfsyn.judging.scores.pictures import Row, in_batches
from hfsyn.judging.sets.image_set import TRAIN, open_images
from hfsyn.rules import fold_of
from hfsyn.runs.scores import ID, Judge

_HOW = "for k in 0 1 2 3 4; do hfsyn train --train-dataset SET --set data.fold=$k/5 --out DIR/$k; done"


def crossfit_judge(name: str, place: str, reference: str, classes: Mapping[str, str], device: str) -> Judge:
    """A judge from the trainings in a folder, each of which left out one part of the set `reference`.

    Raises HfsynError if a part is missing, or a training was on other images: it may have seen what it would judge.
    """
    folders = _folds(Path(place).expanduser())
    parts = len(folders)
    whole = open_images(reference, default=TRAIN)
    networks: list[tuple[Classifier, list[int]]] = []
    for part, (folder, result) in enumerate(folders):
        if whole.without_fold((part, parts)).fingerprint not in result["training"]["images"]:
            said = f"{folder} was trained on other images than those of {reference} without the part {part}/{parts}."
            raise HfsynError(said, f"It may have seen what it would judge. Train it again: {_HOW}")
        classifier = open_classifier(folder, device=device)
        networks.append((classifier, check_set(classifier, classes, reference)))

    def of(rows: Sequence[Row]) -> Iterator[Row | str]:
        said: dict[int, Row | str] = {}
        for part, (classifier, columns) in enumerate(networks):
            mine = [number for number, row in enumerate(rows) if fold_of(row[ID], parts) == part]
            judged = _judged([rows[number] for number in mine], classifier, columns, device)
            said.update(zip(mine, judged, strict=True))
        yield from (said[number] for number in range(len(rows)))

    facts = {"kind": "crossfit", "parts": str(parts), "model": networks[0][0].name}
    facts |= {f"weights_{part}": classifier.sha256 for part, (classifier, _) in enumerate(networks)}
    return Judge(name, COLUMNS, facts, of, device)


def _judged(rows: Sequence[Row], classifier: Classifier, columns: Sequence[int], device: str) -> Iterator[Row | str]:
    transform, wnids = plain_transform(classifier.preprocessing), [classifier.wnids[column] for column in columns]

    def answer(pixels: Sequence[Any], seen: Sequence[Row]) -> Sequence[Row]:
        logits: np.ndarray = answers_of(classifier, pixels, device)[:, columns]
        return answers(logits, wnids, seen)

    return in_batches(rows, lambda picture, row: transform(picture), answer)


def _folds(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The trainings of the parts 0, 1, ... in a folder, and their results."""
    if not folder.is_dir():
        raise HfsynError(f"There is no folder {folder}.{near_path(folder)}", f"Train into one: {_HOW}")
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in sorted(folder.glob("*/results.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            fold = result["config"]["data"].get("fold")
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if fold in found:
            said = f"{found[fold][0]} and {file.parent} both left out the part {fold}."
            raise HfsynError(said, "Name a folder with one training for each part.")
        if isinstance(fold, str):
            found[fold] = file.parent, result
    parts = max((int(fold.partition("/")[2]) for fold in found), default=5)
    if missing := [fold for k in range(parts) if (fold := f"{k}/{parts}") not in found]:
        raise HfsynError(f"{folder} holds no finished training without the part {missing[0]}.", f"Train it: {_HOW}")
    return [found[f"{k}/{parts}"] for k in range(parts)]
