"""Tables as people have them: every command finds the same image, label, class and split, or says why it does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from drawn_tables import rows_of

from builders.errors import DataError
from builders.sources import open_source
from hfsyn.cli import main
from hfsyn.errors import HfsynError
from hfsyn.judging.sets.image_set import TRAIN, open_images

TENCH, SPRINGER = "n01440764", "n02102040"
PICTURES = [image for _, image in rows_of(12)]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """A command in this process, in the test's folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def write(path: Path, columns: Mapping[str, Any], names: Mapping[str, Sequence[str]] | None = None) -> Path:
    """A table of drawings; `names` are label names as `datasets` keeps them in the file."""
    count = len(next(iter(columns.values())))
    images = {} if {"image", "picture"} & columns.keys() else {"image": pa.array(PICTURES[:count], pa.binary())}
    table = pa.table({**images, **columns})
    if names is not None:
        kinds = {column: {"names": list(said), "_type": "ClassLabel"} for column, said in names.items()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def indexed(variant: str, path: Path, split: str = "train") -> list[str] | str:
    """The classes as `build` reads them, or what it says instead."""
    try:
        return [entry.wnid for entry in open_source(variant, split, path=path).index()]
    except (DataError, HfsynError) as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def opened(reference: str, split: str | None = None) -> list[str] | str:
    """The classes as `train` and `evaluate` read them, or what they say instead."""
    try:
        return list(open_images(reference, split, default=TRAIN).wnids)
    except (DataError, HfsynError) as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def alike(path: Path, variant: str = "imagenette") -> list[str] | str:
    """The classes, which must be the same for `build` and for `train`."""
    found = indexed(variant, path)
    assert opened(f"{variant}={path}") == found or isinstance(found, str)
    return found


# --- labels that are not classes ------------------------------------------------------------------------------------


def test_labels_that_match_nothing_are_listed_and_no_others(tmp_path: Path) -> None:
    """One of three is not a class of ImageNet; none is a class of the drawn variant, which nobody asked for."""
    table = write(tmp_path / "train.parquet", {"label": [TENCH, SPRINGER, "a quokka"]})
    said = opened(str(table))
    assert isinstance(said, str)
    assert said.startswith("1 of the labels")
    assert "'a quokka'" in said
    assert TENCH not in said


def test_of_two_columns_the_one_that_nearly_fits_says_what_does_not(tmp_path: Path) -> None:
    table = write(tmp_path / "train.parquet", {"label": ["one", "two"], "class": [TENCH, "a quokka"]})
    said = indexed("imagenette", table)
    assert "1 of the labels" in said
    assert "'a quokka'" in said
    assert "'one'" not in said


# --- which column is the label --------------------------------------------------------------------------------------


def test_two_columns_that_disagree_are_both_named_by_every_command(command: Command, tmp_path: Path) -> None:
    table = write(tmp_path / "train.parquet", {"fine_label": [TENCH, SPRINGER], "class": [SPRINGER, TENCH]})
    found = [
        indexed("imagenette", table),
        opened(f"imagenette={table}"),
        opened(str(table)),
        command("variants", "new", "mine", "--from", table)[2],
        command("plan", "shapes-basic", "--set", "source.variant=imagenette", "--set", f"source.path={table}")[2],
    ]
    for said in found:
        assert "could be the label, and they disagree" in said
        assert "fine_label" in said
        assert "'class'" in said
        assert "--label-column" in said
        assert "\n" not in str(said).strip()


@pytest.mark.parametrize(("column", "classes"), [("fine_label", [TENCH, SPRINGER]), ("class", [SPRINGER, TENCH])])
def test_the_column_that_was_chosen_is_read_by_every_command(
    command: Command, tmp_path: Path, column: str, classes: list[str]
) -> None:
    table = write(tmp_path / "train.parquet", {"fine_label": [TENCH, SPRINGER], "class": [SPRINGER, TENCH]})
    code, _, err = command("variants", "new", "mine", "--from", table, "--label-column", column)
    assert (code, err) == (0, "")
    assert indexed("mine.yaml", table) == classes
    assert opened(f"mine.yaml={table}") == opened("mine.yaml") == classes


@pytest.mark.parametrize("column", ["target", "class", "fine_label", "labels", "synset", "class_name"])
def test_a_lone_column_of_classes_is_found_by_every_command(command: Command, tmp_path: Path, column: str) -> None:
    table = write(tmp_path / "train.parquet", {column: [TENCH, SPRINGER]})
    assert alike(table) == [TENCH, SPRINGER]
    assert opened(str(table)) == [TENCH, SPRINGER]
    assert command("variants", "new", "mine", "--from", table)[0] == 0


def test_columns_that_agree_in_other_words_are_one_label(command: Command, tmp_path: Path) -> None:
    columns = {"label": [1, 0], "class_name": ["tench", "English springer"], "synset": [TENCH, SPRINGER]}
    table = write(tmp_path / "train.parquet", columns, {"label": [SPRINGER, TENCH]})
    assert alike(table) == [TENCH, SPRINGER]
    assert command("variants", "new", "mine", "--from", table)[0] == 0
    table = write(tmp_path / "train.parquet", {**columns, "label": [0, 1]}, {"label": [SPRINGER, TENCH]})
    assert "they disagree: in row 0, 'synset' says 'n01440764' and 'label' says 'n02102040'" in alike(table)


def test_numbers_without_names_step_back_behind_words(command: Command, tmp_path: Path) -> None:
    table = write(tmp_path / "train.parquet", {"label": [7, 3], "class_name": ["tulip", "rose"]})
    assert command("variants", "new", "mine", "--from", table)[0] == 0
    assert indexed("mine.yaml", table) == opened("mine.yaml") == ["tulip", "rose"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (pa.array([0.0, 1.0, float("nan"), None]), [TENCH, SPRINGER]),
        (pa.array([True, False, None, False]), [SPRINGER, TENCH, TENCH]),
        (pa.array([0, 1, -1, None], pa.int8()), [TENCH, SPRINGER]),
        (pa.array([0, 1, 0, 1], pa.uint16()), [TENCH, SPRINGER, TENCH, SPRINGER]),
    ],
    ids=["float", "bool", "int8", "uint16"],
)
def test_numbers_of_every_type_are_label_numbers(tmp_path: Path, labels: pa.Array, classes: list[str]) -> None:
    table = write(tmp_path / "train.parquet", {"label": labels}, {"label": [TENCH, SPRINGER]})
    assert alike(table) == classes
    source = open_source("imagenette", "train", path=table)
    assert len(list(source.index())) == len(classes)
    without = len(labels) - len(classes)
    assert getattr(source, "left_out", None) == ({"row without a label": without} if without else {})
    assert open_images(f"imagenette={table}").left_out == source.left_out


def test_a_number_that_is_not_whole_is_said_with_its_row(command: Command, tmp_path: Path) -> None:
    table = write(tmp_path / "train.parquet", {"label": [0.0, 0.5]}, {"label": [TENCH, SPRINGER]})
    for said in (alike(table), opened(str(table)), command("variants", "new", "mine", "--from", table)[2]):
        assert "in row 1 of" in said
        assert "is 0.5, which is not a whole number" in said


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (pa.array([[TENCH], [SPRINGER]]), "holds list<"),
        (pa.array([{"a": TENCH}, {"a": SPRINGER}]), "holds struct<"),
        (pa.array([TENCH, "gizmo"]), "'gizmo'"),
        (pa.array([0, 1]), "numbers without names"),
        (pa.array([None, None], pa.string()), "no rows with a label"),
    ],
    ids=["lists", "structs", "strangers", "bare numbers", "nothing"],
)
def test_what_is_not_one_label_an_image_is_refused_in_one_line(tmp_path: Path, labels: pa.Array, said: str) -> None:
    table = write(tmp_path / "train.parquet", {"label": labels})
    for found in (indexed("imagenette", table), opened(f"imagenette={table}")):
        assert said in found
        assert "Error:" not in found
        assert "\n" not in found


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_words_of_every_type_are_labels(tmp_path: Path, kind: pa.DataType) -> None:
    table = write(tmp_path / "train.parquet", {"label": pa.array(["tench", "", None, SPRINGER]).cast(kind)})
    assert alike(table) == [TENCH, SPRINGER]


def test_files_of_one_split_may_number_their_classes_differently(tmp_path: Path) -> None:
    for number, names in enumerate(([TENCH, SPRINGER], [SPRINGER, TENCH])):
        write(tmp_path / f"train-{number}.parquet", {"label": [0, 1]}, {"label": names})
    write(tmp_path / "train-2.parquet", {"wnid": [TENCH, TENCH], "other": [1, 2]})
    assert alike(tmp_path) == [TENCH, SPRINGER, SPRINGER, TENCH, TENCH, TENCH]


def test_a_name_that_stands_for_two_numbers_is_refused(command: Command, tmp_path: Path) -> None:
    table = write(tmp_path / "train.parquet", {"label": [0, 1, 2]}, {"label": ["tench", "tench", SPRINGER]})
    assert "'tench'" in alike(table)
    code, _, err = command("variants", "new", "mine", "--from", table)
    assert (code, "label names of 'train.parquet' stand for two numbers: 'tench'" in err) == (2, True)


# --- which column is the image, and what is in it -------------------------------------------------------------------


def test_a_column_of_images_of_any_name_can_be_named(command: Command, tmp_path: Path) -> None:
    pictures = pa.array(PICTURES[:2], pa.large_binary())
    table = write(tmp_path / "train.parquet", {"picture": pictures, "label": ["rose", "tulip"]})
    code, _, err = command("variants", "new", "mine", "--from", table)
    assert (code, "--image-column" in err) == (2, True)
    code, _, err = command("variants", "new", "mine", "--from", table, "--image-column", "picture")
    assert (code, err) == (0, "")
    assert yaml.safe_load(Path("mine.yaml").read_text())["tables"] == {"image_column": "picture"}
    source = open_source("mine.yaml", "train", path=table)
    assert [row.image for row in source.read(list(source.index()))] == PICTURES[:2]
    found = open_images("mine.yaml")
    assert [found.images[number] for number in range(2)] == PICTURES[:2]
    code, out, _ = command("plan", "shapes-basic", "--set", "source.variant=mine.yaml")
    assert (code, "2 real images of 2 classes" in " ".join(out.split())) == (0, True)


def test_two_columns_of_images_are_both_named(tmp_path: Path) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pictures = pa.array([{"bytes": image, "path": None} for image in PICTURES[:2]], kind)
    table = write(tmp_path / "train.parquet", {"picture": pictures, "mask": pictures, "label": [TENCH, SPRINGER]})
    for found in (indexed("imagenette", table), opened(f"imagenette={table}")):
        assert "several columns of images: 'picture', 'mask'" in found
    table = write(tmp_path / "train.parquet", {"picture": pictures, "label": [TENCH, SPRINGER]})
    assert alike(table) == [TENCH, SPRINGER]


@pytest.mark.parametrize("images", [["a.jpg"], [[b"x"]], [{"path": "a.jpg"}], [1]], ids=["text", "list", "path", "int"])
def test_what_holds_no_images_is_said_with_its_type(command: Command, tmp_path: Path, images: list[Any]) -> None:
    table = write(tmp_path / "train.parquet", {"image": images, "label": [TENCH]})
    for said in (indexed("imagenette", table), opened(str(table)), command("variants", "new", "m", "--from", table)[2]):
        assert "holds no images, but" in said


@pytest.mark.parametrize("absolute", [True, False])
def test_images_of_which_only_the_path_is_there_are_read_from_it(tmp_path: Path, absolute: bool) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for number in range(2):
        (tmp_path / "set" / "files").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "files" / f"{number}.png").write_bytes(PICTURES[number])
    before = f"{tmp_path}/set/" if absolute else ""
    images = [{"bytes": None, "path": f"{before}files/{number}.png"} for number in range(3)]
    table = write(tmp_path / "set" / "train.parquet", {"image": pa.array(images, kind), "label": [TENCH] * 3})
    source = open_source("imagenette", "train", path=table)
    rows = list(source.read(list(source.index())))
    assert [row.image for row in rows] == [*PICTURES[:2], b""]
    assert "a file that is not here" in rows[2].problem
    assert rows[2].source_id.endswith("2.png")  # the reason is published, and names no place of this machine
    found = open_images(str(table))
    assert [found.images[number] for number in range(3)] == [*PICTURES[:2], b""]


# --- what a row is called -------------------------------------------------------------------------------------------


def named(*paths: str | None) -> pa.Array:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array([{"bytes": PICTURES[0], "path": path} for path in paths], kind)


@pytest.mark.parametrize(
    "files",
    [
        {"train.parquet": ["image.jpg"] * 4},
        {"train-0.parquet": ["image.jpg"] * 2, "train-1.parquet": ["image.jpg"] * 2},
        {"train-0.parquet": ["0.jpg", "1.jpg"], "train-1.parquet": ["0.jpg", "1.jpg"]},
        {"train-0.parquet": ["0.jpg", None], "train-1.parquet": [None, "0.jpg"]},
        {"train/a.parquet": [None, None], "train/part-train/a.parquet": [None, None]},
    ],
    ids=["one name", "one name, two files", "numbered again", "some without", "files of one name"],
)
def test_rows_that_share_a_name_are_called_by_file_and_row(tmp_path: Path, files: dict[str, list[str | None]]) -> None:
    for name, paths in files.items():
        write(tmp_path / name, {"image": named(*paths), "label": [TENCH] * len(paths)})
    try:
        ids = [entry.source_id for entry in open_source("imagenette", "train", path=tmp_path).index()]
        again = [entry.source_id for entry in open_source("imagenette", "train", path=tmp_path).index()]
    except DataError as error:
        ids, again = [], [str(error)]
    assert len(set(ids)) == sum(map(len, files.values()))
    assert again == ids
    source: Any = open_source("imagenette", "train", path=tmp_path)
    assert [entry.source_id for part in source.parts() for entry in source.index_part(part)] == ids
    assert len(set(open_images(f"imagenette={tmp_path}").ids)) == len(ids)


# --- which split a file is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["dev", "val", "valid", "validation"])
def test_a_class_map_and_a_plan_count_the_same_split(command: Command, tmp_path: Path, word: str) -> None:
    write(tmp_path / "set" / "train.parquet", {"label": ["rose", "tulip"] * 3})
    write(tmp_path / "set" / f"{word}.parquet", {"label": ["rose", "tulip"]})
    assert command("variants", "new", "mine", "--from", "set")[0] == 0
    assert yaml.safe_load(Path("mine.yaml").read_text())["splits"] == {"train": 6, "validation": 2}
    for split, count in (("train", 6), ("validation", 2), (word, 2)):
        code, out, err = command(
            "plan", "shapes-basic", "--set", "source.variant=mine.yaml", "--set", f"source.split={split}"
        )
        assert (code, err) == (0, "")
        assert f"{count} real images of 2 classes" in " ".join(out.split())
        assert len(opened("mine.yaml", split)) == count


@pytest.mark.parametrize("word", ["eval", "test", "evaluation", "testing"])
def test_a_table_for_testing_is_never_trained_on(command: Command, tmp_path: Path, word: str) -> None:
    write(tmp_path / "set" / "data" / "train.parquet", {"label": [TENCH] * 3})
    write(tmp_path / "set" / "data" / f"{word}.parquet", {"label": [SPRINGER] * 2})
    assert opened("set", "train") == [TENCH] * 3
    assert opened("set", "test") == [SPRINGER] * 2
    assert command("variants", "new", "mine", "--from", "set")[0] == 0
    assert yaml.safe_load(Path("mine.yaml").read_text())["splits"] == {"train": 3, "test": 2}


CARD = """---
configs:
- config_name: summer
  data_files:
  - {split: train, path: s/one-*.parquet}
  - {split: test, path: [s/two.parquet]}
- config_name: winter
  data_dir: w
---
# A set
"""


@pytest.fixture
def seasons(tmp_path: Path) -> Path:
    """A copy of a set whose card alone says what its files are."""
    for name, label in (("s/one-1", TENCH), ("s/one-2", TENCH), ("s/two", SPRINGER), ("w/more", SPRINGER)):
        write(tmp_path / "set" / f"{name}.parquet", {"label": [label] * 2})
    (tmp_path / "set" / "README.md").write_text(CARD)
    return tmp_path / "set"


def test_the_card_of_a_local_copy_says_its_splits_and_configurations(command: Command, seasons: Path) -> None:
    for said in (opened("set"), indexed("imagenette", seasons), command("variants", "new", "a", "--from", "set")[2]):
        assert "set has several configurations: 'summer', 'winter'" in said
    assert opened("set#summer", "train") == [TENCH] * 4
    assert opened("set#summer", "test") == opened("set#winter") == [SPRINGER] * 2
    assert "no configuration 'spring'" in opened("set#spring")
    assert command("variants", "new", "a", "--from", "set", "--config-name", "summer")[0] == 0
    assert yaml.safe_load(Path("a.yaml").read_text())["splits"] == {"train": 4, "test": 2}
    assert indexed("a.yaml", seasons) == opened("a.yaml", "train") == [TENCH] * 4
    assert indexed("a.yaml", seasons, "test") == [SPRINGER] * 2


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\nconfigs: {a: b}\n---\n", "is damaged"),
        ("---\nconfigs:\n- data_files: x\n---\n", "is damaged"),
        ("---\nconfigs: [\n---\n", "is damaged"),
        ("---\n" + "[" * 600 + "\n---\n", "is damaged"),
        ("---\nconfigs:\n- {config_name: a, data_files: [{split: 'train[:10%]', path: x}]}\n---\n", "is damaged"),
        ("---\nconfigs:\n- {config_name: a, data_files: nothing-*}\n---\n", "'nothing-*', which is not there"),
        ("---\nconfigs:\n- {config_name: a, data_files: ../up.parquet}\n---\n", "which is not there"),
        ("---\nconfigs:\n- {config_name: a, data_files: []}\n---\n", "gives no files to its splits"),
    ],
)
def test_a_card_that_says_what_is_not_is_refused_in_one_line(tmp_path: Path, card: str, said: str) -> None:
    write(tmp_path / "set" / "train.parquet", {"label": [TENCH, SPRINGER]})
    (tmp_path / "set" / "README.md").write_text(card)
    for found in (indexed("imagenette", tmp_path / "set"), opened(str(tmp_path / "set"))):
        assert said in found
        assert "\n" not in found


def test_the_default_configuration_is_taken_and_a_plain_readme_says_nothing(seasons: Path) -> None:
    (seasons / "README.md").write_text(CARD.replace("  data_dir: w", "  data_dir: w\n  default: true"))
    assert alike(seasons) == [SPRINGER] * 2
    (seasons / "README.md").write_text("# Some words\n")
    assert "tables in 2 folders" in indexed("imagenette", seasons)
    assert "'s', 'w'" in opened(str(seasons))
    assert alike(seasons / "w") == [SPRINGER] * 2


@pytest.mark.parametrize("file", ["README.md", "dataset_infos.json"])
def test_label_names_that_only_the_card_has_are_read(command: Command, tmp_path: Path, file: str) -> None:
    write(tmp_path / "set" / "train.parquet", {"label": [0, 1]})
    names = {"0": "rose", "1": "tulip"}
    info = {"features": [{"name": "label", "dtype": {"class_label": {"names": names}}}]}
    card = f"---\n{yaml.safe_dump({'dataset_info': info})}---\n"
    old = {"alice--set": {"features": {"label": {"_type": "ClassLabel", "names": list(names.values())}}}}
    (tmp_path / "set" / file).write_text(card if file == "README.md" else json.dumps(old))
    code, _, err = command("variants", "new", "mine", "--from", "set")
    assert (code, err) == (0, "")
    assert indexed("mine.yaml", tmp_path / "set") == opened("mine.yaml") == ["rose", "tulip"]


def test_tables_beside_images_are_read_and_the_images_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"label": [TENCH, SPRINGER]})
    for number in range(3):
        (tmp_path / f"preview-{number}.png").write_bytes(PICTURES[0])
    assert alike(tmp_path) == [TENCH, SPRINGER]
    assert getattr(open_source("imagenette", "train", path=tmp_path), "left_out", None) == {"ending .png": 3}


def test_a_table_without_images_does_not_hide_folders_of_images(tmp_path: Path) -> None:
    for wnid in (TENCH, SPRINGER):
        (tmp_path / "set" / wnid).mkdir(parents=True)
        (tmp_path / "set" / wnid / "0.png").write_bytes(PICTURES[0])
    pq.write_table(pa.table({"file": ["0.png"], "score": [0.5]}), tmp_path / "set" / "metadata.parquet")
    assert alike(tmp_path / "set") == [TENCH, SPRINGER]


def test_a_stream_finds_the_columns_that_every_command_finds(tmp_path: Path) -> None:
    from hfsyn.judging.sets.references import parse_dataset
    from hfsyn.judging.train.streams import open_stream

    def streamed(name: str, columns: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> Any:
        try:
            return open_stream(parse_dataset(f"imagenette={write(tmp_path / name, columns, names)}"), "train").classes
        except (DataError, HfsynError) as error:
            return str(error)

    assert streamed("a.parquet", {"target": [0, 1]}, {"target": [TENCH, SPRINGER]}) == (TENCH, SPRINGER)
    write(tmp_path / "two" / "train-0.parquet", {"label": [0, 1]}, {"label": [TENCH, SPRINGER]})
    write(tmp_path / "two" / "train-1.parquet", {"label": [0, 1]}, {"label": [SPRINGER, TENCH]})
    try:
        said = str(open_stream(parse_dataset(f"imagenette={tmp_path / 'two'}"), "train").classes)
    except (DataError, HfsynError) as error:
        said = str(error)
    assert "other columns or label names" in said
