"""Training on a published version and publishing the classifier, through the real clients and a Hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import finished_run
from drawn_tables import rows_of, write_table
from hub_client import Client
from hub_server import Hub

REPO = "alice/shapes"
SHORT = ("--model", "test_resnet", "--image-size", "32", "--epochs", "1", "--batch-size", "10", "--device", "cpu", "-q")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as found:
        yield found


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """With 1.0.0 of two configurations published, the second of another seed as 1.1.0."""
    folder = tmp_path_factory.mktemp("client")
    with Client(hub, folder) as found:
        for version, config, seed in (("1.0.0", "default", 0), ("1.1.0", "default", 1), ("1.2.0", "other", 2)):
            run = finished_run(folder, f"seed={seed}", name=f"run-{seed}")
            done = found.hfsyn("publish", run, REPO, "--version", version, "--config-name", config, "-q")
            assert done.code == 0, done.err
        yield found


def trained(client: Client, out: Path, *dataset: str) -> dict[str, object]:
    done = client.hfsyn("train", *dataset, *SHORT, "--out", out, "--num-processes", "1")
    assert done.code == 0, done.err
    found: dict[str, object] = json.loads((out / "results.json").read_text())
    return found


def test_a_classifier_is_trained_on_exactly_the_version_that_was_named(
    client: Client, hub: Hub, tmp_path: Path
) -> None:
    refs = hub.refs("dataset", REPO)
    results = {}
    for number, name in enumerate((f"{REPO}@v1.0.0", f"{REPO}@v1.1.0", f"{REPO}@v1.2.0#other")):
        found = trained(client, tmp_path / str(number), "--train-dataset", name, "--eval-dataset", f"{REPO}@v1.0.0")
        (used,) = found["training"]["sets"]  # type: ignore[index]
        assert (used["reference"], used["images"], used["classes"]) == (name, 30, 10)
        assert used["revision"] == refs[f"refs/tags/{name.partition('@')[2].partition('#')[0]}"]
        assert found["test"]["dataset"]["revision"] == refs["refs/tags/v1.0.0"]  # type: ignore[index]
        results[name] = (tmp_path / str(number) / "model.safetensors").read_bytes()
    assert len(set(results.values())) == 3


def test_a_stream_of_a_version_trains_too(client: Client, tmp_path: Path) -> None:
    found = trained(client, tmp_path / "out", "--train-dataset", f"{REPO}@v1.0.0", "--streaming", "--budget", "30")
    assert found["training"]["images_seen"] == 30  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{REPO}@v9.0.0", "has no revision 'v9.0.0'"),
        (f"{REPO}@v1.0.0#other", "has no configuration 'other'"),
        ("alice/nothing", "is not there, or not for you"),
    ],
)
def test_a_version_that_is_not_there_is_said_in_one_line(client: Client, tmp_path: Path, name: str, words: str) -> None:
    done = client.hfsyn("train", "--train-dataset", name, *SHORT, "--out", tmp_path / "out", "--num-processes", "1")
    assert done.code in (2, 3)
    assert words in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_plain_image_set_of_the_hub_is_tested_on_at_its_commit(client: Client, hub: Hub, tmp_path: Path) -> None:
    trained(client, tmp_path / "out", "--train-dataset", f"{REPO}@v1.0.0")
    table = write_table(tmp_path / "a.parquet", rows_of(20))
    commit = hub.add_repo("dataset", "bob/plain", {"data/train-00000-of-00001.parquet": table.read_bytes()})
    done = client.hfsyn("evaluate", tmp_path / "out", "bob/plain", "--out", tmp_path / "r.json", "-q")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["n"], found["dataset"]["revision"]) == (20, commit)


def test_a_published_classifier_says_on_which_version_it_was_tested_and_loads(
    client: Client, hub: Hub, tmp_path: Path
) -> None:
    name = f"{REPO}@v1.1.0"
    trained(
        client, tmp_path / "out", "--train-dataset", name, "--eval-dataset", name, "--push-to-hub", "alice/classifier"
    )
    found = client.python(
        """
import timm
from huggingface_hub import ModelCard
card = ModelCard.load("alice/classifier")
model = timm.create_model("hf_hub:alice/classifier", pretrained=True)
(first, *_) = card.data.eval_results
result = [first.dataset_type, first.dataset_revision, first.metric_type, model.num_classes, card.data.library_name]
"""
    )
    assert found == [REPO, hub.refs("dataset", REPO)["refs/tags/v1.1.0"], "accuracy", 10, "timm"]
    done = client.hfsyn("evaluate", "hf_hub:alice/classifier", name, "--out", tmp_path / "r.json", "-q")
    assert done.code == 0, done.err
    again, before = (json.loads(p.read_text()) for p in (tmp_path / "r.json", tmp_path / "out" / "results.json"))
    assert again["metrics"]["top1"] == before["test"]["metrics"]["top1"]
