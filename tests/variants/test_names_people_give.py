"""Names as people give them: ids that tell classes apart, files of any bytes, classes as they are said aloud."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from command import command as hfsyn
from conftest import finished_run, run_folder
from drawn_tables import rows_of, write_table

from builders.errors import DataError
from builders.sources import open_source
from builders.sources.new_class_map import new_variant
from builders.variants.class_maps import class_id, read_variant
from hfsyn.errors import HfsynError

PICTURE = rows_of(1)[0][1]


def photographs(root: Path, *files: bytes | str, each: int = 1) -> Path:
    """A folder of these image files; a name that ends in a slash stands for `each` of them."""
    for file in files:
        name = file if isinstance(file, bytes) else file.encode()
        several = [name + b"%d.png" % number for number in range(each)] if name.endswith(b"/") else [name]
        for place in several:
            path = Path(os.fsdecode(os.fsencode(root) + b"/" + place))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PICTURE)
    return root


def class_map(file: Path, folder: Path, names: Mapping[str, str]) -> Path:
    """A class map written by hand: id -> name; folders are called by the id's last word."""
    classes = [{"id": key, "name": name, "label": key} for key, name in names.items()]
    fields = {"name": file.stem, "splits": {"train": None}, "path": str(folder), "classes": classes}
    file.write_text(yaml.safe_dump(fields))
    return file


# --- ids -------------------------------------------------------------------------------------------------------------

DIFFERENT: Sequence[tuple[str, ...]] = [
    ("犬", "猫", "牛", "鳥"),
    ("Öl", "Äl", "Ol", "l"),
    ("Polish", "polish"),
    ("C", "C++", "C#"),
    ("😀", "😃", "👩‍🚀"),
    ("a" * 64, "a" * 65, "a" * 66),
    ("x" * 70 + "é", "x" * 70 + "è"),
    ("dog-rose", "dog rose"),
    ("1/2", "1 2", "½"),
    ("кот", "кит"),
    ("قطة", "كلب"),
    ("naïve", "naive", "nave"),
    ("?", "!", "-"),
    ("%D6l", "D6l"),
]


@pytest.mark.parametrize("labels", DIFFERENT, ids=range(len(DIFFERENT)))
def test_labels_that_differ_have_ids_that_differ(labels: tuple[str, ...]) -> None:
    ids = [class_id(label) for label in labels]
    assert len(set(ids)) == len(labels)
    assert all(identity.isascii() and identity and len(identity) <= 64 for identity in ids)
    assert all(
        set(identity) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") for identity in ids
    )
    assert all(identity[0].isalnum() for identity in ids)


def test_one_label_has_one_id_however_its_letters_are_composed_and_its_blanks_written() -> None:
    assert class_id("Caf\u00e9 au lait") == class_id("Cafe\u0301 au lait") != class_id("Cafe au lait")
    assert class_id("dog_rose") == class_id(" dog  rose ") == "dog_rose"
    assert class_id("Golden_Retriever") == "Golden_Retriever"


def test_sets_in_other_scripts_do_not_pass_for_one_another(tmp_path: Path) -> None:
    found = []
    for name, words in (("a", ("犬", "猫")), ("b", ("牛", "鳥")), ("c", ("Öl", "Äl")), ("d", ("Ol", "Al"))):
        folder = photographs(tmp_path / name, *(f"{word}/" for word in words))
        found += [
            info.wnid for info in read_variant(new_variant(name, str(folder), out=tmp_path / f"{name}.yaml"))[0].classes
        ]
    assert len(set(found)) == 8


def test_words_with_joiners_are_names(tmp_path: Path) -> None:
    words = ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f680"]
    folder = photographs(tmp_path / "joined", *(f"{word}/" for word in words))
    made = attempt(lambda: new_variant("joined", str(folder), out=tmp_path / "joined.yaml"))
    assert isinstance(made, Path), made
    assert sorted(info.name for info in read_variant(made)[0].classes) == sorted(words)


def test_one_label_in_two_compositions_is_one_class(tmp_path: Path) -> None:
    folder = photographs(
        tmp_path / "oils", "train/\u00d6l/1.png", "train/O\u0308l/2.png", "train/Fett/1.png", "val/O\u0308l/3.png"
    )
    try:
        variant, path = read_variant(new_variant("oils", str(folder), out=tmp_path / "oils.yaml"))
    except DataError as error:
        pytest.fail(str(error))
    assert sorted(info.name for info in variant.classes) == ["Fett", "\u00d6l"]
    entries = list(open_source(variant.name, "train", path=path).index())
    assert [entry.source_id.rpartition("/")[2] for entry in entries if not entry.wnid.startswith("Fett")] == [
        "1.png",
        "2.png",
    ]
    assert len(list(open_source(variant.name, "validation", path=path).index())) == 1


# --- where two sets meet ---------------------------------------------------------------------------------------------


@pytest.fixture
def crossed(tmp_path: Path) -> tuple[Path, Path]:
    """Class maps of two folders with the same ids, one of which means something else in each."""
    first = photographs(tmp_path / "tools", "crane/", "drill/", each=4)
    second = photographs(tmp_path / "birds", "crane/", "drill/", each=4)
    return (
        class_map(tmp_path / "tools.yaml", first, {"crane": "crane (machine)", "drill": "drill"}),
        class_map(tmp_path / "birds.yaml", second, {"crane": "crane (bird)", "drill": "Drill"}),
    )


def given(*sets: object) -> list[object]:
    """Training sets as options."""
    return [word for one in sets for word in ("--train-dataset", one)]


SAID = "The class crane is 'crane (machine)' in "


def test_training_on_two_sets_whose_ids_mean_other_things_is_refused(
    tmp_path: Path, crossed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--model", "test_vit", "--image-size", "16", "--epochs", "1", "--budget", "4", "--batch-size", "4", "-q")
    code, _, err = hfsyn(
        capsys, "train", *given(*crossed), *small, "--device", "cpu", "--num-workers", "0", "--out", tmp_path / "out"
    )
    assert code == 2
    assert SAID in err
    assert err.count("\n") == 1


def test_a_classifier_is_not_tested_on_a_set_whose_ids_mean_other_things(
    tmp_path: Path, crossed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from hfsyn.judging.classifier import save_classifier
    from hfsyn.judging.starting import new_classifier
    from hfsyn.recipes.training_recipe import load_train_config

    config = load_train_config({"data": {"train": ["shapes"]}, "model": {"name": "test_vit", "image_size": 16}})
    for name, drill in (("model", "crane (machine)"), ("bird", "Crane_(bird)")):
        save_classifier(new_classifier(config, ["crane", "drill"], {"crane": drill, "drill": "drill"}), tmp_path / name)
    words = ("--split", "train", "--device", "cpu", "-q")
    code, _, err = hfsyn(capsys, "evaluate", tmp_path / "model", crossed[1], *words)
    assert code == 2
    assert f"{SAID}{tmp_path / 'model'} and 'crane (bird)' in " in err
    code, _, err = hfsyn(capsys, "evaluate", tmp_path / "bird", crossed[1], *words)
    assert (code, err) == (0, "")
    code, _, err = hfsyn(capsys, "fidelity", *crossed, "--features", tmp_path / "model", "--device", "cpu")
    assert code == 2
    assert SAID in err


def test_tables_are_compared_by_the_names_of_their_own_class_map(
    tmp_path: Path, crossed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("crane" if number % 2 else "drill", image) for number, (_, image) in enumerate(rows_of(8))]
    for name in ("tools", "birds"):
        write_table(tmp_path / f"{name}.parquet", rows, names=["crane", "drill"])
    sets = [f"{file}={tmp_path / file.stem}.parquet" for file in crossed]
    small = ("--model", "test_vit", "--image-size", "16", "--epochs", "1", "--budget", "4", "--batch-size", "4", "-q")
    code, _, err = hfsyn(
        capsys, "train", *given(*sets), *small, "--device", "cpu", "--num-workers", "0", "--out", tmp_path / "out"
    )
    assert code == 2
    assert SAID in err


# --- names of files --------------------------------------------------------------------------------------------------

FILES = {
    b"cat/caf\xe9.png": "caf%E9.png",
    b"cat/caf%E9.png": "caf%25E9.png",
    b"cat/50%25.png": "50%2525.png",
    b"cat/a%20b.png": "a%20b.png",
    b"cat/line\nbreak\x1b[31m.png": "line%0Abreak%1B[31m.png",
    b"cat/#1#2.png": "#1#2.png",
    "cat/\u05d0\u05d1.png".encode(): "\u05d0\u05d1.png",
    "cat/turned\u202egnp.png".encode(): "turned%E2%80%AEgnp.png",
    "cat/\u00e9.png".encode(): "\u00e9.png",
    "cat/e\u0301.png".encode(): "e\u0301.png",
    "cat/\u2028.png".encode(): "%E2%80%A8.png",
    b"cat/" + b"n" * 251 + b".png": "n" * 251 + ".png",
    b"cat/ .png": " .png",
}
"""Path of a file -> what its id says."""


@pytest.fixture
def oddly_named(tmp_path: Path) -> Path:
    """The class map of a folder of such files, one of which is not an image."""
    folder = photographs(tmp_path / "odd", *FILES, "dog/0.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/dog/bad\xff.png")).write_bytes(b"no image")
    return new_variant("odd", str(folder), out=tmp_path / "odd.yaml")


def attempt(work: Callable[[], Any]) -> Any:
    """What some work gives, or in words how it ended."""
    try:
        return work()
    except (HfsynError, UnicodeError) as error:
        return f"{type(error).__name__}: {error}"


def test_files_of_any_name_are_read_by_their_true_bytes(oddly_named: Path) -> None:
    variant, path = read_variant(oddly_named)
    source = open_source(variant.name, "train", path=path)
    entries = list(source.index())
    assert [entry.source_id for entry in entries if entry.wnid == "cat"] == [
        f"cat/{name}" for name in sorted(FILES.values())
    ]
    assert len({entry.source_id for entry in entries}) == len(entries)
    assert {(row.problem, row.image) for row in source.read(entries)} == {("", PICTURE), ("", b"no image")}
    assert all(entry.location.encode() for entry in entries)


def test_a_whole_run_over_files_of_any_name_is_made_and_seen(
    tmp_path: Path, oddly_named: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = attempt(lambda: finished_run(tmp_path, f"source.variant={oddly_named}", "source.limit_per_class=null"))
    assert isinstance(made, Path), made
    stored = {
        row for table in (made / "data").glob("*.parquet") for row in pq.read_table(table)["source_id"].to_pylist()
    }
    assert stored == {*(f"cat/{name}" for name in FILES.values()), "dog/0.png"}
    rejected = [json.loads(line) for line in (made / "rejected.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rejected] == ["dog/bad%FF.png"]
    assert (made / "README.md").read_text()
    for words in (
        ("status", made),
        ("verify", made),
        ("variants", "peek", oddly_named, "--out", tmp_path / "sheet.png"),
    ):
        code, out, err = hfsyn(capsys, *words)
        assert (code, (out + err).replace("\n", "").isprintable()) == (0, True), err


def test_files_of_any_name_are_trained_on(tmp_path: Path, oddly_named: Path) -> None:
    from hfsyn.judging.sets.image_set import open_images

    images = open_images(str(oddly_named), "train")
    assert sum(images.images[number] == PICTURE for number in range(len(images))) == len(FILES) + 1
    made = attempt(lambda: images.fingerprint)
    assert len(made) == 64, made


def test_a_class_folder_that_is_not_utf8_wants_a_name_and_has_an_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs(tmp_path / "oils", b"\xd6l/1.png", b"\xc4l/1.png")
    code, _, err = attempt(lambda: hfsyn(capsys, "variants", "new", "oils", "--from", tmp_path / "oils")) or (0, "", "")
    fields = (
        yaml.safe_load((tmp_path / "oils.yaml").read_text()) if (tmp_path / "oils.yaml").exists() else {"classes": []}
    )
    assert (code, [row["name"] for row in fields["classes"]]) == (0, [None, None]), err
    for row, name in zip(fields["classes"], ("\u00c4l", "\u00d6l"), strict=True):
        row["name"] = name
    (tmp_path / "oils.yaml").write_text(yaml.safe_dump(fields))
    variant, path = read_variant(tmp_path / "oils.yaml")
    assert len(list(open_source(variant.name, "train", path=path).index())) == 2


@pytest.fixture(autouse=True)
def _stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


# --- names of classes ------------------------------------------------------------------------------------------------


def named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *labels: str, **lists: str
) -> tuple[list[tuple[Any, Any]], str]:
    """Id and name of each class of a new class map, and what was said of them."""
    folder = photographs(tmp_path / "photos", *(f"{label}/" for label in labels))
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    (tmp_path / "mine.yaml").unlink(missing_ok=True)
    caplog.clear()
    main_ended = attempt(lambda: new_variant("mine", str(folder), out=tmp_path / "mine.yaml"))
    assert isinstance(main_ended, Path), main_ended
    fields = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    return [(row["id"], row["name"]) for row in fields["classes"]], caplog.text


def test_numbers_in_front_and_underscores_are_not_said_in_prompts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, said = named(tmp_path, caplog, "001.Black_footed_Albatross", "002.Laysan_Albatross")
    assert [name for _, name in rows] == ["Black footed Albatross", "Laysan Albatross"]
    assert [identity for identity, _ in rows] == ["Black_footed_Albatross", "Laysan_Albatross"]
    assert "001.Black_footed_Albatross -> Black footed Albatross" in said
    run = run_folder(tmp_path, f"source.variant={tmp_path / 'mine.yaml'}", recipe="shapes-basic")
    assert "Black footed Albatross" in (run / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("01-daisy", "02-rosa_canina"), ["daisy", "rosa canina"]),
        (("Rosa_canina", "7_up"), ["7 up", "Rosa canina"]),
        (("1-dog", "2-dog"), ["1-dog", "2-dog"]),
        (("n02085620-Chihuahua", "n02115641_dingo"), ["Chihuahua", "dingo"]),
        (("n02084071-Some_dog", "n01440764-tench"), ["tench", "Some dog"]),
    ],
)
def test_names_are_cleaned_where_all_labels_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: tuple[str, ...], names: list[str]
) -> None:
    rows, _ = named(tmp_path, caplog, *labels)
    assert [name for _, name in rows] == names
    assert len({identity for identity, _ in rows}) == len(labels)


def test_a_wordnet_id_that_nothing_names_is_asked_for_and_one_that_a_list_names_is_looked_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, said = named(tmp_path, caplog, "n02084071", "n01440764")
    assert rows == [("n01440764", "tench"), ("n02084071", None)]
    assert "'n02084071'" in said
    with pytest.raises(DataError, match=r"The class n02084071 of .* has no name"):
        read_variant(tmp_path / "mine.yaml")
    rows, said = named(
        tmp_path, caplog, "n02084071", "n01440764", words="n00001740\tentity\nn02084071\tdog, domestic dog\n"
    )
    assert rows == [("n01440764", "tench"), ("n02084071", "dog")]
    assert "found in the lists beside the folders: 1." in said
