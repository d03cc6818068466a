"""References: one grammar for every kind of dataset, labels that meet by wnid, one line for what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PHOTOGRAPHS, needs_photographs, run_folder
from drawn_tables import NAMES, WNIDS, rows_of, write_table
from PIL import Image

from builders.errors import DataError
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.image_set import TRAIN, open_images
from hfsyn.judging.sets.references import Reference, parse_dataset
from hfsyn.judging.sets.shared import shared_images

TWO = {
    "name": "two",
    "splits": {"train": 2},
    "path": "runs/cip",
    "classes": [{"id": name, "name": name} for name in ("heart", "star")],
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("imagenette", Reference("variant", "imagenette", "imagenette")),
        ("imagenette@abc", Reference("variant", "imagenette", "imagenette", "abc")),
        ("shapes:0.5", Reference("variant", "shapes", "shapes", weight=0.5)),
        ("user/name@v1.0.0", Reference("hub", "user/name", None, "v1.0.0")),
        ("user/name@v1.0.0#basic:2", Reference("hub", "user/name", None, "v1.0.0", "basic", 2.0)),
        ("hf://datasets/user/name", Reference("hub", "user/name")),
        ("imagenette=user/name@main", Reference("hub", "user/name", "imagenette", "main")),
    ],
)
def test_a_reference_is_taken_apart(text: str, found: Reference) -> None:
    assert parse_dataset(text) == found


def test_what_is_on_the_disk_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_dataset("runs/cip").kind == "hub"
    (tmp_path / "runs" / "cip").mkdir(parents=True)
    assert parse_dataset("runs/cip") == Reference("local", "runs/cip")
    assert parse_dataset("runs/cip:0.25") == Reference("local", "runs/cip", weight=0.25)
    assert parse_dataset("tiny-imagenet=runs/cip:3") == Reference("local", "runs/cip", "tiny-imagenet", weight=3.0)
    assert parse_dataset("hf://datasets/runs/cip").kind == "hub"
    (tmp_path / "lr=0.1" / "run").mkdir(parents=True)
    assert parse_dataset("lr=0.1/run:0.25") == Reference("local", "lr=0.1/run", weight=0.25)
    (tmp_path / "two.yaml").write_text(json.dumps(TWO))
    assert parse_dataset("two.yaml:2") == replace(parse_dataset("two.yaml"), weight=2.0)
    assert parse_dataset("two.yaml").place == "runs/cip"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imagenete", "Did you mean 'imagenette'"),
        ("imagenete=user/name", "Did you mean 'imagenette'"),
        ("./nothing", "neither a folder nor a file"),
        ("no/such/folder/at/all", "neither a folder nor a file"),
        ("user/name@", "names no dataset"),
        ("shapes@v1", "is drawn and has no revisions"),
        ("imagenette#config", "takes only @REVISION"),
        ("shapes:0", "must be above 0"),
        ("", "names no dataset"),
    ],
)
def test_what_is_no_reference_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(HfsynError) as error:
        parse_dataset(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_drawn_variant_opens_with_its_own_splits() -> None:
    train = open_images("shapes", default=TRAIN, limit=3)
    assert (train.split, len(train), train.classes) == ("train", 30, tuple(sorted(WNIDS)))
    assert open_images("shapes").split == "test"
    assert open_images("shapes", limit=3).fingerprint != train.fingerprint
    with pytest.raises(HfsynError, match=r"no split 'nothing'.*It has: train, test"):
        open_images("shapes", "nothing")


@pytest.mark.parametrize("wnid", [False, True])
def test_labels_become_wnids_whatever_their_order(tmp_path: Path, wnid: bool) -> None:
    rows = rows_of(20)
    there = write_table(tmp_path / "a" / "train.parquet", rows, wnid=wnid)
    other = write_table(tmp_path / "b" / "train.parquet", rows, names=NAMES[::-1])
    assert open_images(str(there), "train").wnids == open_images(str(other.parent), "train").wnids


def test_images_are_the_stored_bytes(tmp_path: Path) -> None:
    rows = rows_of(12)
    opened = open_images(str(write_table(tmp_path / "data.parquet", rows, bad={3})))
    assert [opened.images[i] for i in range(12)] == [
        b"no image" if i == 3 else image for i, (_, image) in enumerate(rows)
    ]


def test_a_run_folder_opens_when_it_is_finished(tmp_path: Path) -> None:
    from fakes import FakeCaptioner, FakeGenerator

    from hfsyn.captions.caption_stage import caption
    from hfsyn.images.generate_stage import generate
    from hfsyn.runs.finish import finish
    from hfsyn.runs.run import load_run

    run = load_run(run_folder(tmp_path, recipe="shapes-basic"))
    with pytest.raises(HfsynError, match="no finished shard"):
        open_images(str(run.folder))
    caption(run, captioner=FakeCaptioner(), quiet=True)
    generate(run, generator=FakeGenerator(), quiet=True)
    with pytest.raises(HfsynError, match="is not finished"):
        open_images(str(run.folder))
    finish(run)
    opened = open_images(str(run.folder))
    assert (opened.split, len(opened), opened.classes) == ("train", 30, tuple(sorted(WNIDS)))
    assert opened.revision == run.fingerprint


def test_a_file_without_a_split_is_the_same_set_whatever_it_is_used_for(tmp_path: Path) -> None:
    table = str(write_table(tmp_path / "three.parquet", rows_of(12)))
    trained, tested = open_images(table, default=TRAIN), open_images(table)
    assert (trained.split, tested.split) == ("train", "validation")
    assert trained.fingerprint == tested.fingerprint
    assert shared_images(trained, tested) == set(range(12))
    # Their ids are row numbers and their classes take turns alike: only the images tell the sets apart.
    other = open_images(str(write_table(tmp_path / "other.parquet", rows_of(12, split="test"))))
    assert (other.wnids, other.fingerprint == tested.fingerprint) == (tested.wnids, False)
    assert shared_images(trained, other) == set()


def test_images_that_two_sets_share_are_counted_by_their_bytes(tmp_path: Path) -> None:
    rows, fresh = rows_of(40), rows_of(40, split="test")
    trained = open_images(str(write_table(tmp_path / "a.parquet", rows)), default=TRAIN)
    half = open_images(str(write_table(tmp_path / "b.parquet", [*rows[:20], *fresh[20:]])))
    assert shared_images(trained, half) == set(range(20))
    assert shared_images(open_images("shapes", "train", limit=5), open_images("shapes", "test", limit=5)) == set()
    assert len(shared_images(open_images("shapes", "train", limit=2), open_images("shapes", "train", limit=5))) == 20


def test_images_are_found_again_whatever_their_files_are_called(tmp_path: Path) -> None:
    """In folders and tables, in other classes, under other names; of other bytes of equal length none is taken."""
    noise = np.random.default_rng(2)
    pictures = [noise.integers(0, 256, (20, 20, 3), dtype=np.uint8) for _ in range(30)]

    def folders(name: str, numbers: Sequence[int], names: str, shift: int = 0) -> str:
        for place, number in enumerate(numbers):
            folder = tmp_path / name / "val" / ("n01440764", "n02102040", "n02979186")[(number + shift) % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[number]).save(folder / f"{names}{place}.bmp")  # all of one length
        return f"imagenet-1k={tmp_path / name}"

    mine = open_images(folders("mine", range(20), "a"))
    renamed = open_images(folders("renamed", [3, 25, 7, 26], "other", shift=1))
    shared = shared_images(mine, renamed)
    assert sorted(renamed.images[number] for number in shared) == sorted(
        data for number in range(20) if (data := mine.images[number]) in {renamed.images[n] for n in range(4)}
    )
    assert len(shared) == 2
    rows = [(NAMES[0], renamed.images[number]) for number in range(4)]
    table = open_images(str(write_table(tmp_path / "t.parquet", rows)))
    assert len(shared_images(mine, table)) == 2
    assert len(shared_images(table, mine)) == 2


def test_drawings_are_compared_with_files_of_them(tmp_path: Path) -> None:
    drawn = open_images("shapes", "train", limit=2)
    files = open_images(
        str(write_table(tmp_path / "t.parquet", [(NAMES[0], drawn.images[number]) for number in (1, 4)]))
    )
    assert shared_images(drawn, files) == {0, 1}
    assert shared_images(files, drawn) == {1, 4}


def test_each_image_of_large_sets_is_compared(tmp_path: Path) -> None:
    rows, other = rows_of(120), rows_of(120, split="test")
    trained = open_images(str(write_table(tmp_path / "a.parquet", rows)), default=TRAIN)
    assert len(shared_images(trained, open_images(str(write_table(tmp_path / "b.parquet", rows))))) == 120
    some = [*rows[:100], *other[100:]]
    assert shared_images(trained, open_images(str(write_table(tmp_path / "c.parquet", some)))) == set(range(100))


@needs_photographs
def test_photographs_open_by_folder_and_their_classes_are_a_part_of_the_variant() -> None:
    opened = open_images(f"tiny-imagenet={PHOTOGRAPHS}", default=TRAIN)
    test = open_images(str(PHOTOGRAPHS))  # named by wnid: the variant need not be stated
    assert (len(opened), len(test), opened.classes) == (3000, 500, test.classes)
    assert not opened.complete


def test_tables_that_cannot_be_used_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = rows_of(4)
    empty = write_table(tmp_path / "empty.parquet", [])
    numbers = write_table(tmp_path / "numbers.parquet", rows, label="number")
    unlabelled = write_table(tmp_path / "unlabelled.parquet", rows, label=None)
    imageless = tmp_path / "imageless.parquet"
    Dataset.from_dict({"label": ["circle"]}).to_parquet(imageless)
    strange = write_table(tmp_path / "strange.parquet", [("gizmo", rows[0][1])], names=["gizmo"])
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(strange.read_bytes()[:200])
    folder = tmp_path / "classes" / "gizmo"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(rows[0][1])
    for place, said in (
        (empty, "is empty"),
        (numbers, "numbers without names"),
        (unlabelled, "no column of classes"),
        (imageless, "no column of images"),
        (strange, "'gizmo'"),
        (torn, "cannot be read"),
        (folder.parent, "VARIANT="),
    ):
        with pytest.raises((HfsynError, DataError)) as error:
            open_images(str(place))
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_the_hub_is_not_asked_when_it_is_switched_off() -> None:
    for reference in ("imagenette", "user/name@v1.0.0"):
        with pytest.raises((HfsynError, DataError)) as error:
            open_images(reference)
        assert "\n" not in str(error.value)
