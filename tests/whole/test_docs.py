"""The READMEs are true: their commands run, their maps are the folders, their names exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import ROOT, Hfsyn
from PIL import Image

from hfsyn.api.words import chosen, take
from hfsyn.cli import cli
from hfsyn.recipes.recipe import RECIPES
from hfsyn.recipes.strategies import STRATEGIES

sys.path.insert(0, str(ROOT / "scripts"))
from read_aloud import EVERYTHING, findings
from readme_tables import READMES

TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in READMES}
README = "".join(TEXTS.values())


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(language: str) -> list[list[str]]:
    lines = [line for block in blocks(language) for line in block.splitlines() if line.strip() and line[0] != "#"]
    return [shlex.split(line, comments=True) for line in lines]


def test_the_commands_and_the_python_of_the_readme_run(tmp_path: Path, hfsyn: Hfsyn) -> None:
    """Every line of a bash block, in order, in one folder; then the Python."""
    for i in range(2):
        folder = tmp_path / "my-images" / "n01443537"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (200, 100 * i, 30)).save(folder / f"{i}.jpg")
    for command in commands("bash"):
        if command[0].startswith("./scripts/"):
            script = ROOT / command[0]
            assert os.access(script, os.X_OK), command[0]
            subprocess.run(["bash", "-n", str(script)], check=True)
            continue
        assert command[0] == "hfsyn"
        one = ["--num-processes", "1"] if command[1] == "build" else []
        done = hfsyn(*command[1:], *one)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout
    for code in blocks("python"):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", commands("checks"), ids=" ".join)
def test_the_scripts_that_take_long_are_there_and_know_their_options(command: list[str]) -> None:
    script = ROOT / command[command[0] == "python"]
    if script.suffix != ".py":
        assert os.access(script, os.X_OK)
        return
    told = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True).stdout
    assert {word for word in command if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", told))


def test_publish_and_load_runs_as_written_against_a_hub(tmp_path: Path) -> None:
    """The `shell` block, then the `py` block, in a folder that holds the first dataset of the README."""
    from hub_client import Client
    from hub_server import Hub

    with Hub(tmp_path / "hub") as hub, Client(hub, tmp_path) as client:
        (first,) = [c for c in commands("bash") if c[1:] and c[1] == "build" and c[-1] == "runs/shapes"]
        for command in [first, *commands("shell")]:
            assert command[0] == "hfsyn"
            one = ["--num-processes", "1"] if command[1] == "build" else []
            done = client.hfsyn(*command[1:], *one, cwd=tmp_path)
            assert done.code == 0, (command, done.out, done.err)
            assert done.out
        for code in blocks("py"):
            client.python(code + "\nresult = len(ds)")
        assert {"v1.0.0", "v1.1.0"} == {ref.rpartition("/")[2] for ref in hub.refs("dataset", "alice/shapes")} - {
            "main"
        }


@pytest.mark.parametrize("command", [c for c in commands("sh") if c[0] not in ("hf", "pip")], ids=" ".join)
def test_the_commands_that_need_a_hub_or_a_gpu_parse_and_name_what_exists(command: list[str]) -> None:
    """Those of `hf` are in test_hf_jobs.py; the blocks `slurm` and `machines` run in the tests of these names."""
    words = command
    if command[0] == "sbatch":
        words = ["hfsyn", "build", *command[command.index("scripts/slurm_array.sh") + 1 :]]
    if command[0] == "accelerate":
        (script,) = [i for i, word in enumerate(command) if word in ("-m", "scripts/train_classifier.py")]
        assert command[script] == "-m" or (ROOT / command[script]).is_file()
        words = command[script + 1 :] if command[script] == "-m" else ["hfsyn", "train", *command[script + 1 :]]
    assert words[0] == "hfsyn"
    sub = cli.get_command(click.Context(cli), words[1])
    assert sub is not None
    parsed = sub.make_context(words[1], words[2:])
    assert isinstance(parsed, click.Context)
    if not (recipe := str(parsed.params.get("recipe", "hf://"))).startswith("hf://"):
        recipe = "shapes-cip" if recipe.startswith("runs/") else recipe  # a run's recipe takes the same words
        chosen(recipe, **take(dict(parsed.params), chosen))


def test_every_command_occurs_in_the_readme_or_is_a_stage_of_build() -> None:
    named = {" ".join(c[1:3]) for c in commands("bash") + commands("sh") + commands("shell")} | {
        c[1] for c in commands("bash") + commands("sh") + commands("shell") if len(c) > 1
    }
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            assert all(f"{name} {sub}" in named for sub in command.commands), name
        elif not command.hidden and name not in ("demo", "caption", "finish"):
            assert name in named


def test_recipes_and_strategies_that_the_readme_names_exist() -> None:
    for name in re.findall(r"\b((?:shapes|imagenette|imagenet-1k|tiny-imagenet|imagenet-100)-(?:cip|basic))\b", README):
        assert name in RECIPES.names()
    for command in commands("bash"):
        if command[1:3] == ["strategies", "show"]:
            assert command[3] in STRATEGIES


def test_the_tables_and_maps_of_the_readmes_are_what_the_code_says() -> None:
    command = [sys.executable, ROOT / "scripts" / "readme_tables.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pictures_of_the_readme_are_there() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        with Image.open(ROOT / path) as picture:
            assert picture.size[0] > 400


@pytest.mark.parametrize("name", READMES)
def test_links_of_a_readme_lead_somewhere(name: str) -> None:
    for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)\)", TEXTS[name]):
        assert link.startswith("https://") or (ROOT / name).parent.joinpath(link).exists(), link


def test_each_way_through_the_code_is_short_and_goes_nowhere_twice() -> None:
    (drawn,) = re.findall(r"```ways\n(.*?)```", TEXTS["hfsyn/README.md"], re.DOTALL)
    ways = {way.splitlines()[0]: [line.split()[0] for line in way.splitlines()[1:]] for way in drawn.split("\n\n")}
    assert set(ways) == {"caption", "seed", "prompt", "image", "accuracy"}
    for name, stops in ways.items():
        assert len(stops) == len(set(stops)) <= 12, name
        for stop in stops:
            assert (ROOT / ("" if stop.startswith("builders/") else "hfsyn") / stop).is_file(), stop


def test_the_front_page_is_a_door() -> None:
    assert len(TEXTS["README.md"].encode()) <= 12_000


def test_no_text_has_a_phrase_that_no_native_engineer_would_write() -> None:
    assert list(findings(EVERYTHING)) == []
