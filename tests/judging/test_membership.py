"""An attack sees through a model that memorises, and guesses at one that cannot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hfsyn.errors import HfsynError
from hfsyn.judging.measures.membership import _loss, best_threshold, measure_membership, membership_inference

N, CLASSES = 400, 10


def answers(sure: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose true class stands `sure` above the others."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, len(sure))
    logits = rng.normal(0, 0.1, (len(sure), CLASSES))
    logits[np.arange(len(sure)), labels] += sure
    return logits, labels


def test_a_model_that_memorises_is_seen_through() -> None:
    found = membership_inference(*answers(np.full(N, 9.0), 1), *answers(np.zeros(N), 2))
    for score in ("probability", "loss"):
        assert found[score]["auc"]["value"] > 0.99
        assert found[score]["balanced_accuracy"]["value"] > 0.99
        assert found[score]["tpr_at_1_percent_fpr"]["value"] > 0.99
    assert (found["members"], found["others"], found["note"]) == (200, 200, None)
    json.dumps(found)


def test_a_model_that_cannot_memorise_is_guessed_at() -> None:
    rng = np.random.default_rng(5)
    found = membership_inference(*answers(rng.normal(3, 1, 4000), 1), *answers(rng.normal(3, 1, 4000), 2))
    for name in ("auc", "balanced_accuracy"):
        value = found["probability"][name]
        assert abs(value["value"] - 0.5) < 0.03
        assert value["low"] < value["value"] < value["high"]
    assert found["probability"]["tpr_at_1_percent_fpr"]["value"] < 0.03


def test_a_tuned_threshold_does_not_win_on_the_half_it_was_not_tuned_on() -> None:
    """Over many fair models the attack is right half the time; tuned and judged on one half it would be above."""
    found = []
    for k in range(20):
        rng = np.random.default_rng(k)
        attack = membership_inference(*answers(rng.normal(3, 1, 40), k), *answers(rng.normal(3, 1, 40), 99 + k), seed=k)
        found.append(attack["probability"]["balanced_accuracy"]["value"])
    assert abs(np.mean(found) - 0.5) < 0.05


def test_known_scores_give_the_known_auc() -> None:
    """Of all pairs of a member and another one, three quarters are in the right order."""
    members, others = np.tile([2.0, 1.0], N), np.tile([1.5, 0.5], N)
    found = membership_inference(*answers(members * 9, 1), *answers(others * 9, 2))
    assert found["loss"]["auc"]["value"] == pytest.approx(0.75, abs=0.06)


def test_losses_that_round_to_the_same_probability_are_still_told_apart() -> None:
    sure = membership_inference(*answers(np.full(N, 60.0), 1), *answers(np.full(N, 45.0), 2))
    assert sure["probability"]["auc"]["value"] == 0.5
    assert sure["loss"]["auc"]["value"] == 1.0
    assert sure["loss"]["balanced_accuracy"]["value"] == 1.0


@pytest.mark.parametrize(
    ("logits", "label", "loss"),
    [
        ([0.0, -50.0], 0, math.exp(-50)),  # to the first order
        ([0.0, -700.0], 0, math.exp(-700)),
        ([0.0, -50.0], 1, 50.0),
        ([1e4, 1e4], 0, math.log(2)),
        ([3.0], 0, 0.0),
    ],
)
def test_a_loss_is_exact_however_small_or_large(logits: list[float], label: int, loss: float) -> None:
    assert _loss(np.array([logits]), np.array([label]))[0] == pytest.approx(loss, rel=1e-12)


def test_a_threshold_lies_between_two_scores() -> None:
    assert best_threshold(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 2.5


def test_too_few_others_for_one_percent_are_said_to_be_so() -> None:
    few = membership_inference(*answers(np.full(20, 9.0), 1), *answers(np.zeros(20), 2))
    assert "no false positive" in few["note"]
    with pytest.raises(HfsynError, match="3 members"):
        membership_inference(*answers(np.ones(3), 1), *answers(np.ones(20), 2))


def test_the_same_seed_gives_the_same_numbers() -> None:
    arguments = (*answers(np.ones(50), 1), *answers(np.zeros(50), 2))
    assert membership_inference(*arguments, seed=4) == membership_inference(*arguments, seed=4)


def test_an_untrained_classifier_on_disk_tells_nothing(tmp_path: Path) -> None:
    from builders.variants import get_variant
    from hfsyn.judging.classifier import save_classifier
    from hfsyn.judging.starting import new_classifier
    from hfsyn.recipes.training_recipe import load_train_config

    recipe = load_train_config(None, ["data.train=[shapes]", "model.name=test_resnet", "model.image_size=32"])
    classes = get_variant("shapes").classes
    made = new_classifier(recipe, [c.wnid for c in classes], {c.wnid: c.name for c in classes})
    save_classifier(made, tmp_path / "model")
    found = measure_membership(tmp_path / "model", "shapes", "shapes", limit_per_class=10, device="cpu")
    assert (found["sets"]["members"]["split"], found["sets"]["others"]["split"]) == ("train", "test")
    assert (found["members"], found["others"]) == (50, 50)
    assert found["loss"]["auc"]["low"] < 0.5 < found["loss"]["auc"]["high"]
    assert found["overlap"] == 0
    assert [line.split("  ")[0] for line in found.text().splitlines()[1:4]] == [
        "balanced accuracy",
        "AUC",
        "TPR at 1 % FPR",
    ]
    assert "note: 50 others: a rate of 1 % allows no false positive at all" in found.text()
    with pytest.raises(HfsynError, match="Members and others are the same 20 images"):
        measure_membership(
            tmp_path / "model", "shapes", "shapes", others_split="train", limit_per_class=2, device="cpu"
        )
