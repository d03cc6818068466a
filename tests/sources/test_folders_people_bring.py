"""Folders as people have them: each layout is read for what it is, or refused with what was found."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from command import command as hfsyn
from PIL import Image

from builders.errors import DataError
from builders.sources import open_source
from builders.variants import get_variant
from builders.variants.class_maps import read_variant
from hfsyn.errors import HfsynError

TENCH, SHARK, SPRINGER = "n01440764", "n01484850", "n02102040"
THOUSAND = [info.wnid for info in get_variant("imagenet-1k").classes]


def picture(kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(out, kind)
    return out.getvalue()


JPEG = picture()


def folder_with(root: Path, *files: str) -> Path:
    """A folder of these files, images unless their ending says otherwise; empty folders end in a slash."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        if file.endswith("/"):
            (root / file).mkdir(exist_ok=True)
        else:
            (root / file).write_bytes(JPEG if Path(file).suffix not in (".txt", ".xml", ".yaml", ".json") else b"0 1\n")
    return root


NewMap = Callable[[Path], tuple[int, dict[str, Any], str]]


@pytest.fixture
def new_map(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> NewMap:
    """`variants new` of a folder: its exit code, the class map that it wrote, and what it said on stderr."""

    def run(source: Path) -> tuple[int, dict[str, Any], str]:
        (tmp_path / "mine.yaml").unlink(missing_ok=True)
        caplog.clear()
        code, _, err = hfsyn(capsys, "variants", "new", "mine", "--from", source)
        fields = yaml.safe_load((tmp_path / "mine.yaml").read_text()) if code == 0 else {}
        return code, fields, err + "".join(f"{record.getMessage()}\n" for record in caplog.records)

    return run


def names_of(fields: Mapping[str, Any]) -> list[str]:
    return [row["name"] for row in fields.get("classes", [])]


@pytest.fixture(autouse=True)
def _stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def left_out(source: Any) -> dict[str, int]:
    return dict(getattr(source, "left_out", {}))


def opened(variant: str, split: str, path: object) -> tuple[list[str], dict[str, int], str]:
    """Source ids, what was left out, and the refusal where there is one."""
    try:
        source = open_source(variant, split, path=str(path))
        ids = [entry.source_id for entry in source.index()]
    except DataError as error:
        return [], {}, str(error)
    return ids, left_out(source), ""


# --- detection, segmentation, images without labels ------------------------------------------------------------------

LAYOUTS = {
    "yolo": (["train/images/a.jpg", "train/labels/a.txt", "valid/images/b.jpg", "valid/labels/b.txt"], "YOLO"),
    "yolo the other way": (["images/train/a.jpg", "images/val/b.jpg", "labels/train/a.txt"], "YOLO"),
    "coco": (["train2017/a.jpg", "val2017/b.jpg", "annotations/instances_train2017.json"], "annotations"),
    "roboflow's coco": (["train/a.jpg", "train/_annotations.coco.json", "valid/a.jpg"], "COCO"),
    "voc": (["VOC2012/JPEGImages/a.jpg", "VOC2012/Annotations/a.xml", "VOC2012/SegmentationClass/a.png"], "Pascal VOC"),
    "masks": (["images/a.jpg", "masks/a.png"], "masks"),
    "camvid": (["train/a.png", "trainannot/a.png", "val/b.png", "valannot/b.png"], "masks"),
    "images alone": (["images/a.jpg", "images/b.jpg"], "nothing there says their classes"),
    "a test folder": (["train/cat.0.jpg", "test1/1.jpg"], "nothing there says their classes"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_boxes_and_masks_are_refused_with_what_was_found(tmp_path: Path, new_map: NewMap, layout: str) -> None:
    files, words = LAYOUTS[layout]
    code, fields, err = new_map(folder_with(tmp_path / "data", *files))
    assert (code, names_of(fields)) == (2, [])
    assert words in err
    assert "folder for each class" in err
    assert err.count("\n") == 1


def test_tiny_imagenets_unlabelled_test_images_are_refused_and_never_a_class(tmp_path: Path, new_map: NewMap) -> None:
    wnids = [info.wnid for info in get_variant("tiny-imagenet").classes][:2]
    root = folder_with(tmp_path / "tiny", *(f"train/{wnid}/images/{wnid}_0.JPEG" for wnid in wnids))
    folder_with(root, "test/images/test_0.JPEG")
    code, fields, err = new_map(root)
    assert (code, names_of(fields)) == (2, [])
    assert f"{root / 'test' / 'images'}" in err
    ids, _, _ = opened("tiny-imagenet", "train", root)
    assert ids == [f"{wnid}/{wnid}_0.JPEG" for wnid in wnids]


# --- split or class? -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["train", "val", "test", "images", "Training"])
@pytest.mark.parametrize("inner", ["", "images/"])
def test_a_class_may_be_called_like_a_split(tmp_path: Path, new_map: NewMap, word: str, inner: str) -> None:
    root = folder_with(tmp_path / "vehicles", *(f"{name}/{inner}0.jpg" for name in ("car", "bus", word)))
    code, fields, _ = new_map(root)
    assert (code, sorted(names_of(fields))) == (0, sorted(["bus", "car", word]))
    variant, path = read_variant(tmp_path / "mine.yaml")
    ids, left, problem = opened(variant.name, "train", path)
    assert (len(ids), left, problem) == (3, {}, "")


def test_a_class_map_written_by_hand_decides_that_train_is_a_class(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "vehicles", "car/0.jpg", "train/0.jpg", "train/1.jpg")
    fields = {
        "name": "v",
        "splits": {"train": 3},
        "classes": [{"id": "car", "name": "car"}, {"id": "train", "name": "train"}],
    }
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(fields))
    ids, _, problem = opened(read_variant(tmp_path / "v.yaml")[0].name, "train", root)
    assert problem == ""
    assert ids == ["car/0.jpg", "train/0.jpg", "train/1.jpg"]


def test_a_class_within_a_split_may_be_called_like_one(tmp_path: Path, new_map: NewMap) -> None:
    root = folder_with(
        tmp_path / "vehicles", *(f"{split}/{name}/0.jpg" for split in ("train", "val") for name in ("car", "train"))
    )
    code, fields, _ = new_map(root)
    assert (code, names_of(fields), fields.get("splits")) == (0, ["car", "train"], {"train": 2, "validation": 2})
    twice = folder_with(tmp_path / "twice", "train/train/cat.0.jpg", "train/train/dog.0.jpg")
    code, _, err = new_map(twice)
    assert (code, f"{twice / 'train' / 'train'}" in err) == (2, True)


def test_what_could_be_a_split_or_a_class_is_asked_for(tmp_path: Path, new_map: NewMap) -> None:
    root = folder_with(tmp_path / "vehicles", "car/0.jpg", "bus/0.jpg", "train/steam/0.jpg")
    code, _, err = new_map(root)
    assert code == 2
    assert "splits, or classes like the others?" in err
    twice = folder_with(tmp_path / "twice", "train/a/0.jpg", "training/b/0.jpg")
    assert "2 folders of the split train" in new_map(twice)[2]


# --- nothing goes unsaid ---------------------------------------------------------------------------------------------


def test_what_lies_there_and_is_not_read_is_counted_by_its_reason(tmp_path: Path) -> None:
    root = folder_with(
        tmp_path / "imagenet",
        f"{TENCH}/a.JPEG",
        f"{TENCH}/notes.txt",
        f"{TENCH}/more/b.JPEG",
        f"{TENCH}/more/c.JPEG",
        f"{SPRINGER}/a.JPEG",
        "n01491361/",
        "loose.JPEG",
    )
    (root / f"{SHARK}.tar").write_bytes(b"x" * 600)
    (root / SPRINGER / "rest.zip").write_bytes(b"PK")
    ids, left, _ = opened("imagenet-1k", "train", root)
    assert ids == [f"{TENCH}/a.JPEG", f"{SPRINGER}/a.JPEG"]
    absent = {reason: count for reason, count in left.items() if "that is not there" in reason}
    assert list(absent.values()) == [998]
    assert {reason: count for reason, count in left.items() if reason not in absent} == {
        f"archive not unpacked ({SHARK}.tar)": 1,
        "archive in a class folder, not unpacked (rest.zip)": 1,
        "class folder without images (n01491361)": 1,
        f"image in a folder within a class folder ({TENCH}/more)": 2,
        "image outside of the class folders": 1,
        "ending .txt": 1,
    }


def test_a_limit_leaves_nothing_out_and_a_part_of_the_index_knows_the_whole(tmp_path: Path) -> None:
    root = folder_with(
        tmp_path / "nette", *(f"{TENCH}/{n}.JPEG" for n in range(3)), f"{TENCH}/a.txt", f"{SPRINGER}/a.md"
    )
    folder_with(root, f"{SPRINGER}/0.JPEG")
    source = open_source("imagenette", "train", path=root, limit_per_class=1)
    before = left_out(source)
    list(source.index())
    assert before == left_out(source)
    assert {reason: n for reason, n in before.items() if reason.startswith("ending")} == {
        "ending .md": 1,
        "ending .txt": 1,
    }
    assert [n for reason, n in before.items() if reason.startswith("class of imagenette that is not there")] == [8]


def test_files_that_are_images_are_read_whatever_their_ending(tmp_path: Path) -> None:
    root = folder_with(
        tmp_path / "nette", f"{TENCH}/a.JFIF", f"{TENCH}/b.pjpeg", f"{TENCH}/noending", f"{TENCH}/c.0001"
    )
    (root / TENCH / "d.ppm").write_bytes(picture("PPM"))
    (root / TENCH / "e.JP2").write_bytes(picture("JPEG2000"))
    (root / TENCH / "f.dat").write_bytes(b"no image")
    ids, left, _ = opened("imagenette", "train", root)
    assert [name.removeprefix(f"{TENCH}/") for name in ids] == [
        "a.JFIF",
        "b.pjpeg",
        "c.0001",
        "d.ppm",
        "e.JP2",
        "noending",
    ]
    assert left.get("ending .dat") == 1


def test_litter_of_systems_is_no_image_no_class_and_not_worth_a_word(tmp_path: Path, new_map: NewMap) -> None:
    root = folder_with(
        tmp_path / "photos",
        "cat/0.jpg",
        "cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "cat/desktop.ini",
        "cat/._0.jpg",
        "dog/0.jpg",
        "__MACOSX/cat/0.jpg",
        "@eaDir/x.jpg",
        ".thumbnails/1.jpg",
    )
    code, fields, err = new_map(root)
    assert (code, names_of(fields), fields.get("splits"), err) == (0, ["cat", "dog"], {"train": 2}, "")
    variant, path = read_variant(tmp_path / "mine.yaml")
    assert opened(variant.name, "train", path) == (["cat/0.jpg", "dog/0.jpg"], {}, "")


# --- ImageNet in all its layouts -------------------------------------------------------------------------------------


def test_names_of_files_say_the_class_in_flat_folders(tmp_path: Path) -> None:
    hub = folder_with(
        tmp_path / "hub",
        f"train_images/{TENCH}_0_{TENCH}.JPEG",
        f"train_images/{SPRINGER}_1_{SPRINGER}.JPEG",
        "train_images/other.JPEG",
        f"val_images/ILSVRC2012_val_00000001_{SHARK}.JPEG",
        "test_images/1.JPEG",
    )
    ids, left, problem = opened("imagenet-1k", "train", hub)
    assert (problem, ids) == ("", [f"{TENCH}/{TENCH}_0_{TENCH}.JPEG", f"{SPRINGER}/{SPRINGER}_1_{SPRINGER}.JPEG"])
    assert left["image whose name says no class"] == 1
    assert opened("imagenet-1k", "val", hub)[0] == [f"{SHARK}/ILSVRC2012_val_00000001_{SHARK}.JPEG"]
    flat = folder_with(tmp_path / "flat", f"{TENCH}_10026.JPEG", f"{SPRINGER}_7.JPEG")
    assert opened("imagenet-1k", "train", flat)[0] == [f"{TENCH}/{TENCH}_10026.JPEG", f"{SPRINGER}/{SPRINGER}_7.JPEG"]
    assert "nothing there says their classes" in opened("imagenet-1k", "train", folder_with(tmp_path / "x", "1.jpg"))[2]


def validation(root: Path, *numbers: int) -> Path:
    return folder_with(root, *(f"ILSVRC2012_val_{number:08d}.JPEG" for number in numbers))


def test_the_root_of_kaggles_archive_is_read_with_its_list(tmp_path: Path) -> None:
    root = tmp_path / "kaggle"
    deep = folder_with(
        root / "ILSVRC" / "Data" / "CLS-LOC", f"train/{TENCH}/{TENCH}_1.JPEG", "test/ILSVRC2012_test_1.JPEG"
    )
    validation(deep / "val", 1, 2, 3)
    folder_with(root, f"ILSVRC/Annotations/CLS-LOC/train/{TENCH}/a.xml", "ILSVRC/ImageSets/CLS-LOC/train_cls.txt")
    rows = [
        f"ILSVRC2012_val_0000000{n},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for n, wnid in ((1, SHARK), (2, TENCH), (9, TENCH))
    ]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    assert opened("imagenet-1k", "train", root)[0] == [f"{TENCH}/{TENCH}_1.JPEG"]
    ids, left, problem = opened("imagenet-1k", "val", root)
    assert (problem, ids) == ("", [f"{TENCH}/ILSVRC2012_val_00000002.JPEG", f"{SHARK}/ILSVRC2012_val_00000001.JPEG"])
    assert left["image that LOC_val_solution.csv does not list (ILSVRC2012_val_00000003.JPEG)"] == 1
    assert left["row of LOC_val_solution.csv whose image is not there (ILSVRC2012_val_00000009.JPEG)"] == 1


def test_the_devkits_numbers_are_not_taken_for_sorted_wnids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "imagenet"
    validation(root / "val", 1, 2)
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n1000\n")
    (root / "LOC_synset_mapping.txt").write_text("\n".join(f"{wnid} words" for wnid in THOUSAND))
    ids, _, problem = opened("imagenet-1k", "val", root)
    assert ids == []
    assert "map_clsloc.txt" in problem
    wanted = [f"{THOUSAND[0]}/ILSVRC2012_val_00000002.JPEG", f"{THOUSAND[-1]}/ILSVRC2012_val_00000001.JPEG"]

    synsets = [{"ILSVRC2012_ID": 1000 - n, "WNID": wnid} for n, wnid in enumerate(THOUSAND)]
    fake = SimpleNamespace(
        loadmat=lambda file, squeeze_me: {"synsets": [*synsets, {"ILSVRC2012_ID": 1001, "WNID": "n0"}]}
    )
    (data / "meta.mat").write_bytes(b"MATLAB 5.0")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scipy", SimpleNamespace(io=fake))
        patch.setitem(sys.modules, "scipy.io", fake)
        assert opened("imagenet-1k", "val", root)[0] == wanted
    (data / "map_clsloc.txt").write_text("".join(f"{wnid} {1000 - n} word_{n}\n" for n, wnid in enumerate(THOUSAND)))
    assert opened("imagenet-1k", "val", root)[0] == wanted
    (root / "imagenet_2012_validation_synset_labels.txt").write_text(f"{TENCH}\n{SHARK}\n")
    assert opened("imagenet-1k", "val", root)[0][0] == f"{TENCH}/ILSVRC2012_val_00000001.JPEG"


def test_a_list_that_disagrees_with_its_folder_is_counted_row_by_row(tmp_path: Path) -> None:
    wnids = [info.wnid for info in get_variant("tiny-imagenet").classes][:2]
    root = folder_with(tmp_path / "tiny", *(f"val/images/{name}.JPEG" for name in "abcd"))
    rows = [("a", wnids[0]), ("b", wnids[1]), ("b", wnids[1]), ("c", wnids[0]), ("c", wnids[1]), ("gone", wnids[0])]
    (root / "val" / "val_annotations.txt").write_text(
        "".join(f"{name}.JPEG\t{wnid}\t0\t0\t1\t1\n" for name, wnid in rows)
    )
    ids, left, problem = opened("tiny-imagenet", "val", root)
    assert (problem, ids) == ("", [f"{wnids[0]}/a.JPEG", f"{wnids[1]}/b.JPEG"])
    assert {reason: n for reason, n in left.items() if "val_annotations" in reason} == {
        "row of val_annotations.txt whose image is not there (gone.JPEG)": 1,
        "image that val_annotations.txt does not list (d.JPEG)": 1,
        "image with two classes in val_annotations.txt (c.JPEG)": 1,
        "row of val_annotations.txt for an image that it lists before (b.JPEG)": 1,
    }
    source = open_source("tiny-imagenet", "val", path=root)
    assert [row.problem for row in source.read(list(source.index()))] == ["", ""]


def test_folders_deeper_down_are_found_where_all_lies_in_them(tmp_path: Path, new_map: NewMap) -> None:
    root = folder_with(
        tmp_path / "download", "animals/animals/cat/0.jpg", "animals/animals/dog/0.jpg", "animals/readme.txt"
    )
    code, fields, err = new_map(root)
    assert (code, names_of(fields)) == (0, ["cat", "dog"])
    assert f"The classes are in {root / 'animals' / 'animals'}" in err
    variant, path = read_variant(tmp_path / "mine.yaml")
    assert opened(variant.name, "train", path)[0] == ["cat/0.jpg", "dog/0.jpg"]
    lone = folder_with(tmp_path / "lone", "cat/2023/0.jpg")
    assert "too deep" in new_map(lone)[2]


def test_the_folder_of_another_sets_archive_is_refused_however_deep(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "download", "imagenet-r/n01498041/0.jpg", "imagenet-r/n01531178/0.jpg")
    assert "is the folder of 'imagenet-r', not of 'imagenet-a'" in opened("imagenet-a", "test", root)[2]
    root = folder_with(tmp_path / "half", f"train/{TENCH}/0.jpg")
    (root / "val.tar").write_bytes(b"x" * 600)
    assert "Not unpacked: 'val.tar'" in opened("imagenette", "val", root)[2]


# --- what is not a folder of images ---------------------------------------------------------------------------------


def test_saved_datasets_and_tar_shards_are_named_for_what_they_are(tmp_path: Path, new_map: NewMap) -> None:
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    rows = Dataset.from_dict({"image": [JPEG], "label": ["cat"]})
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict({"test": rows, "train": rows}).save_to_disk(tmp_path / "both")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "shard-000.tar", "w") as archive:
        for name, data in (("0.jpg", JPEG), ("0.cls", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for config in ("summer", "winter"):
        (tmp_path / "configs" / config).mkdir(parents=True)
        rows.to_parquet(tmp_path / "configs" / config / "train-00000-of-00001.parquet")
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "photos.zip").write_bytes(b"PK")
    for name, words in (
        ("saved", f"datasets.load_from_disk('{tmp_path / 'saved'}').to_parquet('train.parquet')"),
        ("both", "['train'].to_parquet('train.parquet')"),
        ("shards", "datasets.load_dataset('webdataset'"),
        ("configs", "'summer', 'winter'"),
        ("archives", "Unpack it (unzip photos.zip)"),
    ):
        code, _, err = new_map(tmp_path / name)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
        assert words in opened("imagenette", "train", tmp_path / name)[2]


NO_FOLDERS = {
    "": "The path of the images is empty",
    "~nobody-of-that-name/x": "cannot be opened",
    "x" * 300: "name too long",
    "a\0b": "a control character",
    "photo.jpg": "but an image",
    f"photos/{TENCH}": "give the folder above it",
    "photos.zip": "Unpack it",
    os.fsdecode(b"caf\xe9"): "is not UTF-8",
}


@pytest.mark.parametrize(("path", "words"), NO_FOLDERS.items(), ids=list("abcdefgh"))
def test_a_path_that_is_no_folder_of_classes_is_refused_in_one_line(tmp_path: Path, path: str, words: str) -> None:
    folder_with(tmp_path, f"photos/{TENCH}/0.jpg", "photo.jpg", "photos.zip")
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    try:
        said = opened("imagenette", "train", path)[2]
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        said = type(error).__name__
    assert words.casefold() in said.casefold()
    assert said.isprintable()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_with(tmp_path / "photos", f"{TENCH}/0.jpg", f"{SPRINGER}/0.jpg")
    whole = os.scandir

    def scandir(path: Any = ".") -> Any:  # the superuser may list what has no permissions
        if Path(path) == root / SPRINGER:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    said = opened("imagenette", "train", root)[2]
    assert said.startswith(f"The folder {root / SPRINGER} cannot be listed: Permission denied.")


def test_links_in_circles_and_pipes_hold_nobody_up(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "photos", f"{TENCH}/0.jpg", f"{SPRINGER}/0.jpg")
    (root / TENCH / "self").symlink_to(".")
    (root / "up").symlink_to("..")
    os.mkfifo(root / TENCH / "pipe.jpg")
    (root / TENCH / "to_pipe.jpg").symlink_to("pipe.jpg")
    ids, left, _ = opened("imagenette", "train", f"{root}/")
    assert ids == [f"{TENCH}/0.jpg", f"{SPRINGER}/0.jpg"]
    assert (left.get("not a plain file"), left.get("link to a folder that it lies in")) == (2, 1)
    (root / "n02979186").symlink_to(TENCH)
    assert "are one folder" in opened("imagenette", "train", root)[2]


def test_every_command_reads_the_images_where_a_table_of_other_things_lies_beside_them(tmp_path: Path) -> None:
    from hfsyn.judging.sets.image_set import open_images

    root = folder_with(tmp_path / "nette", f"train/{TENCH}/0.jpg", f"train/{SPRINGER}/0.jpg")
    table(root / "features.parquet", [SHARK])
    ids, _, _ = opened("imagenette", "train", root)
    try:
        trained_on = list(open_images(f"imagenette={root}", default=("train",)).ids)
    except HfsynError as error:
        trained_on = [str(error)]
    assert len(ids) == 2
    assert trained_on == ids


def table(path: Path, labels: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"feature": [[0.5]] * len(labels), "wnid": labels}), path)
