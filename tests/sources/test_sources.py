"""Sources: the same images in every layout, limits that read little, refusals that say what did not match."""

import errno
import io
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PHOTOGRAPHS, needs_photographs
from datasets import ClassLabel, Features, Image, Value
from fsspec.implementations.local import LocalFileSystem
from PIL import Image as Pillow

from builders.errors import DataError
from builders.images.decoding import ImageRejected, decode_rgb
from builders.runs.rows import source_features
from builders.sources import open_source
from builders.sources.cards import Card, find_tables
from builders.sources.parquet import ParquetSource
from builders.sources.rows import class_keys, hub_labels
from builders.variants import get_variant

NETTE = [info.wnid for info in get_variant("imagenette").classes]
TENCH, SPRINGER, CHURCH = NETTE[0], NETTE[1], NETTE[4]


def jpeg(seed, size=24):
    """A small noisy JPEG, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURES = {
    (wnid, f"{wnid}_{number}.JPEG"): jpeg(100 * place + number)
    for place, wnid in enumerate((TENCH, SPRINGER, CHURCH))
    for number in range(4)
}
"""(wnid, file name) -> bytes: three of Imagenette's ten classes, four images each."""


def write(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_rows(path, rows, features, **options):
    """A Parquet file as `datasets` writes it: with its features in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema if isinstance(features, Features) else features)
    pq.write_table(table, path, **options)


def labelled(names):
    return Features({"image": Image(), "label": ClassLabel(names=names)})


def rows(label=lambda wnid: NETTE.index(wnid), pictures=PICTURES):
    return [{"image": {"bytes": data, "path": name}, "label": label(wnid)} for (wnid, name), data in pictures.items()]


def contents(source):
    return {(row.wnid, row.path): row.image for row in source.read(list(source.index()))}


# ---------------------------------------------------------------------------------------------------------- layouts


def split_folders(root):
    for (wnid, name), data in PICTURES.items():
        write(root / "train" / wnid / name, data)


def plain_folders(root):
    for (wnid, name), data in PICTURES.items():
        write(root / wnid / name, data)


def named_folders(root):
    folders = {TENCH: "tench", SPRINGER: "English_springer", CHURCH: "church building"}
    for (wnid, name), data in PICTURES.items():
        write(root / "train" / folders[wnid] / name, data)


def tiny_imagenet_folders(root):
    for (wnid, name), data in PICTURES.items():
        write(root / "train" / wnid / "images" / name, data)
        write(root / "train" / wnid / f"{wnid}_boxes.txt", b"boxes")


def parquet_of_the_hub_repository(root):
    write_rows(
        root / "full_size" / "train-00000-of-00001.parquet", rows(), labelled(get_variant("imagenette").hub_label_names)
    )


def parquet_with_wnids_as_names(root):
    write_rows(root / "data" / "train-00000-of-00001.parquet", rows(), labelled(NETTE))


def parquet_with_lemmas_as_names(root):
    lemmas = [", ".join(info.lemmas) for info in get_variant("imagenette").classes]
    write_rows(root / "train" / "0000.parquet", rows(), labelled(lemmas))


def parquet_in_two_files_with_names(root):
    features = Features({"image": Image(), "label": Value("string")})
    names = {TENCH: "tench", SPRINGER: "English springer", CHURCH: "church"}
    every = rows(names.__getitem__)
    write_rows(root / "train-00000-of-00002.parquet", every[:5], features)
    write_rows(root / "train-00001-of-00002.parquet", every[5:], features)


def one_parquet_file_with_a_column_of_wnids(root):
    features = Features({"image": Image(), "wnid": Value("string"), "label": Value("int64")})
    write_rows(root / "photos.parquet", [row | {"wnid": row.pop("label"), "label": 7} for row in rows(str)], features)


def parquet_of_our_own(root):
    features = source_features([info.name for info in get_variant("imagenette").classes])
    every = [
        {"image": {"bytes": data}, "label": NETTE.index(wnid), "wnid": wnid, "class_name": "-"}
        | {"source_id": f"{wnid}/{name}"}
        for (wnid, name), data in PICTURES.items()
    ]
    write_rows(root / "data" / "train-00000-of-00001.parquet", every, features)
    write(root / "source.parquet", b"not a dataset")


LAYOUTS = [
    split_folders,
    plain_folders,
    named_folders,
    tiny_imagenet_folders,
    parquet_of_the_hub_repository,
    parquet_with_wnids_as_names,
    parquet_with_lemmas_as_names,
    parquet_in_two_files_with_names,
    one_parquet_file_with_a_column_of_wnids,
    parquet_of_our_own,
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_ids_and_the_same_bytes(tmp_path, layout):
    layout(tmp_path)

    source = open_source("imagenette", "train", path=tmp_path)

    entries = list(source.index())
    assert [entry.source_id for entry in entries] == [f"{wnid}/{name}" for wnid, name in PICTURES]
    assert contents(source) == PICTURES
    assert [info.wnid for info in source.classes] == [TENCH, SPRINGER, CHURCH]
    assert [info.index for info in source.classes] == [0, 1, 4]  # as in the variant, although classes are missing
    assert str(tmp_path) in source.layout
    assert "\n" not in source.layout
    assert list(source.index()) == entries


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_limit_takes_the_first_of_each_class(tmp_path, layout):
    layout(tmp_path)
    whole = list(open_source("imagenette", "train", path=tmp_path).index())

    for limit in (1, 3, 4, 100):
        some = list(open_source("imagenette", "train", path=tmp_path, limit_per_class=limit).index())
        per_class = {wnid: [e for e in whole if e.wnid == wnid][:limit] for wnid in (TENCH, SPRINGER, CHURCH)}
        assert some == [entry for entry in whole if entry in per_class[entry.wnid]]


def test_tiny_imagenets_validation_list_is_read(tmp_path):
    lines = []
    for (wnid, name), data in PICTURES.items():
        write(tmp_path / "val" / "images" / name, data)
        lines.append(f"{name}\t{wnid}\t0\t0\t23\t23")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(reversed(lines)) + "\n")
    split_folders(tmp_path)

    source = open_source("imagenette", "val", path=tmp_path)

    assert contents(source) == PICTURES
    assert [entry.source_id for entry in source.index()] == [f"{wnid}/{name}" for wnid, name in PICTURES]
    assert "val_annotations.txt" in source.layout


def test_validation_images_sorted_into_folders_beside_the_old_list_are_read_as_folders(tmp_path):
    for (wnid, name), data in PICTURES.items():
        write(tmp_path / "val" / wnid / name, data)
    (tmp_path / "val" / "images").mkdir()
    (tmp_path / "val" / "val_annotations.txt").write_text("x.JPEG\tn00000000\n")

    assert contents(open_source("imagenette", "validation", path=tmp_path)) == PICTURES


def test_a_single_parquet_file_can_be_the_path(tmp_path):
    one_parquet_file_with_a_column_of_wnids(tmp_path)

    assert contents(open_source("imagenette", "train", path=tmp_path / "photos.parquet")) == PICTURES


def test_entries_can_be_read_in_any_order_and_part(tmp_path):
    write_rows(tmp_path / "train.parquet", rows(), labelled(NETTE), row_group_size=2)
    source = open_source("imagenette", "train", path=tmp_path)
    entries = list(source.index())
    shuffled = [entries[place] for place in np.random.default_rng(0).permutation(len(entries))]

    read = list(source.read([*shuffled, shuffled[0], *shuffled[:3]]))

    assert [row.source_id for row in read] == [e.source_id for e in [*shuffled, shuffled[0], *shuffled[:3]]]
    assert all(PICTURES[row.wnid, row.path] == row.image for row in read)


def test_rows_without_file_names_are_called_by_file_and_row(tmp_path):
    every = [{"image": {"bytes": row["image"]["bytes"]}, "label": row["label"]} for row in rows()]
    write_rows(tmp_path / "train-00000-of-00001.parquet", every, labelled(NETTE))

    entries = list(open_source("imagenette", "train", path=tmp_path).index())

    assert entries[5].source_id == f"{SPRINGER}/train-00000-of-00001-000005"


def test_the_splits_files_are_told_apart():
    files = [
        "README.md",
        "data/train-00001-of-00002.parquet",
        "data/train-00000-of-00002.parquet",
        "data/valid-0-of-1.parquet",
    ]
    converted = [f"{size}/{split}/0000.parquet" for size in ("160px", "full_size") for split in ("train", "validation")]

    def found(names, split, config=None):
        return list(find_tables(names, Card(), config, "here").files(split))

    assert found(files, "train") == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert found(files, "validation") == []  # `datasets` reads either shards that are numbered like the first, or any
    assert found(["data/valid-0-of-1.parquet"], "validation") == ["data/valid-0-of-1.parquet"]
    assert found(files, "test") == []
    assert found(converted, "train", "full_size") == ["full_size/train/0000.parquet"]
    assert found(["160px/imagewoof-train.parquet", "160px/imagewoof-validation.parquet"], "train", "160px") == [
        "160px/imagewoof-train.parquet"
    ]


# ---------------------------------------------------------------------------------------------------- dirty folders


def test_a_salted_folder_gives_every_image_file_and_nothing_else(tmp_path):
    def encoded(image, kind, **options):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    tall = Pillow.new("RGB", (8, 16), (200, 0, 0))
    turned = Pillow.Exif()
    turned[0x0112] = 6
    salt = {
        "a_good.JPEG": jpeg(1),
        "b_empty.JPEG": b"",
        "c_cut.JPEG": jpeg(2, 64)[:-500],
        "d_text.JPEG": b"no image at all",
        "e_cmyk.JPEG": encoded(Pillow.new("CMYK", (8, 8)), "JPEG"),
        "f_grey16.png": encoded(Pillow.fromarray(np.full((8, 8), 65535, np.uint16)), "PNG"),
        "g_png.JPEG": encoded(tall, "PNG"),
        "h_exif.jpg": encoded(tall, "JPEG", exif=b"Exif\x00\x00" + b"\xff" * 30),
        "i_turned.jpg": encoded(tall, "JPEG", exif=turned),
        "j_rgba.PNG": encoded(Pillow.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"),
        "k_pixel.webp": encoded(Pillow.new("RGB", (1, 1)), "WEBP", lossless=True),
    }
    for name, data in salt.items():
        write(tmp_path / "train" / TENCH / name, data)
    for ignored in ("Thumbs.db", "notes.txt", ".hidden.jpg", "._a_good.JPEG"):
        write(tmp_path / "train" / TENCH / ignored, b"x")
    (tmp_path / "train" / TENCH / "folder.jpg").mkdir()
    write(tmp_path / "train" / ".cache" / "x.jpg", b"x")
    write(tmp_path / "train" / "readme" / "x.txt", b"x")

    source = open_source("imagenette", "train", path=tmp_path)
    sizes, reasons = {}, {}
    for row in source.read(list(source.index())):
        assert row.image == salt[row.path]
        try:
            sizes[row.path] = decode_rgb(row.image).size
        except ImageRejected as error:
            reasons[row.path] = error.reason

    assert reasons == {"b_empty.JPEG": "empty file", "c_cut.JPEG": "truncated", "d_text.JPEG": "not an image"}
    assert len(sizes) + len(reasons) == len(salt)
    assert sizes["i_turned.jpg"] == (16, 8)
    assert sizes["k_pixel.webp"] == (1, 1)


def test_one_file_that_cannot_be_read_is_given_with_its_reason(tmp_path, monkeypatch):
    split_folders(tmp_path)
    source = open_source("imagenette", "train", path=tmp_path)
    entries = list(source.index())
    broken, endless, folder, locked = (tmp_path / entry.location for entry in entries[1:5])
    for path in (broken, endless, folder):
        path.unlink()
    broken.symlink_to("nowhere")
    endless.symlink_to(endless.name)
    folder.mkdir()
    whole = Path.read_bytes

    def read_bytes(path):  # the superuser may read what has no permissions
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    found = list(source.read(entries[:6]))
    assert [len(row.image) > 0 for row in found] == [True, False, False, False, False, True]
    assert [row.problem.removeprefix("cannot be read: ") for row in found] == [
        "",
        "the link leads to no file",
        "Too many levels of symbolic links",
        "Is a directory",
        "Permission denied",
        "",
    ]


@pytest.mark.parametrize("what", ["file", "class folder", "root", "disk", "target's folder", "locked folder"])
def test_images_that_went_away_stop_the_reader(tmp_path, monkeypatch, what):
    """Else every image of a disk that is away would pass for a bad one, and the run for finished."""
    split_folders(tmp_path / "images")
    source = open_source("imagenette", "train", path=tmp_path / "images")
    entries = list(source.index())
    path = tmp_path / "images" / entries[0].location
    errors = {
        "disk": OSError(errno.EIO, "Input/output error"),
        "locked folder": PermissionError(errno.EACCES, "Permission denied"),
    }
    said = str(errors.get(what, "No such file or directory")).split("] ")[-1]
    if what in errors:

        def failing(path):
            raise errors[what]

        monkeypatch.setattr(Path, "read_bytes", failing)
        monkeypatch.setattr("builders.sources.folders.os.path.lexists", lambda path: what != "locked folder")
    elif what == "target's folder":
        path.unlink()
        path.symlink_to(tmp_path / "unmounted" / path.name)
    elif what == "file":
        path.unlink()
    else:
        away = tmp_path / "images" if what == "root" else path.parent
        away.rename(tmp_path / "away")

    with pytest.raises(DataError, match=f"{path} cannot be read: {said}. .*same command again to continue") as error:
        list(source.read(entries))
    assert error.value.code == 4


def test_a_local_table_that_went_away_or_changed_stops_the_reader(tmp_path):
    table = tmp_path / "train.parquet"
    every = [*rows(), rows()[0] | {"image": {"bytes": None, "path": "x.JPEG"}}]
    write_rows(table, every, labelled(NETTE), row_group_size=4)
    source = open_source("imagenette", "train", path=tmp_path)
    entries = list(source.index())
    assert [len(row.image) > 0 for row in source.read(entries[-2:])] == [True, False]  # a row without an image is one

    whole = table.read_bytes()
    write_rows(table, rows()[:2], labelled(NETTE))
    with pytest.raises(DataError, match=r"train.parquet cannot be read: it has no longer the rows"):
        list(source.read(entries))
    table.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train.parquet cannot be read: .*same command again to continue") as error:
        list(source.read(entries))
    assert error.value.code == 4
    table.write_bytes(whole[:40] + bytes(len(whole) // 2 - 40) + whole[len(whole) // 2 :])  # an image's bytes are lost
    with pytest.raises(DataError, match=r"train.parquet cannot be read"):
        list(source.read(entries))
    table.unlink()
    with pytest.raises(DataError, match=r"train.parquet cannot be read: No such file or directory"):
        list(source.read(entries))


# -------------------------------------------------------------------------------------------- reading little enough


class Counting(LocalFileSystem):
    """A local filesystem that counts what is read, file by file."""

    cachable = False

    def __init__(self, **options):
        super().__init__(**options)
        self.read = {}

    def _open(self, path, mode="rb", block_size=None, **_):
        stream = super()._open(path, mode, block_size)
        inner, name = stream.read, Path(path).name
        self.read.setdefault(name, 0)

        def read(*args):
            data = inner(*args)
            self.read[name] += len(data)
            return data

        stream.read = read
        return stream


def sorted_by_class(folder, files, row_group_size, image_bytes=20_000, per_class=20):
    """Rows sorted by class over some files, the class of each file's first rows continuing the last file's."""
    rng = np.random.default_rng(0)
    every = [
        {"image": {"bytes": rng.bytes(image_bytes), "path": f"{wnid}_{number}.JPEG"}, "label": label}
        for label, wnid in enumerate(NETTE)
        for number in range(per_class)
    ]
    size = len(every) // files
    for number in range(files):
        name = f"train-{number:05d}-of-{files:05d}.parquet"
        part = every[number * size : (number + 1) * size]
        write_rows(folder / name, part, labelled(NETTE), row_group_size=row_group_size, compression="none")
    return every


@pytest.mark.parametrize("local", [True, False])
def test_a_limit_on_sorted_rows_reads_only_the_row_groups_that_hold_them(tmp_path, local):
    every = sorted_by_class(tmp_path, files=2, row_group_size=5)
    weight = sum(len(row["image"]["bytes"]) for row in every)
    counting = Counting()
    names = sorted(path.name for path in tmp_path.glob("*.parquet"))
    source = ParquetSource(
        get_variant("imagenette"), counting, str(tmp_path), names, "test", local=local, limit_per_class=2
    )

    entries = list(source.index())
    for_index = sum(counting.read.values())
    images = [row.image for row in source.read(entries)]
    for_images = sum(counting.read.values()) - for_index

    assert [entry.wnid for entry in entries] == [wnid for wnid in NETTE for _ in range(2)]
    assert images == [every[20 * label + number]["image"]["bytes"] for label in range(10) for number in range(2)]
    assert for_index < 0.1 * weight
    # One of four row groups of each class holds its first two rows; the footers come on top.
    assert 0.24 * weight < for_images < 0.30 * weight


def test_files_after_the_last_wanted_row_are_not_opened(tmp_path):
    names = []
    for number in range(30):
        names.append(f"train-{number:05d}-of-00030.parquet")
        part = [{"image": {"bytes": b"x", "path": f"{number}.jpg"}, "label": label} for label in range(10)]
        write_rows(tmp_path / names[-1], part, labelled(NETTE))
    counting = Counting()
    source = ParquetSource(
        get_variant("imagenette"), counting, str(tmp_path), names, "test", local=False, limit_per_class=1
    )

    assert len(list(source.index())) == 10
    assert set(counting.read) <= set(names[:8])  # as many as are fetched at once


def test_an_index_is_lazy(tmp_path):
    sorted_by_class(tmp_path, files=20, row_group_size=5, image_bytes=10)
    names = sorted(path.name for path in tmp_path.glob("*.parquet"))
    counting = Counting()
    source = ParquetSource(get_variant("imagenette"), counting, str(tmp_path), names, "test", local=False)

    index = source.index()
    assert counting.read == {}
    assert len(list(islice(index, 3))) == 3
    index.close()
    assert len(counting.read) <= 8


# ------------------------------------------------------------------------------------------------- labels and wnids


def test_folders_that_are_no_classes_are_refused_by_name(tmp_path):
    for number in range(12):
        write(tmp_path / "train" / f"thing{number:02d}" / "x.jpg", b"x")
    write(tmp_path / "train" / TENCH / "x.jpg", b"x")

    with pytest.raises(DataError) as error:
        open_source("imagenette", "train", path=tmp_path)

    assert error.value.message.startswith("12 of the labels")
    assert "'thing00', 'thing01'" in error.value.message
    assert error.value.message.endswith("'thing09' and 2 more.")
    assert "wnid" in error.value.hint


def test_a_name_that_two_classes_share_is_refused(tmp_path):
    write(tmp_path / "crane" / "x.jpg", b"x")

    with pytest.raises(DataError, match=r"1 of the labels in .* not classes of 'imagenet-1k': 'crane'"):
        open_source("imagenet-1k", "train", path=tmp_path)
    assert [i.wnid for i in open_source("tiny-imagenet", "train", path=tmp_path).classes] == ["n03126707"]


def test_labels_that_do_not_occur_need_no_class(tmp_path):
    names = [*NETTE, "unicorn"]
    write_rows(tmp_path / "train.parquet", rows(), labelled(names))
    assert len(list(open_source("imagenette", "train", path=tmp_path).index())) == 12

    write_rows(tmp_path / "train.parquet", rows(lambda wnid: 10), labelled(names))
    with pytest.raises(DataError, match="'unicorn'"):
        open_source("imagenette", "train", path=tmp_path)


@pytest.mark.parametrize(
    ("features", "label", "said"),
    [
        (Features({"image": Image(), "label": Value("int64")}), 3, "numbers without names"),
        (labelled(NETTE), -1, "no rows with a label"),
        (labelled(NETTE), None, "no rows with a label"),
        (Features({"image": Image(), "label": Value("string")}), "dog", "'dog'"),
        (Features({"image": Image(), "kind": Value("string")}), None, "no column of classes"),
        (Features({"photo": Value("string"), "label": Value("string")}), "tench", "no column of images"),
    ],
)
def test_parquet_whose_labels_mean_no_class_is_refused(tmp_path, features, label, said):
    every = [{name: {"image": {"bytes": b"x"}, "label": label}.get(name) for name in features}]
    write_rows(tmp_path / "train.parquet", every, features)

    with pytest.raises(DataError, match=said):
        open_source("imagenette", "train", path=tmp_path)


def test_tiny_imagenets_wrong_label_names_are_understood_whole_and_refused_in_part(tmp_path):
    tiny = get_variant("tiny-imagenet")
    number = tiny.hub_label_names.index("n02666347")
    every = [{"image": {"bytes": b"x", "path": None}, "label": number}]

    write_rows(tmp_path / "train.parquet", every, labelled(tiny.hub_label_names))
    assert [entry.wnid for entry in open_source("tiny-imagenet", "train", path=tmp_path).index()] == ["n02666196"]

    write_rows(tmp_path / "train.parquet", every, labelled(tiny.hub_label_names[:-1]))
    with pytest.raises(DataError, match="n02666347"):
        open_source("tiny-imagenet", "train", path=tmp_path)


@pytest.mark.parametrize(("unknown", "believed"), [(0, True), (100, True), (101, False), (600, False)])
def test_numbers_are_believed_where_nearly_all_of_their_names_fit(unknown, believed):
    """A tenth of the names may be words that nobody here knows; from there on it may be another order altogether."""
    variant = get_variant("imagenet-1k")
    assert variant.hub_label_names is None
    keys = class_keys(variant.classes)
    names = [info.wnid for info in variant.classes]
    assert all(name in keys for name in names)
    names[:unknown] = [f"thing {number}" for number in range(unknown)]
    assert (hub_labels(variant, names) == variant.hub_label_wnids) is believed
    names[-1], names[-2] = names[-2], names[-1]
    assert hub_labels(variant, names) is None


def test_imagewoofs_numbers_are_believed_and_its_names_are_not(tmp_path):
    woof = get_variant("imagewoof")
    every = [{"image": {"bytes": b"x", "path": "n02086240_12.JPEG"}, "label": 0}]
    write_rows(tmp_path / "train.parquet", every, labelled(woof.hub_label_names))
    assert [entry.wnid for entry in open_source("imagewoof", "train", path=tmp_path).index()] == ["n02086240"]

    every[0]["image"]["path"] = "n02096294_12.JPEG"  # an Australian terrier, as the name of label 0 says
    write_rows(tmp_path / "train.parquet", every, labelled(woof.hub_label_names))
    with pytest.raises(DataError, match=r"label of n02086240, but its file is named n02096294_12.JPEG"):
        list(open_source("imagewoof", "train", path=tmp_path).index())


def test_a_local_copy_of_imagenet_1k_is_understood_although_names_are_shared(tmp_path):
    thousand = get_variant("imagenet-1k")
    names = [", ".join(info.lemmas) for info in thousand.classes]
    names[517] = "crane2"  # a ClassLabel cannot have one name twice
    every = [{"image": {"bytes": b"x", "path": f"{n}.JPEG"}, "label": n} for n in (0, 134, 517)]

    write_rows(tmp_path / "train.parquet", every, labelled(names))
    found = [entry.wnid for entry in open_source("imagenet-1k", "train", path=tmp_path).index()]
    assert found == ["n01440764", "n02012849", "n03126707"]

    # In another order it is not that repository: labels go by their names, of which "crane2" means no class.
    every = [row | {"label": 999 - row["label"]} for row in every]
    write_rows(tmp_path / "train.parquet", every, labelled(names[::-1]))
    with pytest.raises(DataError, match=r"2 of the labels .*'crane', 'crane2'"):
        open_source("imagenet-1k", "train", path=tmp_path)


def test_two_images_of_one_name_are_refused_in_a_folder_and_called_by_their_rows_in_a_table(tmp_path):
    write(tmp_path / "folders" / TENCH / "x.jpg", b"1")
    write(tmp_path / "folders" / "tench" / "x.jpg", b"2")
    every = [{"image": {"bytes": b"x", "path": f"{part}/x.jpg"}, "label": 0} for part in "ab"]
    write_rows(tmp_path / "table" / "train.parquet", every, labelled(NETTE))

    with pytest.raises(DataError, match=r"two images named 'x.jpg'"):
        list(open_source("imagenette", "train", path=tmp_path / "folders").index())
    found = open_source("imagenette", "train", path=tmp_path / "table").index()
    assert [entry.source_id for entry in found] == [f"{TENCH}/train-000000", f"{TENCH}/train-000001"]


# ---------------------------------------------------------------------------------------------------------- refusals


def test_what_is_not_there_is_refused_saying_what_is(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "val_only" / "val" / TENCH / "x.jpg", b"x")
    write(tmp_path / "texts" / "notes.txt", b"x")
    write(tmp_path / "broken" / "train.parquet", b"x" * 100)
    write(tmp_path / "flat" / "val" / "ILSVRC2012_val_00000001.JPEG", b"x")

    def refusal(*args, **options):
        with pytest.raises(DataError) as error:
            open_source(*args, **options)
        assert error.value.hint
        return str(error.value)

    assert "val_only/" in refusal("imagenette", "train", path=tmp_path / "vla_only")
    assert "the folder is empty" in refusal("imagenette", "train", path=tmp_path / "empty")
    assert "no split 'train': no images in train/" in refusal("imagenette", "train", path=tmp_path / "val_only")
    assert "Splits found: 'val'" in refusal("imagenette", "train", path=tmp_path / "val_only")
    assert "found 'notes.txt'" in refusal("imagenette", "train", path=tmp_path / "texts")
    assert "neither a folder nor" in refusal("imagenette", "train", path=tmp_path / "texts" / "notes.txt")
    assert "cannot be read" in refusal("imagenette", "train", path=tmp_path / "broken")
    assert "nothing there says their classes" in refusal("imagenet-1k", "val", path=tmp_path / "flat")
    assert "no split 'test'" in refusal("imagenette", "test", path=tmp_path)
    assert "Did you mean 'imagenette'" in refusal("imagenete", "train", path=tmp_path)
    assert "limit of images per class is 0" in refusal("imagenette", "train", path=tmp_path, limit_per_class=0)
    assert "is drawn and has no revision" in refusal("shapes", "train", revision="main")
    assert "the folder is empty" in refusal("shapes", "train", path=tmp_path / "empty")


def test_the_hub_is_not_asked_when_the_network_is_switched_off(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(DataError, match=r"frgfm/imagenette.*HF_HUB_OFFLINE is set.*source.path"):
        open_source("imagenette", "train")


# ------------------------------------------------------------------------------------------------------- photographs


@needs_photographs
def test_a_tenth_of_tiny_imagenet_is_read_as_it_lies():
    train = open_source("tiny-imagenet", "train", path=PHOTOGRAPHS, limit_per_class=20)
    validation = open_source("tiny-imagenet", "val", path=PHOTOGRAPHS)

    entries, held_out = list(train.index()), list(validation.index())

    assert len(train.classes) == len(validation.classes) == 10
    assert {info.wnid: info.name for info in train.classes}["n03126707"] == "crane (machine)"
    assert (len(entries), len(held_out)) == (200, 500)
    assert all(decode_rgb(row.image).size == (64, 64) for row in train.read(entries[::7]))


def test_class_label_metadata_is_what_datasets_writes(tmp_path):
    """The rows above are written with pyarrow: `datasets` itself must leave the same metadata."""
    from datasets import Dataset

    Dataset.from_list(rows(), features=labelled(NETTE)).to_parquet(tmp_path / "train.parquet")

    metadata = json.loads(pq.read_schema(tmp_path / "train.parquet").metadata[b"huggingface"])
    assert metadata["info"]["features"]["label"]["names"] == NETTE
    assert contents(open_source("imagenette", "train", path=tmp_path)) == PICTURES
