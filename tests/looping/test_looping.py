"""The loop: policies are pure and checked, rounds follow what was measured, and the same command continues."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_audit import Obedient

import hfsyn
from builders.errors import HfsynError
from builders.runs import layout
from hfsyn.looping.policies import POLICIES, Known, planned, policy_of, shared

LEVELS = {"class": ["heart", "star"], "colour": ["red", "blue"]}
KNOWN = Known(1, LEVELS, {"heart": (9, 10), "star": (4, 10)})


def plan(name: str, known: Known = KNOWN, images: int = 100) -> list[dict[str, Any]]:
    return planned(policy_of(name)[0], name, known, images, seed=0)


def test_each_policy_plans_the_images_of_a_round_and_nothing_else() -> None:
    for name in POLICIES:
        assert sum(part["images"] for part in plan(name, images=37)) == 37


def test_hard_classes_get_images_by_their_error() -> None:
    heart, star = plan("hard-classes")
    assert (heart["levels"], star["levels"]) == ({"class": ["heart"]}, {"class": ["star"]})
    assert (heart["images"], star["images"]) == (22, 78)  # 2 of 12 and 7 of 12


def test_an_audits_findings_get_images_by_their_cost_and_without_any_all_kinds_do() -> None:
    red, blue = {"class": ["star"], "colour": ["red"]}, {"colour": ["blue"]}
    found = [{"cost": 0.03, "levels": red}, {"cost": 0.01, "levels": blue}]
    parts = plan("audit", Known(1, LEVELS, KNOWN.right, found))
    assert [(part["images"], part["levels"]) for part in parts] == [(75, red), (25, blue)]
    assert plan("audit") == [{"images": 100, "levels": {}}]


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
def fails(known, images, rng):
    return known.scores["entropy"]
def two(known, images):
    return []
def mine(known, images, rng):
    return [{"images": images, "levels": {"class": [rng.choice(known.levels["class"])]}}]
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("impure", "is not pure"),
        ("few", "plans 99 images, and a round has 100"),
        ("colours", "names the factor 'color'. Did you mean 'colour'?"),
        ("green", "names the level 'green' of colour"),
        ("halves", "not a whole number"),
        ("fails", "has no attribute 'scores'"),
        ("two", "cannot be called with three arguments"),
        ("none", "has no function 'none'"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_in_one_line(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WRONG)
    with pytest.raises(HfsynError) as caught:
        plan(f"{tmp_path}/mine.py:{name}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_policy_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="Did you mean 'hard-classes'"):
        policy_of("hard-class")


QUICK = {
    "recipe": "shapes-basic",
    "factors": "shapes",
    "train": {
        "model": {"name": "test_resnet", "image_size": 32, "channels_last": False},
        "optimise": {"epochs": 1, "batch_size": 10, "warmup_epochs": 0},
    },
    "images": 20,
    "rounds": 1,
    "steer": {"dataset": "shapes", "split": "test", "limit": 2},
    "test": {"dataset": "shapes", "split": "train[held 5%]", "limit": 2},
}


def written(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "loop.yaml"
    file.write_text(json.dumps({**QUICK, **changes}))
    return file


def looped(file: Path, out: Path) -> dict[str, Any]:
    return hfsyn.loop(file, out, num_processes=1, device="cpu", quiet=True).as_dict()


@pytest.fixture
def drawer(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("hfsyn.building.tried_generator", "hfsyn.images.generate_stage.loaded_generator"):
        monkeypatch.setattr(module, lambda run, options: Obedient())


@pytest.mark.slow
@pytest.mark.usefixtures("drawer")
def test_a_loop_continues_to_the_same_bytes_and_its_rounds_follow_what_was_measured(tmp_path: Path) -> None:
    file, out = written(tmp_path, policy="hard-classes"), tmp_path / "loop"
    first = looped(file, out)
    assert [(one["policy"], one["round"], one["images"]) for one in first["curve"]] == [
        ("hard-classes", 0, 20),
        ("hard-classes", 1, 40),
        ("uniform", 0, 20),
        ("uniform", 1, 40),
    ]
    second = out / "hard-classes" / "round-1"
    steer = json.loads((out / "round-0" / "measured.json").read_text())["steer"]
    drawn = pq.read_table(second / "prompts.parquet")["class_name"].to_pylist()
    errors = {name: n - hits for name, (hits, n) in steer.items()}
    assert drawn.count(max(errors, key=errors.__getitem__)) >= drawn.count(min(errors, key=errors.__getitem__))
    # All of a round but its plan is lost, and half of a run: it is made again, the same to the byte.
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.parquet")}
    for name in ("measured.json", "training", "run/data/train-00000-of-00001.parquet"):
        path = second / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    layout.sidecar_of(second / "run/data/train-00000-of-00001.parquet").unlink(missing_ok=True)
    assert looped(file, out) == first
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*.parquet")} == before
    with pytest.raises(HfsynError, match="holds another loop: images is 20 there, 21 here"):
        looped(written(tmp_path, policy="hard-classes", images=21), out)


def test_a_loop_that_steers_by_its_test_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WRONG)
    for changes, said in (
        ({"steer": QUICK["test"]}, "steers by its own test"),
        ({"policy": f"{tmp_path}/mine.py:few"}, "plans 19 images"),
        ({"policies": ["audit"]}, "Unknown key 'policies'"),
        ({"test": {"dataset": "nothing-there"}}, "nothing-there"),
    ):
        with pytest.raises(HfsynError) as caught:
            looped(written(tmp_path, **changes), tmp_path / "loop")
        assert said in str(caught.value)
        assert not (tmp_path / "loop").exists()
