"""The verdict says no more than the numbers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from hfsyn.judging.bench.verdict import verdict
from hfsyn.judging.measures.metrics import mean_interval, paired_difference


def summary(
    arms: Sequence[str], *tests: Mapping[str, Sequence[float]], names: Sequence[str] = ("photographs",), **more: Any
) -> dict[str, Any]:
    """A summary of these accuracies by arm and seed, one mapping for each test."""
    rows, differences = [], []
    for name, values in zip(names, tests, strict=True):
        where = {"test": name, "model": "net", "budget": None, "limit": None, "share": 0.0}
        for arm, found in values.items():
            rows.append(
                {**where, "arm": arm, "seeds": list(range(len(found))), "values": list(found), "classes": 10}
                | mean_interval(found)
            )
        for b, a in combinations(values, 2):
            pair = paired_difference(values[a], values[b])
            differences.append({**where, "a": a, "b": b, "seeds": list(range(len(values[a]))), **pair})
    whole = {"tests": list(names), "arms": list(arms), "rows": rows, "differences": differences}
    return {**whole, "cells": 9, "failed": [], **more}


def test_a_clear_win_and_a_clear_loss_are_called_so() -> None:
    found = verdict(summary(["real", "basic", "cip"], {"real": [0.95, 0.96], "basic": [0.7, 0.71], "cip": [0.8, 0.81]}))
    assert found == [
        "On “photographs”, “cip” is better than “basic” by 10.0 points (95 % interval +10.0 to +10.0), "
        "in 2 of 2 seeds.",
        "There, “cip” is worse than “real” by 15.0 points (95 % interval −15.0 to −15.0), in 2 of 2 seeds.",
    ]


def test_an_interval_over_zero_is_no_difference_whichever_is_ahead() -> None:
    (said,) = verdict(summary(["basic", "cip"], {"basic": [0.7, 0.8, 0.9], "cip": [0.75, 0.78, 0.98]}))
    assert "“cip” and “basic” cannot be told apart" in said
    assert "includes zero" in said
    assert "“cip” is ahead in 2 of 3 seeds" in said
    assert "better" not in said
    (turned,) = verdict(summary(["cip", "basic"], {"cip": [0.75, 0.78, 0.98], "basic": [0.7, 0.8, 0.9]}))
    assert "“basic” is ahead in 1 of 3 seeds" in turned


def test_one_seed_decides_nothing() -> None:
    (said,) = verdict(summary(["basic", "cip"], {"basic": [0.8], "cip": [0.7]}))
    assert (
        said == "On “photographs”, “cip” is 10.0 points behind “basic” with one seed; another seed may turn it round."
    )


def test_equal_arms_are_equal() -> None:
    (said,) = verdict(summary(["basic", "cip"], {"basic": [0.8, 0.9], "cip": [0.8, 0.9]}))
    assert said == "On “photographs”, “cip” and “basic” are equal in 2 seeds."


def test_an_arm_that_failed_is_named_and_the_others_are_compared() -> None:
    failed = [{"cell": "gone/net/all/seed-0", "error": "no such set"}]
    found = verdict(summary(["basic", "cip", "gone"], {"basic": [0.7, 0.71], "cip": [0.8, 0.81]}, failed=failed))
    assert found[0].startswith("On “photographs”, “cip” is better than “basic”")
    assert found[1:] == [
        "Nothing is said about “gone”, which has no result.",
        "1 of 9 trainings are missing or lack a test; see below.",
    ]


def test_every_test_has_its_own_sentence_and_one_with_a_single_arm_comes_last() -> None:
    arms = {"basic": [0.7, 0.71], "across": [0.75, 0.76], "cip": [0.8, 0.81]}
    found = verdict(summary(list(arms), {"cip": [0.9]}, arms, arms, names=("images of cip", "photographs", "sketches")))
    assert [said.partition(",")[0] for said in found] == [
        "On “photographs”",
        "There",
        "On “sketches”",
        "There",
        "On “images of cip”",
    ]
    assert "better than “across”" in found[0]
    assert found[-1] == "On “images of cip”, “cip” gets 90.0 % right; no other arm was tested there."


def test_arms_that_only_guess_are_not_compared() -> None:
    (said,) = verdict(summary(["basic", "cip"], {"basic": [0.1, 0.11], "cip": [0.12, 0.09]}))
    assert said == "On “photographs”, no arm is better than guessing (10.0 %): nothing was learnt that could differ."


def test_arms_that_hardly_learnt_anything_are_called_so_before_they_are_compared() -> None:
    first, second = verdict(summary(["basic", "cip"], {"basic": [0.15, 0.15], "cip": [0.18, 0.18]}))
    assert first == "On “photographs”, no arm is far from guessing (10.0 %): train longer, or on more images."
    assert "better than" in second
    assert len(verdict(summary(["basic", "cip"], {"basic": [0.15, 0.15], "cip": [0.3, 0.3]}))) == 1


def test_a_scaling_curve_is_judged_at_its_largest_setting() -> None:
    small, large = (summary(["basic", "cip"], {"basic": [0.7, 0.7], "cip": [cip, cip]}) for cip in (0.6, 0.8))
    for part, limit in ((small, 10), (large, 50)):
        for row in (*part["rows"], *part["differences"]):
            row["limit"] = limit
    both = {**large, **{key: small[key] + large[key] for key in ("rows", "differences")}}
    (said,) = verdict(both)
    assert said.startswith("On “photographs”, 50 images per class, “cip” is better than “basic” by 10.0 points")


def test_the_matrix_says_which_pairs_are_compared_and_the_sign_follows() -> None:
    arms = {"real": [0.95, 0.96], "basic": [0.7, 0.72], "cip": [0.8, 0.81]}
    found = verdict(summary(list(arms), arms), [("cip", "basic"), ("real", "cip"), ("cip", "gone")])
    assert [said.split(" by ")[0] for said in found] == [
        "On “photographs”, “cip” is better than “basic”",
        "There, “real” is better than “cip”",
    ]
    assert "15.0 points (95 % interval +15.0 to +15.0), in 2 of 2 seeds" in found[1]


def test_without_results_there_is_no_verdict() -> None:
    assert verdict(summary(["basic"], names=())) == ["There is no result yet."]
