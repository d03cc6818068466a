"""The parts of scripts/photographs that can be wrong without anybody noticing it in a figure."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT))

from hfsyn.recipes.parts import CaptionPart
from scripts.photographs import latents, photographs, settings, table
from scripts.photographs.captioner import GRID, POOLED, UNKNOWN, Captioner, Network


def test_words_of_a_caption_are_lower_case_and_without_punctuation() -> None:
    assert photographs.words(' A tri-colored dog , "Rex" , catches the man\'s ball . ') == (
        "a tri-colored dog rex catches the man's ball"
    )


def imagenette(folder: Path, count: int) -> None:
    for wnid in ("n01440764", "n02102040"):
        place = folder / photographs.IMAGENETTE / "train" / wnid
        place.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(place / f"{wnid}_{number:02d}.JPEG")


def test_of_each_class_the_last_third_is_kept_from_the_generator(tmp_path: Path) -> None:
    imagenette(tmp_path, 9)
    first, last = photographs.thirds(tmp_path)
    assert len(first) == 12
    assert [one.name for one in last if one.wnid == "n02102040"] == [
        f"n02102040/n02102040_{number:02d}.JPEG" for number in (6, 7, 8)
    ]
    assert not {one.name for one in first} & {one.name for one in last}
    learnt, imitated = photographs.folders(tmp_path, tmp_path / "out")
    assert len(list(learnt.rglob("*.JPEG"))) == 12
    assert {path.name for path in imitated.rglob("*.JPEG")} == {one.name.partition("/")[2] for one in last}


def test_the_encoder_is_the_projection_onto_principal_components_of_patches() -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    vae = latents.new_autoencoder(images)
    found = vae.encode(latents.pixels(images[:3])).latents.detach().numpy() * settings.LATENT_SCALE
    patches = (images / 255).reshape(40, 8, 4, 8, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48)
    covariance = np.cov(patches, rowvar=False)
    variances, axes = np.linalg.eigh(covariance)
    kept = slice(None, -1 - settings.LATENT_CHANNELS, -1)
    wanted = (patches - patches.mean(0)) @ axes[:, kept] / variances[kept] ** 0.25
    wanted /= np.sqrt(wanted.var(0).mean())
    wanted = wanted.reshape(40, 8, 8, -1)[:3].transpose(0, 3, 1, 2)
    for channel in range(settings.LATENT_CHANNELS):  # a component has no sign of its own
        mine, theirs = found[:, channel], wanted[:, channel]
        assert min(abs(mine - theirs).max(), abs(mine + theirs).max()) < 1e-3, channel


@pytest.fixture
def captioner(tmp_path: Path) -> Captioner:
    """One that has learnt nothing, with twenty words."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = Network(24, 16, 1, 2, 0.0, 8).state_dict()
    whole = {name: value.clone() for name, value in state.items()} | {"sizes": torch.tensor([16, 1, 2, 8])}
    save_file(whole, tmp_path / "captioner.safetensors")
    (tmp_path / "words.txt").write_text("\n".join(["<pad>", "<begin>", "<end>", "<unknown>", *"abcdefghijklmnopqrst"]))
    return Captioner(CaptionPart(model="x.py:X", temperature=1.0, max_new_tokens=6), "cpu", tmp_path)


def test_what_the_captioner_draws_follows_from_the_seed_and_not_from_the_batch(captioner: Captioner) -> None:
    draw = torch.Generator().manual_seed(0)
    grid, pooled = torch.randn(6, 25, GRID, generator=draw), torch.randn(6, POOLED, generator=draw)
    seeds = list(range(6))
    together = captioner.say(grid, pooled, seeds)
    assert together == [captioner.say(grid[n : n + 1], pooled[n : n + 1], [n])[0] for n in seeds]
    assert together != captioner.say(grid, pooled, [seed + 10 for seed in seeds])
    assert len(set(together)) > 1
    assert {word for text in together for word in text.split()} <= set(captioner.words[UNKNOWN + 1 :])


def test_a_file_for_other_weights_is_refused(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.photographs.captioner.WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not what this file was written for"):
        Captioner(captioner.part, "cpu", tmp_path)


def test_intervals_of_the_table_are_over_sets_and_not_over_their_classifiers() -> None:
    found = table.of_sets([[0.50, 0.52, 0.51], [0.60, 0.62, 0.61], [0.50, 0.52, 0.51], [0.60, 0.62, 0.61]])
    half = 3.182 * np.std([0.51, 0.61, 0.51, 0.61], ddof=1) / 2  # Student's t with 3 degrees of freedom
    assert (found["mean"], found["high"] - found["mean"]) == pytest.approx((0.56, half), abs=1e-4)
    assert table.of_sets([[0.5, 0.6, 0.7]])["high"] == pytest.approx(0.6 + 4.303 * 0.1 / 3**0.5, abs=1e-4)


def test_an_arm_is_compared_with_class_names_run_by_run() -> None:
    names = {f"class names {g}-{s}": [0.5 + 0.1 * g, 0.52, 0.54] for g, s in table.pairs()}
    more = {name.replace("class names", "captions"): [value + 0.01 for value in some] for name, some in names.items()}
    across = {name.replace("class names", "captions across classes"): some for name, some in names.items()}
    found = table.summed_up({table.REAL: [0.6, 0.62, 0.64], **names, **more, **across})
    over = found["captions"]["over_names"]
    assert (over["mean"], over["high"] - over["low"]) == pytest.approx((0.01, 0), abs=1e-9)
    assert found["captions"]["by_generator"] == pytest.approx([0.01, 0.01])
    assert found["captions across classes"]["over_names"]["mean"] == pytest.approx(0)
    assert found[table.REAL]["accuracy"]["mean"] == pytest.approx(0.62)


def test_views_are_the_whole_photograph_twice_and_then_crops_of_it() -> None:
    from scripts.photographs.teaching import _view

    held = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(held, "PNG")
    one = photographs.Photograph("n01440764/a.JPEG", held.getvalue)
    views = [np.asarray(Image.open(io.BytesIO(_view(one, view)))).astype(int) for view in range(4)]
    assert all(view.shape == (32, 32, 3) for view in views)
    assert np.array_equal(views[0], views[1])
    spans = [view.max() - view.min() for view in views]
    assert max(spans[2:]) < spans[0]
    assert not np.array_equal(views[2], views[3])
    assert np.array_equal(views[2], np.asarray(Image.open(io.BytesIO(_view(one, 2)))))
