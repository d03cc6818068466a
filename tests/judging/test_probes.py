"""Linear probes: logistic regression on features that are kept, and a folder like that of any other training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from drawn_tables import rows_of, write_table

import hfsyn
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import open_classifier, start_accelerator
from hfsyn.judging.measures.answers import predict
from hfsyn.judging.sets.image_set import open_images
from hfsyn.judging.train import head
from hfsyn.judging.train.head import kept_features, logistic_regression

SMALL: dict[str, Any] = {"device": "cpu", "quiet": True}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two steps: all that a probe needs is a network with weights."""
    folder = tmp_path_factory.mktemp("begun") / "real"
    hfsyn.train(
        folder, train_dataset="shapes", limit=2, model="test_resnet", image_size=32, epochs=1, batch_size=10, **SMALL
    )
    return folder


@pytest.fixture(autouse=True)
def features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where features are kept."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hfsyn" / "features"


def probe(out: Path, begun: Path, *overrides: str, **words: Any) -> dict[str, Any]:
    given = {"train_dataset": "shapes", "limit": 6, "model": "test_resnet", "head_only": True, **SMALL, **words}
    return hfsyn.train(out, overrides=[f"model.init_from={begun}", *overrides], **given)


def drawn(classes: int, rows: int = 240, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different spread that overlap, so that classes cannot be told apart without errors."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, rows)
    means = rng.normal(size=(classes, size)) * 0.5
    values = (means[labels] + rng.normal(size=(rows, size))) * np.exp(0.5 * rng.normal(size=size)) + 3
    return values.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("l2", [0.3, 30.0])
def test_the_fit_is_that_of_scikit_learn(classes: int, l2: float) -> None:
    from sklearn.linear_model import LogisticRegression

    values, labels = drawn(classes)
    weight, bias, facts = logistic_regression(values, labels, classes, l2)
    theirs = LogisticRegression(C=1 / l2, tol=1e-7, max_iter=3000).fit(values.astype(np.float64), labels)
    logits = values @ weight.T + bias
    expected = theirs.decision_function(values.astype(np.float64))
    ours = logits[:, 1] - logits[:, 0] if classes == 2 else logits - logits.mean(1, keepdims=True)
    assert facts["converged"]
    assert np.allclose(ours, expected if classes == 2 else expected - expected.mean(1, keepdims=True), atol=2e-2)
    assert (logits.argmax(1) == theirs.predict(values.astype(np.float64))).mean() > 0.995
    assert 0.3 < (logits.argmax(1) == labels).mean() < 1


def test_what_an_image_counts_is_as_if_it_were_there_that_often() -> None:
    values, labels = drawn(3)
    counts = np.where(np.arange(len(labels)) < 60, 2.0, 1.0)
    once = logistic_regression(values, labels, 3, 1.0, counts)
    twice = logistic_regression(np.concatenate([values, values[:60]]), np.concatenate([labels, labels[:60]]), 3, 1.0)
    assert np.allclose(once[0], twice[0], atol=1e-4)
    assert not np.allclose(once[0], logistic_regression(values, labels, 3, 1.0)[0], atol=1e-2)


def test_a_probe_equals_scikit_learn_on_the_features_it_kept_and_is_an_ordinary_training(
    begun: Path, tmp_path: Path
) -> None:
    from sklearn.linear_model import LogisticRegression

    out = tmp_path / "probe"
    result = probe(out, begun, "test.limit_per_class=6", eval_dataset="shapes")
    classifier, accelerator = open_classifier(out), start_accelerator("cpu")
    train, test = (
        kept_features(classifier, open_images("shapes", split, limit=6), accelerator, num_workers=None, quiet=True)
        for split in ("train", "test")
    )
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(train.values, train.labels)
    expected = theirs.score(test.values, test.labels)
    assert abs(result["test"]["metrics"]["top1"]["value"] - expected) <= 0.002
    assert result["training"]["head"]["features"] == train.values.shape[1]
    assert hfsyn.evaluate(out, "shapes", limit=6, **SMALL)["metrics"]["top1"] == result["test"]["metrics"]["top1"]
    assert hfsyn.fidelity("shapes", "shapes-context", features=str(out), limit=3)["features"]["source"] == str(out)
    # The backbone is the one it began from, the last layer is not.
    old, new = open_classifier(begun).network.state_dict(), classifier.network.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {"fc.weight", "fc.bias"}


def test_features_are_computed_once_and_a_stopped_extraction_continues(
    begun: Path, tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "PART", 16)
    seen: list[int] = []

    def counted(classifier: Any, images: Any, *rest: Any, **how: Any) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(images))
        return predict(classifier, images, *rest, **how)

    monkeypatch.setattr(head, "predict", counted)
    with pytest.raises(KeyboardInterrupt):
        probe(tmp_path / "a", begun)
    assert len(list(features.rglob("*.safetensors"))) == 2
    monkeypatch.setattr(head, "predict", lambda *a, **how: seen.append(len(a[1])) or predict(*a, **how))
    first = probe(tmp_path / "a", begun)
    assert seen == [16, 16, 16, 12]  # the last two only
    other = probe(tmp_path / "b", begun, "model.head_l2=50")
    assert seen == [16, 16, 16, 12]
    assert other["training"]["head"]["loss"] > first["training"]["head"]["loss"]


def test_other_weights_or_other_images_have_features_of_their_own(begun: Path, tmp_path: Path, features: Path) -> None:
    probe(tmp_path / "a", begun)
    probe(tmp_path / "b", begun, limit=5)
    probe(tmp_path / "c", begun, image_size=48)
    assert len(list(features.iterdir())) == 3


def test_images_that_cannot_be_read_are_left_out_and_counted(begun: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "train.parquet", rows_of(40), bad={1, 2, 17})
    result = probe(tmp_path / "out", begun, train_dataset=f"shapes={table}", limit=None)
    assert result["training"]["undecodable"]["count"] == 3


def test_a_set_counts_by_its_weight(begun: Path, tmp_path: Path) -> None:
    words = {"budget": 60, "train_dataset": ["shapes", "shapes-context:3"], "limit": 4}
    mixed = probe(tmp_path / "a", begun, **words)
    assert [one["share"] for one in mixed["training"]["sets"]] == [15, 45]
    even = probe(tmp_path / "b", begun, **{**words, "train_dataset": ["shapes", "shapes-context"]})
    assert mixed["training"]["head"]["loss"] != even["training"]["head"]["loss"]


def test_the_tower_of_a_clip_is_probed_and_stands_alone(tmp_path: Path) -> None:
    clip = tiny_models.clip(tmp_path / "clip")
    words = {"train_dataset": "shapes", "limit": 4, "eval_dataset": "shapes", "overrides": "test.limit_per_class=4"}
    result = hfsyn.train(tmp_path / "out", model=f"clip:{clip}", head_only=True, **words, **SMALL)
    clip.rename(tmp_path / "moved")
    again = hfsyn.evaluate(tmp_path / "out", "shapes", limit=4, **SMALL)
    assert again["metrics"]["top1"] == result["test"]["metrics"]["top1"]
    assert again["model"]["started_from"]["name"] == f"clip:{clip}"
    assert not any("text" in name for name, _ in open_classifier(tmp_path / "out").network.named_parameters())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "the features of random weights"),
        ({"pretrained": True, "streaming": True, "budget": 10, "limit": None}, "features of a stream cannot be kept"),
        ({"pretrained": True, "overrides": ["model.freeze=[conv1]"]}, "changes the last layer alone"),
    ],
)
def test_what_makes_no_sense_for_a_probe_is_refused(tmp_path: Path, words: dict[str, Any], said: str) -> None:
    given = {"train_dataset": "shapes", "limit": 2, "model": "test_resnet", "head_only": True, **SMALL, **words}
    with pytest.raises(HfsynError, match=said):
        hfsyn.train(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_clip_is_not_trained_as_a_whole_nor_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"train_dataset": "shapes", "limit": 2, **SMALL}
    with pytest.raises(HfsynError, match="only a last layer can be fitted"):
        hfsyn.train(tmp_path / "out", model="clip:openai/clip-vit-base-patch32", batch_size=4, **words)
    monkeypatch.setattr("hfsyn.hub.repo.check_push", lambda name: None)
    clip = tiny_models.clip(tmp_path / "clip")
    with pytest.raises(HfsynError, match="--image-size is for networks of timm"):
        hfsyn.train(tmp_path / "out", model=f"clip:{clip}", head_only=True, image_size=32, **words)
    with pytest.raises(HfsynError, match="not a network of timm, as which classifiers are published") as refused:
        hfsyn.train(tmp_path / "out", model="clip:a/b", head_only=True, push_to_hub="alice/probe", **words)
    assert "vit_base_patch32_clip_224.openai" in refused.value.hint
