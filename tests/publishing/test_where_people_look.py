"""Results where people look: a Space with the report, results on models, and benchmarks, as the Hub reads them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import CHROMIUM, needs_chromium
from conftest import finished_run
from drawn_tables import rows_of, write_table
from hub_client import Client
from hub_server import Hub
from huggingface_hub import parse_eval_result_entries

from hfsyn.judging.bench.cells import bench
from hfsyn.judging.measures.metrics import wilson
from hfsyn.publishing.benchmark import eval_text, task_of

SPACE = "alice/what-captions-are-worth"


def train(config: Any, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config.data.train[0]))
    return {"training": {"budget": 10}}


def evaluate(model: Path, dataset: str, split: str | None) -> dict[str, Any]:
    top1 = wilson(70 if json.loads((model / "config.json").read_text()) == "shapes" else 60, 100)
    row = [{"wnid": "n1", "name": "circle", "n": 100, "top1": top1}]
    metrics = {"classes": 10, "top1": top1, "top5": wilson(90, 100), "ece": wilson(5, 100), "per_class": row}
    return {"n": 100, "metrics": {**metrics, "masked": None}}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bench of drawings and of a run's images, with a test set whose path nobody needs to know, and a failure."""
    folder = tmp_path_factory.mktemp("private-place")
    finished_run(folder, name="cip-0")
    write_table(folder / "secret" / "test.parquet", rows_of(10))
    matrix = {
        "name": "captions or names",
        "arms": {
            "real": {"train": ["shapes"]},
            "cip": {"train": [str(folder / "cip-{seed}")]},
            "gone": {"train": [str(folder / "gone")]},
        },
        "models": ["test_resnet"],
        "seeds": [0],
        "tests": {"drawings": {"dataset": str(folder / "secret" / "test.parquet")}},
    }

    def fail(config: Any, place: Path) -> dict[str, Any]:
        if config.data.train[0].endswith("gone"):
            raise FileNotFoundError(f"{folder}/gone/data.parquet")
        return train(config, place)

    bench(matrix, folder / "out", train=fail, evaluate=evaluate, quiet=True)
    return folder / "out"


@pytest.fixture(scope="module")
def space(alice: Client, out: Path) -> str:
    done = alice.hfsyn("report", out, "--push-to-hub", SPACE)
    assert done.code == 0, done.err
    return done.out.strip()


def test_the_report_becomes_a_static_space(hub: Hub, space: str) -> None:
    assert space == f"{hub.url}/spaces/{SPACE}"
    files = hub.files("space", SPACE)
    assert {"index.html", "README.md", "table.csv", "table.tex"} <= files.keys()
    assert any(name.startswith("plots/") for name in files)
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (front["sdk"], front["app_file"]) == ("static", "index.html")
    assert front["title"] == "What the images are worth: captions or names"


def test_no_path_of_this_machine_is_on_the_space(hub: Hub, space: str, out: Path) -> None:
    assert "private-place" in (out / "summary.json").read_text()  # the error names one
    for name, content in hub.files("space", SPACE).items():
        assert b"private-place" not in content, name


def test_pushed_again_nothing_is_committed_and_an_old_plot_goes(alice: Client, hub: Hub, space: str, out: Path) -> None:
    before = hub.history("space", SPACE)
    assert alice.hfsyn("report", out, "--push-to-hub", SPACE, "-q").code == 0
    assert hub.history("space", SPACE) == before
    hub.add_commit("space", SPACE, {"plots/old.png": b"old", "notes.txt": b"mine"})
    assert alice.hfsyn("report", out, "--push-to-hub", SPACE, "-q").code == 0
    files = hub.files("space", SPACE)
    assert "plots/old.png" not in files
    assert files["notes.txt"] == b"mine"


def test_photographs_of_a_source_stay_here_and_drawings_may_be_shown(
    hub: Hub, space: str, out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from hfsyn.judging.bench import arms
    from hfsyn.judging.bench.page import write_page

    assert 'alt="real ' in hub.files("space", SPACE)["index.html"].decode()
    monkeypatch.setattr(arms, "_is_ours", lambda run: False)
    page = write_page(out, tmp_path).read_text()
    assert 'alt="real ' not in page
    assert 'alt="cip: ' in page
    assert "which is not shown here" in page


@needs_chromium
def test_a_browser_shows_the_space_from_the_hub(hub: Hub, space: str, tmp_path: Path) -> None:
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    rules = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    address = f"{hub.url}/static/spaces/{SPACE}/"
    done = subprocess.run(
        [*command, rules, "--virtual-time-budget=4000", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<h1>What the images are worth</h1>" in done.stdout
    assert "captions or names" in done.stdout
    links = re.findall(r'href="((?:plots/|table)[^"]+)"', done.stdout)
    assert len(links) >= 4
    files = hub.files("space", SPACE)
    assert all(link in files for link in links)


def test_without_a_token_nothing_is_sent(alice: Client, hub: Hub, out: Path) -> None:
    done = alice.hfsyn("report", out, "--push-to-hub", "alice/other", HF_TOKEN="")
    assert (done.code, "There is no token" in done.err) == (3, True)
    assert alice.hfsyn("report", out, "--push-to-hub", "nobody").code == 2


TASKS = """
name: Shapes of Bob
evaluation_framework: inspect-ai
tasks:
  - {id: circles, config: default, split: train, note: theirs}
"""


def test_huggingface_hub_reads_back_the_results_of_a_model(alice: Client, hub: Hub, tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.parquet", rows_of(40)).read_bytes()
    hub.add_repo("dataset", "bob/shapes", {"data/train-00000-of-00001.parquet": table, "eval.yaml": TASKS.encode()})
    sets = ("--train-dataset", "shapes", "--limit", "2", "--eval-dataset", "bob/shapes", "--eval-split", "train")
    small = ("--model", "test_resnet", "--image-size", "32", "--epochs", "1", "--batch-size", "10", "--device", "cpu")
    where = ("--out", tmp_path / "out", "--push-to-hub", "alice/judged", "--num-processes", "1", "-q")
    done = alice.hfsyn("train", *sets, *small, *where)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "out" / "results.json").read_text())["test"]
    files = {name: text for name, text in hub.files("model", "alice/judged").items() if name.startswith(".eval_")}
    assert list(files) == [".eval_results/bob_shapes_train.yaml"]
    (found,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/bob_shapes_train.yaml"]))
    assert (found.dataset_id, found.task_id) == ("bob/shapes", "circles")
    assert found.value == pytest.approx(result["metrics"]["top1"]["value"], abs=1e-6)
    assert found.dataset_revision == hub.head("dataset", "bob/shapes")
    assert found.source_url == f"{hub.url}/alice/judged/blob/main/results.json"
    card = alice.python(
        """
from huggingface_hub import ModelCard
result = [[r.dataset_type, r.dataset_split, r.metric_value] for r in ModelCard.load("alice/judged").data.eval_results]
"""
    )
    assert card[0] == ["bob/shapes", "train", found.value]


def test_a_published_run_may_be_a_benchmark(alice: Client, hub: Hub, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    words = ("publish", run, "alice/benchmark", "-q")
    assert alice.hfsyn(*words, "--version", "1.0.0").code == 0
    assert "eval.yaml" not in hub.files("dataset", "alice/benchmark")
    done = alice.hfsyn(*words, "--version", "1.0.1", "--benchmark")
    assert done.code == 0, done.err
    found = yaml.safe_load(hub.files("dataset", "alice/benchmark")["eval.yaml"])
    assert found["tasks"] == [{"id": "default", "config": "default", "split": "train"}]
    assert set(found) == {"name", "description", "evaluation_framework", "tasks"}
    before = hub.history("dataset", "alice/benchmark")
    assert alice.hfsyn(*words, "--version", "1.0.1", "--benchmark").code == 0
    assert hub.history("dataset", "alice/benchmark") == before


def test_what_others_wrote_into_a_benchmarks_file_stays() -> None:
    text = eval_text(TASKS, "bob/shapes", "cip", "train")
    found = yaml.safe_load(text)
    assert (found["name"], found["evaluation_framework"]) == ("Shapes of Bob", "inspect-ai")
    assert [task["id"] for task in found["tasks"]] == ["circles", "cip"]
    assert eval_text(text, "bob/shapes", "cip", "train") == text
    assert [task_of(text, *asked) for asked in ((None, "train"), ("cip", "train"), ("cip", "test"))] == [
        *("circles", "cip", "cip")
    ]
    assert task_of("a: [", None, "test") == "default"
