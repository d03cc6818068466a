"""`train --record`: what a training shows of each image, computed again by hand; it changes nothing of the training."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from conftest import finished_run
from PIL import Image

import hfsyn
from hfsyn.cli import cli
from hfsyn.errors import HfsynError
from hfsyn.judging.classifier import open_classifier
from hfsyn.judging.preprocessing import plain_transform
from hfsyn.judging.sets.image_set import open_images
from hfsyn.judging.train import recording

SMALL: dict[str, Any] = {"model": "test_resnet", "image_size": 32, "epochs": 2, "batch_size": 10, "lr": 0.01}
WORDS = {**SMALL, "train_dataset": "shapes", "limit": 4, "device": "cpu", "quiet": True}
TESTED = {
    "eval_dataset": "shapes",
    "eval_split": "test",
    "overrides": ["test.limit_per_class=2", "test.record_points=4"],
}


def table(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "record.parquet").to_pylist()
    return found


def by_hand(folder: Path, reference: str, split: str, limit: int) -> tuple[Any, Any, Any, Any]:
    """ids, logits, labels and gradients of the last layer (n, classes, features + 1), by autograd."""
    classifier = open_classifier(folder)
    images = open_images(reference, split, limit=limit)
    transform = plain_transform(classifier.preprocessing)
    pixels = torch.stack([transform(images.picture(number)) for number in range(len(images))])
    labels = torch.tensor([list(classifier.wnids).index(wnid) for wnid in images.wnids])
    network, gradients = classifier.network.eval(), []
    head = network.get_classifier()
    for one, label in zip(pixels, labels, strict=True):
        loss = torch.nn.functional.cross_entropy(network(one[None]), label[None])
        weight, bias = torch.autograd.grad(loss, [head.weight, head.bias])
        gradients.append(torch.cat([weight, bias[:, None]], 1))
    with torch.no_grad():
        return images.ids, network(pixels), labels, torch.stack(gradients)


def test_the_last_place_is_what_autograd_gives_for_the_final_weights(tmp_path: Path) -> None:
    """With two places, each holds half of the margin, likeness and influence; the last is of the kept weights."""
    out = tmp_path / "out"
    found = hfsyn.train(out, record=True, **WORDS, **TESTED)
    assert found["training"]["record"]["steps"] == [2, 4, 6, 8]
    seen = np.load(out / "record" / "step-00000008.npz")
    ids, logits, labels, gradients = by_hand(out, "shapes", "train", 4)
    assert [row["id"] for row in table(out)] == list(ids)
    *_, validation = by_hand(out, "shapes", "test", 2)
    whole = validation.mean(0)
    own = gradients.flatten(1)
    influence = own @ (whole / whole.norm()).flatten()
    np.testing.assert_allclose(seen["0.influence"], influence, atol=1e-5)
    np.testing.assert_allclose(seen["0.likeness"], influence / own.norm(dim=1), atol=1e-4)
    np.testing.assert_allclose(
        seen["0.loss"], torch.nn.functional.cross_entropy(logits, labels, reduction="none"), atol=1e-5
    )
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    np.testing.assert_allclose(seen["0.margin"], logits.gather(1, labels[:, None])[:, 0] - others, atol=1e-5)


def test_the_table_sums_up_all_places(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hfsyn.train(out, record=True, **WORDS, **TESTED)
    seen = [np.load(out / "record" / f"step-{step:08d}.npz") for step in (2, 4, 6, 8)]
    rows = table(out)
    np.testing.assert_allclose([row["early_loss"] for row in rows], seen[0]["0.loss"], rtol=1e-6)  # no place before 1.6
    for name in ("margin", "likeness", "influence"):
        np.testing.assert_allclose(
            [row[name] for row in rows], np.mean([one[f"0.{name}"] for one in seen], 0), rtol=1e-5, atol=1e-7
        )
    margins = np.stack([one["0.margin"] for one in seen])
    for row, course in zip(rows, margins.T > 0, strict=True):
        text = "".join("+" if right else "-" for right in course)
        assert row["forgotten"] == (4 if "+" not in text else text.count("+-"))
    assert len({row["forgotten"] for row in rows}) > 1


def test_recording_changes_no_weight_and_a_killed_one_continues_to_the_same_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, whole, killed = tmp_path / "plain", tmp_path / "whole", tmp_path / "killed"
    hfsyn.train(plain, **WORDS, **TESTED)
    hfsyn.train(whole, record=True, **WORDS, **TESTED)
    assert (plain / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not (plain / "record.parquet").exists()

    take = recording.Recorder.take

    def cut(self: Any, done: int, *more: Any) -> None:
        if done == 6:
            raise KeyboardInterrupt
        take(self, done, *more)

    monkeypatch.setattr(recording.Recorder, "take", cut)
    with pytest.raises(KeyboardInterrupt):
        hfsyn.train(killed, record=True, checkpoint_steps=3, **WORDS, **TESTED)
    monkeypatch.undo()
    hfsyn.train(killed, record=True, checkpoint_steps=3, **WORDS, **TESTED)
    assert (killed / "record.parquet").read_bytes() == (whole / "record.parquet").read_bytes()


def test_what_cannot_be_recorded_is_refused_before_the_training(tmp_path: Path) -> None:
    hfsyn.train(tmp_path / "done", **WORDS)
    with pytest.raises(HfsynError, match=r"was trained without --record"):
        hfsyn.train(tmp_path / "done", record=True, **WORDS)
    with pytest.raises(HfsynError, match=r"a stream has no end"):
        hfsyn.train(tmp_path / "b", record=True, **{**WORDS, "limit": None}, streaming=True, budget=100)
    half = tmp_path / "half"
    hfsyn.train(half, checkpoint_steps=4, **WORDS)
    for name in ("results.json", "model.safetensors", "model.json"):
        (half / name).unlink()
    with pytest.raises(HfsynError, match=r"is at step 4, and nothing was recorded after step 1\."):
        hfsyn.train(half, record=True, **WORDS)
    shutil.rmtree(half)


def test_without_real_images_there_is_no_likeness_and_a_file_that_cannot_be_read_has_no_measure(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for wnid in ("n01440764", "n02102040"):
        (folder / wnid).mkdir(parents=True)
        for number in range(6):
            colour = (200, 10 * number, 0) if wnid == "n01440764" else (0, 10 * number, 200)
            Image.new("RGB", (32, 32), colour).save(folder / wnid / f"{number}.png")
    (folder / "n02102040" / "9.png").write_bytes(b"not an image")
    words = f"train --train-dataset imagenette={folder} --model test_resnet --image-size 32 --epochs 2 --batch-size 4"
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, [*words.split(), "--record", "--device", "cpu", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["training"]["record"]["against"] is None
    rows = table(out)
    assert {row["likeness"] for row in rows} == {row["influence"] for row in rows} == {None}
    (broken,) = [row for row in rows if row["margin"] is None]
    assert broken["id"].endswith("9.png")
    assert broken["forgotten"] is broken["early_loss"] is None


def test_a_record_becomes_scores_of_the_set_that_was_trained_on_and_of_no_other(tmp_path: Path) -> None:
    run, other = finished_run(tmp_path), finished_run(tmp_path, "seed=1", name="other")
    out = tmp_path / "out"
    words = {**SMALL, "limit": 4, "device": "cpu", "quiet": True}
    hfsyn.train(out, train_dataset=[f"{run}:1", "shapes:1"], budget=40, record=True, **words, **TESTED)
    scoring = hfsyn.score(run, training=out, num_processes=1, quiet=True)
    assert scoring is not None
    scores = {row.pop("sample_id"): row for row in pq.read_table(scoring.table).to_pylist()}
    mine = {row["id"]: row for row in table(out) if row["reference"] == str(run)}
    assert len(scores) == len(mine) == 30
    for name, row in mine.items():
        assert scores[name]["forgotten"] == row["forgotten"]
        assert scores[name]["influence"] == pytest.approx(row["influence"], abs=1e-6)

    page = hfsyn.look(run, by="early_loss", html=True, per_class=1, quiet=True)
    shown = Path(str(page.page)).read_text()
    values = sorted(row["early_loss"] for row in mine.values())
    assert f"early_loss of 30 rows, from {values[0]:.3g} to {values[-1]:.3g}" in shown
    assert sum(int(count) for count in re.findall(r'title="(\d+) rows? from', shown)) == 30

    with pytest.raises(HfsynError, match="was trained on other images than those of"):
        hfsyn.score(other, training=out, num_processes=1, quiet=True)
    with pytest.raises(HfsynError, match=r"holds no record of a training"):
        hfsyn.score(run, training=tmp_path / "nowhere", num_processes=1, quiet=True)
    with pytest.raises(HfsynError, match=r"Nobody judges"):
        hfsyn.score(run, quiet=True)
