"""The stages with fakes at their seams: pairing, rejection, retries, resume, and what is refused."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import finished_run, parquet_bytes, run_folder
from fakes import FakeCaptioner, FakeGenerator
from PIL import Image

from builders.runs import layout
from builders.runs.layout import load_sidecar, sidecar_of
from builders.variants import get_variant
from hfsyn.building import work
from hfsyn.captions.caption_stage import caption
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.recipes.recipe import Recipe, load_recipe
from hfsyn.rules import seed_of
from hfsyn.runs import prepare as preparing
from hfsyn.runs.finish import finish
from hfsyn.runs.options import WorkOptions, select
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import load_run
from hfsyn.runs.status import status

ARGS = {"quiet": True}


def rows_of(run: Path) -> list[dict]:
    return [row for shard in layout.finished_shards(run / "data") for row in pq.read_table(shard).to_pylist()]


def complete(run: Path, **fakes: object) -> None:
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(**fakes), quiet=True)  # type: ignore[arg-type]
    finish(run)


def test_every_caption_belongs_to_the_image_that_its_source_id_names(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    complete(run)
    source = load_run(run).open_source()
    entries = list(source.index())
    truth = {row.source_id: FakeCaptioner.describe(Image.open(io.BytesIO(row.image))) for row in source.read(entries)}
    assert len(set(truth.values())) > 20
    rows = rows_of(run)
    assert {row["source_id"]: row["caption"] for row in rows} == truth
    assert all(row["prompt"] == f"a photo of {row['class_name']}, {row['caption']}" for row in rows)


def test_the_stored_pixels_are_what_prompt_and_seed_make(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    complete(run)
    for row in rows_of(run):
        stored = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        assert (stored == FakeGenerator().draw(row["prompt"], row["seed"])).all()


def test_the_captioner_always_sees_full_batches(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "caption.batch_size=5")
    captioner = FakeCaptioner()
    caption(run, captioner=captioner, quiet=True)
    assert set(captioner.batches) == {5}


def test_a_class_name_recipe_plans_one_image_for_each_real_one_without_captions(tmp_path: Path) -> None:
    run = run_folder(tmp_path, recipe="shapes-basic")
    caption(run, quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    finish(run)
    rows = rows_of(run)
    assert Counter(row["wnid"] for row in rows) == {row["wnid"]: 3 for row in rows}
    assert all(row["caption"] is None and row["prompt"] == f"a photo of {row['class_name']}" for row in rows)


def test_long_prompts_are_flagged_with_their_count(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "prompt.strategy=definition", "caption=null")
    caption(run, quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    rows = rows_of(run)
    assert {row["truncated"] for row in rows} == {True, False}
    for row in rows:
        assert row["prompt_tokens"] == len(row["prompt"].split()) + 2
        assert row["truncated"] == (row["prompt_tokens"] > FakeGenerator.max_tokens)


def test_a_prompt_that_just_fits_is_not_cut_off(tmp_path: Path) -> None:
    fits, tokens = FakeGenerator(), max(len(info.name.split()) for info in get_variant("shapes").classes) + 5
    fits.max_tokens = tokens  # "a photo of", the name, and the two markers
    run = run_folder(tmp_path, recipe="shapes-basic")
    caption(run, quiet=True)
    generate(run, generator=fits, quiet=True)
    rows = rows_of(run)
    assert max(row["prompt_tokens"] for row in rows) == tokens
    assert not any(row["truncated"] for row in rows)
    assert not any(load_sidecar(sidecar_of(shard)).flags.get("truncated") for shard in load_run(run).data_shards())


def test_flagged_images_are_made_again_with_the_seed_of_their_attempt(tmp_path: Path) -> None:
    """Every fifth first attempt is flagged by the safety checker, and every fourth of the second ones is flat. Half of
    the classes have a seed of their own.
    """
    wnids = sorted(get_variant("shapes").by_wnid)
    run = run_folder(tmp_path, *(f"class_seeds.{wnid}={number}" for number, wnid in enumerate(wnids[::2], 7)))
    recipe = load_run(run).recipe

    def problem(prompt: str, seed: int) -> str | None:
        first = seed in firsts
        return ("safety" if seed % 5 == 0 else None) if first else ("flat" if seed % 4 == 0 else None)

    caption(run, captioner=FakeCaptioner(), quiet=True)
    from hfsyn.runs.stage import write_plan

    write_plan(load_run(run))
    lines = pq.read_table(run / "plan.parquet").to_pylist()
    firsts = {line["seed"] for line in lines}
    generate(run, generator=FakeGenerator(problem_of=problem), quiet=True)
    finish(run)
    rows = rows_of(run)
    assert len(rows) == 30
    assert any(row["retries"] for row in rows)
    for row in rows:
        assert row["seed"] == seed_of(recipe.seed_for(row["wnid"]), row["sample_id"], row["retries"])
        assert problem(row["prompt"], row["seed"]) is None
        assert row["safety"] == (row["retries"] > 0)


def test_an_image_that_stays_bad_is_set_aside_after_the_bound_and_the_run_ends(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "generate.max_retries=2")
    generator = FakeGenerator(problem_of=lambda prompt, seed: "nan" if "star" in prompt else None)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=generator, quiet=True)
    finish(run)
    rejected = [json.loads(line) for line in (run / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == 3
    assert all(line["stage"] == "generate" and "3 attempts" in line["reason"] for line in rejected)
    assert len(rows_of(run)) == 27
    assert Counter(prompt for prompt, _ in generator.asked if "star" in prompt).most_common(1)[0][1] >= 3
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["rows"], sum(manifest["rejected"].values())) == (27, 3)


def test_retries_do_not_depend_on_where_a_run_was_interrupted(tmp_path: Path) -> None:
    def problem(prompt: str, seed: int) -> str | None:
        return "flat" if seed % 3 == 0 else None

    whole = run_folder(tmp_path, name="whole")
    complete(whole, problem_of=problem)
    pieces = run_folder(tmp_path, name="pieces")
    for part in ("2:", ":1", "1:3"):
        caption(pieces, captioner=FakeCaptioner(), shards=part, quiet=True)
    for part in ("3:", ":2", "2:3"):
        generate(pieces, generator=FakeGenerator(problem_of=problem), shards=part, quiet=True)
    finish(pieces)
    assert parquet_bytes(whole) == parquet_bytes(pieces)
    assert (whole / "manifest.json").read_bytes() == (pieces / "manifest.json").read_bytes()


def test_one_deleted_shard_is_made_again_to_the_same_bytes(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    complete(run)
    before = parquet_bytes(run)
    shard = load_run(run).data_shards()[1]
    shard.unlink()
    (run / "manifest.json").unlink()
    generator = FakeGenerator()
    generate(run, generator=generator, quiet=True)
    finish(run)
    assert len(generator.asked) == 8
    assert parquet_bytes(run) == before


def test_a_finished_run_asks_no_model_again(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    complete(run)
    # Neither a model nor a process is started: the built-in models would be loaded here otherwise.
    work(load_run(run), ("caption", "generate"), WorkOptions(num_processes=2))
    generator, captioner = FakeGenerator(), FakeCaptioner()
    caption(run, captioner=captioner, quiet=True)
    generate(run, generator=generator, quiet=True)
    assert generator.asked == []
    assert captioner.batches == []


def test_sidecars_count_what_their_shards_hold(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    complete(run)
    for shard in load_run(run).data_shards():
        known = load_sidecar(sidecar_of(shard))
        rows = pq.read_table(shard).to_pylist()
        assert known.rows == len(rows) == known.stop - known.start
        assert known.counts == Counter(row["wnid"] for row in rows)
        assert known.fingerprint == load_run(run).fingerprint
        assert known.software["torch"]


def test_generation_waits_for_the_captions_and_finish_for_the_images(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    caption(run, captioner=FakeCaptioner(), shards="0:1", quiet=True)
    with pytest.raises(HfsynError, match="1 of 4 caption shards") as caught:
        generate(run, generator=FakeGenerator(), quiet=True)
    assert caught.value.code == ExitCode.PARTIAL
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(), shards="1:3", quiet=True)
    with pytest.raises(HfsynError, match="2 of 4 generate shards"):
        finish(run)
    assert not (run / "manifest.json").exists()
    found = status(run)
    assert [(stage.shards_done, stage.shards) for stage in found.stages] == [(4, 4), (2, 4)]
    assert not found.finished


def test_a_damaged_shard_is_named_and_not_finished(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    shard = load_run(run).data_shards()[2]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(HfsynError, match=shard.name):
        finish(run)
    assert not (run / "manifest.json").exists()


def test_another_recipe_is_refused_in_the_same_folder_by_the_differing_fields(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    before = sorted(run.rglob("*"))
    with pytest.raises(HfsynError, match=r"generate\.steps is 12 there, 7 here") as caught:
        run_folder(tmp_path, "generate.steps=7")
    assert "prompt" not in str(caught.value)
    assert sorted(run.rglob("*")) == before


def test_files_that_are_not_ours_are_refused_and_stay(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(HfsynError, match=r"thesis\.tex|is not a run folder"):
            prepare(load_recipe("shapes-cip"), folder, overwrite=overwrite)
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    prepare(load_recipe("shapes-basic"), run, overwrite=True)
    assert load_run(run).recipe.name == "shapes-basic"
    (run / "notes.txt").write_text("mine")
    with pytest.raises(HfsynError, match=r"notes\.txt"):
        prepare(load_recipe("shapes-cip"), run, overwrite=True)
    assert (run / "notes.txt").exists()


@pytest.mark.parametrize(
    "wrong", ["source.path=/nowhere", "generate.model=nobody/nothing", "prompt.strategy=/nowhere.py:write"]
)
def test_overwrite_deletes_nothing_where_the_new_recipe_cannot_be_made(tmp_path: Path, wrong: str) -> None:
    """A slip of the pen must not cost a dataset."""
    run = finished_run(tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    with pytest.raises(HfsynError):
        prepare(load_recipe("imagenette-basic", ["generate.model=builtin", wrong]), run, overwrite=True)
    assert {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()} == before


def test_overwrite_empties_a_folder_that_is_a_link(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(run)
    made = prepare(load_recipe("shapes-basic", ["source.limit_per_class=1"]), link, overwrite=True)
    assert made.recipe.name == "shapes-basic"
    assert link.is_symlink()
    assert not (run / layout.DATA).exists()
    assert (run / layout.RECIPE).exists()


def test_overwrite_refuses_to_delete_the_run_that_another_process_put_there_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = finished_run(tmp_path), load_recipe("shapes-basic", ["source.limit_per_class=1"])
    pinned = preparing.pinned

    def slowly(asked: Recipe) -> object:
        monkeypatch.setattr(preparing, "pinned", pinned)
        prepare(asked, folder, overwrite=True)
        (folder / layout.DATA).mkdir()
        return pinned(asked)

    monkeypatch.setattr(preparing, "pinned", slowly)
    with pytest.raises(HfsynError, match="Another process has put a new run into"):
        prepare(recipe, folder, overwrite=True)
    assert (folder / layout.DATA).is_dir()


def test_a_renamed_recipe_continues_the_same_run(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    assert run_folder(tmp_path, "name=other") == run


@pytest.mark.parametrize("chosen", ["x", "1", "1:x", "-1:2", "9:", "2:2"])
def test_a_bad_shard_range_is_refused(chosen: str) -> None:
    with pytest.raises(HfsynError, match="--shards"):
        select([Path("a"), Path("b"), Path("c")], chosen)


def test_shard_ranges_are_half_open() -> None:
    paths = [Path(name) for name in "abcde"]
    assert select(paths, None) == paths
    assert select(paths, "0:2") + select(paths, "2:") == paths
    assert select(paths, ":1") == paths[:1]
