"""verify finds whatever was changed, even where every hash fits; what comes from a stranger is checked first."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_folder
from fakes import FakeCaptioner, FakeGenerator
from PIL import Image

from builders.errors import DataError
from builders.files import sha256_of
from builders.published import RunFolder, parse_reference
from builders.runs import layout
from builders.runs.layout import load_manifest, load_sidecar, sidecar_of
from hfsyn.captions.caption_stage import caption
from hfsyn.checks.diff import compare
from hfsyn.checks.reproduce import judge, reproduce
from hfsyn.checks.verify import verify
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.runs.finish import finish

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_folder(tmp_path_factory.mktemp("made"))
    caption(run, captioner=FakeCaptioner(), quiet=True)
    # One image stays flat and is set aside, some need another seed.
    generate(run, generator=FakeGenerator(problem_of=lambda p, s: "flat" if s % 5 == 0 else None), quiet=True)
    return finish(run).folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def forge(run: Path, change: Callable[[Rows], Any], shard: str = "data/train-00001-of-00004.parquet") -> None:
    """Change the rows of a shard, then make its sidecar and the manifest fit."""
    path = run / shard
    schema = pq.read_schema(path)
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    sha256, size = sha256_of(path), path.stat().st_size
    sidecar = replace(load_sidecar(sidecar_of(path)), sha256=sha256, bytes=size, rows=len(rows))
    sidecar_of(path).write_text(sidecar.dump())
    manifest = json.loads((run / layout.MANIFEST).read_text())
    for key in ("shards", "captions"):
        for entry in manifest[key]:
            if entry["file"] == shard:
                entry.update(sha256=sha256, bytes=size, rows=len(rows))
    manifest["rows"] = sum(entry["rows"] for entry in manifest["shards"])
    (run / layout.MANIFEST).write_text(json.dumps(layout.sealed(manifest)))


def swap(rows: Rows, *columns: str) -> None:
    a, b = next((a, b) for a in rows for b in rows if all(a[name] != b[name] for name in columns))
    for name in columns:
        a[name], b[name] = b[name], a[name]


def unmark(row: dict[str, Any]) -> None:
    out = io.BytesIO()
    Image.open(io.BytesIO(row["image"]["bytes"])).save(out, "PNG")
    row["image"]["bytes"] = out.getvalue()


def test_a_finished_run_verifies_with_its_retries_and_what_was_set_aside(run: Path) -> None:
    found = verify(str(run))
    assert (found.problems, found.captions, found.files) == ([], 30, 11)
    rows = [row for shard in layout.finished_shards(run / "data") for row in pq.read_table(shard).to_pylist()]
    assert found.rows == len(rows)
    assert any(row["retries"] for row in rows)
    assert found.text() == f"verified: {run}, 11 files, 30 captions, {len(rows)} rows"


@pytest.mark.parametrize(
    ("change", "words", "count"),
    [
        (lambda rows: rows[0].update(prompt="a photo of a cat"), "its prompt is 'a photo of a cat', and the recipe", 1),
        (lambda rows: rows[0].update(seed=rows[0]["seed"] + 1), "its seed is", 1),
        (lambda rows: swap(rows, "seed"), "its seed is", 2),
        (lambda rows: swap(rows, "caption"), "its caption is", 2),
        (lambda rows: rows[0].update(retries=rows[0]["retries"] + 1), "its seed is", 1),
        (lambda rows: swap(rows, "wnid", "class_name", "label"), "and that of its source image", 2),
        (lambda rows: rows[0].update(source_id="n0/x.png"), "does not follow from its source id", 1),
        (lambda rows: rows[0].update(sample_id=rows[0]["source_id"] + "#7"), "does not follow from its source id", 1),
        (lambda rows: rows.insert(0, rows.pop()), "out of order", 1),
        (lambda rows: rows.append(rows[-1]), "out of order, or twice", 1),
        (lambda rows: rows.pop(), "images were planned", 1),
        (lambda rows: unmark(rows[2]), "is not marked as made by a model", 1),
    ],
)
def test_forged_rows_are_found_although_every_hash_fits(
    run: Path, change: Callable[[Rows], Any], words: str, count: int
) -> None:
    forge(run, change)
    problems = verify(str(run)).problems
    assert len([problem for problem in problems if words in problem]) >= count, problems


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: swap(rows, "caption"), "its caption is"),
        (lambda rows: rows[0].update(class_name="cat"), "has class"),
        (lambda rows: rows.append(rows[0]), "is captioned twice"),
        (lambda rows: rows.pop(), "its source image has no caption row"),
    ],
)
def test_forged_captions_are_found(run: Path, change: Callable[[Rows], Any], words: str) -> None:
    forge(run, change, "captions/train-00000-of-00004.parquet")
    assert any(words in problem for problem in verify(str(run)).problems)


def test_files_that_are_missing_strange_or_changed_are_found(run: Path) -> None:
    shards = sorted((run / "data").glob("*.parquet"))
    shards[0].write_bytes(shards[0].read_bytes() + b"x")
    shards[1].unlink()
    sidecar_of(shards[2]).write_text("{}")
    shutil.copy(shards[3], run / "data" / "train-00007-of-00009.parquet")
    problems = "\n".join(verify(str(run)).problems)
    for words in (
        f"data/{shards[0].name} has other bytes than the manifest states",
        f"data/{shards[1].name} is missing",
        f"data/{shards[2].name}: sidecars/data/{shards[2].stem}.json is not a sidecar",
        "data/train-00007-of-00009.parquet is not in the manifest",
    ):
        assert words in problems


def test_another_recipe_is_found(run: Path) -> None:
    recipe = (run / layout.RECIPE).read_text()
    (run / layout.RECIPE).write_text(recipe.replace("seed: 0", "seed: 1"))
    problems = verify(str(run)).problems
    assert any("the manifest has recipe" in problem for problem in problems)
    assert any("its seed is" in problem for problem in problems)


def test_the_command_prints_what_differs_and_exits_with_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hfsyn.cli import main

    forge(run, lambda rows: rows[0].update(prompt="other"))
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(run)])
    out = capsys.readouterr().out
    assert stop.value.code == 1
    assert out.startswith("differs: ")
    assert out.splitlines()[-1].startswith("1 differences: ")


def test_a_thousand_problems_of_a_kind_are_counted_and_twenty_are_shown(run: Path) -> None:
    for number in range(4):
        forge(run, lambda rows: [row.update(prompt="x") for row in rows], f"data/train-{number:05d}-of-00004.parquet")
    found = verify(str(run))
    assert len(found.problems) == 20
    assert f"{found.rows - 20} more of this kind" in found.text()


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "data/../../x.parquet",
        "data/sub/train-00000-of-00001.parquet",
        "preview/train-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet/..",
        "data/x",
        "",
    ],
)
def test_a_manifest_cannot_name_a_file_outside_the_run(run: Path, name: str) -> None:
    manifest = json.loads((run / layout.MANIFEST).read_text())
    manifest["shards"][0]["file"] = name
    manifest = layout.sealed(manifest)
    with pytest.raises(DataError, match="is not a manifest that this version reads"):
        load_manifest(json.dumps(manifest), "manifest.json")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"rows": "many"},
        {"classes": [1]},
        {"classes": [{"wnid": 1, "rows": 1}]},
        {"rejected": ["x"]},
        {"rejected": {"generate: x": "lots"}},
        {"recipe": None},
        {"rows": True},
        {"shards": [{"file": 5, "rows": 1, "bytes": 1, "sha256": ""}]},
        {"shards": [{}]},
        {"shards": 3},
        {"split": None},
        {"shards": [{"file": "data/train-00000-of-00001.parquet", "rows": 1, "bytes": 1, "sha256": "x"}]},
    ],
    ids=str,
)
def test_a_damaged_manifest_is_said_in_one_line(run: Path, change: dict[str, Any]) -> None:
    manifest = layout.sealed(json.loads((run / layout.MANIFEST).read_text()) | change)
    with pytest.raises(DataError) as caught:
        load_manifest(json.dumps(manifest), "manifest.json of somebody")
    assert "\n" not in str(caught.value)
    assert "manifest.json of somebody" in str(caught.value)


def test_a_recipe_of_a_stranger_is_checked_like_ones_own(run: Path) -> None:
    recipe = (run / layout.RECIPE).read_text()
    (run / layout.RECIPE).write_text("name: x\nseed: !!python/object/apply:os.system ['echo']\n")
    with pytest.raises(HfsynError, match=r"line 2, column 7: the tag .* is not read here"):
        verify(str(run))
    (run / layout.RECIPE).write_text(recipe.replace("seed: 0", "exec: rm"))
    with pytest.raises(HfsynError, match="Unknown key 'exec'"):
        verify(str(run))


@pytest.mark.parametrize("reference", ["user", "a/b/c", "a/b@", "/a/b", "a b/c", "hf://models/a/b", "../a/b"])
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(DataError, match="is neither a run folder nor a dataset on the Hub"):
        parse_reference(reference)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "5", "null", '{"fingerprint": 5}', '{"software": "x"}', '{"rejected": 5}', "\x00"]
)
def test_damaged_tables_of_contents_and_sidecars_are_said_in_one_line(run: Path, text: str) -> None:
    with pytest.raises(DataError, match="is not a manifest"):
        load_manifest(text, "manifest.json")
    with pytest.raises(DataError, match="is not a sidecar"):
        layout.parse_sidecar(text, "data/train.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [row.update(image=None) for row in rows], "rows without an image"),
        (lambda rows: rows[0].update(image={"bytes": b"no image", "path": "x.png"}), "an image that cannot be opened"),
        (lambda rows: rows[0].update(sample_id=None), "has no sample_id"),
        (lambda rows: rows[0].update(prompt=None), "has no prompt"),
        (lambda rows: rows[0].update(sample_id=rows[0]["source_id"] + "#\u00b2"), "does not follow from its source id"),
    ],
)
def test_missing_and_broken_images_and_values_are_found(run: Path, change: Callable[[Rows], Any], words: str) -> None:
    forge(run, change)
    assert any(words in problem for problem in verify(str(run)).problems)


def test_a_shard_that_is_no_parquet_is_said_in_one_line(run: Path, made: Path, tmp_path: Path) -> None:
    shard = next(layout.finished_shards(run / "data"))
    shard.write_bytes(b"garbage" * 100)
    manifest = json.loads((run / layout.MANIFEST).read_text())
    manifest["shards"][0]["sha256"] = sha256_of(shard)
    (run / layout.MANIFEST).write_text(json.dumps(layout.sealed(manifest)))
    for what in (
        lambda: compare(RunFolder(made), RunFolder(run)),
        lambda: reproduce(str(run), "x#0", out=tmp_path, generator=FakeGenerator()),
    ):
        with pytest.raises((HfsynError, DataError)) as caught:
            what()
        assert "\n" not in str(caught.value)
    assert any("cannot be read" in problem for problem in verify(str(run)).problems)


def test_an_image_that_is_gone_cannot_be_made_again_and_that_is_said(run: Path, tmp_path: Path) -> None:
    forge(run, lambda rows: rows[0].update(image=None), "data/train-00000-of-00004.parquet")
    row = pq.read_table(run / "data" / "train-00000-of-00004.parquet", columns=["sample_id"]).to_pylist()[0]
    with pytest.raises(HfsynError, match="cannot be opened"):
        reproduce(str(run), row["sample_id"], out=tmp_path, generator=FakeGenerator())


def test_references_are_read() -> None:
    assert parse_reference("a/b") == ("a/b", None)
    assert parse_reference("hf://datasets/a/b.c@v1.0.0") == ("a/b.c", "v1.0.0")


def test_rows_added_removed_and_changed_are_told_apart(run: Path, made: Path) -> None:
    same = compare(RunFolder(made), RunFolder(run))
    assert (same.is_equal, same.shards_equal, same.sentence()) == (True, 4, "No row changed.")
    gone: Rows = []
    forge(run, lambda rows: gone.append(rows.pop(2)))
    forge(run, lambda rows: rows[0].update(caption="another"), "data/train-00003-of-00004.parquet")
    found = compare(RunFolder(made), RunFolder(run))
    assert found.shards_equal == 2
    assert (dict(found.removed), dict(found.added)) == ({gone[0]["class_name"]: 1}, {})
    assert (sum(found.changed.values()), dict(found.columns)) == (1, {"caption": 1})
    back = compare(RunFolder(run), RunFolder(made))
    assert (back.added, back.removed, back.changed) == (found.removed, found.added, found.changed)


def test_reproduce_names_samples_that_there_are(run: Path) -> None:
    with pytest.raises(HfsynError, match=r"has no sample 'nothing#0'.*for instance: n\d+/train_\d+"):
        reproduce(str(run), "nothing#0", generator=FakeGenerator())


def test_reproduce_tells_another_image_from_the_same(run: Path, tmp_path: Path) -> None:
    row = pq.read_table(next(layout.finished_shards(run / "data"))).to_pylist()[0]
    found = reproduce(str(run), row["sample_id"], out=tmp_path, generator=FakeGenerator())
    assert (found.verdict, found.largest) == ("byte-equal", 0)
    assert Path(found.picture).exists()
    forge(
        run, lambda rows: rows[0]["image"].update(bytes=rows[1]["image"]["bytes"]), "data/train-00000-of-00004.parquet"
    )
    found = reproduce(str(run), row["sample_id"], out=tmp_path, generator=FakeGenerator())
    assert found.verdict == "different"
    assert found.largest > 24


def test_rounding_is_not_called_a_difference() -> None:
    import numpy as np

    from hfsyn.images.encoding import encode
    from hfsyn.recipes.recipe import StorePart

    rng = np.random.default_rng(0)
    base = np.repeat(np.linspace(8, 247, 64)[:, None, None], 64, 1).repeat(3, 2).astype(np.uint8)
    near = (base + rng.integers(-1, 2, base.shape)).astype(np.uint8)
    for store in (StorePart(format="png"), StorePart(format="jpeg")):
        assert judge(encode(base, store), encode(near, store))[0] == "equal up to rounding"
        assert judge(encode(base, store), encode(base[::-1], store))[0] == "different"
        assert judge(encode(base, store), encode(base[:16], store))[0] == "different"
