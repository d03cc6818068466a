"""Scores and selections on the Hub: a configuration of their own, and a version like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import finished_run

import hfsyn
from builders.runs import layout

JUDGE = """
def first(image, row):
    return {"first": row["sample_id"].endswith("#0"), "number": float(len(row["prompt"]))}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "judge.py").write_text(JUDGE)
    run = finished_run(folder, "prompt.images_per_caption=2")
    hfsyn.score(run, f"{folder}/judge.py:first", num_processes=1, quiet=True)
    # Of the second shard no row stays.
    gone = ", ".join(f"'{row['sample_id']}'" for row in hfsyn.load_run(run).dataset().select(range(8, 16)))
    hfsyn.select(run, folder / "kept", where=f"first AND sample_id NOT IN ({gone})", quiet=True)
    return run


def test_a_selection_is_the_next_version_of_its_parent(made: Path, alice: Any) -> None:
    """Line by line what a reader of both versions does."""
    kept = made.parent / "kept"
    for run, version in ((made, "1.0.0"), (kept, "1.1.0")):
        assert alice.hfsyn("publish", run, "alice/shapes", "--version", version, "-q").code == 0
    rows = {
        version: alice.python(
            "import datasets\n"
            f"ds = datasets.load_dataset('alice/shapes', split='train', revision='v{version}')\n"
            f"sc = datasets.load_dataset('alice/shapes', 'scores', split='train', revision='v{version}')\n"
            "result = [ds['sample_id'][:], sc['sample_id'][:], sc['first'][:]]"
        )
        for version in ("1.0.0", "1.1.0")
    }
    (every, scored, _), (some, scored_too, first) = rows.values()
    assert every == scored
    assert some == scored_too
    assert all(first)
    assert some == [name for name in every if name.endswith("#0") and name not in every[8:16]]

    found = alice.hfsyn("diff", "alice/shapes@v1.0.0", "alice/shapes@v1.1.0", "--json")
    why = json.loads(found.out)["why"]
    assert set(why) == set(every) - set(some)
    assert {reason for name, reason in why.items() if name.endswith("#1")} == {'"first" does not hold'}
    for version in ("1.0.0", "1.1.0"):
        assert alice.hfsyn("verify", f"alice/shapes@v{version}").code == 0
    manifest = json.loads((kept / layout.MANIFEST).read_text())
    assert manifest["selection"]["parent"]["manifest"] == json.loads((made / layout.MANIFEST).read_text())["sha256"]


def test_a_version_on_the_hub_can_be_scored_and_selected_from(made: Path, alice: Any, tmp_path: Path) -> None:
    alice.hfsyn("publish", made, "alice/more", "--version", "1.0.0", "-q")
    (tmp_path / "judge.py").write_text("def length(image, row):\n    return float(len(row['prompt']))\n")
    judge = f"{tmp_path}/judge.py:length"
    done = alice.hfsyn("score", "alice/more@v1.0.0", "--judge", judge, "--out", tmp_path / "s", "--num-processes", "1")
    assert done.code == 0, done.err
    words = ("--where", "length > 0", "--per-class", "2", "--scores", tmp_path / "s", "--out", tmp_path / "kept")
    done = alice.hfsyn("select", "alice/more@v1.0.0", *words)
    assert done.code == 0, done.err
    assert hfsyn.load_run(tmp_path / "kept").dataset().num_rows == 20
    parent = json.loads((tmp_path / "kept" / layout.MANIFEST).read_text())["selection"]["parent"]
    assert parent["version"] == "alice/more@v1.0.0"
    assert not hfsyn.verify(str(tmp_path / "kept"), quiet=True).problems


def test_a_later_version_without_scores_has_no_configuration_of_them(made: Path, alice: Any, tmp_path: Path) -> None:
    plain = finished_run(tmp_path, "prompt.images_per_caption=2")
    for run, version in ((made, "1.0.0"), (plain, "1.1.0")):
        done = alice.hfsyn("publish", run, "alice/less", "--version", version, "-q")
        assert done.code == 0, done.err
    code = "import datasets; result = datasets.get_dataset_config_names('alice/less', revision='v{}')"
    assert alice.python(code.format("1.0.0")) == ["default", "scores"]
    assert alice.python(code.format("1.1.0")) == ["default"]


def test_scores_that_were_changed_are_not_published(made: Path, alice: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made, tmp_path / "run"))
    (run / layout.SCORES_TABLE).write_bytes(b"PAR1 of someone else")
    done = alice.hfsyn("publish", run, "alice/changed", "--version", "1.0.0", "--dry-run")
    assert done.code == 3
    assert f"{layout.SCORES_TABLE} is not as {layout.MANIFEST} states it" in done.err
