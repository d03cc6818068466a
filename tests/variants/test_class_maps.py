"""`hfsyn variants new`: a class map has every class that is there, can be opened, or is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from drawn_tables import rows_of

from builders.errors import DataError
from builders.sources import open_source
from builders.sources.new_class_map import new_variant
from builders.variants import get_variant
from builders.variants.class_maps import read_variant
from hfsyn.outlook.forecast import forecast
from hfsyn.recipes.recipe import load_recipe

PICTURE = rows_of(1)[0][1]


def folder_with(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(PICTURE)
    return root


def written(tmp_path: Path, source: Path, **options: Any) -> Path:
    return new_variant("mine", str(source), out=tmp_path / "mine.yaml", **options)


def refusal(tmp_path: Path, source: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        written(tmp_path, source, **options)
    assert error.value.hint
    assert not (tmp_path / "mine.yaml").exists()
    return str(error.value)


def table(path: Path, labels: Any, column: str = "label", **others: Any) -> Path:
    images = pa.array([PICTURE] * len(labels), pa.binary())
    pq.write_table(pa.table({"image": images, column: labels, **others}), path)
    return path


def test_images_that_lie_too_deep_are_named_and_empty_folders_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_with(tmp_path / "deep", "dog/0.jpg", "dog/more/1.jpg", "cat/2023/0.jpg", "cow/images/0.jpg")
    said = refusal(tmp_path, root)
    assert "2 folders" in said
    assert f"'{root / 'cat/2023'}', '{root / 'dog/more'}'" in said
    assert "too deep" in refusal(tmp_path, folder_with(tmp_path / "split", "train/dog/2023/0.jpg"))

    plain = folder_with(tmp_path / "plain", "dog/0.jpg", "cow/images/0.jpg")
    (plain / "cat").mkdir()
    variant, _ = read_variant(written(tmp_path, plain))
    assert [info.wnid for info in variant.classes] == ["cow", "dog"]
    assert "without images, which are not classes: 'cat'" in caplog.text


def test_tiny_imagenets_own_layout_has_its_classes_and_their_names(tmp_path: Path) -> None:
    wnids = ("n02056570", "n03126707")
    root = folder_with(tmp_path / "tiny", "val/images/a.JPEG", "val/images/b.JPEG")
    folder_with(root, *(f"train/{wnid}/images/{wnid}_0.JPEG" for wnid in wnids), "train/my-cat/x.JPEG")
    lines = [f"{name}\t{wnid}\t0\t0\t1\t1" for name, wnid in zip(("a.JPEG", "b.JPEG"), wnids, strict=True)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    variant, path = read_variant(written(tmp_path, root))
    thousand = get_variant("imagenet-1k").by_wnid
    assert [(info.wnid, info.name) for info in variant.classes] == [
        ("my-cat", "my-cat"),
        *((wnid, thousand[wnid].name) for wnid in wnids),
    ]
    assert variant.splits == {"train": 3, "validation": 2}
    for split, count in variant.splits.items():
        assert len(list(open_source(variant.name, split, path=path).index())) == count


def test_a_split_folder_of_loose_images_is_no_class(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "flat", "train/0.jpg", "train/1.jpg")
    (root / "train" / "metadata.csv").write_text("file_name,label\n0.jpg,a\n")
    said = refusal(tmp_path, root)
    assert "nothing there says their classes" in said
    assert "found 'metadata.csv': lists such as this are not read" in said


def test_columns_of_local_tables_are_those_that_every_command_finds(tmp_path: Path) -> None:
    source = table(tmp_path / "train.parquet", ["rose", "tulip"], "fine_label")
    variant, path = read_variant(written(tmp_path, source, label_column="fine_label"))
    assert variant.definition["tables"] == {"label_column": "fine_label"}
    assert len(list(open_source(variant.name, "train", path=path).index())) == 2
    folder = folder_with(tmp_path / "pets", "dog/0.jpg", "cow/0.jpg")
    (tmp_path / "mine.yaml").unlink()
    assert "--label-column is for tables" in refusal(tmp_path, folder, label_column="fine_label")


def test_categories_are_words_and_an_image_column_holds_images(tmp_path: Path) -> None:
    source = table(tmp_path / "train.parquet", pa.array(["rose", "tulip", "rose"]).dictionary_encode())
    variant, path = read_variant(written(tmp_path, source))
    assert [e.wnid for e in open_source(variant.name, "train", path=path).index()] == ["rose", "tulip", "rose"]
    (tmp_path / "mine.yaml").unlink()
    pq.write_table(pa.table({"image": ["a.jpg"], "label": ["rose"]}), source)
    assert "'image' of 'train.parquet' holds no images, but string" in refusal(tmp_path, source)


def test_numbers_without_names_are_the_order_of_a_class_map(tmp_path: Path) -> None:
    source = table(tmp_path / "train.parquet", [1, 0, 1])
    assert "Write the class map by hand: classes in the order of the numbers" in refusal(tmp_path, source)
    fields = {"name": "m", "splits": {"train": 3}, "path": str(source), "classes": [{"id": "a", "name": "rose"}]}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(fields))
    variant, path = read_variant(tmp_path / "one.yaml")
    with pytest.raises(DataError, match=r"not classes of 'm@\w+': '1'"):
        open_source(variant.name, "train", path=path)
    fields["classes"] += [{"id": "b", "name": "tulip"}]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(fields))
    variant, path = read_variant(tmp_path / "two.yaml")
    assert [entry.wnid for entry in open_source(variant.name, "train", path=path).index()] == ["b", "a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("damaged.parquet", b"PAR1 cut short", "cannot be read: "),
        ("some.jpg", PICTURE, "neither a folder nor a Parquet file"),
        ("ok.csv", b"a,b\n", "neither a folder nor a Parquet file"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    said = refusal(tmp_path, tmp_path / name)
    assert words in said
    assert "\n" not in said


def test_a_table_without_rows_says_so(tmp_path: Path) -> None:
    source = table(tmp_path / "train.parquet", pa.array([], pa.string()))
    assert "have no row with a label" in refusal(tmp_path, source)


@pytest.mark.parametrize("names", [("Cat", "cat"), ("a b", "a_b")])
def test_folders_that_are_called_alike_are_both_named(tmp_path: Path, names: tuple[str, str]) -> None:
    said = refusal(tmp_path, folder_with(tmp_path / "odd", *(f"{name}/0.jpg" for name in names)))
    assert "are called alike: " + " and ".join(f"'{name}'" for name in sorted(names)) in said


def test_a_folder_that_a_class_map_lacks_wants_a_line(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "pets", "dog/0.jpg", "cow/0.jpg")
    variant, path = read_variant(written(tmp_path, root))
    folder_with(root, "pony/0.jpg")
    with pytest.raises(DataError, match=r"'pony'\. A class map .* add a line for each that is missing"):
        open_source(variant.name, "train", path=path)


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    file = written(tmp_path, folder_with(tmp_path / "pets", "dog/0.jpg", "cow/0.jpg"))
    file.write_text(file.read_text() + 'classes: [{"id": "dog"}]\n')
    with pytest.raises(DataError, match=r"mine.yaml, line 12, column 1: the key 'classes' is defined twice"):
        read_variant(file)
    file.write_text("- {id: dog, id: cow}")
    with pytest.raises(DataError, match="the key 'id' is defined twice"):
        read_variant(file)


def test_a_plan_says_which_classes_of_a_class_map_have_no_image(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "pets", "dog/0.jpg", "cow/0.jpg", "pony/0.jpg")
    file = written(tmp_path, root)
    assert "no image of" not in forecast(load_recipe("shapes-basic", [f"source.variant={file}"])).text()
    (root / "pony" / "0.jpg").unlink()
    found = forecast(load_recipe("shapes-basic", [f"source.variant={file}"]))
    assert found.classes_without_images == ("pony",)
    assert "of 2 classes" in found.text()
    assert "no image of 'pony', which the class map has" in found.text()
