"""The tool in the hand: help that is whole, hints for what other tools are called, and what comes back in Python."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner
from test_cli import finished, main

import hfsyn
from builders.errors import near_path, plural
from builders.variants import VARIANTS
from hfsyn.cli import cli
from hfsyn.commands import completion
from hfsyn.commands.menu import SECTIONS
from hfsyn.recipes.loading import fragments
from hfsyn.recipes.recipe import RECIPES
from hfsyn.recipes.strategies import STRATEGIES
from hfsyn.recipes.training_recipe import TRAINING_RECIPES


def _all_commands(group: click.Group, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        below = _all_commands(command, (*words, name)) if isinstance(command, click.Group) else []
        found += below or [((*words, name), command)]
    return [(names, command) for names, command in found if not command.hidden]


LEAVES = _all_commands(cli)


def test_the_root_help_has_every_command_under_a_heading_whole_and_on_one_line() -> None:
    told = CliRunner().invoke(cli, ["--help"], terminal_width=80).output
    named = {name for names in SECTIONS.values() for name in names.split()}
    for name, command in cli.commands.items():
        if command.hidden:
            continue
        assert name in named, f"{name} belongs under a heading"
        (line,) = [line for line in told.splitlines() if line.split()[:1] == [name]]
        assert line.endswith((".", ")")), line
        assert "..." not in line
    assert [line[:-1] for line in told.splitlines() if line[:-1] in SECTIONS] == list(SECTIONS)
    assert "hfsyn demo" in told
    assert "https://" in told


@pytest.mark.parametrize(
    ("words", "command"), LEAVES, ids=lambda value: " ".join(value) if type(value) is tuple else ""
)
def test_no_help_shows_a_limit_that_nobody_meets(words: tuple[str, ...], command: click.Command) -> None:
    told = CliRunner().invoke(cli, [*words, "--help"]).output
    assert "None]" not in told
    assert "9223372036854775807" not in told


HINTS = [
    ("upload", "hfsyn publish"),
    ("push", "hfsyn publish"),
    ("download", "load_dataset("),
    ("ls", "hfsyn recipes ls"),
    ("list", "hfsyn recipes ls"),
    ("run", "hfsyn build"),
    ("make", "hfsyn build"),
    ("login", "hf auth login"),
    ("fit", "hfsyn train"),
    ("test", "hfsyn evaluate"),
    ("eval", "hfsyn evaluate"),
    ("caption-images", "hfsyn caption"),
    ("new", "hfsyn recipes new"),
    ("init", "hfsyn variants new"),
    ("sample", "hfsyn build"),
    ("version", "hfsyn --version"),
    ("bulid", "Did you mean 'build'?"),
    ("generat", "Did you mean 'generate'?"),
]


@pytest.mark.parametrize(("word", "hint"), HINTS)
def test_the_commands_of_other_tools_are_answered_in_one_line(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = main(word, capsys=capsys)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert hint in err
    assert f"{word!r}" in err


def test_every_hint_names_a_command_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    from hfsyn.commands import menu

    for text in menu._HINTS:
        for part in text.split("`")[1::2]:
            words = part.split()
            if words[0] == "hfsyn" and not words[1].startswith(("-", "COMMAND")):
                command = cli.commands[words[1]]
                assert not isinstance(command, menu.Menu) or words[2] in command.commands, part


def test_an_unknown_command_of_a_group_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = main("variants", "list", capsys=capsys)
    assert code == 2
    assert "There are: info, ls, new, peek." in err


@pytest.mark.parametrize(
    ("key", "meant"),
    [("steps", "generate.steps"), ("batchsize", "generate.batch_size"), ("limit_per_class", "source.limit_per_class")],
)
def test_a_field_without_its_part_is_recognised(
    key: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = main("plan", "shapes-cip", "--set", f"{key}=3", capsys=capsys)
    assert code == 2
    assert f"Did you mean {meant!r}?" in err


def test_env_is_quick_to_copy_and_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = {
        "HF_TOKEN": "hf_verysecret",
        "HFSYN_PUBLISH_TOKEN": "hf_other",
        "HF_ENDPOINT": "https://me:pass@hub.test",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, out, err = main("env", capsys=capsys)
    assert code == 0
    assert "report" in err
    lines = out.splitlines()
    assert f"- hfsyn: {hfsyn.__version__}" in lines
    assert f"    torch: {version('torch')}" in lines
    assert "- logged in: yes" in lines
    assert "    HF_TOKEN: (set)" in lines
    assert "    HF_ENDPOINT: https://(login)@hub.test" in lines
    found = json.loads(main("env", "--json", capsys=capsys)[1])
    assert found["packages"]["click"] == version("click")
    assert found["offline"] is True
    assert found["cores"] >= 1
    for text in (out, json.dumps(found)):
        assert not any(secret in text for secret in ("verysecret", "hf_other", "pass@"))


def test_env_loads_no_torch_without_a_gpu() -> None:
    code = "import sys; from hfsyn.outlook.environment import env; env(); print('torch' in sys.modules)"
    environment = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(1, "commit", "1 commit"), (2, "commit", "2 commits"), (0, "class", "0 classes"), (1000, "row", "1,000 rows")],
)
def test_one_is_singular(count: int, noun: str, text: str) -> None:
    assert plural(count, noun) == text


def complete(*words: str) -> list[str]:
    """What a shell is offered for the last word; files are ``*``."""
    found = BashComplete(cli, {}, "hfsyn", "_HFSYN_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return ["*" if item.type == "file" else item.value for item in found]


def test_commands_options_and_names_are_completed() -> None:
    assert complete("pub") == ["publish"]
    assert complete("build", "x", "--cap") == ["--captioner", "--captions"]
    assert complete("build", "") == ["*", *RECIPES.names()]
    assert complete("recipes", "new", "mine", "--from", "shapes") == [
        "*",
        "shapes-basic",
        "shapes-cip",
        "shapes-cip-across",
    ]
    assert complete("plan", "shapes-cip", "--strategy", "") == ["*", *STRATEGIES]
    assert complete("strategies", "show", "cip", "--variant", "") == ["*", *VARIANTS]
    assert complete("variants", "info", "shapes") == ["*", "shapes", "shapes-context"]
    assert complete("build", "x", "--captioner", "") == ["*", *fragments("captioner")]
    assert complete("generators", "show", "") == ["*", *fragments("generator")]
    assert complete("train", "--config", "") == ["*", *TRAINING_RECIPES.names()]
    assert complete("bench", "") == ["*"]
    assert complete("build", "x", "--device", "cu") == ["*", "cuda"]


def test_run_folders_are_completed_as_they_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("runs/one", "runs/more/two", ".hidden/three", "runs/one/within", "a/b/c/d/deep"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "recipe.yaml").touch()
    (tmp_path / "runs" / "none").mkdir()
    assert complete("status", "") == ["*", "runs/one", "runs/more/two"]
    assert complete("status", "runs/m") == ["*", "runs/more/two"]
    assert complete("status", "./runs/o") == ["*", "./runs/one"]
    assert complete("publish", f"{tmp_path}/runs/") == ["*", f"{tmp_path}/runs/one", f"{tmp_path}/runs/more/two"]
    assert complete("train", "--train-dataset", "runs/") == ["*", "runs/one", "runs/more/two"]
    assert complete("status", "nowhere/") == ["*"]


def test_everything_that_is_completed_is_a_parameter() -> None:
    there = {(words, param.name) for words, command in LEAVES for param in command.params}
    for place in completion.SOURCES:
        *words, name = place.split()
        assert (tuple(words), name) in there if words else name in {name for _, name in there}, place


def test_completion_loads_nothing_heavy() -> None:
    code = """
import sys
from click.shell_completion import BashComplete
from hfsyn.cli import cli
for words in (["build"], ["build", "x", "--strategy"], ["variants", "info"], ["status"], ["train", "--config"]):
    assert BashComplete(cli, {}, "hfsyn", "_HFSYN_COMPLETE").get_completions(words, "") or words == ["status"]
print(*[m for m in ("torch", "pydantic", "numpy", "datasets", "pyarrow", "huggingface_hub") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(("shell", "start"), [("bash", ".bashrc"), ("zsh", ".zshrc"), ("fish", None)])
def test_completion_is_installed_once(
    shell: str, start: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    if start is not None:
        (tmp_path / start).write_text("export MINE=1")
    for _ in range(2):
        code, out, _ = main("--install-completion", capsys=capsys)
        assert code == 0
    script = Path(out.strip())
    assert script.read_text() == main("--show-completion", shell, capsys=capsys)[1].removesuffix("\n")
    if start is not None:
        first, line = (tmp_path / start).read_text().splitlines()
        assert first == "export MINE=1"
        assert str(script) in line
    assert main("--install-completion", "csh", capsys=capsys)[0] == 2
    monkeypatch.setenv("SHELL", "/bin/csh")
    code, _, err = main("--show-completion", capsys=capsys)
    assert (code, "'csh'" in err) == (2, True)


# --- Python is the command line ---------------------------------------------------------------------------------------

PYTHON_ONLY = {
    "plan": {"say"},
    "caption": {"captioner"},
    "generate": {"generator"},
    "demo": {"seeds"},
    "reproduce": {"generator"},
    "select": {"tell"},
    "bench": {"train", "evaluate", "attack", "compare", "look", "submit"},
}
"""Words that stand for objects and functions, which no command line has."""
TERMINAL_ONLY = {"as_json", "quiet", "example"}
OTHER_NAMES = {"--set": "overrides", "--from": None}
"""Flags whose names are taken in Python: `set` is a type, `from` is a keyword."""


def function_of(words: tuple[str, ...]) -> Callable[..., Any]:
    found: Any = hfsyn
    for word in words:
        found = getattr(found, word.replace("-", "_"))
    return found


@pytest.mark.parametrize(
    ("words", "command"), LEAVES, ids=lambda value: " ".join(value) if type(value) is tuple else ""
)
def test_a_command_is_a_function_with_the_same_words_and_defaults(
    words: tuple[str, ...], command: click.Command
) -> None:
    function = function_of(words)
    signature = inspect.signature(function)
    docs = inspect.getdoc(function) or ""
    options = {param.name: param for param in command.params if param.name not in TERMINAL_ONLY}
    python = {name for name in signature.parameters if name != "quiet"} - PYTHON_ONLY.get(words[0], set())
    assert python == options.keys()
    for name, option in options.items():
        flag = next((flag for flag in option.opts if flag.startswith("--")), None)
        if flag is not None and OTHER_NAMES.get(flag, flag[2:].replace("-", "_")) is not None:
            assert name == OTHER_NAMES.get(flag, flag[2:].replace("-", "_"))
        default = signature.parameters[name].default
        if option.required:
            assert default is inspect.Parameter.empty, name
        else:
            absent = (
                ()
                if option.multiple
                else False
                if getattr(option, "is_flag", False) and not option.secondary_opts
                else None
            )
            written = option.to_info_dict()["default"]
            assert default == (
                absent if option.default in (None, ()) or "UNSET" in repr(option.default) else written
            ), name
        assert re.search(rf"^ *(\w+, )*{name}(, \w+)*:", docs, re.MULTILINE), f"{name} is not explained"
    assert all(command.get_short_help_str(1000))


def test_help_shows_no_clock_and_no_address() -> None:
    for name in hfsyn.__all__:
        told = str(inspect.signature(found)) if inspect.isfunction(found := getattr(hfsyn, name)) else ""
        assert not re.search(r" at 0x|\d{5}", told), name


def test_everything_exported_is_there_and_typed() -> None:
    for name in hfsyn.__all__:
        assert getattr(hfsyn, name) is not None
    for package in ("hfsyn", "builders"):
        assert resources.files(package).joinpath("py.typed").is_file()


def test_a_wrong_word_is_named_with_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"build\(\).*'limt'.*Did you mean 'limit'"):
        hfsyn.build("shapes-cip", "x", limt=2)
    with pytest.raises(TypeError, match="'recipe'"):
        hfsyn.plan()


def test_python_plans_and_builds_as_the_commands_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = hfsyn.plan("shapes-cip", limit=2, strategy="basic", overrides="generate.steps=4")
    assert planned.images == 20
    assert "a photo of star" in planned.first_prompts
    assert hfsyn.variants.info("shapes")["name"] == "shapes"
    assert hfsyn.strategies.ls()[0]["name"] == "classname"
    assert {row["name"] for row in hfsyn.recipes.ls()} == set(RECIPES.names())
    assert hfsyn.captioners.show("builtin")["caption"]["model"] == "builtin"


MISTYPED = [
    ["variants", "new", "mine", "--from", "my_photo"],
    ["variants", "peek", "tiny-imagenet", "--path", "my_photo"],
    ["train", "--train-dataset", "my_photo", "--out", "out"],
    ["evaluate", "my_photo/", "shapes"],
    ["evaluate", "test_resnet", "./my_photo"],
    ["fidelity", "my_photo", "shapes", "--features", "random:test_resnet"],
    ["status", "my_photo"],
    ["verify", "./my_photo"],
    ["build", "shapes-cip", "--set", "source.variant=my_photo.yaml", "--out", "out"],
    ["bench", "my_photo.yaml", "--out", "out"],
]


@pytest.mark.parametrize("words", MISTYPED, ids=" ".join)
def test_a_mistyped_folder_is_answered_with_the_one_that_is_there(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_photos" / "n01440764").mkdir(parents=True)
    (tmp_path / "my_photos.yaml").touch()
    code, out, err = main(*words, capsys=capsys)
    assert (code, out) == (2, "")
    assert re.search(r"Did you mean '(\S*/)?my_photos", err), err


def test_a_mistyped_path_that_looks_like_a_repository_is_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    code, _, err = main("verify", "runs/on", capsys=capsys)
    assert code == 2
    assert "There is no folder runs/on. Did you mean 'runs/one'?" in err
    assert "HF_HUB_OFFLINE is set" in err
    assert "runs/on at main" in main("verify", "nobody/on", capsys=capsys)[2].replace("nobody", "runs")
    assert not near_path("runs/one")
    assert not near_path("elsewhere")
    assert near_path("rums/one") == " Did you mean 'runs/one'?"
    assert not near_path("rums/two"), "which may be on the Hub"


RESULTS = [
    (["variants", "ls"], 15, "imagenette"),
    (["strategies", "ls"], len(STRATEGIES), "classname"),
    (["captioners", "ls"], len(fragments("captioner")), "blip-base"),
    (["recipes", "ls"], len(RECIPES.names()), "imagenet-100-basic"),
]


@pytest.mark.parametrize(("words", "count", "first"), RESULTS)
def test_quiet_lists_are_names_and_nothing_else(
    words: list[str], count: int, first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = main(*words, "-q", capsys=capsys)[1].splitlines()
    assert (len(names), names[0]) == (count, first)


def test_every_command_prints_json_and_can_be_quiet() -> None:
    for words, command in LEAVES:
        flags = {flag for param in command.params for flag in param.opts}
        assert {"--json", "-q", "--quiet"} <= flags, words


def test_paths_are_json_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = json.loads(main("recipes", "new", "mine", "--from", "shapes-cip", "--json", capsys=capsys)[1])
    assert found == {"file": "mine.yaml"}
    fields = json.loads(main("recipes", "show", "mine.yaml", "--json", capsys=capsys)[1])
    assert fields["source"]["variant"] == "shapes"
    assert main("plan", "mine.yaml", "--limit", "1", "-q", capsys=capsys)[1].count("\n") == 1


def test_build_says_at_once_what_it_will_do_and_ends_with_pictures_and_the_load_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path)
    recipe = json.loads(main("status", run, "--json", capsys=capsys)[1])
    code, out, err = main("build", run / "recipe.yaml", "--out", run, capsys=capsys)
    assert (code, out) == (0, f"{run}\n")
    first, *_, pictures, load = err.splitlines()
    assert first.startswith(f"{recipe['name']} -> {run}: at most ")
    assert pictures == f"pictures: {run}/preview/samples.png"
    assert load == f'in Python: datasets.load_dataset("{run}", split="train")'
    found = json.loads(main("build", run / "recipe.yaml", "--out", run, "--json", "-q", capsys=capsys)[1])
    assert (found["rows"], found["fingerprint"]) == (30, recipe["fingerprint"])
    planned = json.loads(main("plan", run / "recipe.yaml", "--json", capsys=capsys)[1])
    assert planned["fingerprint"] == recipe["fingerprint"]


def test_plan_has_the_fingerprint_of_the_run_or_none_before_the_hub_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(json.loads(main("plan", "shapes-cip", "--limit", "1", "--json", capsys=capsys)[1])["fingerprint"]) == 64
    assert "its fingerprint comes with the revisions" in main("plan", "imagenette-cip", capsys=capsys)[1]


def test_the_first_line_of_build_needs_nothing_heavy() -> None:
    code = """
import sys
from click.testing import CliRunner
from hfsyn.cli import cli
import hfsyn
heavy = []
def build(*words, **more):
    heavy.extend(m for m in ("torch", "datasets", "transformers", "pyarrow", "accelerate") if m in sys.modules)
    raise SystemExit(0)
hfsyn.build = build
print(CliRunner().invoke(cli, ["build", "shapes-cip", "--limit", "1", "--out", "x"]).stderr.strip())
print("LOADED", *heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, loaded = done.stdout.splitlines()
    assert said.startswith("shapes-cip -> x: at most 10 images, 10 classes of shapes (train); ")
    assert loaded == "LOADED"


@pytest.mark.parametrize(
    ("size", "said"), [("1", "are for --probe"), ("auto", "are for --probe"), ("0", "neither a number")]
)
def test_the_smallest_batch_has_one_image(size: str, said: str) -> None:
    done = CliRunner().invoke(cli, ["plan", "shapes-cip", "--limit", "1", "--batch-size", size], standalone_mode=False)
    assert said in str(done.exception)
