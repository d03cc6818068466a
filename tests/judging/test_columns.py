"""Columns beside the tests: each fails on its own, is made once, and what it costs is told before."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from conftest import finished_run

from hfsyn.cli import cli
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.bench.cells import bench, failures
from hfsyn.judging.bench.columns import cell_attacks
from hfsyn.judging.bench.matrix import EXAMPLES, cells, load_matrix
from hfsyn.judging.bench.page import write_page
from hfsyn.judging.bench.table import latex_escaped
from hfsyn.judging.measures.metrics import wilson
from hfsyn.judging.sets.image_set import TRAIN, open_images

MATRIX: dict[str, Any] = {
    "name": "columns",
    "arms": {"real": {"train": ["shapes"]}, "other": {"train": ["shapes-context"]}},
    "models": ["test_resnet"],
    "seeds": [0, 1],
    "tests": {"a": {"dataset": "shapes"}, "b": {"dataset": "shapes-context"}},
    "means": {"both": ["a", "b"]},
    "membership": {"MIA": {"members": "shapes", "others": "shapes"}},
    "fidelity": {"features": {"real": "shapes", "evaluation": "shapes"}},
}


def train(config: Any, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    lr = config.optimise.lr
    (out / "config.json").write_text(json.dumps([config.data.train[0], config.seed, lr]))
    return {"training": {"budget": 10}}


def evaluate(model: Path | str, dataset: str, split: str | None) -> dict[str, Any]:
    """70 % on one set and 50 % on the other; more with a higher learning rate, but not where recipes are chosen."""
    if isinstance(model, str):
        if dataset == "shapes-context":
            raise HfsynError("It has none of these classes.")
        top1 = wilson(80, 100)
        metrics = {"classes": 1000, "top1": top1, "top5": wilson(95, 100), "ece": top1, "per_class": [], "masked": None}
        facts = {"model": {"name": model, "parameters": 25_557_032}, "preprocessing": {"image_size": 288, "crop": 1.0}}
        return {"n": 100, "metrics": metrics, **facts}
    _, seed, lr = json.loads((model / "config.json").read_text())
    hits = {"shapes": 70, "shapes-context": 50}[dataset] + seed
    hits += -round(10 * lr) if split and "held" in split else round(10 * lr)
    top1 = wilson(hits, 100)
    metrics: dict[str, Any] = {"classes": 10, "top1": top1, "top5": wilson(90, 100), "ece": wilson(5, 100)}
    metrics["per_class"] = [{"wnid": "n1", "name": "circle", "n": 100, "top1": top1}]
    real = {"n": 100, "top1": wilson(60, 100)} if dataset == "shapes" and split is None else None
    return {"n": 100, "metrics": {**metrics, "masked": None}, "real": real}


def attack(model: Path, members: str, others: str, **words: Any) -> dict[str, Any]:
    value = {"value": 0.6, "low": 0.5, "high": 0.7}
    return {"loss": {"balanced_accuracy": value, "auc": value, "tpr_at_1_percent_fpr": {**value, "value": 0.02}}}


class Comparer:
    """Counts what it is asked; fails where it is told to."""

    def __init__(self, broken: bool = False) -> None:
        self.asked: list[str] = []
        self.broken = broken

    def __call__(self, synthetic: str, real: str, **words: Any) -> dict[str, Any]:
        self.asked.append(synthetic)
        if self.broken:
            raise HfsynError("The features are not there.")
        near = {"near": 5}
        return {
            "images": {"synthetic": 50},
            "frechet": {"value": 1.5},
            **dict.fromkeys(("precision", "recall", "density", "coverage"), 0.5),
            "duplicates": {"within": near, "against_real": near, "against_evaluation": near},
        }


def run(out: Path, matrix: Any = MATRIX, **how: Any) -> dict[str, Any]:
    work = {"train": train, "evaluate": evaluate, "attack": attack, "compare": Comparer()} | how
    return bench(matrix, out, quiet=True, **work)


def cell(summary: dict[str, Any], arm: str, column: str) -> dict[str, Any]:
    (row,) = [row for row in summary["table"]["rows"] if row["arm"] == arm]
    return row["cells"][column]


def test_a_column_that_fails_leaves_the_others_and_is_the_only_one_that_is_tried_again(tmp_path: Path) -> None:
    def refuse(model: Path, members: str, others: str, **words: Any) -> dict[str, Any]:
        raise HfsynError("There are 2 members and 2 others.")

    asked: list[str] = []

    def noted(model: Path, dataset: str, split: str | None) -> dict[str, Any]:
        asked.append(dataset)
        return evaluate(model, dataset, split)

    summary = run(tmp_path, attack=refuse, evaluate=noted)
    assert cell(summary, "other", "MIA: AUC")["note"] == "failed: There are 2 members and 2 others."
    assert cell(summary, "other", "a")["mean"] == pytest.approx(0.715)
    error = failures(summary, tmp_path)
    assert error is not None
    assert error.code == ExitCode.PARTIAL
    assert "MIA: There are 2 members" in error.message
    assert len(asked) == 8
    again = run(tmp_path, evaluate=noted)
    assert (len(asked), again["failed"]) == (8, [])
    assert cell(again, "other", "MIA: AUC")["values"] == [0.6, 0.6]
    assert not list(tmp_path.rglob("error.json"))


def test_a_fault_of_ours_in_one_column_keeps_its_traceback_and_the_next_column_is_filled(tmp_path: Path) -> None:
    def broken(model: Path, dataset: str, split: str | None) -> dict[str, Any]:
        if dataset == "shapes":
            raise ZeroDivisionError("division by zero")
        return evaluate(model, dataset, split)

    summary = run(tmp_path, evaluate=broken)
    assert cell(summary, "real", "a")["note"] == "failed: ZeroDivisionError: division by zero"
    assert cell(summary, "real", "b")["values"] == [0.51, 0.52]
    assert cell(summary, "real", "both")["note"] == "failed: a: ZeroDivisionError: division by zero"
    (first, *_) = tmp_path.rglob("error.json")
    assert "Traceback" in json.loads(first.read_text())["traceback"]


def test_a_set_is_compared_once_for_all_its_cells_and_again_only_if_that_failed(tmp_path: Path) -> None:
    broken, working = Comparer(broken=True), Comparer()
    summary = run(tmp_path, {**MATRIX, "limits": [1, 2]}, compare=broken)
    assert broken.asked == ["shapes-context"]  # the real set is not compared with itself
    assert [one["error"] for one in summary["failed_sets"]] == ["The features are not there."]
    assert failures(summary, tmp_path) is not None
    for _ in range(2):
        summary = run(tmp_path, {**MATRIX, "limits": [1, 2]}, compare=working)
    assert working.asked == ["shapes-context"]
    assert failures(summary, tmp_path) is None
    rows = [row["cells"] for row in summary["table"]["rows"] if row["arm"] == "other"]
    assert [row["features: copies of real"]["mean"] for row in rows] == [0.1, 0.1]
    assert [row["features: Fréchet distance"]["values"] for row in rows] == [[1.5], [1.5]]


def test_the_mean_of_some_tests_is_a_row_and_a_column_of_its_own(tmp_path: Path) -> None:
    summary = run(tmp_path)
    (mean,) = [row for row in summary["rows"] if row["test"] == "both" and row["arm"] == "real"]
    assert mean["values"] == pytest.approx([0.61, 0.62])
    assert mean["n"] == 200
    assert cell(summary, "real", "both")["values"] == mean["values"]
    assert {row["test"] for row in csv.DictReader((tmp_path / "results.csv").open())} == {"a", "b", "both"}
    assert [found["mean"] for found in summary["differences"] if found["test"] == "both"] == pytest.approx([0.0])


def test_real_labels_have_a_column_beside_that_of_their_test(tmp_path: Path) -> None:
    summary = run(tmp_path)
    names = [column["name"] for column in summary["table"]["columns"]]
    assert names[:3] == ["a", "a ReaL", "b"]
    assert cell(summary, "real", "a ReaL")["values"] == [0.6, 0.6]


def test_networks_with_published_weights_are_rows_that_are_tested_once(tmp_path: Path) -> None:
    asked: list[Any] = []

    def noted(model: Path | str, dataset: str, split: str | None) -> dict[str, Any]:
        asked.append((model, dataset))
        return evaluate(model, dataset, split)

    matrix = {**MATRIX, "baselines": ["resnet50.a1_in1k"]}
    for _ in range(2):  # what failed is tried again
        summary = run(tmp_path, matrix, evaluate=noted)
    asked = [one for one in asked if one[0] == "resnet50.a1_in1k"]
    assert asked == [(asked[0][0], name) for name in ("shapes", "shapes-context", "shapes-context")]
    assert cell(summary, "resnet50.a1_in1k", "a")["values"] == [0.8]
    assert cell(summary, "resnet50.a1_in1k", "b")["note"] == "failed: It has none of these classes."
    assert cell(summary, "resnet50.a1_in1k", "MIA: AUC")["note"] == "not asked"
    assert [one["error"] for one in summary["failed_sets"]] == ["b: It has none of these classes."]
    assert {row["arm"] for row in summary["rows"]} == {"real", "other"}  # no verdict is about them
    write_page(tmp_path)
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    (line,) = [line for line in lines if line["arm"] == "resnet50.a1_in1k"]
    names = ("model", "img_size", "top1", "top1_err", "param_count", "crop_pct")
    assert [line[name] for name in names] == ["resnet50.a1_in1k", "288", "80.000", "20.000", "25.56", "1.0"]


CHOICE = {**MATRIX, "lrs": [0.1, 0.9], "select_on": {"dataset": "shapes", "share": 0.1}}


def test_a_rate_is_chosen_on_other_images_than_it_is_reported_on(tmp_path: Path) -> None:
    summary = run(tmp_path, CHOICE)
    # The higher rate has the better numbers everywhere but where rates are chosen.
    assert cell(summary, "real", "a")["values"] == [0.71, 0.72]
    assert {row["lr"] for row in summary["rows"]} == {None}
    (row,) = [row for row in summary["table"]["rows"] if row["arm"] == "real"]
    assert row["chosen"] == "learning rate 0.1 (of 2, on shapes train[held 10%])"
    assert len(summary["chosen"]) == 2


def test_what_failed_where_rates_are_chosen_is_not_chosen(tmp_path: Path) -> None:
    def fails(config: Any, out: Path) -> dict[str, Any]:
        if config.optimise.lr == 0.1 and config.seed == 0:
            raise HfsynError("It diverged.")
        return train(config, out)

    summary = run(tmp_path, CHOICE, train=fails)
    assert cell(summary, "real", "a")["values"] == [0.72]  # chosen over the seed that both have
    assert cell(summary, "real", "a")["note"] == "failed: It diverged. (seed 0)"


def test_an_arm_without_anything_to_choose_by_has_no_number_but_the_reason(tmp_path: Path) -> None:
    def fails(model: Path, dataset: str, split: str | None) -> dict[str, Any]:
        if "shapes-context" in (model / "config.json").read_text() and split and "held" in split:
            raise HfsynError("It is empty.")
        return evaluate(model, dataset, split)

    summary = run(tmp_path, CHOICE, evaluate=fails)
    assert cell(summary, "other", "a")["note"] == "failed: nothing to choose by: It is empty."
    assert cell(summary, "other", "MIA: AUC")["mean"] is None
    assert {row["arm"] for row in summary["rows"]} == {"real"}
    assert len(summary["chosen"]) == 1


def test_members_are_without_what_is_held_out() -> None:
    matrix = load_matrix(CHOICE)
    assert cell_attacks(matrix, next(cells(matrix)))["MIA"]["members_split"] == "[kept 90%]"
    split = {**CHOICE, "membership": {"MIA": {**MATRIX["membership"]["MIA"], "members_split": "train"}}}
    matrix = load_matrix(split)
    assert cell_attacks(matrix, next(cells(matrix)))["MIA"]["members_split"] == "train"


def test_a_matrix_may_span_variants_each_a_table_of_its_own(tmp_path: Path) -> None:
    matrix = {
        **MATRIX,
        "variants": ["shapes", "shapes-context"],
        "arms": {"real": {"train": ["{variant}"]}},
        "tests": {"a": {"dataset": "{variant}"}, "b": {"dataset": "shapes", "variants": ["shapes-context"]}},
        "means": {},
        "fidelity": {},
    }
    summary = run(tmp_path, matrix)
    rows = {row["variant"]: row["cells"] for row in summary["table"]["rows"]}
    assert [rows[name]["a"]["mean"] for name in ("shapes", "shapes-context")] == pytest.approx([0.715, 0.515])
    assert [rows[name]["b"]["note"] for name in ("shapes", "shapes-context")] == ["not asked", None]
    assert (tmp_path / "cells/shapes-context/real/test_resnet/all/seed-0/results.json").is_file()
    assert any("trained on shapes-context" in sentence for sentence in summary["verdict"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arms": {"real": {"train": ["{variant}"]}}}, "says {variant} and has no variants"),
        ({"means": {"both": ["a", "c"]}}, "means.both names what is not a test: c"),
        ({"means": {"a": ["a", "b"]}}, "The column 'a' stands twice"),
        ({"tests": {"select_on": {"dataset": "shapes"}}, "means": {}}, "The column 'select_on' is taken"),
        ({"membership": {"MIA": {"members": "shapes"}}}, "'membership.MIA.others' is missing"),
        ({"fidelity": {"f": {"real": "shapes", "arms": ["x"]}}}, "fidelity.f.arms names what is not an arm: x"),
        ({"variants": ["shapes"], "tests": {"a": {"dataset": "shapes", "variants": ["y"]}}}, "not a variant of the"),
        ({"select_on": {"dataset": "shapes", "share": 0.9}}, "select_on.share is 0.9"),
    ],
)
def test_a_mistake_in_a_column_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(HfsynError, match=re.escape(said)):
        load_matrix({**MATRIX, **change})


UNBUILT = {
    "name": "unbuilt",
    "config": "shapes",
    "arms": {
        "real": {"train": ["shapes"]},
        "cip": {"train": ["runs/cip-{seed}"], "recipe": "shapes-cip"},
        "small": {"train": ["runs/small"], "recipe": "imagenette-basic", "generator": "sdxl"},
    },
    "limits": [20],
    "seeds": [0, 1],
    "tests": {"drawings": {"dataset": "shapes", "split": "test"}},
}


def test_a_dry_run_tells_what_is_to_be_made_and_what_all_of_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.json").write_text(json.dumps(UNBUILT))
    done = CliRunner().invoke(cli, ["bench", "m.json", "--out", "out", "--dry-run", "--device", "cpu", "--json"])
    assert done.exception is None
    costs = json.loads(done.stdout)["costs"]
    assert [run["command"] for run in costs["runs"]] == [
        "hfsyn build shapes-cip --seed 0 --out runs/cip-0",
        "hfsyn build imagenette-basic --generator sdxl --out runs/small",
        "hfsyn build shapes-cip --seed 1 --out runs/cip-1",
    ]
    sdxl = costs["runs"][1]
    assert sdxl["images"] == 9469
    assert sdxl["hours"]["A100"] > 10
    assert costs["hours"]["A100"] >= sdxl["hours"]["A100"]
    assert costs["disk_bytes"] > sdxl["disk_bytes"] > 1e9
    assert costs["trainings"]["count"] == 6
    done = CliRunner().invoke(cli, ["bench", "m.json", "--out", "out", "--dry-run", "--device", "cpu"])
    assert "  hfsyn build imagenette-basic --generator sdxl --out runs/small" in done.stdout.splitlines()
    assert "40% of its peak" in done.stdout
    done = CliRunner().invoke(cli, ["bench", "m.json", "--out", "out", "--device", "cpu", "-q"])
    assert isinstance(done.exception, HfsynError)
    assert "3 runs of the matrix are not made yet" in done.exception.message
    assert not Path("out").exists()


def test_a_dry_run_opens_the_sets_and_networks_of_columns(tmp_path: Path) -> None:
    wrong = {
        **UNBUILT,
        "arms": {"real": {"train": ["shapes"]}, "other": {"train": ["shapes-context"]}},
        "membership": {"MIA": {"members": "shape", "others": "shapes"}},
        "fidelity": {"f": {"real": "shapes", "features": "resnet500"}},
        "select_on": {"dataset": "shapes", "split": "nowhere"},
    }
    with pytest.raises(HfsynError) as told:
        bench(wrong, tmp_path / "out", dry_run=True, device="cpu", quiet=True)
    for fault in ("no variant 'shape'", "no network 'resnet500'", "'nowhere'"):
        assert str(told.value).count(fault) == 1, fault


@pytest.mark.parametrize("name", ["paper", "generators"])
def test_the_papers_matrices_name_what_makes_their_sets(name: str) -> None:
    matrix = load_matrix(yaml.safe_load(EXAMPLES[name]))
    arms = [arm for arm in matrix.arms.values() if arm.train != ("{variant}",)]
    assert all(arm.recipe for arm in arms)
    assert len(list(cells(matrix))) == {"paper": 3 * 5 * 2 * 3, "generators": 11 * 3}[name]
    assert matrix.models == ("resnet50",)


def test_latex_shows_every_character_of_a_name(tmp_path: Path) -> None:
    assert latex_escaped(r"a_b & 50 % of #1 {x} $y$ ~^\z") == (
        r"a\_b \& 50 \% of \#1 \{x\} \$y\$ \textasciitilde{}\textasciicircum{}\textbackslash{}z"
    )
    matrix = {**MATRIX, "arms": {"a_b": {"train": ["shapes"]}, "c": {"train": ["shapes-context"]}}}
    run(tmp_path, matrix)
    write_page(tmp_path)
    tex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert "a\\_b" in tex
    assert "a_b" not in tex
    body = tex[tex.index("\\toprule") : tex.index("\\bottomrule")]
    columns = len(re.search(r"\\begin\{tabular\}\{l(r+)\}", tex)[1])  # type: ignore[index]
    rows = [line for line in body.splitlines() if line.endswith(r"\\") and "\\multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns}


def test_what_was_made_from_a_held_out_image_is_held_out_with_it(tmp_path: Path) -> None:
    run_of = finished_run(tmp_path)
    real = open_images("shapes", "train", default=TRAIN, limit=3)
    parts = {part: open_images(str(run_of), f"train[{part}]") for part in ("held 30%", "kept 70%")}
    held = set(open_images("shapes", "train[held 30%]").ids)
    sources = {part: {name.partition("#")[0] for name in one.ids} for part, one in parts.items()}
    assert sources["held 30%"] | sources["kept 70%"] == set(real.ids)
    assert sources["held 30%"] == set(real.ids) & held
    assert not sources["kept 70%"] & held
    assert len(sources["held 30%"]) in range(3, 16)
    assert parts["held 30%"].facts()["split"] == "train[held 30%]"


@pytest.mark.parametrize("split", ["train[held 10]", "train[hold 10%]", "train[held 0%]", "train[", "train[held 100%]"])
def test_a_part_of_a_split_that_says_nothing_is_refused(split: str) -> None:
    with pytest.raises(HfsynError, match=re.escape("is not a split")):
        open_images("shapes", split)
