"""The commands that train and test: a help that can be read, exit codes, several processes, Ctrl-C, the Hub."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Hfsyn
from drawn_tables import NAMES, WNIDS, rows_of, write_table
from safetensors.torch import load_file

SCRIPT = ROOT / "scripts" / "train_classifier.py"
SMALL = (
    "--train-dataset",
    "shapes",
    "--limit",
    "4",
    "--model",
    "test_resnet",
    "--image-size",
    "32",
    "--epochs",
    "2",
    "--batch-size",
    "8",
)


def script(folder: Path, *arguments: str, launcher: tuple[str, ...] = (), **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_the_help_of_the_script_has_at_most_30_options_in_named_groups(tmp_path: Path) -> None:
    done = script(tmp_path, "--help")
    assert done.returncode == 0
    options = re.findall(r"^  (?:-\w, )?--[\w-]+", done.stdout, re.MULTILINE)
    assert 15 <= len(options) <= 30
    groups = re.findall(r"^(\w+):$", done.stdout, re.MULTILINE)
    assert groups[:4] == ["Images", "Recipe", "Running", "Publishing"]


def test_every_option_of_the_recipe_is_a_field_of_it() -> None:
    from hfsyn.api.judging import FIELDS
    from hfsyn.recipes.training_recipe import TrainConfig

    for field in FIELDS.values():
        part, _, key = field.partition(".")
        assert part in TrainConfig.model_fields
        assert not key or key in TrainConfig.model_fields[part].annotation.model_fields


def test_the_script_trains_tests_and_says_where(tmp_path: Path) -> None:
    table = write_table(tmp_path / "test.parquet", rows_of(20, split="test"), names=NAMES[::-1])
    done = script(tmp_path, *SMALL, "--eval-dataset", str(table), "--set", "augment.mixup=0.2", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "out"
    assert "top-1" in done.stderr
    assert "images in" in done.stderr
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["test"]["n"] == 20
    assert result["config"]["augment"]["mixup"] == 0.2
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"config.yaml", "model.safetensors", "model.json"}


@pytest.mark.slow
def test_ctrl_c_keeps_the_last_checkpoint_and_the_training_then_ends_in_the_same_weights(tmp_path: Path) -> None:
    from hfsyn.judging.train.loop import RunOptions, train
    from hfsyn.recipes.training_recipe import load_train_config

    recipe = load_train_config(
        None,
        [
            "data.train=[shapes]",
            "data.limit_per_class=4",
            "model.name=test_resnet",
            "model.image_size=32",
            "optimise.epochs=30",
            "optimise.batch_size=8",
        ],
    )
    options = RunOptions(device="cpu", checkpoint_steps=3, quiet=True)
    cut = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hfsyn",
            "train",
            *SMALL,
            "--epochs",
            "30",
            "--checkpoint-steps",
            "3",
            "-q",
            "--out",
            "cut",
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    while not list(tmp_path.glob("cut/checkpoints/step-*/checkpoint.json")):
        assert cut.poll() is None
        time.sleep(0.05)
    cut.send_signal(signal.SIGINT)
    _, said = cut.communicate(timeout=60)
    assert (cut.returncode, "Interrupted" in said, "Traceback" in said) == (130, True, False)
    assert not (tmp_path / "cut" / "results.json").exists()
    for name in ("cut", "whole"):
        train(recipe, tmp_path / name, options)
    cut_weights, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert all((cut_weights[key] == whole[key]).all() for key in whole)


def trained_by_two(hfsyn: Hfsyn) -> None:
    done = hfsyn("train", *SMALL, "--num-processes", "2", "--device", "cpu", "-q", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out\n"


def test_two_processes_from_the_command_line_train(hfsyn: Hfsyn, tmp_path: Path) -> None:
    trained_by_two(hfsyn)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.safetensors", "model.json", "results.json"}


@pytest.mark.slow
def test_two_processes_from_the_command_line_train_and_test(hfsyn: Hfsyn, tmp_path: Path) -> None:
    from hfsyn.judging.measures.evaluate import evaluate

    trained_by_two(hfsyn)
    table = str(write_table(tmp_path / "test.parquet", rows_of(13)))
    both = hfsyn("evaluate", "out", table, "--num-processes", "2", "--json", "-q", "--batch-size", "4")
    assert both.returncode == 0, both.stderr
    one = evaluate(tmp_path / "out", table, batch_size=4, device="cpu", quiet=True)
    assert json.loads(both.stdout)["metrics"] == json.loads(json.dumps(one["metrics"]))
    assert json.loads(both.stdout)["device"].startswith("2 x cpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--out", "out"], "nothing to train on"),
        (["train", "--train-dataset", "shape", "--out", "out"], "Did you mean 'shapes'"),
        (["train", "--train-dataset", "imageless.parquet", "--out", "out"], "no column of images"),
        (["train", "--train-dataset", "shapes", "--model", "resnet5O", "--out", "out"], "Did you mean"),
        (["train", *SMALL, "--push-to-hub", "nobody", "--out", "out"], "is not a name on the Hub"),
        (["train", *SMALL, "--log-with", "trackio", "--out", "out"], "trackio"),
        (["train", "--train-dataset", "user/name@v9.9.9", "--out", "out"], "user/name"),
        (["evaluate", "nowhere/at/all", "shapes"], "There is no folder"),
        (["train", *SMALL, "--num-processes", "3", "--batch-size", "9", "--eval-dataset", "x", "--out", "out"], "'x'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_or_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    from datasets import Dataset

    from hfsyn.cli import main

    Dataset.from_dict({"label": ["circle"]}).to_parquet(tmp_path / "imageless.parquet")
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr()
    assert end.value.code in (2, 3)
    assert said in printed.err
    assert (len(printed.err.strip().splitlines()), printed.out) == (1, "")


def test_a_launch_that_starts_one_process_for_two_is_refused(tmp_path: Path) -> None:
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    done = script(tmp_path, *SMALL, "--out", "out", launcher=launcher)
    assert done.returncode != 0
    assert "asked for 2 processes and started one" in done.stderr


def test_a_published_classifier_is_timms_and_its_card_names_the_version(tmp_path: Path) -> None:
    """What would be uploaded, read back as timm reads it from the Hub."""
    import timm
    from huggingface_hub import ModelCard

    from hfsyn.judging.classifier import _classes_of, open_classifier
    from hfsyn.judging.train.loop import RunOptions, train
    from hfsyn.judging.train.model_card import card_text, write_timm_folder
    from hfsyn.recipes.training_recipe import load_train_config

    table = write_table(tmp_path / "test.parquet", rows_of(20))
    recipe = load_train_config(
        None,
        [
            "data.train=[shapes]",
            "data.limit_per_class=4",
            "model.name=test_resnet",
            "model.image_size=32",
            "optimise.epochs=1",
            "optimise.batch_size=8",
            f"test.dataset={table}",
        ],
    )
    result = train(recipe, tmp_path / "out", RunOptions(device="cpu", quiet=True))
    classifier = open_classifier(tmp_path / "out")
    write_timm_folder(classifier, tmp_path / "hub")
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert _classes_of(again, "it")[0] == tuple(sorted(WNIDS))
    assert again.pretrained_cfg["input_size"] == (3, 32, 32)
    state = classifier.network.state_dict()
    assert all((value == state[key]).all() for key, value in again.state_dict().items())
    place = {"reference": "user/imagenette-cip@v1.0.0", "revision": "0123abc", "hub": "user/imagenette-cip"}
    result["test"]["dataset"] |= place
    card = ModelCard(card_text(classifier, result, "me/mine"))
    (first, _) = card.data.eval_results
    assert (first.dataset_type, first.dataset_revision) == ("user/imagenette-cip", "0123abc")
    assert first.metric_value == pytest.approx(result["test"]["metrics"]["top1"]["value"], abs=1e-6)
    assert "hf_hub:me/mine" in card.text


def test_three_classes_are_trained_on_tested_and_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have no top-5; and their sets, which are on no Hub, are not named as if they were."""
    from huggingface_hub import ModelCard

    from hfsyn.judging.classifier import open_classifier
    from hfsyn.judging.train.model_card import card_text, without_paths

    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path / "runs" / "three.parquet", [row for row in rows_of(60) if row[0] in NAMES[:3]])
    train = ("train", "--train-dataset", str(table), *SMALL[4:], "--epochs", "1", "--device", "cpu", "--out", "out")
    printed = run(capsys, 0, *train, "--num-processes", "1", "--eval-dataset", "runs/three.parquet")
    assert "top-1" in printed.err
    assert "All 18 images of runs/three.parquet (validation) were trained on" in printed.err
    assert "top-1" in run(capsys, 0, "evaluate", "out", "runs/three.parquet", "--device", "cpu").out
    result = json.loads(Path("out/results.json").read_text())
    assert (result["test"]["metrics"]["top5"]["value"], result["test"]["overlap"]) == (None, 18)
    text = card_text(open_classifier("out"), result, "me/mine")
    card = ModelCard(text)
    (only,) = card.data.eval_results
    assert (only.dataset_type, only.dataset_name, only.dataset_revision) == ("local", "three.parquet", None)
    assert card.data.datasets in (None, [])
    assert "18 of which are among the training images too" in text
    assert result["test"]["dataset"]["fingerprint"][:16] in text
    for published in (text, json.dumps(without_paths(result))):
        assert str(tmp_path) not in published
        assert "runs/" not in published


def run(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> Any:
    """Run the command in this process; what it printed."""
    from hfsyn.cli import main

    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr()
    assert end.value.code == code, printed.err
    return printed


TWO = ("--num-processes", "2", "--device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", *SMALL, *TWO, "--batch-size", "9", "--out", "out"], "cannot be divided into 2 processes"),
        (["train", *SMALL, *TWO, "--batch-size", "10", "--set", "augment.mixup=0.1", "--out", "out"], "multiple of 4"),
        (["train", *SMALL, *TWO, "--set", "model.options.output_stride=7", "--out", "out"], "cannot be created"),
        (["train", *SMALL, *TWO, "--log-with", "pen", "--out", "out"], "Unknown tracker"),
        (["train", *SMALL, "--config", "latin.yaml", "--out", "out"], "latin.yaml is not UTF-8"),
        (["train", *SMALL, "--out", "file"], "file is a file, and a training needs a folder"),
        (["train", *SMALL, "--out", "file/in/it"], "file is a file, and a training needs a folder"),
        (["evaluate", "nowhere", "shapes", "--limit", "1", *TWO], "timm has no network 'nowhere'"),
        (["evaluate", "nowhere", "shape", *TWO], "Did you mean 'shapes'"),
        (["evaluate", "nowhere", "shapes", "--out", "."], "--out . is a folder"),
        (["evaluate", "nowhere", "shapes", "--out", "file/result.json", *TWO], "lies in file, which is a file"),
    ],
)
def test_what_several_processes_would_all_say_is_said_once_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hfsyn.launching.launch", None)
    Path("latin.yaml").write_bytes("name: caf\u00e9\n".encode("latin-1"))
    Path("file").write_text("mine")
    printed = run(capsys, 2, *arguments)
    assert said in printed.err
    assert (len(printed.err.strip().splitlines()), printed.out) == (1, "")


def test_the_result_of_several_processes_goes_into_a_folder_that_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfsyn.api.judging import _test_in_several

    def launch(arguments: list[str], processes: int, *, device: str | None) -> int:
        Path(arguments[-1]).write_text('{"n": 1}')
        return 0

    monkeypatch.setattr("hfsyn.launching.launch", launch)
    assert _test_in_several(2, "cpu", str(tmp_path / "new" / "x.json"), ["model", "set"]) == {"n": 1}
    assert json.loads((tmp_path / "new" / "x.json").read_text()) == {"n": 1}


def test_the_launchers_precision_counts_where_the_recipe_says_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfsyn.api.judging import FIELDS, training_recipe

    options: dict[str, Any] = {**dict.fromkeys(FIELDS), "config": None, "overrides": (), "train_dataset": ("shapes",)}
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert training_recipe(**options).optimise.mixed_precision == "bf16"
    assert capsys.readouterr().err == ""
    for said in ({"mixed_precision": "no"}, {"overrides": ("optimise.mixed_precision='no'",)}):
        assert training_recipe(**{**options, **said}).optimise.mixed_precision == "no"
        assert "'bf16', as the launcher does" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert training_recipe(**{**options, "mixed_precision": "fp16"}).optimise.mixed_precision == "fp16"
    assert capsys.readouterr().err == ""
