"""The commands as a user meets them: help, bad input in one line, exit codes, and what lands on stdout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Hfsyn, run_folder
from fakes import FakeCaptioner, FakeGenerator

from hfsyn.captions.caption_stage import caption
from hfsyn.cli import cli
from hfsyn.cli import main as run_main
from hfsyn.images.generate_stage import generate
from hfsyn.recipes.recipe import RECIPES
from hfsyn.recipes.training_recipe import TRAINING_RECIPES
from hfsyn.runs.finish import finish

COMMANDS = [
    [],
    ["demo"],
    ["build"],
    ["caption"],
    ["generate"],
    ["finish"],
    ["status"],
    ["plan"],
    ["variants"],
    ["variants", "ls"],
    ["variants", "info"],
    ["variants", "peek"],
    ["strategies"],
    ["strategies", "ls"],
    ["strategies", "show"],
    ["recipes"],
    ["recipes", "ls"],
    ["recipes", "show"],
    ["recipes", "new"],
]


def main(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    with pytest.raises(SystemExit) as stopped:
        run_main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 4


def test_no_help_loads_anything_heavy() -> None:
    code = f"""
import sys
from hfsyn.cli import main
for command in {COMMANDS!r}:
    try:
        main([*command, "--help"])
    except SystemExit:
        pass
heavy = ("torch", "datasets", "transformers", "diffusers", "pydantic", "numpy")
print("LOADED", *[m for m in heavy if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED"


BAD = [
    (["build", "shape-cip", "--out", "x"], ["shape-cip", "shapes-cip"]),
    (["build", "none.yaml", "--out", "x"], ["none.yaml"]),
    (["build", "shapes-cip", "--out", "x", "--set", "generate.stepz=3"], ["generate.stepz", "generate.steps"]),
    (["build", "shapes-cip", "--out", "x", "--set", "source.variant=shapez"], ["shapez", "shapes"]),
    (["build", "shapes-cip", "--out", "x", "--set", "prompt.strategy=cpi"], ["cpi", "cip"]),
    (["build", "shapes-cip", "--out", "x", "--set", "generate.guidance_scale=-3"], ["guidance_scale", "-3"]),
    (["build", "shapes-cip", "--out", "x", "--set", "generate.steps=0"], ["steps", "0"]),
    (["build", "shapes-cip", "--out", "x", "--limit", "0"], ["--limit", "0"]),
    (["build", "shapes-cip", "--out", "x", "--num-processes", "0"], ["--num-processes"]),
    (["build", "shapes-cip", "--out", "x", "--budget-hours", "nan"], ["--budget-hours", "nan", "not a finite number"]),
    (["plan", "shapes-cip", "--price", "inf"], ["--price", "inf", "not in the range"]),
    (["build", "shapes-cip", "--out", "x", "--shards", "a"], ["--shards", "'a'", "is not a range"]),
    (["build", "shapes-cip", "--out", "x", "--shards", "3:3"], ["--shards", "'3:3'", "selects none"]),
    (["strategies", "show", "cip", "--domain", "pet"], ["prompt.domain is 'pet'", "'cip' has no place for it"]),
    (["strategies", "show", "cip", "--variant", "none.yaml"], ["There is no class map file none.yaml"]),
    (["recipes", "show", "none.yaml"], ["There is no recipe file none.yaml"]),
    (["build", "shapes-cip", "--out", "x", "--set", "generate.model=./nowhere"], ["./nowhere", "generator"]),
    (["build", "shapes-cip", "--out", "x", "--set", "caption.model=/no/where"], ["/no/where", "captioner"]),
    (["build", "shapes-cip", "--out", "x", "--set", "generate.model=no/model"], ["no/model", "HF_HUB_OFFLINE"]),
    (
        [
            "build",
            "tiny-imagenet-cip",
            "--out",
            "x",
            "--set",
            "source.path=missing",
            "--set",
            "caption.model=builtin",
            "--set",
            "generate.model=builtin",
        ],
        ["missing"],
    ),
    (
        ["build", "imagenette-cip", "--out", "x", "--set", "caption.model=builtin", "--set", "generate.model=builtin"],
        ["HF_HUB_OFFLINE"],
    ),
    (["build", "shapes-cip"], ["--out"]),
    (["bulid"], ["bulid", "build"]),
    (["build", "shapes-cip", "--out", "x", "--lmit", "3"], ["--lmit", "--limit"]),
    (["plan", "shapes-cip", "--set", "nonsense"], ["nonsense"]),
    (["status", "x"], ["x", "is not a run folder"]),
    (["generate", "x"], ["x", "is not a run folder"]),
    (["caption", "x"], ["x", "is not a run folder"]),
    (["finish", "x"], ["x", "is not a run folder"]),
    (["variants", "info", "imagenete"], ["imagenete", "imagenette"]),
    (["strategies", "show", "cpi"], ["cpi", "cip"]),
    (["recipes", "show", "imagenete-cip"], ["imagenete-cip", "imagenette-cip"]),
    (["demo", "--shards", "0:1"], ["--shards"]),
    (["build", "shapes-cip", "--out", "x", "--device", "gpu"], ["'gpu'", "cuda"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda value: " ".join(value[:2] + value[4:6]))
def test_bad_input_gets_one_line_and_code_2_and_writes_nothing(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = main(*arguments, capsys=capsys)
    assert (code, out) == (2, "")
    *before, said = err.strip().splitlines()
    assert said.startswith("Error: "), err
    assert not before or (arguments[0] == "build" and [line.split()[:2] for line in before] == [[arguments[1], "->"]])
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


def finished(tmp_path: Path) -> Path:
    run = run_folder(tmp_path)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    finish(run)
    return run


def test_an_output_folder_of_another_run_or_of_somebody_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, _, err = main("build", "shapes-cip", "--out", run, capsys=capsys)
    assert code == 2
    assert "store.shard_rows is 8 there, 100 here" in err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("mine")
    code, _, err = main("build", "shapes-cip", "--out", tmp_path / "other", capsys=capsys)
    assert code == 2
    assert "a.txt" in err
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["a.txt"]
    code, _, err = main("build", "shapes-cip", "--out", tmp_path / "other" / "a.txt", capsys=capsys)
    assert (code, "is a file" in err) == (2, True)


def test_status_reads_the_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path)
    moved = tmp_path / "moved"
    shutil.move(run, moved)
    code, out, _ = main("status", moved, capsys=capsys)
    assert code == 0
    assert out.splitlines()[-1] == "finished"
    code, out, _ = main("status", moved, "--json", capsys=capsys)
    assert [stage["shards_done"] for stage in json.loads(out)["stages"]] == [4, 4]


def test_a_finished_run_prints_its_folder_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path)
    code, out, err = main("finish", run, capsys=capsys)
    assert (code, out) == (0, f"{run}\n")
    assert "30 images of 10 classes" in err
    assert main("finish", run, "-q", capsys=capsys) == (0, f"{run}\n", "")


@pytest.mark.parametrize("command", [["variants", "ls"], ["strategies", "ls"], ["recipes", "ls"]], ids=" ".join)
def test_lists_are_also_json_objects_with_a_name(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main(*command, "--json", capsys=capsys)
    names = [row["name"] for row in json.loads(out)]
    assert code == 0
    assert len(names) == len(set(names)) > 5
    code, out, _ = main(*command, capsys=capsys)
    assert [line.split()[0] for line in out.splitlines()[1:]] == names


def test_plan_counts_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main("plan", "shapes-cip", "--limit", "4", "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert (found["real_images"], found["images"], found["images_per_class"], found["shards"]) == (40, 40, [4, 4], 1)
    assert found["captions"] == "not made yet"
    run = finished(tmp_path)
    code, out, _ = main("plan", run / "recipe.yaml", "--out", run, "--json", capsys=capsys)
    found = json.loads(out)
    assert found["captions"] == "of this run"
    assert found["unique_prompts"] > 20
    assert isinstance(found["truncated"], int)


def test_strategies_show_prints_ten_real_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = main("strategies", "show", "cip", "--caption", "on a table", capsys=capsys)
    assert code == 0
    assert "a photo of tench, on a table" in out
    assert len(out.splitlines()) == 11
    assert "the first 10 classes of imagenette; of another variant or class map: --variant NAME" in err
    assert "counted by the tokenizer of the small generator, as that of stable-diffusion-v1-5/" in err
    assert "'on a table' stands for what a captioner writes of each real image" in err


def test_recipes_show_takes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: shapes-cip\ngenerate: {steps: 7}\n")
    code, out, _ = main("recipes", "show", path, capsys=capsys)
    assert code == 0
    assert "steps: 7" in out
    assert "strategy: cip" in out


def test_recipes_show_knows_the_training_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    for name in TRAINING_RECIPES.names():
        code, out, _ = main("recipes", "show", name, capsys=capsys)
        assert (code, out) == (0, TRAINING_RECIPES.read(name)[0])
        code, out, _ = main("recipes", "show", name, "--json", capsys=capsys)
        assert json.loads(out) == TRAINING_RECIPES.fields(name)[0]
    assert not {*TRAINING_RECIPES.names()} & {*RECIPES.names()}


def test_variants_info_has_no_line_without_a_fact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\nsplits: {train: 6}\nclasses: [{id: cat, name: cat}]\n")
    code, out, _ = main("variants", "info", "mine.yaml", capsys=capsys)
    assert code == 0
    keys = [line.partition(":")[0] for line in out.splitlines()]
    assert keys == ["name", "title", "classes", "splits", "  train", "licence", "access"]


def test_recipes_new_writes_a_recipe_that_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = main("recipes", "new", "mine", "--from", "shapes-cip", capsys=capsys)
    assert (code, out) == (0, "mine.yaml\n")
    assert main("plan", "mine.yaml", "--limit", "1", capsys=capsys)[0] == 0


def test_peek_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "peek.png"
    code, out, _ = main("variants", "peek", "shapes", "-n", "2", "--out", target, capsys=capsys)
    assert (code, out) == (0, f"{target}\n")
    assert target.read_bytes().startswith(b"\x89PNG")


def test_the_command_runs_as_a_module_in_a_process_of_its_own(hfsyn: Hfsyn) -> None:
    done = hfsyn("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("hfsyn")
    done = hfsyn("status", "nothing")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
