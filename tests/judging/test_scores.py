"""Scores: what judges say of each image, the same bytes however they work, and never of other rows or another judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import finished_run, parquet_bytes

import hfsyn
from builders.errors import HfsynError
from builders.files import sha256_of
from builders.published import RunFolder
from builders.runs import layout
from builders.variants import get_variant
from hfsyn.judging.scores.classifiers import answers
from hfsyn.rules import fold_of
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.scores import Judge, Scored, check_judge, gather, score_by

BRIGHT = """
import numpy as np
def bright(image, row):
    level = float(np.asarray(image).mean())
    return {"level": level / 3, "dark": level < 127, "of": row["class_name"]}
def count(image, row, seen=[]):
    seen.append(1)
    return len(seen)
def fails(image, row):
    return {}["missing"]
def lists(image, row):
    return [1, 2]
def other(image, row):
    return {"a": 1.0} if row["label"] % 2 else {"b": 1.0}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    (tmp_path / "bright.py").write_text(BRIGHT)
    return Path(shutil.copytree(made, tmp_path / "run"))


def scored(run: Path, *judges: str, **words: Any) -> dict[str, Any]:
    found = hfsyn.score(run, judges, num_processes=1, device="cpu", quiet=True, **words)
    assert found is not None
    return found.as_dict()


def rows_of(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(run / layout.SCORES_TABLE).to_pylist()
    return found


def test_a_function_says_something_of_each_row_by_its_id(run: Path, tmp_path: Path) -> None:
    scored(run, f"{tmp_path}/bright.py:bright")
    rows = hfsyn.load_run(run).dataset()
    assert [row["sample_id"] for row in rows_of(run)] == rows["sample_id"]
    for said, row in zip(rows_of(run), rows, strict=True):
        level = np.asarray(row["image"].convert("RGB")).mean()
        assert said == {
            "sample_id": row["sample_id"],
            "level": round(level / 3, 6),
            "dark": bool(level < 127),
            "of": row["class_name"],
        }


def test_the_sidecar_the_manifest_and_the_card_name_the_judge_its_hash_and_versions(run: Path, tmp_path: Path) -> None:
    scored(run, f"{tmp_path}/bright.py:bright")
    sha256 = sha256_of(tmp_path / "bright.py")
    shard = next(layout.finished_shards(run / layout.SCORES / "bright"))
    sidecar = layout.load_sidecar(layout.sidecar_of(shard))
    assert sidecar.stage == "score"
    assert sidecar.options["sha256"] == sha256
    assert sidecar.software["hfsyn"] == hfsyn.__version__
    manifest = json.loads((run / layout.MANIFEST).read_text())
    assert manifest["judges"]["bright"]["facts"]["sha256"] == sha256
    assert sha256 in (run / layout.CARD).read_text()
    assert f"hfsyn {hfsyn.__version__}" in (run / layout.CARD).read_text()
    assert not hfsyn.verify(str(run), quiet=True).problems
    assert not layout.strangers(run)


def test_scores_that_were_lost_are_made_again_with_the_same_bytes(run: Path, tmp_path: Path) -> None:
    scored(run, f"{tmp_path}/bright.py:bright")
    before = parquet_bytes(run)
    shards = list(layout.finished_shards(run / layout.SCORES / "bright"))
    assert len(shards) > 2
    layout.sidecar_of(shards[0]).unlink()
    shards[1].unlink()
    scored(run, f"{tmp_path}/bright.py:bright")
    assert parquet_bytes(run) == before


def test_scores_of_rows_that_have_changed_are_made_again(run: Path, tmp_path: Path) -> None:
    scored(run, f"{tmp_path}/bright.py:bright")
    shard = next(layout.finished_shards(run / layout.SCORES / "bright"))
    mark = layout.sidecar_of(shard)
    mark.write_text(mark.read_text().replace(json.loads(mark.read_text())["options"]["data"], "0" * 64))
    right = shard.read_bytes()
    shard.write_bytes(b"of other rows")
    scored(run, f"{tmp_path}/bright.py:bright")
    assert shard.read_bytes() == right


def test_a_name_keeps_the_scores_of_one_judge_until_it_is_told_to_overwrite(run: Path, tmp_path: Path) -> None:
    scored(run, f"{tmp_path}/bright.py:bright")
    before = parquet_bytes(run)
    (tmp_path / "bright.py").write_text(BRIGHT + "# edited\n")
    with pytest.raises(HfsynError, match=r"another judge: sha256 is \w+ there, \w+ here"):
        scored(run, f"{tmp_path}/bright.py:bright")
    assert parquet_bytes(run) == before
    scored(run, f"{tmp_path}/bright.py:bright", overwrite=True)
    assert json.loads((run / layout.MANIFEST).read_text())["judges"]["bright"]["facts"]["sha256"] == sha256_of(
        tmp_path / "bright.py"
    )


def test_columns_that_two_judges_share_have_the_judges_name_before_them(run: Path, tmp_path: Path) -> None:
    found = scored(run, f"{tmp_path}/bright.py:bright", f"again={tmp_path}/bright.py:bright")
    assert list(found["judges"]["again"]["columns"]) == ["again_level", "again_dark", "again_of"]
    assert list(found["judges"]["bright"]["columns"]) == ["bright_level", "bright_dark", "bright_of"]


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("bright.py:nothing", "has no function 'nothing'"),
        ("bright.py:count", "is not pure"),
        ("bright.py:fails", "KeyError"),
        ("bright.py:lists", "returned [1, 2]"),
        ("nothing.py:bright", "cannot be read"),
        ("data=bright.py:bright", "cannot be the name"),
        ("safety:", "does not say which safety"),
        ("crossfit:nowhere", "There is no folder nowhere"),
        ("no_such_network", "timm has no network 'no_such_network'"),
        ("copies:nowhere", "There is no folder and no variant 'nowhere'"),
    ],
)
def test_a_judge_that_cannot_be_had_is_told_in_one_line_and_writes_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path for path in run.rglob("*") if layout.LOCKS not in path.parts}
    with pytest.raises(HfsynError) as error:
        scored(run, judge)
    assert words in str(error.value)
    assert {path for path in run.rglob("*") if layout.LOCKS not in path.parts} == before


def test_a_function_of_a_run_folder_is_not_run(run: Path) -> None:
    (run / "judge.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(HfsynError, match="lies in a run folder"):
        scored(run, f"{run}/judge.py:judge")


def test_a_function_must_say_the_same_columns_of_all_images(run: Path, tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="the same columns for all images"):
        scored(run, f"{tmp_path}/bright.py:other")


def test_an_unfinished_run_and_a_set_on_the_hub_without_a_folder_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="keeps its scores itself"):
        scored(run, f"{tmp_path}/bright.py:bright", out=tmp_path / "elsewhere")
    (run / layout.MANIFEST).unlink()
    with pytest.raises(HfsynError, match="is not finished"):
        scored(run, f"{tmp_path}/bright.py:bright")


def test_an_image_that_cannot_be_judged_has_no_scores_and_its_reason_is_kept(run: Path) -> None:
    from hfsyn.runs.claims import mark_of

    where = Scored(RunFolder(run), run, mark_of(run))

    def of(rows: Any) -> Any:
        return [row["sample_id"] if row["sample_id"].endswith("0.png#0") else {"p": float("nan")} for row in rows]

    judge = Judge("j", {"p": "number"}, {"kind": "test"}, of)
    check_judge(where, judge)
    assert score_by(where, judge, WorkOptions(quiet=True))
    found = gather(where)
    assert found.judges["j"]["rejected"] > 0
    assert found.rows == len(rows_of(run)) == sum(entry.rows for entry in where.entries)
    assert all(row["p"] is None for row in rows_of(run))  # unknown, and NaN


def test_probability_margin_and_entropy_are_among_the_classes_of_the_set() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]], dtype=np.float32))
    right, wrong = answers(logits, ["a", "b", "c"], [{"wnid": "a"}, {"wnid": "c"}])
    assert right == pytest.approx({"p_label": 0.7, "margin": 0.5, "entropy": 0.8018, "predicted": "a"}, abs=1e-4)
    assert wrong == pytest.approx({"p_label": 0.1, "margin": -0.6, "entropy": 0.8018, "predicted": "a"}, abs=1e-4)


def test_a_copy_is_the_later_one_of_two_and_the_nearest_picture_is_named(run: Path) -> None:
    path = run / layout.DATA / "train-00000-of-00004.parquet"
    table = pq.read_table(path)
    ids, images = table["sample_id"].to_pylist(), table["image"].to_pylist()
    images[5] = images[2]
    from hfsyn.judging.scores.alike import copies_within_judge

    class Copied(Scored):
        def rows(self, name: str, columns: Any = None) -> list[dict[str, Any]]:
            rows = super().rows(name, columns)
            if name == path.name:
                for row, image in zip(rows, images, strict=True):
                    row["image"] = image
            return rows

    where = Copied(RunFolder(run), run)
    said = list(copies_within_judge("copies", where).of(where.rows(path.name)))
    assert [row["copy"] for row in said] == [number == 5 for number in range(len(said))]
    assert (said[2]["nearest"], said[5]["nearest"]) == (ids[5], ids[2])
    assert said[2]["likeness"] == pytest.approx(1, abs=1e-3)


def test_parts_are_decided_by_the_id_alone_and_a_training_leaves_its_part_out(run: Path) -> None:
    from hfsyn.judging.sets.image_set import open_images
    from hfsyn.judging.train.feeds import open_feed
    from hfsyn.recipes.training_recipe import load_train_config

    whole = open_images(str(run), default=("train",))
    config = load_train_config("shapes", ["data.fold=1/3"], {"data.train": [str(run)]})
    feed = open_feed(config)
    assert feed.images == sum(fold_of(name, 3) != 1 for name in whole.ids) < len(whole)
    assert feed.fingerprints == [whole.without_fold((1, 3)).fingerprint]


@pytest.mark.parametrize("fold", ["3/3", "0/1", "1", "a/b"])
def test_a_part_that_is_not_one_is_refused(fold: str, run: Path) -> None:
    from hfsyn.recipes.training_recipe import load_train_config

    with pytest.raises(HfsynError, match=r"data\.fold"):
        load_train_config("shapes", [f"data.fold={fold}"], {"data.train": [str(run)]})


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small networks with random weights, as trainings leave them."""
    from hfsyn.judging.classifier import save_classifier
    from hfsyn.judging.starting import new_classifier
    from hfsyn.recipes.training_recipe import load_train_config

    folder = tmp_path_factory.mktemp("networks")
    names = get_variant("shapes").classes
    classes = {info.wnid: info.name for info in names}
    for part in (0, 1):
        config = load_train_config("shapes", [f"seed={part}"], {"data.train": ["shapes"]})
        save_classifier(new_classifier(config, sorted(classes), classes), folder / str(part))
    return folder


def _as_trained(folder: Path, run: Path, parts: int = 2) -> None:
    from hfsyn.judging.sets.image_set import open_images

    whole = open_images(str(run), default=("train",))
    for part in range(parts):
        images = [whole.without_fold((part, parts)).fingerprint]
        told = {"config": {"data": {"fold": f"{part}/{parts}"}}, "training": {"images": images}}
        (folder / str(part) / "results.json").write_text(json.dumps(told))


def test_a_network_judges_only_what_it_was_trained_without(run: Path, networks: Path) -> None:
    _as_trained(networks, run)
    scored(run, f"crossfit:{networks}", f"zero={networks}/0", f"one={networks}/1")
    rows = rows_of(run)
    assert all(row["zero_p_label"] != row["one_p_label"] for row in rows)
    for row in rows:
        judge = "zero" if fold_of(row["sample_id"], 2) == 0 else "one"
        assert row["crossfit_p_label"] == pytest.approx(row[f"{judge}_p_label"], abs=2e-6)


def test_a_network_that_may_have_seen_the_images_or_a_missing_part_is_refused(run: Path, networks: Path) -> None:
    _as_trained(networks, run)
    told = networks / "1" / "results.json"
    told.write_text(told.read_text().replace('"images": ["', '"images": ["0'))
    with pytest.raises(HfsynError, match=r"trained on other images than those of .* without the part 1/2"):
        scored(run, f"crossfit:{networks}")
    told.unlink()
    with pytest.raises(HfsynError, match="no finished training without the part 1/2"):
        scored(run, f"crossfit:{networks}")


def test_a_classifier_without_a_class_of_the_set_is_refused(run: Path, networks: Path, tmp_path: Path) -> None:
    facts = networks / "0" / "model.json"
    other = Path(shutil.copytree(networks / "0", tmp_path / "other"))
    (other / "model.json").write_text(facts.read_text().replace("n13873502", "n01440764"))
    with pytest.raises(HfsynError, match=r"1 of the 10 classes of .* are not among the 10"):
        scored(run, str(other))


@pytest.mark.slow
def test_scores_are_the_same_bytes_in_one_two_and_three_processes(run: Path, networks: Path, tmp_path: Path) -> None:
    """`scripts/bench_scores.py --kills 20` does the same with kills."""
    from conftest import command

    copies = {n: Path(shutil.copytree(run, tmp_path / f"run-{n}")) for n in (1, 2, 3)}
    for processes, copy in copies.items():
        words = ("score", copy, "--judge", networks / "0", "--num-processes", str(processes), "--device", "cpu")
        done = command(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert parquet_bytes(copies[2]) == parquet_bytes(copies[3]) == parquet_bytes(copies[1]) != parquet_bytes(run)
