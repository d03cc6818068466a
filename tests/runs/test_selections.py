"""Selections: runs with those rows of another one that a rule keeps, which can be checked like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import command
from conftest import finished_run, parquet_bytes

import hfsyn
from builders.errors import HfsynError
from builders.published import RunFolder
from builders.runs import layout
from hfsyn.checks.reproduce import find_row

ODD = """
def odd(image, row):
    number = int(row["source_id"].rpartition("_")[2].partition(".")[0])
    return {"number": number, "first": row["sample_id"].endswith("#0")}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "odd.py").write_text(ODD)
    run = finished_run(folder, "prompt.images_per_caption=2")
    hfsyn.score(run, f"{folder}/odd.py:odd", num_processes=1, quiet=True)
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def ids(run: Path) -> list[str]:
    found: list[str] = hfsyn.load_run(run).dataset()["sample_id"]
    return list(found)


def stored(run: Path) -> list[dict[str, Any]]:
    """The rows as they lie in the shards."""
    return [row for shard in sorted((run / "data").glob("*.parquet")) for row in pq.read_table(shard).to_pylist()]


def test_a_selection_has_the_rows_that_the_rule_keeps_with_their_bytes_unchanged(run: Path, tmp_path: Path) -> None:
    found = hfsyn.select(run, tmp_path / "kept", where="first OR number < 10", quiet=True)
    rows = {
        row["sample_id"]: row for shard in (run / "data").glob("*.parquet") for row in pq.read_table(shard).to_pylist()
    }
    kept = [
        row for shard in sorted((tmp_path / "kept/data").glob("*.parquet")) for row in pq.read_table(shard).to_pylist()
    ]
    assert [row["sample_id"] for row in kept] == [i for i in ids(run) if i.endswith("#0") or "_00000" in i]
    assert all(row == rows[row["sample_id"]] for row in kept)
    assert found.kept == len(kept) < found.rows == len(rows)
    assert not hfsyn.verify(str(tmp_path / "kept"), quiet=True).problems
    assert not layout.strangers(tmp_path / "kept")


def test_the_manifest_names_the_parent_the_rule_and_the_hash_of_the_scores(run: Path, tmp_path: Path) -> None:
    hfsyn.select(run, tmp_path / "kept", where="first", per_class=2, by="-number", quiet=True)
    parent = json.loads((run / layout.MANIFEST).read_text())
    stated = json.loads((tmp_path / "kept" / layout.MANIFEST).read_text())["selection"]
    assert stated["rule"] == {"where": "first", "per_class": 2, "by": "-number"}
    assert stated["parent"]["manifest"] == parent["sha256"]
    assert stated["scores"] == parent["files"][layout.SCORES_TABLE]
    assert stated["judges"] == {"odd": parent["judges"]["odd"]["fingerprint"]}
    card = (tmp_path / "kept" / layout.CARD).read_text()
    assert "| kept if | `first` |" in card
    assert "at most 2, ordered by `-number`" in card


def test_shards_of_which_every_row_stays_are_linked(run: Path, tmp_path: Path) -> None:
    shards = sorted((run / "data").glob("*.parquet"))
    gone = pq.read_table(shards[1], columns=["sample_id"])["sample_id"][0].as_py()
    found = hfsyn.select(run, tmp_path / "kept", where=f"sample_id != '{gone}'", quiet=True)
    same = [shard.samefile(tmp_path / "kept/data" / shard.name) for shard in shards]
    assert same == [number != 1 for number in range(len(shards))]
    assert found.linked == len(shards) - 1
    assert not hfsyn.verify(str(tmp_path / "kept"), quiet=True).problems


def test_diff_says_of_each_removed_row_which_part_of_the_rule_it_fails(run: Path, tmp_path: Path) -> None:
    hfsyn.select(run, tmp_path / "kept", where="number >= 0 AND first", per_class=2, by="number", quiet=True)
    found = hfsyn.diff(str(run), str(tmp_path / "kept"))
    assert set(found.why) == set(ids(run)) - set(ids(tmp_path / "kept"))
    for name, why in found.why.items():
        assert why == (
            "at most 2 of each class, by the largest number" if name.endswith("#0") else '"first" does not hold'
        )
    assert 'rule     "first" does not hold: 30 rows' in found.text()


def test_classes_are_refilled_with_second_images_of_the_same_real_one(run: Path, tmp_path: Path) -> None:
    found = hfsyn.select(run, tmp_path / "kept", where="number != 0", per_class=4, quiet=True)
    spare = {entry["class"]: entry["spare"] for entry in found.classes}
    assert set(spare.values()) == {1, 2}  # of three real images (of two where number 0 went) four are wanted
    assert {entry["kept"] for entry in found.classes} == {4}


def test_the_same_command_continues(run: Path, tmp_path: Path) -> None:
    hfsyn.select(run, tmp_path / "kept", where="first", quiet=True)
    before = parquet_bytes(tmp_path / "kept")
    for name in (layout.MANIFEST, layout.SCORES_TABLE, "sidecars/data/train-00001-of-00008.json"):
        (tmp_path / "kept" / name).unlink()
    hfsyn.select(run, tmp_path / "kept", where="first", quiet=True)
    assert parquet_bytes(tmp_path / "kept") == before


def test_a_folder_of_something_else_is_refused_and_a_selection_is_not_built(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    hfsyn.select(run, kept, where="first", quiet=True)
    for out, said in ((kept, "holds another selection: first"), (run, "holds another run")):
        with pytest.raises(HfsynError, match=said):
            hfsyn.select(run, out, per_class=3, quiet=True)
    layout.sidecar_of(kept / "data/train-00001-of-00008.parquet").unlink()
    with pytest.raises(HfsynError, match="is a selection from shapes-cip, and is no longer whole"):
        hfsyn.build(kept / layout.RECIPE, kept, num_processes=1, quiet=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"where": "number > 1000000"}, "The rule keeps none of the 60 rows"),
        ({"where": "class_name != 'circle'"}, "The rule keeps no image of 1 class of"),
        ({"where": "p_label > .5"}, "There is no column 'p_label'"),
        ({"where": "random() > .5"}, "random() gives something else"),
        ({"where": "true; DROP TABLE rows"}, "more than an expression"),
        ({"per_class": 2, "by": "numbre"}, "Did you mean 'number'"),
        ({"by": "number"}, "Nothing says which rows to keep"),
        ({}, "Nothing says which rows to keep"),
        ({"where": "first", "by": "number"}, "nothing says how many"),
    ],
)
def test_a_rule_that_cannot_be_is_told_in_one_line_and_nothing_is_written(
    run: Path, tmp_path: Path, words: dict[str, Any], said: str
) -> None:
    with pytest.raises(HfsynError) as error:
        hfsyn.select(run, tmp_path / "kept", quiet=True, **words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "kept").exists()


def test_the_command_prints_the_classes_before_it_writes_and_last_the_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry = command(capsys, "select", run, "--where", "first", "--dry-run")
    assert (dry.code, dry.out.strip()) == (0, "30 of 60 rows stay")
    assert "n13873502  circle     6     3     0" in dry.err
    assert 'removed: 30 rows: "first" does not hold' in dry.err
    done = command(capsys, "select", run, "--where", "first", "--out", tmp_path / "kept")
    assert (done.code, done.out.strip()) == (0, str(tmp_path / "kept"))
    assert command(capsys, "select", run, "--where", "first").code == 2


def _forge_marker(kept: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = kept / layout.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(layout.sealed(manifest)))


def test_verify_applies_the_rule_again(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    hfsyn.select(run, kept, where="first", quiet=True)
    _forge_marker(kept, lambda manifest: manifest["selection"]["rule"].update(where="NOT first"))
    found = hfsyn.verify(str(kept), quiet=True)
    assert any("the rule keeps it, and it is not there" in problem for problem in found.problems)
    assert any("the rule does not keep it" in problem for problem in found.problems)


def test_verify_finds_a_table_that_was_changed_so_that_the_rule_fits(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    hfsyn.select(run, kept, where="first", quiet=True)
    table = pq.read_table(kept / layout.SELECTION)
    changed = pa.array([True] * len(table))
    pq.write_table(table.set_column(table.column_names.index("first"), "first", changed), kept / layout.SELECTION)
    problems = hfsyn.verify(str(kept), quiet=True).problems
    assert f"{layout.SELECTION} has other bytes than the manifest states" in problems
    assert any("the rule keeps it, and it is not there" in problem for problem in problems)


def test_a_hostile_rule_in_a_manifest_does_nothing(run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    hfsyn.select(run, kept, where="first", quiet=True)
    _forge_marker(kept, lambda manifest: manifest["selection"]["rule"].update(where="read_text('/etc/passwd') = ''"))
    problems = hfsyn.verify(str(kept), quiet=True).problems
    assert any("the selection cannot be checked: read_text()" in problem for problem in problems)


def test_a_row_of_a_selection_is_at_its_old_place_in_its_batch(run: Path, tmp_path: Path) -> None:
    hfsyn.select(run, tmp_path / "kept", where="first", quiet=True)
    for name in ids(tmp_path / "kept")[:5]:
        assert find_row(RunFolder(tmp_path / "kept"), name)[2] == find_row(RunFolder(run), name)[2]


def test_a_selection_can_be_scored_and_selected_from(run: Path, tmp_path: Path) -> None:
    hfsyn.select(run, tmp_path / "kept", where="first", quiet=True)
    (tmp_path / "more.py").write_text("def length(image, row):\n    return float(len(row['prompt']))\n")
    hfsyn.score(tmp_path / "kept", f"{tmp_path}/more.py:length", num_processes=1, quiet=True)
    table = pq.read_table(tmp_path / "kept" / layout.SCORES_TABLE)
    assert table.column_names == ["sample_id", "length", "number", "first"]
    assert table["sample_id"].to_pylist() == ids(tmp_path / "kept")
    hfsyn.select(tmp_path / "kept", tmp_path / "fewer", where="length > 0", per_class=1, by="number", quiet=True)
    assert len(ids(tmp_path / "fewer")) == 10  # in eight shards, some of which are left with none
    assert not hfsyn.verify(str(tmp_path / "fewer"), quiet=True).problems


def test_rows_can_have_their_scores_as_columns(run: Path, tmp_path: Path) -> None:
    hfsyn.select(run, tmp_path / "kept", where="first", columns=True, quiet=True)
    rows = hfsyn.load_run(tmp_path / "kept").dataset()
    assert rows.column_names[-2:] == ["number", "first"]
    said = pq.read_table(tmp_path / "kept" / layout.SCORES_TABLE)
    assert rows["number"] == said["number"].to_pylist()
    assert all(rows["first"])
    assert not hfsyn.verify(str(tmp_path / "kept"), quiet=True).problems
    card = (tmp_path / "kept" / layout.CARD).read_text()
    assert "| `number` | what the judge odd says: its number |" in card


def test_a_training_keeps_a_share_of_each_class_by_score_or_at_random(run: Path) -> None:
    from hfsyn.judging.train.feeds import open_feed
    from hfsyn.recipes.training_recipe import load_train_config

    def kept(keep: str, seed: int = 0) -> Any:
        config = load_train_config("shapes", [f"data.keep={keep}", f"seed={seed}"], {"data.train": [str(run)]})
        return open_feed(config).sets[0]

    largest, smallest, chance = kept("number:0.5"), kept("-number:0.5"), kept("random:0.5")
    number = {row["sample_id"]: row["number"] for row in pq.read_table(run / layout.SCORES_TABLE).to_pylist()}
    for some in (largest, smallest, chance):
        assert {wnid: some.wnids.count(wnid) for wnid in some.classes} == dict.fromkeys(some.classes, 3)
    for wnid in largest.classes:
        sizes = [
            [number[i] for i, w in zip(some.ids, some.wnids, strict=True) if w == wnid] for some in (largest, smallest)
        ]
        assert min(sizes[0]) >= max(sizes[1])
    assert set(chance.ids) == set(kept("random:0.5").ids) != set(kept("random:0.5", seed=1).ids)
    for keep, words in (("numbre:0.5", "Did you mean 'number'"), ("number:0.0", "keeps nothing")):
        with pytest.raises(HfsynError, match=words):
            kept(keep)


def test_look_shows_the_best_and_the_worst_of_each_class(run: Path, tmp_path: Path) -> None:
    number = {row["sample_id"]: row["number"] for row in pq.read_table(run / layout.SCORES_TABLE).to_pylist()}
    found = hfsyn.look(run, out=tmp_path / "a.png", by="number", per_class=2, classes="star,heart", quiet=True)
    for name in ("star", "heart"):
        shown = [number[row["sample_id"]] for row in found.rows if row["class_name"] == name]
        every = sorted((number[row["sample_id"]] for row in stored(run) if row["class_name"] == name), reverse=True)
        assert shown == every[:2] + every[-2:]
    assert found.rows[0]["score"] == f"number {number[found.rows[0]['sample_id']]:.3g}"
    for by, words in (("numbre", "Did you mean 'number'"), ("nothing", "There is no column 'nothing'")):
        with pytest.raises(HfsynError, match=words):
            hfsyn.look(run, out=tmp_path / "a.png", by=by, quiet=True)


def test_status_knows_the_scores_and_the_rule(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hfsyn.select(run, tmp_path / "kept", where="first", quiet=True)
    assert [(one.stage, one.shards_done, one.rows) for one in hfsyn.status(run).scores] == [("odd", 8, 60)]
    said = command(capsys, "status", tmp_path / "kept").out
    assert "scores of odd: 8/8 shards, 30 rows" in said
    assert "selected: first" in said
    assert "set aside" not in said
