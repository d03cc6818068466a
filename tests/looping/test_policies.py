"""Policies: pure functions from what is known to a plan, which is checked before anything is spent."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from builders.errors import HfsynError
from hfsyn.looping import planning
from hfsyn.looping.planning import planned, tried
from hfsyn.looping.policies import POLICIES, Known, policy_of, shared

LEVELS = {"class": ["heart", "star"], "colour": ["red", "blue"]}
SEEN = [
    {"id": f"{n}", "class": "star", "round": 0, "early_loss": loss, "margin": 0.0, "forgotten": 0}
    for n, loss in enumerate((0.1, 0.9, 0.3, 2.0, 0.2, 0.4))
]
KNOWN = Known(1, LEVELS, {"heart": (9, 10), "star": (4, 10)}, images=SEEN)


def plan(name: str, known: Known = KNOWN, images: int = 100) -> list[dict[str, Any]]:
    return planned(policy_of(name)[0], name, known, images, seed=0)


def test_each_policy_plans_the_images_of_a_round_and_nothing_else() -> None:
    for name in POLICIES:
        assert sum(part["images"] for part in plan(name, images=37)) == 37
        assert sum(part["images"] for part in tried(name, LEVELS, 37, candidates=2, rounds=3)) == 37


def test_hard_classes_get_images_by_their_error() -> None:
    heart, star = plan("hard-classes")
    assert (heart["levels"], star["levels"]) == ({"class": ["heart"]}, {"class": ["star"]})
    assert (heart["images"], star["images"]) == (22, 78)  # 2 of 12 and 7 of 12
    # A class that no image shows is not taken to be the hardest one.
    levels = {"class": ["heart", "star", "ring"]}
    parts = plan("hard-classes", Known(1, levels, {"heart": (9, 10), "star": (4, 10), "ring": (0, 0)}), images=27)
    assert [part["images"] for part in parts] == [4, 14, 9]


def test_an_audits_findings_get_images_by_their_cost_and_without_any_all_kinds_do() -> None:
    red, blue = {"class": ["star"], "colour": ["red"]}, {"colour": ["blue"]}
    found = [{"cost": 0.03, "levels": red}, {"cost": 0.01, "levels": blue}]
    parts = plan("audit", Known(1, LEVELS, KNOWN.right, found))
    assert [(part["images"], part["levels"]) for part in parts] == [(75, red), (25, blue)]
    assert plan("audit") == plan("uniform")


def test_uncertain_draws_the_candidates_of_the_loop_file_and_keeps_those_of_highest_entropy() -> None:
    (part,) = plan("uncertain", Known(1, LEVELS, KNOWN.right, candidates=3))
    assert (part["candidates"], part["by"], part["levels"]) == (3, "entropy", {})


def test_what_is_not_learned_early_is_the_third_of_the_images_whose_loss_stayed_highest() -> None:
    (part,) = plan("not-learned-early")
    assert part["begin"] == ["3", "1"]  # 35 % of six


def test_shares_add_up_whatever_the_weights_are() -> None:
    rng = random.Random(0)
    for _ in range(100):
        weights = [rng.random() for _ in range(rng.randrange(1, 9))]
        images = rng.randrange(200)
        numbers = shared(weights, images)
        assert sum(numbers) == images
        assert all(abs(n - images * w / sum(weights)) < 1 for n, w in zip(numbers, weights, strict=True))


WRONG = """
seen = []
def impure(known, images, rng):
    seen.append(1)
    return [{"images": images, "levels": {"class": ["heart" if len(seen) % 2 else "star"]}}]
def few(known, images, rng):
    return [{"images": images - 1, "levels": {}}]
def colours(known, images, rng):
    return [{"images": images, "levels": {"color": ["red"]}}]
def green(known, images, rng):
    return [{"images": images, "levels": {"colour": ["green"]}}]
def halves(known, images, rng):
    return [{"images": images / 2, "levels": {}}] * 2
def nothing(known, images, rng):
    return [{"images": float("nan")}]
def weighed(known, images, rng):
    return [{"images": round(images * float("nan")), "levels": {}}]
def fails(known, images, rng):
    return known.scores["entropy"]
def two(known, images):
    return []
def misnamed(known, images, rng):
    return [{"images": images, "level": {}}]
def scored(known, images, rng):
    return [{"images": images, "candidates": 2, "by": "entropi"}]
def unkept(known, images, rng):
    return [{"images": images, "by": "entropy"}]
def many(known, images, rng):
    return [{"images": images, "candidates": 1000, "by": "margin"}]
def begun(known, images, rng):
    return [{"images": images, "begin": ["a"]}]
def asking(known, images, rng):
    return [{"images": images}]
asking.asks = {"loses"}
def hungry(known, images, rng):
    return [{"images": images, "begin": [known.images[-1]["id"]], "levels": {"colour": ["red"]}}]
hungry.asks = "losses"
def keyed(known, images, rng):
    return [{"images": images, "begin": [max(known.images, key=lambda one: one["late_loss"])["id"]]}]
keyed.asks = "losses"
def found(known, images, rng):
    return [{"images": images if not known.findings else known.findings[0]["price"]}]
found.asks = {"audit"}
def sorting(known, images, rng):
    known.levels["class"].sort(reverse=True)
    return [{"images": images, "levels": {"class": ["star"]}}]
def adding(known, images, rng):
    known.levels["class"].append("nobody")
    return [{"images": images, "levels": {"class": ["nobody"]}}]
def counting(known, images, rng):
    known.right["star"] = (0, 0)
    return [{"images": images}]
def returned(known, images, rng):
    [{"images": images}]
def one(known, images, rng):
    return {"images": images}
def text(known, images, rng):
    return [{"images": images, "levels": {"class": "star"}}]
def bare(known, images, rng):
    return [{"levels": {"class": ["star"]}}]
async def later(known, images, rng):
    return [{"images": images}]
def negative(known, images, rng):
    return [{"images": -images}]
def minus(known, images, rng):
    return [{"images": images, "candidates": 2, "by": "-marginn"}]
def stra(known, images, rng):
    return [{"images": images, "levels": {"class": ["stra"]}}]
def ordered(known, images, rng):
    first = int(next(iter({str(k) for k in range(64)})))
    return [{"images": first, "levels": {"class": ["star"]}}, {"images": images - first}]
def process(known, images, rng):
    import os
    return [{"images": os.getpid() % 100}, {"images": 100 - os.getpid() % 100, "levels": {"class": ["star"]}}]
def endless(known, images, rng):
    while True:
        pass
def late(known, images, rng):
    return [{"images": images + (known.round == 3)}]
def perfect(known, images, rng):
    wrong = sum(n - right for right, n in known.right.values())
    return [{"images": images * wrong // wrong}]
def uniform(known, images, rng):
    return [{"images": images}]
def printing(known, images, rng):
    print("thinking")
    return [{"images": n} for n in (images - 1, 1)]
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("impure", "is not pure"),
        ("few", "plans 99 images, and a round has 100"),
        ("colours", "names the factor 'color'. Did you mean 'colour'?"),
        ("green", "names the level 'green' of colour"),
        ("halves", "images is 50.0, not a whole number"),
        ("nothing", "images is nan, not a whole number"),
        ("weighed", "cannot convert float NaN"),
        ("fails", "has no attribute 'scores'"),
        ("two", "cannot be called with three arguments"),
        ("none", "has no function 'none'"),
        ("misnamed", "has the key 'level'. Did you mean 'levels'?"),
        ("scored", "keeps candidates by 'entropi'. Did you mean 'entropy'?"),
        ("unkept", "names the score 'entropy', and no number of candidates"),
        ("many", "asks for 1000 candidates"),
        ("begun", "begins from 'a', which is not among those it knows: it does not ask for losses"),
        ("asking", "asks for 'loses'. Did you mean 'losses'?"),
        ("hungry", "names levels of images that begin from others"),
        ("keyed", "KeyError: 'late_loss'"),
        ("found", "fails in line 42: KeyError: 'price'."),
        ("sorting", "changes what it is given: known.levels. Work on a copy"),
        ("adding", "changes what it is given: known.levels"),
        ("counting", "changes what it is given: known.right"),
        ("returned", "returns None: is a `return` missing?"),
        ("one", "returns dict, not a list of parts"),
        ("text", "the levels of class are the text 'star', not a list. Write ['star']."),
        ("bare", "returns a part without a number of images"),
        ("later", "is a coroutine. Write `def`"),
        ("negative", "images is -100, not a whole number of 0 or more. A policy is"),
        ("minus", "keeps candidates by '-marginn'. Did you mean 'margin'?"),
        ("stra", "names the level 'stra' of class. Did you mean 'star'?"),
        ("ordered", "is not pure"),
        ("process", "is not pure"),
        ("late", "plans 101 images, and a round has 100"),
        ("perfect", "ZeroDivisionError"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_in_one_line(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(WRONG)
    if name not in ("ordered", "process"):  # a process takes half a second
        monkeypatch.setattr(planning, "_apart", lambda *_: None)
    with pytest.raises(HfsynError) as caught:
        tried(f"{tmp_path}/mine.py:{name}", LEVELS, 100, candidates=4, rounds=3)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_that_never_answers_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SECONDS", 1.5)
    (tmp_path / "mine.py").write_text(WRONG)
    with pytest.raises(HfsynError, match=r"mine.py:endless takes more than 2 s\."):
        tried(f"{tmp_path}/mine.py:endless", LEVELS, 100, candidates=4, rounds=3)


def test_what_a_policy_prints_is_not_among_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(WRONG)
    parts = tried(f"{tmp_path}/mine.py:printing", LEVELS, 100, candidates=4, rounds=3)
    assert [part["images"] for part in parts] == [99, 1]
    out, err = capsys.readouterr()
    assert (out, set(err.split())) == ("", {"thinking"})


def test_the_policy_of_the_readme_plans_a_round(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(def mine.*?)```", (ROOT / "hfsyn/judging/README.md").read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    name = f"{tmp_path}/mine.py:mine"
    first, second = tried(name, LEVELS, 21, candidates=2, rounds=3)
    assert (first["images"], second["images"]) == (10, 11)
    red = {"cost": 0.03, "levels": {"colour": ["red"]}}
    parts = plan(name, Known(1, LEVELS, KNOWN.right, [red]), images=21)
    assert [(part["images"], part["levels"]) for part in parts] == [(10, {"class": ["star"]}), (11, red["levels"])]


def test_an_unknown_policy_is_refused_with_the_nearest() -> None:
    with pytest.raises(HfsynError, match="Did you mean 'hard-classes'"):
        policy_of("hard-class")
