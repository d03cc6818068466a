"""Repositories that hfsyn did not publish, and a Hub that refuses or fails, end in one line and the right exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import finished_run
from drawn_tables import rows_of, write_table
from hub_client import Client, Done
from hub_server import Hub

WHOLE = bool(os.environ.get("HFSYN_TEST_ALL"))
"""Every answer at every request: a minute."""
README = b"# Mine\n"
FOREIGN: dict[str, dict[str, bytes]] = {
    "no-card": {"data/a.txt": b"x"},
    "no-front": {"README.md": README},
    "list-front": {"README.md": b"---\n- a\n- b\n---\n"},
    "broken-front": {"README.md": b"---\nconfigs: [\n---\n"},
    "no-configs": {"README.md": b"---\nlicense: mit\n---\n"},
    "odd-configs": {"README.md": b"---\nconfigs: 3\n---\n", "recipe.yaml": b"a: 1", "manifest.json": b"{}"},
    "strange-configs": {"README.md": b"---\nconfigs:\n- config_name: a\n  data_files: b.csv\n---\n"},
    "web-manifest": {"README.md": README, "manifest.json": b'{"name": "App", "icons": []}', "recipe.yaml": b"x: 1"},
    "list-manifest": {"README.md": README, "manifest.json": b"[1, 2]", "recipe.yaml": b"x: 1"},
    "no-json": {"README.md": README, "manifest.json": b"\xff\xfe\x00", "recipe.yaml": b"x: 1"},
    "empty-manifest": {"README.md": README, "manifest.json": b"", "recipe.yaml": b"x: 1"},
    "deep-manifest": {"README.md": README, "manifest.json": b"[" * 50_000, "recipe.yaml": b"x: 1"},
    "no-text": {"README.md": b"\xff\xfe---\n", "manifest.json": b"{}"},
    "nothing": {},
}
COMMANDS = (
    ("verify", "alice/{}"),
    ("diff", "alice/{}", "alice/{}@main"),
    ("recipes", "show", "hf://datasets/alice/{}"),
    ("build", "hf://datasets/alice/{}", "--out", "run"),
    ("reproduce", "alice/{}", "--sample-id", "a#0"),
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as found:
        for name, files in FOREIGN.items():
            found.add_repo("dataset", f"alice/{name}", files)
        found.add_repo("model", "alice/a-model", {"README.md": README})
        yield found


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("client")) as found:
        found.python("import time; time.sleep = lambda seconds: None; result = None")
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("run"), "source.limit_per_class=1")


def problem(done: Done, *codes: int) -> str:
    """Why a command's end is not one line with one of these exit codes; empty where it is."""
    lines = [line for line in done.err.strip().splitlines() if "; again in " not in line]
    if "Traceback" in done.err or len(lines) != 1 or not lines[0].startswith("Error: "):
        return f"{len(lines)} lines: {done.err[-300:]}"
    return "" if done.code in codes else f"exit code {done.code}: {lines[0]}"


def forget(client: Client) -> None:
    """Give the Hub's client an empty cache."""
    client.python(
        "import tempfile; from huggingface_hub import constants as c; c.HF_HUB_CACHE = tempfile.mkdtemp(); result = 0"
    )


def test_no_command_takes_a_repository_of_others_for_one_of_ours(client: Client) -> None:
    wrong = {}
    for name in [*FOREIGN, "a-model", "not-there"]:
        for command in COMMANDS if name in ("no-card", "web-manifest") else COMMANDS[:1]:
            done = client.hfsyn(*(word.format(name) for word in command))
            if found := problem(done, 2):
                wrong[f"{command[0]} {name}"] = found
    assert wrong == {}, wrong


def test_python_says_the_same_in_one_line(client: Client) -> None:
    said = client.python(
        """
from builders.errors import DataError
from builders.published import load_version
from builders.synthetic import Synthetic
result = []
for call in (lambda: load_version("alice/no-card", "main"), lambda: Synthetic(repo="alice/no-card", revision="main")):
    try:
        call()
    except DataError as error:
        result.append(str(error))
    except BaseException as error:
        result.append(type(error).__name__)
"""
    )
    assert ["no-card at main" in line and "\n" not in line for line in said] == [True, True], said


def test_a_manifest_too_large_to_be_ours_is_not_even_downloaded(client: Client, hub: Hub) -> None:
    hub.add_repo("dataset", "alice/huge", {"manifest.json": b" " * 70_000_000, "recipe.yaml": b"x: 1"})
    hub.reset()
    done = client.hfsyn("verify", "alice/huge")
    assert problem(done, 2) == ""
    assert sum(entry.sent for entry in hub.log) < 1_000_000


def test_whatever_the_hub_answers_while_a_version_is_read_is_one_line(client: Client, hub: Hub, run: Path) -> None:
    done = client.hfsyn("publish", run, "alice/ours", "--version", "1.0.0", "-q")
    assert done.code == 0, done.err
    forget(client)
    hub.reset()
    assert client.hfsyn("verify", "alice/ours@v1.0.0", "-q").code == 0
    paths = list(dict.fromkeys(entry.path.partition("?")[0] for entry in hub.log))
    wrong = {}
    cases = [(path, status) for path in paths for status in (401, 403, 404, 429, 500)]
    for path, status in cases if WHOLE else cases[::6]:
        forget(client)
        fault = hub.faults.add(status, path=path, times=None)
        done = client.hfsyn("verify", "alice/ours@v1.0.0", "-q")
        hub.faults.clear()
        missing = done.code == 1 and status == 404 and "differs: " in done.out and not done.err
        if fault.hits and not missing and (found := problem(done, 2, 3, 4)):
            wrong[f"{status} at {path}"] = found
    assert wrong == {}, wrong


@pytest.fixture(scope="module")
def training(client: Client, run: Path) -> tuple[str, ...]:
    """A command whose training is done, so that it only publishes."""
    command = (
        "train",
        "--train-dataset",
        str(run),
        "--model",
        "test_resnet",
        "--image-size",
        "32",
        "--epochs",
        "1",
        "--batch-size",
        "10",
        "--device",
        "cpu",
        "--num-processes",
        "1",
        "-q",
        "--out",
        str(run.parent / "out"),
    )
    done = client.hfsyn(*command)
    assert done.code == 0, done.err
    return command


def test_a_classifier_is_sent_with_the_patience_and_the_exit_codes_of_a_dataset(
    client: Client, hub: Hub, training: tuple[str, ...]
) -> None:
    fault = hub.faults.add(503, method="POST", path="/api/repos/create", times=None)
    done = client.hfsyn(*training, "--push-to-hub", "alice/classifier")
    hub.faults.clear()
    assert (done.code, fault.hits) == (4, 6), done.err
    assert "(6 attempts)" in done.err
    assert "Run the same command again" in done.err
    fault = hub.faults.add(401, method="POST", path="/api/repos/create", times=None)
    done = client.hfsyn(*training, "--push-to-hub", "alice/classifier")
    hub.faults.clear()
    assert (done.code, fault.hits) == (3, 1), done.err
    assert "hf auth login" in done.err
    for kind in (429, 500, 504, "cut-before", "cut-after"):
        hub.faults.add(kind, method="POST", path="/api/repos/create", times=2)
        hub.faults.add(kind, path="/commit/main", times=2)
        done = client.hfsyn(*training, "--push-to-hub", f"alice/classifier-{kind}")
        hub.faults.clear()
        assert done.code == 0, done.err
        there = hub.files("model", f"alice/classifier-{kind}")
        assert {"config.json", "model.safetensors", "README.md"} <= there.keys()


def test_a_classifier_that_is_sent_again_makes_no_commit(client: Client, hub: Hub, training: tuple[str, ...]) -> None:
    commits = []
    for _ in range(2):
        done = client.hfsyn(*training, "--push-to-hub", "alice/twice")
        assert done.code == 0, done.err
        commits.append(hub.head("model", "alice/twice"))
    assert commits[0] == commits[1]
    assert len(hub.history("model", "alice/twice")) == 2


def test_without_a_token_nothing_is_trained_to_be_published(client: Client, run: Path, tmp_path: Path) -> None:
    command = ("train", "--train-dataset", run, "--model", "test_resnet", "--out", tmp_path / "out", "-q")
    done = client.hfsyn(*command, "--num-processes", "1", "--push-to-hub", "alice/x", HF_TOKEN="")
    assert done.code == 3, done.err
    assert "There is no token" in done.err
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("manifest", [b'{"name": "App", "icons": []}', b"[]", b"{", b"\x00\xff", b'{"format": 1}'])
def test_a_strangers_set_that_has_a_manifest_of_its_own_is_tested_on_as_a_plain_one(
    client: Client, hub: Hub, training: tuple[str, ...], tmp_path: Path, manifest: bytes
) -> None:
    name = f"bob/set-{manifest.hex()[-8:]}"
    table = write_table(tmp_path / "a.parquet", rows_of(20)).read_bytes()
    names = ("manifest.json", "site/manifest.json", "recipe.yaml")
    hub.add_repo("dataset", name, {"data/train-00000-of-00001.parquet": table, **dict.fromkeys(names, manifest)})
    done = client.hfsyn("evaluate", training[-1], name, "--out", tmp_path / "found.json", "-q")
    assert done.code == 0, done.err[-300:]
    assert json.loads((tmp_path / "found.json").read_text())["n"] == 20
