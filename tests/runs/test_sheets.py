"""Contact sheets: the right images under the right words."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import run_folder
from fakes import FakeCaptioner, FakeGenerator
from PIL import Image

from builders.runs import layout
from hfsyn.captions.caption_stage import caption
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.runs import sheets
from hfsyn.runs.finish import finish
from hfsyn.runs.run import Run
from hfsyn.runs.sheets import Row, Tile, compare_runs, contact_sheet, peek, sample_sheet


def finished(tmp_path: Path, recipe: str, *overrides: str) -> Run:
    run = run_folder(tmp_path, *overrides, recipe=recipe, name=recipe)
    caption(run, captioner=FakeCaptioner() if recipe.endswith("cip") else None, quiet=True)
    generate(run, generator=FakeGenerator(size=28), quiet=True)
    return finish(run)


def contains(sheet: Image.Image, tile: Image.Image) -> bool:
    """Whether a 28 px image stands in the sheet, enlarged four times without smoothing."""
    wanted = np.asarray(tile.convert("RGB"))
    pixels = np.asarray(sheet)
    corners = np.argwhere((pixels == wanted[0, 0]).all(-1))
    return any(np.array_equal(pixels[y : y + 112 : 4, x : x + 112 : 4], wanted) for y, x in corners)


def test_a_comparison_shows_the_same_real_images_answers_of_every_run(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "shapes-basic"), finished(tmp_path, "shapes-cip")]
    sheet = compare_runs(runs, title="two runs", per_class=2)
    for run in runs:
        rows = [r for shard in run.data_shards() for r in pq.read_table(shard).to_pylist()]
        rows = [row for row in rows if row["class_name"] == "star"]
        first = sorted(rows, key=lambda row: row["source_id"])
        shown = [contains(sheet, Image.open(io.BytesIO(row["image"]["bytes"]))) for row in first]
        assert shown == [True, True, False]


def test_runs_over_other_sources_cannot_be_compared(tmp_path: Path) -> None:
    a = finished(tmp_path, "shapes-basic")
    b = finished(tmp_path, "shapes-cip", "source.split=test")
    with pytest.raises(HfsynError, match="share no real image"):
        compare_runs([a, b], title="x")


def test_a_finished_run_has_a_wide_preview_of_real_drawings_above_synthetic_ones(tmp_path: Path) -> None:
    run = finished(tmp_path, "shapes-cip")
    preview = Image.open(run.folder / layout.PREVIEW / "samples.png").convert("RGB")
    assert preview.tobytes() == sample_sheet(run).tobytes()
    assert preview.width > 2 * preview.height
    first = next(r for s in run.data_shards() for r in pq.read_table(s).to_pylist() if r["class_name"] == "circle")
    assert contains(preview, Image.open(io.BytesIO(first["image"]["bytes"])))
    (real,) = run.open_source().read([e for e in run.open_source().index() if e.source_id == first["source_id"]])
    shown = np.asarray(sheets._fit(Image.open(io.BytesIO(real.image)).convert("RGB")))
    pixels = np.asarray(preview)
    corners = np.argwhere((pixels == shown[0, 0]).all(-1))
    assert any(np.array_equal(pixels[y : y + 112, x : x + 112], shown) for y, x in corners)


def test_a_preview_never_shows_photographs(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "mine" / "n01443537").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (28, 28), (200, 99, 31)).save(tmp_path / "mine" / "n01443537" / f"{number}.png")
    run = finished(tmp_path, "shapes-cip", "source.variant=tiny-imagenet", f"source.path={tmp_path / 'mine'}")
    preview = np.asarray(Image.open(run.folder / layout.PREVIEW / "samples.png").convert("RGB"))
    assert not (preview == (200, 99, 31)).all(-1).any()
    made = [
        Image.open(io.BytesIO(r["image"]["bytes"])) for s in run.data_shards() for r in pq.read_table(s).to_pylist()
    ]
    assert all(contains(Image.fromarray(preview), image) for image in made)


def test_long_captions_stay_within_their_tile_and_small_rows_align() -> None:
    tile = Image.new("RGB", (28, 28), (200, 0, 0))
    rows = [Row("a", [[Tile(tile, "word " * 60)], [Tile(tile)]]), Row("b", [[], [Tile(tile)] * 3])]
    sheet = np.asarray(contact_sheet("t", ["left", "right"], rows))
    red = (sheet == (200, 0, 0)).all(-1)
    assert red.sum() == 5 * 112 * 112
    # The long caption is cut to the lines that fit: nothing but paper beneath them and above the next row's tiles.
    first = np.flatnonzero(red.any(1))
    gap = np.flatnonzero(np.diff(first) > 1)[0]
    between = sheet[first[gap] + 1 : first[gap + 1]]
    assert (between[2:64] < 200).any()
    assert (between[-6:] == 255).all()


def test_peek_shows_each_class_and_a_hole_where_an_image_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "train" / "n01443537"
    folder.mkdir(parents=True)
    (folder / "bad.JPEG").write_bytes(b"")
    Image.new("RGB", (28, 28), (0, 90, 200)).save(folder / "good.png")
    path = peek("tiny-imagenet", "train", tmp_path / "p.png", path=str(tmp_path / "photos"))
    assert contains(Image.open(path).convert("RGB"), Image.new("RGB", (28, 28), (0, 90, 200)))


def test_a_peek_says_why_a_file_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos" / "n01440764"
    folder.mkdir(parents=True)
    (folder / "link.jpg").symlink_to(folder / "nowhere.jpg")
    shown: list[str] = []
    monkeypatch.setattr(
        sheets,
        "contact_sheet",
        lambda title, headings, rows: (
            shown.extend(tile.text for row in rows for group in row.groups for tile in group)
            or Image.new("RGB", (1, 1))
        ),
    )
    peek("imagenette", "train", tmp_path / "sheet.png", path=str(tmp_path / "photos"))
    assert shown == ["cannot be read: the link leads to no file"]
