"""Sets that are known to be alike, apart, half empty or copied give the numbers that say so."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hfsyn.cli import cli
from hfsyn.errors import HfsynError
from hfsyn.judging.measures import distances, fidelity
from hfsyn.judging.measures.distances import frechet_distance, neighbourhoods
from hfsyn.judging.measures.fidelity import (
    Features,
    Fidelity,
    compare_sets,
    duplicates_between,
    duplicates_within,
    extract,
    measure_fidelity,
    nearest_images,
    pixel_hash,
)
from hfsyn.judging.measures.pairs import pairs_sheet
from hfsyn.judging.sets import copies
from hfsyn.judging.sets.copies import copies_between, copies_within, thumbnail
from hfsyn.judging.sets.image_set import open_images


def cloud(count: int, seed: int, centre: float = 0.0, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(centre, 1, (count, width)).astype(np.float32)


def pictures(count: int, seed: int) -> np.ndarray:
    """Thumbnails of pictures that have nothing in common: blotches of colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([thumbnail(Image.fromarray(one).resize((32, 32), Image.Resampling.NEAREST)) for one in coarse])


def features(
    values: np.ndarray, prefix: str = "a", hashes: list[str] | None = None, thumbnails: np.ndarray | None = None
) -> Features:
    ids = [f"{prefix}{i}" for i in range(len(values))]
    if thumbnails is None:
        thumbnails = np.zeros((len(values), 32, 32, 3), dtype=np.uint8)  # nothing is a copy of what shows nothing
    return Features(values, hashes or ids, ids, thumbnails)


def test_the_frechet_distance_of_a_set_with_itself_is_nothing() -> None:
    a = cloud(300, 1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    few = cloud(5, 1, width=40)  # fewer images than features: a singular covariance
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)


def test_the_frechet_distance_of_known_gaussians_is_known() -> None:
    """One dimension: (difference of means)^2 + (difference of standard deviations)^2."""
    a = np.array([[-1.0], [1.0]]) * np.sqrt(0.5)  # mean 0, variance 1 (n - 1)
    assert frechet_distance(a, 3 * a + 5) == pytest.approx(25 + 4)


def test_the_frechet_distance_is_that_of_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torchmetrics.image.fid")._compute_fid
    a, b = cloud(200, 1).astype(np.float64), cloud(150, 2, 0.5).astype(np.float64) * 1.5
    parts = [torch.tensor(x) for x in (a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))]
    assert frechet_distance(a, b) == pytest.approx(float(theirs(*parts)), rel=1e-6)


def test_a_half_empty_set_covers_half() -> None:
    """Two far clusters of equal size, of which the synthetic set has one: precise, but half is missing."""
    real = np.concatenate([cloud(400, 1), cloud(400, 2, 50)])
    found = neighbourhoods(cloud(400, 3), real)
    assert found["coverage"] == pytest.approx(0.5, abs=0.03)
    assert found["recall"] == pytest.approx(0.5, abs=0.05)
    assert found["precision"] > 0.9
    # A set that is its own neighbour reaches everything.
    whole = neighbourhoods(real, real)
    assert (whole["coverage"], whole["recall"], whole["precision"]) == (1, 1, 1)
    assert whole["density"] == pytest.approx(1, abs=0.25)


def test_images_of_another_world_are_neither_precise_nor_cover_anything() -> None:
    found = neighbourhoods(cloud(100, 1, 100), cloud(100, 2))
    assert found == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_blocks_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features(cloud(90, 1)), features(cloud(70, 2), "b")
    whole = compare_sets(a, b)
    monkeypatch.setattr(distances, "_BLOCK", 7)
    monkeypatch.setattr(distances, "_COLUMNS", 11)
    assert compare_sets(a, b) == whole


def test_memory_does_not_grow_with_the_product_of_the_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_BLOCK", 100)
    monkeypatch.setattr(distances, "_COLUMNS", 100)
    monkeypatch.setattr(copies, "_ROWS", 100)
    a, b = features(cloud(200, 1)), features(cloud(5000, 2), "b")
    tracemalloc.start()
    neighbourhoods(a.values, b.values[:2000])
    duplicates_between(a, b)
    nearest_images(b, a)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5e6  # one block of 100 rows of all 5,000 would be 4 MB


def test_copies_are_found_within_a_set_and_between_sets() -> None:
    values, shown = np.eye(6, dtype=np.float32), pictures(6, 1)
    within = features(values[[0, 1, 2, 2, 3]], hashes=["p", "q", "r", "r", "s"], thumbnails=shown[[0, 1, 2, 2, 3]])
    found = duplicates_within(within)
    assert (found["exact"], found["near"]) == (1, 2)
    assert found["pairs"] == [["a2", "a3", 1.0]]
    brighter = np.clip(shown[3:4] * 1.2, 0, 255).astype(np.uint8)
    theirs = np.concatenate([shown[4:5], brighter, shown[:1]])
    other = features(values[[4, 5, 0]], "b", hashes=["t", "u", "p"], thumbnails=theirs)
    found = duplicates_between(within, other)
    assert (found["exact"], found["near"]) == (1, 2), "the first in pixels, and the last, which is brighter there"
    assert [pair[:2] for pair in found["pairs"]] == [["a0", "b2"], ["a4", "b1"]]
    nearest = nearest_images(within, other)
    assert (nearest[0]["id"], nearest[0]["nearest"]) == ("a0", "b2")
    assert nearest[0]["cosine"] > 0.99


@pytest.mark.parametrize("kind", ["mirrored", "cropped", "smaller", "brighter", "turned"])
def test_a_changed_picture_is_a_copy_and_another_one_is_not(kind: str) -> None:
    def large(seed: int) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC)

    change = {
        "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "cropped": lambda picture: picture.crop((20, 4, 122, 106)),
        "smaller": lambda picture: picture.resize((40, 30)),
        "brighter": lambda picture: picture.point(lambda value: int(value * 0.8 + 40)),
        "turned": lambda picture: picture.rotate(3),
    }[kind]
    mine = np.stack([thumbnail(large(seed)) for seed in range(30)])
    copy = thumbnail(change(large(7)))[None]
    assert copies_between(copy, mine).pairs == [(0, 7)]
    assert copies_between(mine, copy).pairs == [(7, 0)]
    assert copies_within(np.concatenate([mine, copy])).pairs == [(7, 30)]
    assert not copies_within(mine).pairs


def test_a_copy_of_the_evaluation_set_is_counted() -> None:
    real, synthetic = features(cloud(60, 1), "r"), features(cloud(50, 2), "s")
    found = compare_sets(synthetic, real, features(synthetic.values[:9], "e", hashes=list(synthetic.ids[:9])))
    assert found["duplicates"]["against_evaluation"] == {"exact": 9, "near": 9, "pairs": []}
    assert found["duplicates"]["against_real"]["exact"] == 0
    assert found["frechet"]["floor"] >= 0
    with pytest.raises(HfsynError, match="3 images"):
        compare_sets(features(cloud(3, 1)), real)


def test_equal_pixels_have_one_hash_however_they_are_stored() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8))
    stored = io.BytesIO()
    image.save(stored, "PNG")
    assert pixel_hash(Image.open(stored)) == pixel_hash(image)
    assert pixel_hash(image.transpose(Image.Transpose.ROTATE_90)) != pixel_hash(image)


def test_features_come_in_the_order_of_the_images_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    class Mean:
        def forward_features(self, x):  # type: ignore[no-untyped-def]
            return x.mean((2, 3))

        def forward_head(self, x, pre_logits):  # type: ignore[no-untyped-def]
            assert pre_logits
            return x

    images = [(str(i), Image.new("RGB", (4, 4), (i, 0, 0))) for i in range(7)]
    monkeypatch.setattr(fidelity, "_BATCH", 3)
    found = extract(images, Mean(), lambda image: torch.tensor(np.asarray(image)).permute(2, 0, 1).float())
    assert found.values[:, 0].tolist() == list(range(7))
    assert found.ids == [str(i) for i in range(7)]


def test_two_datasets_are_compared_on_a_networks_features_and_the_result_names_it(tmp_path: Path) -> None:
    found = measure_fidelity("shapes", "shapes", features="random:test_resnet", evaluation="shapes", limit_per_class=2)
    assert found["features"]["weights"] == "random"
    assert found["features"]["name"] == "test_resnet"
    assert found["images"] == {"synthetic": 20, "real": 20, "evaluation": 20}
    assert found["frechet"]["value"] == pytest.approx(0, abs=1e-3)
    assert found["coverage"] == 1
    assert found["duplicates"]["against_real"]["exact"] == 20
    assert found["duplicates"]["against_evaluation"]["exact"] == 0


def test_the_command_prints_a_table_and_writes_what_is_known_of_each_image_into_a_file(tmp_path: Path) -> None:
    words = ["fidelity", "shapes", "shapes", "--features", "random:test_resnet", "--limit", "2"]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "all.json")])
    assert len(done.stdout.splitlines()) < 15
    assert "20 synthetic images are no more than the 96 features" in done.stdout
    assert "random weights" in done.stdout
    assert len(json.loads((tmp_path / "all.json").read_text())["nearest_real"]) == 20
    printed = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    assert "nearest_real" not in printed
    assert printed["coverage"] == 1


def test_enough_images_are_not_warned_of() -> None:
    about = {"dimension": 8, "name": "net", "weights": "trained"}
    found = Fidelity(features=about, **compare_sets(features(cloud(20, 1)), features(cloud(20, 2))))
    assert found.remarks() == []
    found["features"] = about | {"dimension": 20}
    assert len(found.remarks()) == 2


def test_the_pairs_that_are_most_alike_are_drawn_side_by_side(tmp_path: Path) -> None:
    sheet = tmp_path / "copies.png"
    words = ["fidelity", "shapes", "shapes", "--limit", "1", "--features", "random:test_resnet", "--device", "cpu"]
    done = CliRunner().invoke(cli, [*words, "--sheet", str(sheet), "--json"])
    assert done.exception is None
    pairs = json.loads(done.stdout)["duplicates"]["against_real"]["pairs"]
    assert len(pairs) == 10  # the set itself
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    tiles = [pixels[90:202, left : left + 112] for left in (110, 246)]
    assert tiles[0].std() > 10
    assert np.array_equal(*tiles)
    assert pixels.shape[0] > 10 * 112
    done = CliRunner().invoke(cli, [*words, "--sheet", str(tmp_path / "copies.jpg")])
    assert isinstance(done.exception, HfsynError)
    assert "not the name of a PNG file" in done.exception.message


def test_a_sheet_holds_the_first_pairs_and_says_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = {name: open_images("shapes", "train", limit=1) for name in ("synthetic", "real")}
    first, second = opened["real"].ids[:2]
    pairs = [[first, second, 0.9]] * 50
    found = {"duplicates": {"threshold": 0.64, "against_real": {"pairs": pairs[:30]}, "within": {"pairs": pairs[30:]}}}
    shown: list[Any] = []
    monkeypatch.setattr("hfsyn.judging.measures.pairs.contact_sheet", lambda *words: shown.append(words))
    pairs_sheet(found, opened)
    ((title, _, rows),) = shown
    assert title.startswith("Most alike pairs: 40 of 50")
    titles = ["copy of a real image, likeness 0.90"] * 30 + ["twice in the set, likeness 0.90"] * 10
    assert [row.title for row in rows] == titles
    assert "".join(rows[0].groups[1][0].text.split()) == f"real:{second}"


def test_copies_are_not_looked_for_if_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("looked for copies")

    monkeypatch.setattr(fidelity, "duplicates_within", refuse)
    monkeypatch.setattr(fidelity, "duplicates_between", refuse)
    how: dict[str, Any] = {"features": "random:test_resnet", "copies": False, "quiet": True}
    found = measure_fidelity("shapes", "shapes", **how, limit_per_class=1)
    assert found["duplicates"] is None
    assert [row["measure"] for row in found.rows()][-1] == "coverage"
    with pytest.raises(HfsynError, match="--sheet shows copies, and --no-copies looks for none"):
        measure_fidelity("shapes", "shapes", **how, sheet="x.png")
