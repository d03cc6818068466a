"""Loop files: what would fail in a round is refused before anything is spent, by `loop` and by `plan`."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drawn_tables import NAMES, write_table
from drawn_tables import rows_of as rows_of_world
from quick_loops import QUICK, looped, written

import hfsyn
from builders.errors import HfsynError

FACTORS: dict[str, Any] = {"prompt": "a {colour} {c}", "factors": {"colour": ["red", "blue"]}}


def test_what_is_wrong_in_a_loop_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def few(known, images, rng):\n    return [{'images': images - 1}]\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "never.yaml").write_text(json.dumps({**FACTORS, "never": [{"class": "hart", "colour": "red"}]}))
    rows = rows_of_world(20, first=1000, split="test")
    hearts = str(write_table(tmp_path / "hearts.parquet", [row for row in rows if row[0] in NAMES[:3]]))
    real, drawn = str(write_table(tmp_path / "real.parquet", rows)), {"policy": "audit", "images": 30}
    (tmp_path / "unread.yaml").write_text("extends: shapes-basic\ngenerate: {model: nobody/nothing}\n")
    for changes, said in (
        ({"steer": QUICK["test"]}, "steer and test share 30 images"),
        ({"start": ["shapes"]}, "test and start shapes share 30 images. Give `test` others: test[held 50%] and "),
        ({"policy": f"{tmp_path}/mine.py:few"}, "plans 19 images"),
        ({"policy": ["uniform", "audit", "audit"]}, "Two policies are called audit"),
        ({"policies": ["audit"]}, "Unknown key 'policies'"),
        ({"test": {"dataset": "nothing-there"}}, "nothing-there"),
        ({"recipe": "shapes-cap"}, "shapes-cap"),
        ({"stop": {"images": 10}}, "less than the first round of 20"),
        ({"stop": {"hours": -1}}, "stop.hours"),
        ({"train": "shape"}, "shape"),
        ({"strength": 0.05, "policy": "not-learned-early"}, "less than one step"),
        (
            {"policy": "audit", "images": 19},
            "images is 19, half of them for audits: not each class of 10 would have one",
        ),
        ({**drawn, "recipe": str(tmp_path / "unread.yaml")}, "Nobody reads back whether"),
        ({**drawn, "reader": "nobody"}, "nobody"),
        ({"factors": str(tmp_path / "never.yaml")}, "never names the class 'hart'"),
        ({"images": 8}, "images is 8, and there are 10 classes"),
        ({"start": [hearts]}, "The set that is named first must have the classes of all others"),
        ({"start": [f"{real}:2"]}, "whose weight is 2"),
        ({"train": {"model": {"split_bn": True}}}, "model.split_bn"),
    ):
        file = written(tmp_path, **changes)
        with pytest.raises(HfsynError) as caught:
            looped(file, tmp_path / "loop")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "loop").exists()
        with pytest.raises(HfsynError, match=re.escape(str(caught.value))):
            hfsyn.plan(file)
    with pytest.raises(HfsynError, match="cannot be created"):
        looped(written(tmp_path), tmp_path / "file" / "loop")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("limits", [10]),
        ("limit_per_class", 1),
        ("train_split", "test"),
        ("keep", "random:0.5"),
        ("fold", "0/5"),
        ("streaming", True),
        ("budget", 10),
    ],
)
def test_a_training_recipe_does_not_say_what_a_loop_trains_on(tmp_path: Path, key: str, value: Any) -> None:
    file = written(tmp_path, train={"data": {key: value}})
    for ask in (hfsyn.plan, partial(looped, out=tmp_path / "loop")):
        with pytest.raises(HfsynError, match=re.escape(f"The training recipe says data.{key}={value}, and a loop")):
            ask(file)
    assert not (tmp_path / "loop").exists()


def test_a_real_training_set_goes_with_the_two_halves_of_another_split(tmp_path: Path) -> None:
    halves = {"steer": "[held 50%]", "test": "test[kept 50%]"}
    measured = {name: {"dataset": "shapes", "split": split, "limit": 3} for name, split in halves.items()}
    assert hfsyn.plan(written(tmp_path, start=["shapes"], **measured)).rounds[0]["trained"] > 1000


def test_levels_that_name_a_class_are_left_out_as_an_audit_leaves_them_out_and_so_it_is_said(tmp_path: Path) -> None:
    factors = {"prompt": "a photo of {c} beside {prop}", "factors": {"prop": ["a star", "a tree", "a house"]}}
    (tmp_path / "props.yaml").write_text(json.dumps(factors))
    (tmp_path / "mine.py").write_text(
        "def mine(known, images, rng):\n    return [{'images': images, 'levels': {'prop': known.levels['prop']}}]\n"
    )
    found = hfsyn.plan(written(tmp_path, factors=str(tmp_path / "props.yaml"), policy=f"{tmp_path}/mine.py:mine"))
    assert found.plans["mine"][0]["levels"] == {"prop": ["a tree", "a house"]}
    said = "levels of prop that name a class are left out: a star (the class star)"
    assert list(found.remarks) == [said]
    assert said in found.text()


def test_classes_of_which_nothing_steers_are_named(tmp_path: Path) -> None:
    rows = [row for row in rows_of_world(20, first=1000, split="test") if row[0] in NAMES[:3]]
    hearts = write_table(tmp_path / "some.parquet", rows)
    found = hfsyn.plan(written(tmp_path, steer={"dataset": str(hearts)}))
    assert "7 classes of which steer has no image: " in found.text()
