"""Each synthetic image says that a model made it, and which one; its pixels, and real images, are as they would be."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import finished_run
from fakes import FakeGenerator
from PIL import Image

from builders.runs import layout
from hfsyn import __version__
from hfsyn.checks.reproduce import reproduce
from hfsyn.checks.verify import verify
from hfsyn.exporting import export_real
from hfsyn.images import marking
from hfsyn.images.encoding import encode
from hfsyn.images.marking import mark_of, mark_problem
from hfsyn.recipes.recipe import RECIPES, Recipe, fingerprint, load_recipe

FORMATS = ("jpeg", "png", "webp")
MODEL, COMMIT = "stable-diffusion-v1-5/stable-diffusion-v1-5", "c" * 40


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe("imagenette-cip", [f"generate.revision={COMMIT}", *overrides])


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)


def images_of(folder: Path) -> list[bytes]:
    shards = layout.finished_shards(folder / "data") if (folder / "sidecars").is_dir() else (folder / "data").iterdir()
    return [row["image"]["bytes"] for shard in sorted(shards) for row in pq.read_table(shard).to_pylist()]


@pytest.mark.parametrize("form", FORMATS)
def test_the_mark_changes_no_pixel_and_adds_at_most_700_bytes(form: str) -> None:
    """Also where the generator is a local folder with an odd name and images start from real ones."""
    longest = "/somewhere/" + "odd & <é> '" * 20
    for more in ([], ["generate.init=source", f"generate.model={longest}", f"generate.revision=sha256:{'a' * 64}"]):
        recipe = recipe_of(f"store.format={form}", *more)
        plain, marked = (encode(picture(), recipe.store, mark) for mark in (None, mark_of(recipe)))
        assert plain != marked
        assert len(marked) - len(plain) <= 700
        assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(data))) for data in (plain, marked)))
        assert mark_problem(marked, recipe) is None
        assert b"/somewhere" not in marked


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [([], "trained"), (["generate.init=source", "generate.strength=0.5"], "compositeWithTrained")],
)
def test_exiftool_reads_the_mark_in_all_formats(tmp_path: Path, overrides: list[str], kind: str) -> None:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed (Debian: apt-get install libimage-exiftool-perl)")
    for form in FORMATS:
        recipe = recipe_of(f"store.format={form}", *overrides)
        (tmp_path / f"image.{form}").write_bytes(encode(picture(), recipe.store, mark_of(recipe)))
    command = ["exiftool", "-j", "-G1", "-XMP:all", *map(str, sorted(tmp_path.iterdir()))]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert len(found) == len(FORMATS)
    for file in found:
        del file["SourceFile"]
        assert file == {
            "XMP-iptcExt:DigitalSourceType": f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}AlgorithmicMedia",
            "XMP-iptcExt:AISystemUsed": MODEL,
            "XMP-iptcExt:AISystemVersionUsed": COMMIT,
            "XMP-xmp:CreatorTool": f"hfsyn {__version__}",
        }


def test_shipped_recipes_mark_and_one_that_says_nothing_keeps_its_fingerprint() -> None:
    assert {name: load_recipe(name).store.mark for name in RECIPES.names()} == dict.fromkeys(RECIPES.names(), True)
    fields = load_recipe("shapes-cip").model_dump()
    del fields["store"]["mark"]
    silent = load_recipe(fields)
    assert not silent.store.mark
    assert fingerprint(silent) == fingerprint(load_recipe("shapes-cip", ["store.mark=false"]))
    assert fingerprint(silent) != fingerprint(load_recipe("shapes-cip"))


def test_a_run_is_marked_row_by_row_and_its_real_images_are_not(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    recipe = load_recipe(run / "recipe.yaml")
    images = images_of(run)
    assert len(images) == 30
    assert [mark_problem(image, recipe) for image in images] == [None] * 30
    assert {b"AISystemUsed" in image for image in images_of(export_real(run, tmp_path / "real", quiet=True))} == {False}
    assert verify(str(run), quiet=True).problems == []
    assert "each image file says in its XMP metadata" in (run / "README.md").read_text()


def test_an_image_made_again_by_another_version_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path)
    sample = pq.read_table(next(layout.finished_shards(run / "data")))["sample_id"][0].as_py()
    monkeypatch.setattr(marking.mark_of, "__defaults__", ("9.9.9",))
    assert reproduce(str(run), sample, out=tmp_path, generator=FakeGenerator()).verdict == "byte-equal"
    assert verify(str(run), quiet=True).problems == []


def test_a_mark_that_is_missing_or_of_another_recipe_is_named() -> None:
    recipe = recipe_of()
    other, unmarked = recipe_of("generate.model=stabilityai/sdxl-turbo"), recipe_of("store.mark=false")
    marked = encode(picture(), recipe.store, mark_of(recipe))
    assert "is not marked as made by a model" in str(mark_problem(encode(picture(), recipe.store), recipe))
    assert "not the one of its recipe" in str(mark_problem(marked, other))
    assert "the recipe says store.mark: false" in str(mark_problem(marked, unmarked))
    assert "is not marked" in str(mark_problem(b"", recipe))
