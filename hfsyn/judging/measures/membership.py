"""Membership inference: do a classifier's answers reveal which images it was trained on?

The attacker sees how sure a classifier is of an image's true class, and calls the image a member if that is above a
threshold: Yeom et al., "Privacy risk in machine learning" (2018). The threshold is chosen on one half of the members
and non-members and evaluated on the other half, so that it cannot overfit. As Carlini et al., "Membership inference
attacks from first principles" (2022) ask, the true positive rate at a false positive rate of 1 % is given too: an
attack that is sure of a few images is worse than one that is slightly right about all.

Guessing reaches 0.5 in balanced accuracy and AUC, and 0.01 in the true positive rate at 1 %.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hfsyn.errors import HfsynError
from hfsyn.judging.measures.metrics import check_finite
from hfsyn.judging.measures.results import Result, interval, row

RESAMPLES = 1000  # bootstrap resamples of the evaluated half, members and non-members separately; percentile intervals
FALSE_POSITIVES = 0.01  # the false positive rate at which the true positive rate is read
_FEWEST = 4  # of each kind: two in each half


class Membership(Result):
    """What an attack on a classifier found; see `measure_membership`."""

    def title(self) -> str:
        """Which classifier, and which sets."""
        sets = (f"{facts['reference']} ({facts['split']})" for facts in self["sets"].values())
        half = f"{self['members']} and {self['others']} images"
        return f"{self['model']['name']}: {' against '.join(sets)}, judged on {half}"

    def rows(self) -> list[dict[str, str]]:
        """The rates of the attack by the loss, which tells apart what rounds to the same probability."""
        found = self["loss"]
        return [
            row("balanced accuracy", interval(found["balanced_accuracy"]), "0.5 is guessing, 1 is certainty"),
            row("AUC", interval(found["auc"]), "0.5 is guessing, 1 is certainty"),
            row("TPR at 1 % FPR", interval(found["tpr_at_1_percent_fpr"]), "0.01 is guessing"),
        ]

    def remarks(self) -> list[str]:
        """Too few images, and images that are in both sets."""
        both = f"{self['overlap']} images are in both sets" if self["overlap"] else None
        return [remark for remark in (self["note"], both) if remark]


def measure_membership(
    model: str | Path,
    members: str,
    others: str,
    *,
    members_split: str | None = None,
    others_split: str | None = None,
    limit_per_class: int | None = None,
    device: str | None = None,
    seed: int = 0,
    **said: Any,
) -> Membership:
    """Attack a trained classifier.

    The arguments are those of `hfsyn.api.judging.membership`, as is the HfsynError that it raises; without a limit the
    training's own holds, if it had one. For `seed` see `membership_inference`; `said` goes to `open_classifier`.

    Returns:
        What `membership_inference` returns, with ``model``, the two ``sets``, their ``overlap`` (images in both), and
        what is ``undecodable`` in each.
    """
    from hfsyn.judging.classifier import open_classifier, start_accelerator
    from hfsyn.judging.measures.answers import predict
    from hfsyn.judging.sets.image_set import TEST, TRAIN, facts_of, open_images, tell_unread
    from hfsyn.judging.sets.shared import shared_images, testable

    accelerator = start_accelerator(device, "no")
    inside = open_images(members, members_split, default=TRAIN, limit=limit_per_class)
    outside = open_images(others, others_split, default=TEST, limit=limit_per_class)
    classifier = open_classifier(model, device=str(accelerator.device), among=inside.names, **said)
    overlap = len(shared_images(inside, outside))
    if overlap == len(outside):
        raise HfsynError(
            f"Members and others are the same {overlap} images ({members}, {inside.split}; {others}, {outside.split}).",
            "Others are images that the model never saw: name another set, or --others-split.",
        )
    answers, undecodable, opened = [], {}, {"members": inside, "others": outside}
    whose = classifier.source or classifier.name
    opened = {name: testable(classifier.classes, images, whose) for name, images in opened.items()}
    for name, images in opened.items():
        found = predict(classifier, images, accelerator)
        answers += [found.logits, found.labels]
        undecodable[name] = facts_of(found.undecodable)
        tell_unread(found.undecodable, f"{images.reference} ({images.split})")
    sets = {name: images.facts() for name, images in opened.items()}
    attack = membership_inference(*answers, seed=seed)
    about = {"model": classifier.facts(), "sets": sets, "overlap": overlap, "undecodable": undecodable}
    about["preprocessing"] = asdict(classifier.preprocessing)
    return Membership(about | attack)


def membership_inference(
    member_logits: np.ndarray,
    member_labels: np.ndarray,
    other_logits: np.ndarray,
    other_labels: np.ndarray,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Attack a classifier through its logits.

    Args:
        member_logits, member_labels: float (n, c) and int (n,), the true columns, of images that it was trained on. For
            a classifier trained on synthetic images, the real images behind them: what leaks is what was carried over.
        other_logits, other_labels: (m, c) and (m,), of images of the same kind that it never saw.
        seed: of the halves and the bootstrap.

    Returns:
        ``members``, ``others`` (images of the evaluated half), and for each score ``probability`` (softmax of the true
        class) and ``loss`` (its negative logarithm, which distinguishes values that round to 1): ``threshold``,
        ``balanced_accuracy``, ``auc``, ``tpr_at_1_percent_fpr``, the last three each as ``{"value", "low", "high"}``.
        ``note`` says so if the others are too few for a rate of 1 %.

    Raises:
        HfsynError: fewer than four images of either kind, or logits that are not finite.
    """
    if min(len(member_labels), len(other_labels)) < _FEWEST:
        said = f"There are {len(member_labels)} members and {len(other_labels)} others."
        raise HfsynError(said, f"The attack needs at least {_FEWEST} of each; hundreds for a narrow interval.")
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(len(labels)), 2) for labels in (member_labels, other_labels)]
    losses = [
        _loss(np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64))
        for logits, labels in ((member_logits, member_labels), (other_logits, other_labels))
    ]
    scores: dict[str, Callable[[np.ndarray], np.ndarray]] = {"probability": lambda x: np.exp(-x), "loss": lambda x: -x}
    found: dict[str, Any] = {"members": len(halves[0][1]), "others": len(halves[1][1])}
    for name, score in scores.items():
        (tuned_in, judged_in), (tuned_out, judged_out) = (
            [score(loss[half]) for half in parts] for loss, parts in zip(losses, halves, strict=True)
        )
        threshold = best_threshold(tuned_in, tuned_out)
        found[name] = {
            "threshold": -threshold if name == "loss" else threshold,
            **_judge(judged_in, judged_out, threshold, np.random.default_rng([seed, 1])),
        }
    few = found["others"] * FALSE_POSITIVES < 1
    found["note"] = f"{found['others']} others: a rate of 1 % allows no false positive at all" if few else None
    return found


def _loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of each image, float64 (n,)."""
    check_finite(logits)
    # log(1 + sum of the others / own): subtracting own from the sum of all would lose what is below the rounding of 1.
    own = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
    others = logits.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, 1)
    top = others.max(1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a single class has no others, and the loss is 0
        behind = np.where(np.isfinite(top), top + np.log(np.exp(others - top[:, None]).sum(1)), -np.inf)
    loss: np.ndarray = np.logaddexp(0.0, behind - own)
    return loss


def best_threshold(members: np.ndarray, others: np.ndarray) -> float:
    """The score, halfway between two images, from which calling an image a member has the best balanced accuracy."""
    levels = np.unique(np.concatenate([members, others]))
    cuts = np.concatenate([levels[:1], (levels[1:] + levels[:-1]) / 2])
    inside = 1 - np.searchsorted(np.sort(members), cuts, side="left") / len(members)
    outside = np.searchsorted(np.sort(others), cuts, side="left") / len(others)
    return float(cuts[int(np.argmax(inside + outside))])


def _judge(members: np.ndarray, others: np.ndarray, threshold: float, rng: np.random.Generator) -> dict[str, Any]:
    levels, places = np.unique(np.concatenate([members, others]), return_inverse=True)
    inside, outside = places[: len(members)], places[len(members) :]
    cut = int(np.searchsorted(levels, threshold, side="left"))

    def numbers(chosen_in: np.ndarray, chosen_out: np.ndarray) -> tuple[float, float, float]:
        counts_in = np.bincount(inside[chosen_in], minlength=len(levels))
        counts_out = np.bincount(outside[chosen_out], minlength=len(levels))
        return _numbers(counts_in, counts_out, cut)

    value = numbers(np.arange(len(members)), np.arange(len(others)))
    resampled = [
        numbers(rng.integers(0, len(members), len(members)), rng.integers(0, len(others), len(others)))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    names = ("balanced_accuracy", "auc", "tpr_at_1_percent_fpr")
    return {
        name: {"value": float(v), "low": float(a), "high": float(b)}
        for name, v, a, b in zip(names, value, low, high, strict=True)
    }


def _numbers(inside: np.ndarray, outside: np.ndarray, cut: int) -> tuple[float, float, float]:
    """Balanced accuracy, AUC and TPR at 1 % FPR from counts by rising score; equal scores count half in the AUC."""
    balanced = (inside[cut:].sum() / inside.sum() + outside[:cut].sum() / outside.sum()) / 2
    above = inside.sum() - np.cumsum(inside)
    auc = (outside * (above + inside / 2)).sum() / (inside.sum() * outside.sum())
    false = np.cumsum(outside[::-1]) / outside.sum()
    true = np.cumsum(inside[::-1]) / inside.sum()
    allowed = true[false <= FALSE_POSITIVES]
    return float(balanced), float(auc), float(allowed[-1]) if len(allowed) else 0.0
