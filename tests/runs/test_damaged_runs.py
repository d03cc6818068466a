"""Run folders to which something happened: what is lost, cut short, altered or another recipe's is said in one line by
every command, and made again to the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import Said, command, with_fakes
from conftest import finished_run

from builders.captioned import Captioned
from builders.runs import layout
from builders.synthetic import Synthetic

SMALL = ("--limit", "3", "--set", "store.shard_rows=8", "--set", "generate.batch_size=4")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`hfsyn build` of the recipe of `made` in this process, with fakes in place of the models."""
    with_fakes(monkeypatch)

    def run_it(out: Path, *more: str, recipe: str = "shapes-cip") -> Said:
        return command(capsys, "build", recipe, *SMALL, *more, "--num-processes", "1", "-q", "--out", str(out))

    return run_it


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run, of sidecars (which say how long it took) the name; the locks do not count."""
    return {
        path.relative_to(run).as_posix(): b"" if path.parent != run and path.suffix == ".json" else path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and layout.LOCKS not in path.parts
    }


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def readers(run: Path, out: Path) -> list[tuple[str, ...]]:
    """The commands that read the tables of a run."""
    return [
        ("status", str(run)),
        ("verify", str(run)),
        ("generate", str(run), "--num-processes", "1"),
        ("caption", str(run), "--num-processes", "1"),
        ("finish", str(run)),
        ("export-real", str(run), "--out", str(out)),
        ("build", "shapes-cip", *SMALL, "--num-processes", "1", "-q", "--out", str(run)),
    ]


@pytest.mark.parametrize("damage", [cut, alter])
@pytest.mark.parametrize("name", [layout.PLAN, layout.SOURCE])
def test_a_table_that_is_not_as_it_was_written_is_refused_by_all_who_read_it(
    run: Path,
    name: str,
    damage: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_fakes(monkeypatch)
    damage(run / name)
    wrong = {}
    for words in readers(run, tmp_path / "out"):
        said = command(capsys, *words)
        refused = said.code in (1, 2, 3, 4) and name in said.out + said.err and said.err.count("\n") <= 1
        if not refused:
            wrong[words[0]] = said
    assert wrong == {}
    way_out = command(capsys, "status", str(run)).err
    assert f"Delete {run / name}" in way_out


@pytest.mark.parametrize("damage", [cut, alter])
def test_a_damaged_table_is_made_again_to_the_same_bytes_once_it_is_deleted(
    run: Path, made: Path, build: Callable[..., Said], damage: Callable[[Path], None]
) -> None:
    for name in (layout.PLAN, layout.SOURCE):
        damage(run / name)
        assert build(run).code == 2
        (run / name).unlink()
    assert build(run).code == 0
    assert contents(run) == contents(made)


@pytest.mark.parametrize("damage", [cut, alter])
def test_a_damaged_manifest_is_said_in_one_line_and_written_again(
    run: Path,
    made: Path,
    build: Callable[..., Said],
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(run / layout.MANIFEST)
    for name in ("status", "verify"):
        said = command(capsys, name, str(run))
        assert (said.code, said.err.count("\n")) == (2, 1), said
        assert layout.MANIFEST in said.err
    assert build(run).code == 0
    assert contents(run) == contents(made)


def test_a_manifest_with_other_counts_is_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = json.loads((run / layout.MANIFEST).read_text(encoding="utf-8"))
    fields["classes"][0]["rows"] += 1
    fields["rows"] += 1
    (run / layout.MANIFEST).write_text(json.dumps(fields, indent=1), encoding="utf-8")
    said = command(capsys, "status", str(run))
    assert (said.code, "not as it was written" in said.err) == (2, True), said


SHARD = "data/train-00002-of-00004"


@pytest.mark.parametrize(
    "name",
    [
        f"{SHARD}.parquet",
        f"sidecars/{SHARD}.json",
        "captions/train-00001-of-00004.parquet",
        "plan.parquet",
        "source.parquet",
        "rejected.jsonl",
        "README.md",
        "preview/samples.png",
    ],
)
def test_a_finished_run_that_lost_a_file_says_so_and_gets_it_back(
    run: Path, made: Path, build: Callable[..., Said], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).unlink()
    said = command(capsys, "status", str(run))
    assert not said.out.endswith("\nfinished\n"), said
    assert Path(name).name in said.out + said.err
    said = command(capsys, "verify", str(run))
    assert said.code == 1, said
    assert Path(name).name in said.out
    assert build(run).code == 0
    assert contents(run) == contents(made)
    assert command(capsys, "status", str(run)).out.endswith("\nfinished\n")


def test_a_shard_that_was_cut_short_after_the_end_is_counted_and_made_again(
    run: Path, made: Path, build: Callable[..., Said], capsys: pytest.CaptureFixture[str]
) -> None:
    cut(run / f"{SHARD}.parquet")
    assert "not finished: 1 of 4 data shards" in command(capsys, "status", str(run)).out
    assert build(run).code == 0
    assert contents(run) == contents(made)


def test_a_shard_that_no_manifest_names_is_not_among_the_rows_of_a_finished_run(run: Path) -> None:
    rows = len(list(Synthetic(run=str(run)).as_streaming_dataset("train")))
    other = run / "data/train-00000-of-00007.parquet"
    shutil.copy(run / f"{SHARD}.parquet", other)
    shutil.copy(run / f"sidecars/{SHARD}.json", layout.sidecar_of(other))
    assert len(list(Synthetic(run=str(run)).as_streaming_dataset("train"))) == rows


def test_neither_builder_nor_training_nor_export_takes_a_finished_run_that_lost_a_shard(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / f"{SHARD}.parquet").unlink()
    said = {}
    for kind in (Synthetic, Captioned):
        try:
            said[kind.__name__] = f"{len(list(kind(run=str(run)).as_streaming_dataset('train')))} rows"
        except Exception as error:
            said[kind.__name__] = str(error)
    for words in (
        ("export-real", str(run), "--out", str(tmp_path / "real")),
        ("publish", str(run), "me/set", "--version", "1.0.0"),
        (
            "train",
            "--train-dataset",
            str(run),
            "--model",
            "test_resnet",
            "--epochs",
            "1",
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "trained"),
        ),
    ):
        found = command(capsys, *words)
        said[words[0]] = found.err if found.code in (2, 3, 4) else f"{found}"
    del said["publish"]  # which needs a login first
    assert {name: "1 of 4 data shards is missing" in text for name, text in said.items()} == dict.fromkeys(said, True)


def test_the_plan_of_another_recipe_is_refused_and_not_carried_out(
    run: Path, tmp_path: Path, build: Callable[..., Said], capsys: pytest.CaptureFixture[str]
) -> None:
    """What a kill inside --overwrite used to leave: nothing but the plan."""
    left = tmp_path / "left"
    left.mkdir()
    shutil.copy(run / layout.PLAN, left)
    before = contents(left)
    said = build(left, "--set", "seed=5", recipe="shapes-basic")
    assert (said.code, contents(left)) == (2, before)
    assert "plan.parquet" in said.err
    # And one that somebody copied beside another recipe's captions.
    assert build(tmp_path / "other", "--set", "seed=5").code == 0
    for name in ("plan.parquet", "plan.json"):
        shutil.copy(run / name, tmp_path / "other") if (run / name).exists() else None
    said = command(capsys, "verify", str(tmp_path / "other"))
    assert said.code == 1
    assert "plan.parquet" in said.out
    said = build(tmp_path / "other", "--set", "seed=5")
    assert said.code == 2, said
    assert "of another recipe" in said.err


@pytest.mark.parametrize("finished", [True, False])
def test_a_deleted_plan_is_made_again_byte_for_byte(
    run: Path, made: Path, build: Callable[..., Said], finished: bool
) -> None:
    for name in ("plan.parquet", "plan.json"):
        (run / name).unlink(missing_ok=True)
    if not finished:
        (run / layout.MANIFEST).unlink()
        for path in run.glob("**/data/train-00001*"):
            path.unlink()
    said = build(run)
    assert said.code == 0, said
    assert contents(run).get("plan.parquet") == (made / layout.PLAN).read_bytes()
    assert contents(run) == contents(made)


def test_a_recipe_that_was_edited_in_the_run_is_refused_with_the_way_out(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = run / layout.RECIPE
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("seed: 0", "seed: 1"), encoding="utf-8")
    for name in ("status", "finish", "generate", "verify"):
        said = command(capsys, name, str(run))
        assert said.code in (1, 2), said
        assert "recipe" in said.out + said.err
        assert said.err.count("\n") <= 1


def test_a_run_that_lost_its_recipe_is_refused_and_one_of_the_same_recipe_gets_it_back(
    run: Path, made: Path, build: Callable[..., Said]
) -> None:
    (run / layout.RECIPE).unlink()
    before = contents(run)
    said = build(run, "--set", "seed=5")
    assert (said.code, contents(run)) == (2, before), said
    assert "without the recipe.yaml" in said.err
    assert build(run).code == 0
    assert contents(run) == contents(made)


def test_captions_of_another_source_are_not_taken_for_those_of_the_index_that_is_made_again(
    run: Path, build: Callable[..., Said]
) -> None:
    shards = sorted((run / layout.CAPTIONS).glob("*.parquet"))
    table = pq.read_table(shards[0])
    pq.write_table(table.slice(1, 1), shards[0])
    (run / layout.SOURCE).unlink()
    said = build(run)
    assert (said.code, said.err.count("\n")) == (2, 1), said
    assert "is not what it was when this run began" in said.err
