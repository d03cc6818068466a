"""The loop: rounds follow what was measured, are ordinary runs, and are continued to the same bytes."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from browser import in_chromium, needs_chromium
from click.testing import CliRunner
from drawn_tables import rows_of as rows_of_world
from drawn_tables import write_table
from quick_loops import Drawer, answered, bytes_of, looped, rows_of, without_work, written

import hfsyn
from builders.errors import HfsynError
from builders.runs import layout
from builders.variants import get_variant
from hfsyn.cli import cli
from hfsyn.judging.audit.prompts import Axes
from hfsyn.judging.classifier import Classifier, create_network, save_classifier
from hfsyn.judging.preprocessing import Preprocessing
from hfsyn.judging.sets.references import parse_dataset
from hfsyn.looping import rounds
from hfsyn.recipes.factor_file import load_factors
from hfsyn.runs.claims import lock


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Drawer:
    """Nothing is drawn or trained in earnest."""
    return without_work(monkeypatch)


def halfway(run: Path) -> None:
    """Let a run be one of which no image is there yet."""
    layout.sidecar_of(run / "data/train-00000-of-00001.parquet").unlink()
    (run / layout.MANIFEST).unlink()


def critic(folder: Path, seed: int) -> None:
    """A small network with random weights, for drawings."""
    torch.manual_seed(seed)
    names = {info.wnid: info.name for info in get_variant("shapes").classes}
    network, how = create_network("test_resnet", len(names), {}, None), Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
    save_classifier(Classifier("test_resnet", network, tuple(names), names, how, {}), folder)


def test_a_round_follows_what_was_measured_before_it_and_the_control_runs_beside(tmp_path: Path, quick: Drawer) -> None:
    found = looped(written(tmp_path), tmp_path / "loop")
    lines = [(one["policy"], one["round"], one["images"]) for one in found["curve"]]
    assert lines == [("hard-classes", 0, 20), ("hard-classes", 1, 40), ("uniform", 0, 20), ("uniform", 1, 40)]
    steer = json.loads((tmp_path / "loop/round-0/measured.json").read_text())["steer"]
    drawn = [row["class_name"] for row in rows_of(tmp_path / "loop/hard-classes/round-1/run")]
    errors = {name: n - hits for name, (hits, n) in steer.items()}
    assert drawn.count(max(errors, key=errors.__getitem__)) > drawn.count(min(errors, key=errors.__getitem__))
    assert found["stopped"]["why"] == "all rounds"
    over = found["curve"][1]["over"]
    assert over["mean"] == pytest.approx(found["curve"][1]["test"]["value"] - found["curve"][3]["test"]["value"])


def test_the_least_certain_of_the_candidates_for_a_prompt_is_kept_as_an_ordinary_selection(
    tmp_path: Path, quick: Drawer
) -> None:
    out = tmp_path / "loop"
    looped(written(tmp_path, policy="uncertain", candidates=3), out)
    sha256 = (out / "round-0/training/weights").read_text()
    drawn, kept = (rows_of(out / "uncertain/round-1" / name) for name in ("drawn", "run"))
    assert (len(drawn), len(kept)) == (60, 20)
    prompts = {row["source_id"].rpartition(".")[0] for row in drawn}
    assert {row["source_id"].rpartition(".")[0] for row in kept} == prompts
    for row in kept:
        prompt = row["source_id"].rpartition(".")[0]
        same = [answered(sha256, one)["entropy"] for one in drawn if one["source_id"].rpartition(".")[0] == prompt]
        assert answered(sha256, row)["entropy"] == max(same)
    assert not hfsyn.verify(out / "uncertain/round-1/run").problems


def test_images_that_were_not_learned_early_are_drawn_over_with_their_own_prompts(
    tmp_path: Path, quick: Drawer
) -> None:
    out = tmp_path / "loop"
    drawn = rows_of_world(40, first=1000, split="test")
    real, more = (str(write_table(tmp_path / f"{at}.parquet", drawn[at : at + 20])) for at in (0, 20))
    classes = [{"id": info.wnid, "name": info.name} for info in get_variant("shapes").classes]
    (tmp_path / "mine.yaml").write_text(
        json.dumps({"name": "mine", "splits": {"train": 20}, "path": more, "classes": classes})
    )
    mine = str(tmp_path / "mine.yaml")
    looped(written(tmp_path, policy="not-learned-early", rounds=2, start=[real, mine], strength=0.4), out)
    (part,) = json.loads((out / "not-learned-early/round-1/plan.json").read_text())["parts"]
    record = pq.read_table(out / "round-0/training/record.parquet").to_pylist()
    assert len(part["begin"]) == round(0.35 * len(record))
    places = {real: "start-0/", str(parse_dataset(mine)): "start-1/"}
    began = {places.get(one["reference"], "") + one["id"]: one for one in record}
    assert {name.partition("/")[0] for name in part["begin"]} >= {"start-0", "start-1"}
    assert min(began[name]["early_loss"] for name in part["begin"]) >= np.quantile(
        [one["early_loss"] for one in record], 0.64
    )
    run = hfsyn.load_run(out / "not-learned-early/round-1/run")
    assert (run.recipe.generate.init, run.recipe.generate.strength) == ("source", 0.4)
    rows = {row["source_id"]: row for row in rows_of(run.folder)}
    prompts = pq.read_table(out / "not-learned-early/round-1/prompts.parquet").to_pylist()
    sources = {row["sample_id"]: row for row in rows_of(out / "round-0/run")}
    for line, name in zip(prompts, part["begin"], strict=False):
        assert rows[line["source_id"]]["wnid"] == began[name]["wnid"]
        if name in sources:
            assert (line["image"], line["prompt"]) == (sources[name]["image"]["bytes"], sources[name]["prompt"])
    # What was drawn over an image is not drawn over again.
    later = json.loads((out / "not-learned-early/round-2/plan.json").read_text())["parts"][0]["begin"]
    assert not {row["sample_id"] for row in rows.values()} & set(later)


def test_the_rounds_of_a_policy_are_one_run_with_the_round_as_a_column(tmp_path: Path, quick: Drawer) -> None:
    out = tmp_path / "loop"
    found = looped(written(tmp_path, policy="uncertain", candidates=2, rounds=2), out)
    union = Path(found["unions"]["uncertain"])
    rows = {row["sample_id"]: row for row in rows_of(union)}
    wanted = {
        row["sample_id"]: (row["image"], row["seed"], place)
        for place, folder in enumerate((out / "round-0", out / "uncertain/round-1", out / "uncertain/round-2"))
        for row in rows_of(folder / "run")
    }
    assert {name: (row["image"], row["seed"], row["round"]) for name, row in rows.items()} == wanted
    assert not hfsyn.verify(union).problems
    assert "`round`" in (union / "README.md").read_text()
    assert not list(union.parent.glob(".*"))


def test_a_loop_continues_to_the_same_bytes_wherever_it_was_killed(
    tmp_path: Path, quick: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = written(tmp_path, policy="uncertain", images=10, candidates=2), tmp_path / "loop"
    found = looped(file, out)
    before = bytes_of(out)
    shutil.rmtree(out)
    from builders import files

    replace, left = files.os.replace, [0]

    def killed(source: Any, target: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", killed)
    kills = 0
    while True:
        left[0] = 31 + 9 * kills
        try:
            again = looped(file, out)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 3
    assert again == found
    assert bytes_of(out) == before


def test_a_loop_ends_by_its_budget_of_images_or_of_hours_and_says_so(tmp_path: Path, quick: Drawer) -> None:
    out = tmp_path / "loop"
    last = {"weights": "last", "train": {"model": {"pretrained": True}}}  # those the first round begins from
    found = looped(written(tmp_path, rounds=5, stop={"images": 59}, **last), out)
    assert (out / "hard-classes/round-1/training/from").read_text() == str(out / "round-0/training")
    assert (found["stopped"]["why"], found["stopped"]["rounds"]) == ("budget of images", 1)
    before = bytes_of(out)
    again = looped(written(tmp_path, rounds=5, stop={"hours": 1e-6}, **last), out)
    assert (again["stopped"]["why"], again["stopped"]["rounds"]) == ("budget of hours", 1)
    assert {path: data for path, data in bytes_of(out).items() if path.name != "curve.json"} == {
        path: data for path, data in before.items() if path.name != "curve.json"
    }
    assert json.loads((out / "curve.json").read_text())["stopped"] == again["stopped"]
    # Both limits can be raised, and the rounds that are there stay as they are.
    more = looped(written(tmp_path, rounds=2, **last), out)
    assert more["curve"][:2] == found["curve"][:2]
    assert [one["round"] for one in more["curve"] if one["policy"] == "uniform"] == [0, 1, 2]


def test_a_loop_ends_when_the_last_rounds_gained_nothing_on_the_images_that_steer(
    tmp_path: Path, quick: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = {"steer": [0.2, 0.5, 0.8, 0.8, 0.8]}

    def right(one: Any, images: Any, _: Any) -> tuple[np.ndarray, np.ndarray]:
        done = len(list((tmp_path / "loop").glob("hard-classes/round-*"))) if images.split == "test" else 0
        return np.arange(len(images)), np.arange(len(images)) < share["steer"][done] * len(images)

    monkeypatch.setattr(rounds, "rights", right)
    found = looped(written(tmp_path, rounds=4, stop={"without_gain": 1}), tmp_path / "loop")
    assert (found["stopped"]["why"], found["stopped"]["rounds"]) == ("no gain", 3)
    assert "hard-classes +0.0 points" in found["stopped"]["said"]


def test_the_hours_of_a_process_that_is_killed_are_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "BEAT", 0.05)
    (tmp_path / "hours.json").write_text('{"1": 5.0}')
    with rounds.Clock(tmp_path / "hours.json").at_work(1):
        time.sleep(0.4)
        assert json.loads((tmp_path / "hours.json").read_text())["1"] > 5.1  # were it killed now
    assert json.loads((tmp_path / "hours.json").read_text())["1"] >= 5.4


def test_a_loop_whose_limits_are_lowered_goes_on_with_what_is_done(tmp_path: Path, quick: Drawer) -> None:
    out = tmp_path / "loop"
    before = looped(written(tmp_path, rounds=2), out)
    for changes in ({"rounds": 1}, {"rounds": 1, "stop": {"images": 20}}):
        again = looped(written(tmp_path, **changes), out)
        assert again["stopped"] == {"why": "all rounds", "rounds": 2, "said": "Done: 2 rounds after the first."}
        assert (again["curve"], again["unions"]) == (before["curve"], before["unions"])


def test_two_processes_are_not_at_work_in_one_loop(tmp_path: Path, quick: Drawer) -> None:
    out = tmp_path / "loop"
    out.mkdir()
    with lock(out, "loop"), pytest.raises(HfsynError, match=r"Another process is at work in the loop .*/loop\."):
        looped(written(tmp_path), out)
    assert [path.name for path in out.iterdir()] == [layout.LOCKS]


def test_the_classifier_of_entropy_guidance_is_pinned_when_a_loop_begins(tmp_path: Path, quick: Drawer) -> None:
    guided = {"extends": "shapes-basic", "generate": {"entropy_weight": 2, "entropy_classifier": str(tmp_path / "c")}}
    (tmp_path / "guided.yaml").write_text(json.dumps(guided))
    file, out = written(tmp_path, recipe=str(tmp_path / "guided.yaml")), tmp_path / "loop"
    with pytest.raises(HfsynError, match="entropy_classifier: There is no folder"):
        looped(file, out)
    assert not out.exists()
    critic(tmp_path / "c", seed=1)
    looped(file, out)
    (out / "hard-classes/round-1/measured.json").unlink()
    critic(tmp_path / "c", seed=2)
    with pytest.raises(HfsynError, match="is not the one that the recipe means"):
        looped(file, out)


def test_what_a_loop_is_steered_by_is_pinned(tmp_path: Path, quick: Drawer) -> None:
    out = tmp_path / "loop"
    looped(written(tmp_path), out)
    plan = json.loads((out / "hard-classes/round-1/plan.json").read_text())
    assert plan["by"] == (out / "round-0/training/weights").read_text()
    (out / "hard-classes/round-1/measured.json").unlink()
    measured = out / "round-0/measured.json"
    measured.write_text(measured.read_text().replace(plan["by"], "0" * 64))
    (out / "round-0/training/weights").write_text("0" * 64)
    with pytest.raises(HfsynError, match="was planned by other weights"):
        looped(written(tmp_path), out)
    # Nor is anything planned by weights that are not those that were measured, or kept by what they say.
    (out / "round-0/training/weights").write_text("1" * 64)
    for there in (True, False):
        with pytest.raises(HfsynError, match="round-0/training has other weights than those that were measured"):
            looped(written(tmp_path), out)
        assert (out / "hard-classes/round-1/plan.json").exists() == there
        shutil.rmtree(out / "hard-classes", ignore_errors=True)


def test_a_loop_is_only_continued_where_it_began_and_as_it_began(tmp_path: Path, quick: Drawer) -> None:
    (tmp_path / "mine.py").write_text("def mine(known, images, rng):\n    return [{'images': images}]\n")
    changes = {"policy": f"{tmp_path}/mine.py:mine", "factors": f"{tmp_path}/factors.yaml"}
    factors = hfsyn.recipes.__path__[0] + "/factors/shapes.yaml"
    shutil.copy(factors, tmp_path / "factors.yaml")
    out = tmp_path / "loop"
    found = looped(written(tmp_path, **changes), out)
    with pytest.raises(HfsynError, match="holds another loop: images is 20 there, 21 here"):
        looped(written(tmp_path, **changes, images=21), out)
    (tmp_path / "mine.py").write_text("def mine(known, images, rng):\n    return [{'images': images, 'levels': {}}]\n")
    with pytest.raises(HfsynError, match="of other contents: 'policy mine' changed since it began"):
        looped(written(tmp_path, **changes), out)
    out.rename(tmp_path / "moved")
    (tmp_path / "mine.py").write_text("def mine(known, images, rng):\n    return [{'images': images}]\n")
    with pytest.raises(HfsynError, match=r"moved is a loop that began in .*/loop.* ln -s "):
        looped(written(tmp_path, **changes), tmp_path / "moved")
    # Where a link leads to it, the runs and trainings that name its place are found.
    before = bytes_of(tmp_path / "moved")
    out.symlink_to(tmp_path / "moved")
    halfway(out / "mine/round-1/run")
    (out / "mine/round-1/measured.json").unlink()
    assert looped(written(tmp_path, **changes), out) == found
    assert bytes_of(tmp_path / "moved") == before


def test_each_part_of_a_plan_has_levels_of_its_own() -> None:
    axes = Axes(load_factors("shapes"), get_variant("shapes").classes)
    opened: Any = SimpleNamespace(axes=axes, seed=lambda *_: 5)
    parts = [{"images": 8, "levels": {"class": [name]}} for name in ("heart", "star")]
    rows = rounds._rows(opened, 1, parts, 0)
    heart, star = ([row["levels"] for row in rows if row["class_name"] == name] for name in ("heart", "star"))
    assert len(heart) == len(star) == 8
    assert heart != star


def test_status_and_report_show_how_far_a_loop_is(tmp_path: Path, quick: Drawer) -> None:
    out, run = tmp_path / "loop", CliRunner()
    looped(written(tmp_path, policy=["hard-classes", "uncertain"]), out)
    found = run.invoke(cli, ["status", str(out)]).stdout
    assert found.splitlines()[-1] == "finished"
    assert "steered by shapes (test), which is not the test; tested on shapes (train[held 5%])" in found
    assert len(re.findall(r"^(?:hard-classes|uncertain|uniform) [01] ", found, re.M)) == 6
    page = Path(run.invoke(cli, ["report", str(out)]).stdout.strip()).read_text()
    assert "never the test" in page
    assert page.count("<img ") == 16 * 4
    assert "20 images: of all kinds alike, each the one of 4 with the largest entropy" in page
    with pytest.raises(HfsynError, match="is a loop, whose page is not shown as a Space"):
        hfsyn.report(out, push_to_hub="a/b")
    (out / "curve.json").unlink()
    (out / "uncertain/round-1/measured.json").unlink()
    found = run.invoke(cli, ["status", str(out)]).stdout
    assert found.splitlines()[-1] == "unfinished"
    assert "uncertain, round 1: training" in found
    shutil.rmtree(out / "uncertain/round-1/training")
    halfway(out / "uncertain/round-1/drawn")
    assert "uncertain, round 1: drawing, 0 of 80 images" in run.invoke(cli, ["status", str(out)]).stdout


def test_plan_tells_images_hours_and_disk_by_round(tmp_path: Path) -> None:
    file, run = written(tmp_path, policy="uncertain", rounds=2), CliRunner()
    found = json.loads(run.invoke(cli, ["plan", str(file), "--json"]).stdout)
    lines = [(one["policy"], one["round"], one["images"], one["trained"]) for one in found["rounds"]]
    assert lines == [
        ("first round", 0, 20, 20),
        ("uncertain", 1, 80, 40),
        ("uniform", 1, 20, 40),
        ("uncertain", 2, 80, 60),
        ("uniform", 2, 20, 60),
    ]
    assert found["rounds"][1]["disk_bytes"] > found["rounds"][2]["disk_bytes"] > 0
    assert found["unknown"] == ["the images of builtin"]
    assert "A100" in found["hours"]
    with pytest.raises(HfsynError, match="is a loop file"):
        hfsyn.plan(file, price=2)


@pytest.mark.slow
def test_the_rounds_are_published_as_a_version_whose_rows_say_their_round(
    tmp_path: Path, quick: Drawer, alice: Any
) -> None:
    found = looped(written(tmp_path, policy="not-learned-early"), tmp_path / "loop")
    union = found["unions"]["not-learned-early"]
    words = ("alice/rounds", "-q", "--version")
    assert alice.hfsyn("publish", union, *words, "1.0.0").code == 0
    assert alice.hfsyn("publish", f"{union}-begun", *words, "1.1.0", "--config-name", "begun").code == 0
    rounds_of = (
        "import datasets\n"
        "some = [datasets.load_dataset('alice/rounds', name, split='train', revision='v1.1.0')['round'][:]"
        " for name in ('default', 'begun')]\n"
        "result = [sorted(set(one)) + [len(one)] for one in some]"
    )
    assert alice.python(rounds_of) == [[0, 20], [1, 20]]
    assert alice.hfsyn("verify", "alice/rounds@v1.1.0").code == 0


@needs_chromium
@pytest.mark.slow
def test_the_page_fits_a_phone(tmp_path: Path, quick: Drawer) -> None:
    looped(written(tmp_path), tmp_path / "loop")
    page = hfsyn.report(tmp_path / "loop")
    for dark in (False, True):
        wide = in_chromium(Path(page), tmp_path, "d.documentElement.scrollWidth", width=390, dark=dark)
        assert wide <= 390
