"""A bench runs what is missing, keeps what failed, and sums up over the seeds that arms share."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from drawn_tables import rows_of, write_table

from builders.variants import VARIANTS
from hfsyn.cli import cli
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.bench.cells import bench, failures
from hfsyn.judging.bench.matrix import EXAMPLES, cell_config, cell_tests, cells, load_matrix
from hfsyn.judging.bench.outcomes import read_cells
from hfsyn.judging.bench.page import write_page
from hfsyn.judging.bench.preflight import look_at
from hfsyn.judging.bench.task_pool import gpu_names, task_pool
from hfsyn.judging.measures.metrics import wilson
from hfsyn.judging.sets.image_set import TRAIN, open_images
from hfsyn.judging.train.loop import train

MATRIX: dict[str, Any] = {
    "name": "two arms",
    "config": {"optimise": {"epochs": 2}},
    "arms": {"real": {"train": ["shapes"]}, "copy": {"train": ["shapes-context"]}},
    "models": ["test_resnet"],
    "seeds": [0, 1, 2],
    "tests": {"drawings": {"dataset": "shapes", "split": "test"}},
}


class FakeTrainer:
    """Remembers what it was asked; `broken` lists (first dataset, seed) that fail."""

    def __init__(self, broken: set[tuple[str, int]] | None = None) -> None:
        self.configs: list[Any] = []
        self.broken = broken or set()

    def __call__(self, config: Any, out: Path) -> dict[str, Any]:
        self.configs.append(config)
        if (config.data.train[0], config.seed) in self.broken:
            raise HfsynError("There is no such dataset.", "Make it.")
        out.mkdir(parents=True)
        (out / "config.json").write_text(json.dumps([config.data.train[0], config.seed]))
        return {"training": {"budget": 10}}


class FakeTester:
    """70 % and 60 % for the two arms, one more with each seed; `asked` holds dataset and split."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, model: Path, dataset: str, split: str | None) -> dict[str, Any]:
        self.asked.append((dataset, split))
        arm, seed = json.loads((model / "config.json").read_text())
        top1 = wilson((70 if arm == "shapes" else 60) + seed, 100)
        row = [{"wnid": "n1", "name": "circle", "n": 100, "top1": top1}]
        metrics = {"classes": 10, "top1": top1, "top5": wilson(90, 100), "ece": wilson(5, 100), "per_class": row}
        return {"n": 100, "metrics": {**metrics, "masked": None}}


def run(out: Path, matrix: Any = MATRIX, trainer: FakeTrainer | None = None) -> tuple[dict[str, Any], FakeTrainer]:
    trainer = trainer or FakeTrainer()
    return bench(matrix, out, train=trainer, evaluate=FakeTester(), quiet=True), trainer


def test_arms_are_summed_up_over_seeds_and_compared_seed_by_seed(tmp_path: Path) -> None:
    summary, trainer = run(tmp_path)
    assert len(trainer.configs) == 6
    real, copy = summary["rows"]
    assert (real["arm"], real["values"]) == ("real", [0.7, 0.71, 0.72])
    assert real["mean"] == pytest.approx(0.71)
    assert copy["mean"] == pytest.approx(0.61)
    assert real["low"] < 0.70 < 0.72 < real["high"]
    (found,) = summary["differences"]
    assert (found["a"], found["b"], found["seeds"]) == ("copy", "real", [0, 1, 2])
    assert (found["mean"], found["high"] - found["low"]) == (pytest.approx(-0.1), pytest.approx(0, abs=1e-9))
    assert failures(summary, tmp_path) is None
    lines = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(lines) == 6
    assert {line["status"] for line in lines} == {"done"}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_run_again_it_does_only_what_is_missing(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "cells/real/test_resnet/all/seed-1/results.json").unlink()
    import shutil

    shutil.rmtree(tmp_path / "cells/real/test_resnet/all/seed-1/training")
    _, trainer = run(tmp_path)
    assert [(c.data.train[0], c.seed) for c in trainer.configs] == [("shapes", 1)]
    _, trainer = run(tmp_path, {**MATRIX, "seeds": [0, 1, 2, 3]})
    assert [c.seed for c in trainer.configs] == [3, 3]


def test_a_failed_cell_stands_in_the_table_and_is_tried_again(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, trainer=FakeTrainer({("shapes-context", 1)}))
    assert summary["failed"] == [{"cell": "copy/test_resnet/all/seed-1", "error": "There is no such dataset."}]
    assert [row["seeds"] for row in summary["rows"]] == [[0, 1, 2], [0, 2]]
    assert summary["differences"][0]["seeds"] == [0, 2]
    error = failures(summary, tmp_path)
    assert error is not None
    assert error.code == ExitCode.PARTIAL
    failed = [line for line in csv.DictReader((tmp_path / "results.csv").open()) if line["status"] == "failed"]
    assert [(line["arm"], line["seed"], line["error"]) for line in failed] == [
        ("copy", "1", "There is no such dataset.")
    ]
    again, trainer = run(tmp_path)
    assert (len(trainer.configs), again["failed"]) == (1, [])
    assert not list(tmp_path.rglob("error.json"))


def test_a_fault_of_ours_keeps_its_traceback_and_the_others_go_on(tmp_path: Path) -> None:
    def train(config: Any, out: Path) -> dict[str, Any]:
        raise ZeroDivisionError("division by zero")

    summary = bench(MATRIX, tmp_path, train=train, evaluate=FakeTester(), quiet=True)
    assert len(summary["failed"]) == 6
    error = json.loads((tmp_path / "cells/real/test_resnet/all/seed-0/error.json").read_text())
    assert error["error"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in error["traceback"]


def test_cells_of_another_matrix_are_refused_by_name_of_the_field(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(HfsynError, match=r"config\.optimise\.epochs is 2 there, 3 here"):
        run(tmp_path, {**MATRIX, "config": {"optimise": {"epochs": 3}}})


def test_the_numbers_of_another_cell_are_never_shown_as_a_cells_own(tmp_path: Path) -> None:
    run(tmp_path)
    place = tmp_path / "cells/real/test_resnet/all/seed-1/results.json"
    place.write_bytes((tmp_path / "cells/copy/test_resnet/all/seed-1/results.json").read_bytes())
    outcomes = read_cells(load_matrix(MATRIX), tmp_path)
    (wrong,) = [outcome for outcome in outcomes if outcome.error is not None]
    assert (wrong.cell.arm, wrong.cell.seed, wrong.result) == ("real", 1, None)
    assert "another cell's: arm 'copy'" in str(wrong.error)


def test_a_difference_keeps_its_sign_whichever_cell_fails(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    for number, broken in enumerate([("shapes", 0), ("shapes-context", 0)]):
        summary, _ = run(tmp_path / str(number), trainer=FakeTrainer({broken}))
        assert [row["arm"] for row in summary["rows"]] == ["real", "copy"]
        (found,) = summary["differences"]
        assert (found["a"], found["b"]) == ("copy", "real")
        assert found["mean"] == pytest.approx(whole["differences"][0]["mean"])


def test_a_test_that_is_new_is_run_alone_and_one_that_changed_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    more = {**MATRIX["tests"], "context": {"dataset": "shapes-context"}}
    tester = FakeTester()
    summary = bench({**MATRIX, "tests": more}, tmp_path, train=done_before, evaluate=tester, quiet=True)
    assert tester.asked == [("shapes-context", None)] * 6
    assert ([row["test"] for row in summary["rows"]], summary["failed"]) == (["drawings"] * 2 + ["context"] * 2, [])
    fewer, _ = run(tmp_path, {**MATRIX, "tests": {"context": more["context"]}})
    assert [row["test"] for row in fewer["rows"]] == ["context"] * 2
    assert {row["test"] for row in csv.DictReader((tmp_path / "results.csv").open())} == {"context"}
    again, trainer = run(tmp_path)
    assert (trainer.configs, len(again["rows"])) == ([], 2)
    with pytest.raises(HfsynError, match=r"tests\.drawings is \['shapes', 'test'\] there"):
        run(tmp_path, {**MATRIX, "tests": {"drawings": {"dataset": "shapes", "split": "train"}}})


def done_before(config: Any, out: Path) -> dict[str, Any]:
    """A training that is there already."""
    assert (out / "config.json").is_file()
    return {}


def test_a_test_that_fails_leaves_those_before_it_and_may_be_mended(tmp_path: Path) -> None:
    class Picky(FakeTester):
        def __call__(self, model: Path, dataset: str, split: str | None) -> dict[str, Any]:
            if dataset == "typo":
                raise HfsynError("There is no dataset 'typo'.")
            return super().__call__(model, dataset, split)

    tests = {**MATRIX["tests"], "other": {"dataset": "typo"}}
    summary = bench({**MATRIX, "tests": tests}, tmp_path, train=FakeTrainer(), evaluate=Picky(), quiet=True)
    assert len(summary["failed"]) == 6
    assert [row["test"] for row in summary["rows"]] == ["drawings"] * 2
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["test"], row["status"]) for row in rows[:2]] == [("other", "failed"), ("drawings", "done")]
    tests["other"] = {"dataset": "shapes-context"}
    mended = bench({**MATRIX, "tests": tests}, tmp_path, train=done_before, evaluate=FakeTester(), quiet=True)
    assert (mended["failed"], len(mended["rows"])) == ([], 4)


@pytest.mark.parametrize("changed", ["train.parquet", "test.parquet"])
def test_a_finished_cell_is_refused_once_its_images_are_others(tmp_path: Path, changed: str) -> None:
    def train(config: Any, out: Path) -> dict[str, Any]:
        out.mkdir(parents=True)
        (out / "config.json").write_text(json.dumps([config.data.train[0], config.seed]))
        opened = open_images(config.data.train[0], default=TRAIN, limit=config.data.limit_per_class)
        return {"training": {"sets": [opened.facts()]}}

    def evaluate(model: Path, dataset: str, split: str | None) -> dict[str, Any]:
        return {**FakeTester()(model, dataset, split), "dataset": open_images(dataset, split).facts()}

    for name in ("train.parquet", "test.parquet"):
        write_table(tmp_path / name, rows_of(10))
    matrix = {
        **MATRIX,
        "arms": {"file": {"train": [str(tmp_path / "train.parquet")]}, "drawn": {"train": ["shapes"]}},
        "limits": [2],
        "tests": {"file": {"dataset": str(tmp_path / "test.parquet")}},
    }
    bench(matrix, tmp_path / "out", train=train, evaluate=evaluate, look=look_at, quiet=True)
    again = bench(matrix, tmp_path / "out", train=die, evaluate=evaluate, look=look_at, quiet=True)
    assert again["failed"] == []
    write_table(tmp_path / changed, rows_of(12))
    with pytest.raises(HfsynError, match=rf"{changed} have changed since .*\(10 images then\)"):
        bench(matrix, tmp_path / "out", train=die, evaluate=evaluate, look=look_at, quiet=True)
    (tmp_path / changed).unlink()  # nobody can compare: the numbers stand
    assert bench(matrix, tmp_path / "out", train=die, evaluate=evaluate, look=look_at, quiet=True)["failed"] == []


def test_workers_go_to_the_training_and_to_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def train(config: Any, out: Path, options: Any) -> dict[str, Any]:
        asked.append(options.num_workers)
        return FakeTrainer()(config, out)

    def evaluate(model: Path, dataset: str, *, split: str | None, num_workers: int, **_: Any) -> dict[str, Any]:
        asked.append(num_workers)
        return FakeTester()(model, dataset, split)

    monkeypatch.setattr("hfsyn.judging.train.loop.train", train)
    monkeypatch.setattr("hfsyn.judging.measures.evaluate.evaluate", evaluate)
    (tmp_path / "m.json").write_text(json.dumps({**MATRIX, "seeds": [0]}))
    arguments = ["--num-workers", "3", "--num-processes", "1", "-q"]
    done = CliRunner().invoke(cli, ["bench", str(tmp_path / "m.json"), "--out", str(tmp_path / "out"), *arguments])
    assert done.exception is None
    assert asked == [3] * 4


def test_the_example_is_a_matrix_that_needs_no_network() -> None:
    done = CliRunner().invoke(cli, ["bench", "--example"])
    assert (done.exit_code, done.stdout) == (0, EXAMPLES["small"])
    matrix = load_matrix(yaml.safe_load(done.stdout))
    wanted = list(cells(matrix))
    assert len(wanted) == 4
    places = {text for cell in wanted for text in cell_config(matrix, cell).data.train}
    places |= {dataset for cell in wanted for dataset, _ in cell_tests(matrix, cell).values()}
    assert all(VARIANTS[place].drawn for place in places)


def test_the_seed_chooses_the_set_and_a_test_may_be_for_some_arms_only(tmp_path: Path) -> None:
    tester = FakeTester()
    matrix = {
        **MATRIX,
        "seeds": [4],
        "tests": {
            "drawings": {"dataset": "shapes"},
            "labels": {"dataset": "runs/cip-{seed}", "split": "train", "arms": ["real"]},
        },
    }
    bench(matrix, tmp_path, train=FakeTrainer(), evaluate=tester, quiet=True)
    assert tester.asked == [("shapes", None), ("runs/cip-4", "train"), ("shapes", None)]


def test_budgets_limits_and_shares_are_axes(tmp_path: Path) -> None:
    matrix = load_matrix(
        {
            **MATRIX,
            "seeds": [0],
            "budgets": [100, 200],
            "limits": [5],
            "mix": {"dataset": "shapes", "shares": [0, 0.25]},
        }
    )
    wanted = list(cells(matrix))
    assert len(wanted) == 2 * 2 * 2
    assert len({cell.folder for cell in wanted}) == 8
    mixed = cell_config(matrix, next(c for c in wanted if c.arm == "copy" and c.share == 0.25 and c.budget == 200))
    assert mixed.data.train == ("shapes-context:0.75", "shapes:0.25")
    assert (mixed.data.budget, mixed.data.limit_per_class, mixed.seed) == (200, 5, 0)
    summary, _ = run(tmp_path, matrix)
    assert len(summary["rows"]) == 8
    assert len(summary["differences"]) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sedes": [1]}, "Unknown key 'sedes' in the matrix. Did you mean 'seeds'"),
        ({"arms": {"real": {"trian": ["shapes"], "train": ["shapes"]}}}, "Did you mean 'arms.real.train'"),
        ({"compare": [["real", "unreal"]]}, "compare names what is not an arm: unreal"),
        ({"tests": {"x": {"dataset": "shapes", "arms": ["unreal"]}}}, "tests.x.arms names what is not an arm: unreal"),
        ({"mix": {"dataset": "shapes", "shares": [1.0]}}, "mix.shares.0 is 1.0"),
        ({"seeds": []}, "seeds is \\[\\]"),
        ({"arms": {}}, "arms is {}"),
        (
            {"arms": {"a b": {"train": ["shapes"]}, "a+b": {"train": ["shapes"]}}},
            r"in one folder, cells/a-b/test_resnet/all/seed-0: arm 'a b' and 'a\+b'",
        ),
        ({"mix": {"dataset": "shapes", "shares": [0.12345671, 0.12345672]}}, "share 0.12345671 and 0.12345672"),
        ({"seeds": [1, 2, 1]}, "stands twice in an axis"),
        ({"models": ["resnet5O"]}, None),
    ],
)
def test_a_mistake_in_a_matrix_is_one_line(change: dict[str, Any], said: str | None) -> None:
    if said is None:
        load_matrix({**MATRIX, **change})  # networks are looked up where timm is loaded: in the cell
        return
    with pytest.raises(HfsynError, match=said):
        load_matrix({**MATRIX, **change})


def test_a_missing_key_and_a_missing_file_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="'tests' is missing"):
        load_matrix({key: value for key, value in MATRIX.items() if key != "tests"})
    with pytest.raises(HfsynError, match="no matrix"):
        load_matrix(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(HfsynError, match=r"bad\.yaml, line 1, column 5: "):
        load_matrix(tmp_path / "bad.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: für".encode("latin-1"))
    with pytest.raises(HfsynError, match=r"latin\.yaml is not UTF-8: line 1 has the byte 0xfc"):
        load_matrix(tmp_path / "latin.yaml")


def test_a_recipe_in_a_matrix_may_leave_its_data_empty_and_nothing_else() -> None:
    matrix = load_matrix({**MATRIX, "config": {"data": None}})
    assert cell_config(matrix, next(cells(matrix))).data.train == ("shapes",)
    matrix = load_matrix({**MATRIX, "config": {"data": [1]}})
    with pytest.raises(HfsynError, match=r"The matrix's config: data\.train: 'data' is a value"):
        cell_config(matrix, next(cells(matrix)))


def slow_square(number: int) -> tuple[int, int, str | None]:
    time.sleep(0.2)
    return number * number, os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_pool_of_two_shares_the_tasks_and_one_is_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f3a,3")
    with task_pool(1) as submit:
        assert submit(slow_square, 3).result() == (9, os.getpid(), "GPU-8f3a,3")
        with pytest.raises(ValueError, match="invalid literal"):
            submit(int, "x").result()
        seen: list[int] = []
        later = submit(seen.append, 1)
        assert seen == []  # progress is told between one task and the next
        assert (later.result(), later.result(), seen) == (None, None, [1])
    with task_pool(2, device="cuda") as submit:
        found = [future.result() for future in [submit(slow_square, n) for n in range(8)]]
    assert [square for square, *_ in found] == [n * n for n in range(8)]
    assert len({process for _, process, _ in found} - {os.getpid()}) == 2
    assert {gpu for *_, gpu in found} == {"GPU-8f3a", "3"}  # each has one of its own


@pytest.mark.parametrize(
    ("listed", "names"), [("2,3", ("2", "3")), (" GPU-8f3a , 1", ("GPU-8f3a", "1")), ("", ()), ("-1", ())]
)
def test_gpus_are_those_of_the_parents_list(
    listed: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert gpu_names() == names


def die(config: Any, out: Path) -> dict[str, Any]:
    os._exit(9)


def test_a_process_that_dies_leaves_its_cells_to_the_next_time(tmp_path: Path) -> None:
    summary = bench(MATRIX, tmp_path, train=die, num_processes=2, device="cpu", quiet=True)
    assert len(summary["failed"]) == 6
    assert "died" in summary["failed"][0]["error"]
    again, trainer = run(tmp_path)
    assert (len(trainer.configs), again["failed"]) == (6, [])


FAULTY = {
    **MATRIX,
    "arms": {"real": {"train": ["shapes"]}, "gone": {"train": ["runs/cip-{seed}"]}, "typo": {"train": ["shape"]}},
    "models": ["test_resnet", "resnet500"],
    "seeds": [0, 1],
    "tests": {"drawings": {"dataset": "shapes", "split": "nowhere"}},
}


def test_all_faults_of_a_matrix_are_said_once_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(HfsynError) as told:
        bench(FAULTY, tmp_path / "out", device="cpu", quiet=True)
    said = str(told.value)
    assert told.value.code == ExitCode.USAGE
    assert said.startswith("5 faults, and nothing was trained: ")
    for fault in ("runs/cip-0", "runs/cip-1", "no variant 'shape'", "no network 'resnet500'", "'nowhere'"):
        assert said.count(fault) == 1, fault
    assert not (tmp_path / "out").exists()


def test_sets_that_do_not_fit_are_refused_before_the_first_cell(tmp_path: Path) -> None:
    for change, said in (
        ({"arms": {"real": {"train": ["shapes", "shapes-context"]}}}, "no budget"),
        ({"config": {"optimise": {"epochs": 1, "batch_size": 4096}}, "limits": [2]}, "fewer than one batch"),
    ):
        with pytest.raises(HfsynError, match=said):
            bench({**MATRIX, **change}, tmp_path / "out", device="cpu", quiet=True)


def test_a_dry_run_lists_the_cells_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(MATRIX))
    words = ["bench", str(tmp_path / "m.json"), "--out", str(tmp_path / "out"), "--dry-run"]
    done = CliRunner().invoke(cli, words)
    assert done.exception is None
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["arm", "model", "budget", "limit", "share", "seed", "images", "state"]
    assert "6 trainings of 60,000 images: " in done.stdout  # two epochs of 5,000
    held = {arm: VARIANTS[name].splits["train"] for arm, name in (("real", "shapes"), ("copy", "shapes-context"))}
    assert {tuple(line.split()[i] for i in (0, 6)) for line in lines[1:7]} == {(a, str(n)) for a, n in held.items()}
    assert lines[-1] == "6 cells: 6 to train"
    assert not (tmp_path / "out").exists()
    run(tmp_path / "out", {**MATRIX, "seeds": [0]})
    found = bench(MATRIX, tmp_path / "out", dry_run=True, device="cpu", quiet=True)
    assert [cell["state"] for cell in found["cells"]] == ["done", "done", *["to train"] * 4]
    assert CliRunner().invoke(cli, [*words, "-q"]).stdout == "6 cells: 2 done, 4 to train\n"


def test_a_matrix_without_models_takes_the_network_that_its_training_recipes_name(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("model: {name: test_vit}\n")
    (tmp_path / "other.yaml").write_text("model: {name: test_resnet}\n")
    (tmp_path / "none.yaml").write_text("optimise: {epochs: 1}\n")
    own, other, none = (str(tmp_path / f"{name}.yaml") for name in ("own", "other", "none"))
    bare = {key: value for key, value in MATRIX.items() if key not in ("models", "config")}
    for change, network in (
        ({"config": "shapes"}, "test_resnet"),
        ({"config": {"model": {"name": "test_vit"}}}, "test_vit"),
        ({"config": own}, "test_vit"),
        ({"recipes": ["shapes", other]}, "test_resnet"),
        ({"config": own, "models": ["test_resnet"]}, "test_resnet"),
    ):
        matrix = load_matrix({**bare, **change})
        assert {cell_config(matrix, cell).model.name for cell in cells(matrix)} == {network}
        assert matrix.models == (network,)
    for change, said in (
        ({}, "Key 'models' is missing"),
        ({"config": none}, "Key 'models' is missing"),
        ({"recipes": ["shapes", none]}, "Key 'models' is missing"),
        ({"recipes": ["shapes", own]}, "has no models, and its recipes name several: test_resnet, test_vit"),
        ({"config": "shapse"}, "Unknown training recipe 'shapse'. Did you mean 'shapes'"),
    ):
        with pytest.raises(HfsynError, match=said):
            load_matrix({**bare, **change})


def test_a_report_of_a_mistyped_folder_names_the_one_that_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out/bench").mkdir(parents=True)
    with pytest.raises(HfsynError, match=r"There is no bench in out/bnech\. Did you mean 'out/bench'\?"):
        write_page("out/bnech")


def test_nothing_is_said_of_the_others_if_all_failed(tmp_path: Path) -> None:
    broken = {(arm, seed) for arm in ("shapes", "shapes-context") for seed in range(3)}
    summary, _ = run(tmp_path, trainer=FakeTrainer(broken))
    assert "The others are done" not in str(failures(summary, tmp_path))


def test_the_command_trains_for_real_and_ends_with_four_where_a_cell_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = {
        **MATRIX,
        "config": {
            "optimise": {"epochs": 1, "batch_size": 10, "warmup_epochs": 0},
            "model": {"image_size": 32, "channels_last": False},
        },
        "arms": {"real": {"train": ["shapes"]}, "gone": {"train": ["shapes-context"]}},
        "seeds": [0],
        "limits": [1],
    }

    def train_but_one(config: Any, out: Path, options: Any) -> dict[str, Any]:
        if config.data.train == ("shapes-context",):
            raise HfsynError("nowhere to be found")
        return train(config, out, options)

    monkeypatch.setattr("hfsyn.judging.train.loop.train", train_but_one)
    Path("matrix.yaml").write_text(json.dumps(matrix))
    done = CliRunner().invoke(cli, ["bench", "matrix.yaml", "--out", "out", "--num-processes", "1", "--device", "cpu"])
    assert done.stdout.splitlines()[-1] == "out/results.csv"
    assert isinstance(done.exception, HfsynError)
    assert done.exception.code == ExitCode.PARTIAL
    assert "real" in done.stderr
    rows = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert [(row["arm"], row["status"]) for row in rows] == [("real", "done"), ("gone", "failed")]
    assert rows[0]["n"] == "2000"
    assert "nowhere" in rows[1]["error"]
    cell = Path("out/cells/real/test_resnet/limit-1/seed-0")
    trained = (cell / "training/model.safetensors").stat().st_mtime_ns
    write_table(Path("more.parquet"), rows_of(20))
    more = {**matrix["tests"], "more": {"dataset": "more.parquet"}}
    Path("matrix.yaml").write_text(json.dumps({**matrix, "arms": {"real": {"train": ["shapes"]}}, "tests": more}))
    done = CliRunner().invoke(cli, ["bench", "matrix.yaml", "--out", "out", "--num-processes", "1", "--device", "cpu"])
    assert done.exception is None
    found = json.loads((cell / "results.json").read_text())["tests"]
    assert {name: test["n"] for name, test in found.items()} == {"drawings": 2000, "more": 20}
    assert (cell / "training/model.safetensors").stat().st_mtime_ns == trained
