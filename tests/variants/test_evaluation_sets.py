"""The evaluation sets as they lie on disks: their archives' layouts, numbered folders, copies of Hub repositories."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as Pillow

from builders.errors import DataError
from builders.imagenet import ImageNet
from builders.sources import open_source, resolve_revision
from builders.sources.rows import label_map
from builders.variants import get_variant

THOUSAND = get_variant("imagenet-1k").classes
V2 = ["imagenet-v2-matched-frequency", "imagenet-v2-threshold-0.7", "imagenet-v2-top-images"]


def drawing(seed):
    """A small noisy JPEG, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def draw(folder, names, images=("a.jpeg", "b.jpeg")):
    """Class folders of drawings, and the README that some archives have beside them; (folder name, file) -> bytes."""
    drawn = {}
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            drawn[name, image] = drawing(10 * place + number)
            (folder / name / image).write_bytes(drawn[name, image])
    (folder / "README.txt").write_text("read me")
    return drawn


def contents(source):
    return {(row.wnid, row.path): row.image for row in source.read(list(source.index()))}


# -------------------------------------------------------------------------------------------------- numbered folders


@pytest.mark.parametrize("name", V2)
def test_imagenet_v2s_folders_are_numbers_and_not_names_in_their_order(tmp_path, name):
    folder = tmp_path / get_variant(name).archive_folder
    drawn = draw(folder, ["0", "1", "10", "2", "100", "999"])

    source = open_source(name, "test", path=folder)

    assert contents(source) == {(THOUSAND[int(number)].wnid, image): data for (number, image), data in drawn.items()}
    # By name "10" would be the third class and "100" the fourth.
    assert [info.index for info in source.classes] == [0, 1, 2, 10, 100, 999]
    assert "class folders by class number" in source.layout


def test_all_thousand_numbers_are_read(tmp_path):
    for number in range(1000):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x.jpeg").write_bytes(b"x")

    entries = list(open_source(V2[0], "test", path=tmp_path).index())

    assert [entry.wnid for entry in entries] == [info.wnid for info in THOUSAND]
    assert all(entry.location == f"{place}/x.jpeg" for place, entry in enumerate(entries))


def test_the_distribution_of_imagenet_v2_with_wnid_folders_is_read_too(tmp_path):
    wnids = [THOUSAND[number].wnid for number in (0, 10, 2)]
    drawn = draw(tmp_path, wnids)

    assert contents(open_source(V2[1], "val", path=tmp_path)) == drawn


def test_numbers_written_with_zeros_in_front_are_the_same_numbers(tmp_path):
    draw(tmp_path, ["0000", "0010"])

    assert [info.index for info in open_source(V2[0], "test", path=tmp_path).classes] == [0, 10]


@pytest.mark.parametrize("name", ["imagenet-r", "imagenet-a", "imagenet-sketch", "imagenet-1k"])
def test_two_hundred_numbered_folders_without_a_map_are_refused(tmp_path, name):
    draw(tmp_path, [str(number) for number in range(200)], images=("a.jpg",))

    with pytest.raises(DataError, match=r"200 of the labels .*'0', '1'.* Numbers mean no class here.*wnids") as error:
        open_source(name, get_variant(name).split("val"), path=tmp_path)

    assert "and 190 more" in error.value.message


def test_imagenet_v2_does_not_take_two_hundred_numbers_for_its_first_two_hundred_classes(tmp_path):
    draw(tmp_path, [str(number) for number in range(200)], images=("a.jpg",))

    with pytest.raises(DataError, match=r"200 folders .* numbered from 0 to 199, and .* has 1000 classes"):
        open_source(V2[0], "test", path=tmp_path)

    (tmp_path / "199").rename(tmp_path / "582")  # with a gap they are what was left of the thousand
    assert len(open_source(V2[0], "test", path=tmp_path).classes) == 200


def test_a_number_that_no_class_has_is_refused(tmp_path):
    draw(tmp_path, ["0", "1000"])

    with pytest.raises(DataError, match=r"1 of the labels .*'1000'.* Numbers go from 0 to 999"):
        open_source(V2[0], "test", path=tmp_path)


def test_only_decimal_digits_are_numbers():
    variant = get_variant(V2[0])
    found = label_map(variant, ["7", "-7", "7.0", "\u0667", "\u00b2", "", "tench", None])

    assert found == {
        "7": THOUSAND[7].wnid,
        "-7": None,
        "7.0": None,
        "\u0667": None,
        "\u00b2": None,
        "": None,
        "tench": THOUSAND[0].wnid,
        None: None,
    }


def test_label_names_that_are_numbers_sorted_as_names_are_read_as_numbers(tmp_path):
    """What `datasets` makes of the folders of ImageNetV2: label 2 is named "10"."""
    names = sorted(str(number) for number in range(1000))
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    rows = [{"image": {"bytes": b"x", "path": f"{label}.jpeg"}, "label": label} for label in (0, 1, 2, 3, 999)]
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / "test-00000-of-00001.parquet")

    found = [entry.wnid for entry in open_source(V2[0], "test", path=tmp_path).index()]

    assert found == [THOUSAND[number].wnid for number in (0, 1, 10, 100, 999)]


# ------------------------------------------------------------------------------------------------ archives' layouts

WNID_SETS = {
    "imagenet-r": ["art_0.jpg", "toy_12.jpg"],
    "imagenet-a": ["0.000116_digital clock _ digital clock_0.865662.jpg", "0.0_x.jpg"],
    "imagenet-sketch": ["sketch_0.JPEG", "sketch_10.JPEG"],
}


@pytest.mark.parametrize("name", WNID_SETS)
@pytest.mark.parametrize("inside", ["the folder itself", "the folder that holds it", "test/", "val/", "class names"])
def test_the_sets_by_wnid_are_read_as_their_archives_unpack(tmp_path, name, inside):
    variant = get_variant(name)
    wnids = [variant.classes[place].wnid for place in (0, 5, 150)]
    folder = {
        "the folder that holds it": tmp_path / variant.archive_folder,
        "test/": tmp_path / "test",
        "val/": tmp_path / "val",
    }.get(inside, tmp_path)
    called = [variant.by_wnid[wnid].name for wnid in wnids] if inside == "class names" else wnids
    drawn = draw(folder, called, WNID_SETS[name])

    source = open_source(name, "test", path=tmp_path)

    back = dict(zip(called, wnids, strict=True))
    assert contents(source) == {(back[label], image): data for (label, image), data in drawn.items()}
    assert [info.wnid for info in source.classes] == wnids
    assert [info.index for info in source.classes] == [0, 5, 150]


def test_a_class_that_is_not_of_the_two_hundred_is_refused_by_name(tmp_path):
    tench = "n01440764"
    draw(tmp_path, [tench, get_variant("imagenet-r").classes[0].wnid])

    with pytest.raises(DataError, match=f"1 of the labels .*not classes of 'imagenet-r': '{tench}'"):
        open_source("imagenet-r", "test", path=tmp_path)


@pytest.mark.parametrize("name", V2)
def test_of_three_sets_side_by_side_the_right_one_is_taken(tmp_path, name):
    drawn = {other: draw(tmp_path / get_variant(other).archive_folder, ["0"], (f"{other}.jpeg",)) for other in V2}

    found = contents(open_source(name, "test", path=tmp_path))

    assert found == {(THOUSAND[0].wnid, image): data for (_, image), data in drawn[name].items()}


def test_the_folder_of_another_set_is_not_taken_for_this_one(tmp_path):
    folder = tmp_path / "imagenetv2-top-images-format-val"
    draw(folder, ["0", "10"])

    with pytest.raises(
        DataError, match=r"is the folder of 'imagenet-v2-top-images', not of .*matched-frequency-format"
    ):
        open_source(V2[0], "test", path=folder)


def test_the_builder_reads_an_unpacked_archive_as_its_test_split(tmp_path):
    drawn = draw(tmp_path / "data" / "imagenet-a", [get_variant("imagenet-a").classes[3].wnid])

    builder = ImageNet(config_name="imagenet-a", path=tmp_path / "data", cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    rows = builder.as_dataset("test").cast_column("image", Image(decode=False))

    assert list(builder.info.splits) == ["test"]
    assert [row["label"] for row in rows] == [3, 3]
    assert {row["image"]["bytes"] for row in rows} == set(drawn.values())


# ------------------------------------------------------------------------------------------ copies of Hub repositories


def test_copies_of_the_hub_repositories_are_read_under_our_name_of_the_split(tmp_path):
    wnids = [info.wnid for info in get_variant("imagenet-a").classes]
    rows = [{"image": {"bytes": b"x", "path": f"{n}.jpg"}, "label": n} for n in (0, 7)]
    features = Features({"image": Image(), "label": ClassLabel(names=wnids)})
    (tmp_path / "a" / "data").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / "a/data/train-00000-of-00002-ab6d.parquet"
    )
    renditions = [info.wnid for info in get_variant("imagenet-r").classes]
    features = Features({"image": Image(), "wnid": Value("string"), "class_name": Value("string")})
    rows = [{"image": {"bytes": b"x", "path": "art_0.jpg"}, "wnid": w, "class_name": "-"} for w in renditions[:2]]
    (tmp_path / "r" / "test").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / "r/test/test-00000-of-00005.parquet"
    )

    of_a = [entry.wnid for entry in open_source("imagenet-a", "val", path=tmp_path / "a").index()]
    of_r = [entry.source_id for entry in open_source("imagenet-r", "test", path=tmp_path / "r").index()]

    assert of_a == [wnids[0], wnids[7]]
    assert of_r == [f"{wnid}/art_0.jpg" for wnid in renditions[:2]]


@pytest.mark.parametrize("name", [*V2, "imagenet-sketch"])
def test_what_is_an_archive_on_the_hub_is_not_asked_for_there(name):
    variant = get_variant(name)

    for ask in (lambda: open_source(name, "test"), lambda: resolve_revision(name)):
        with pytest.raises(DataError, match=r"as an archive .* cannot be streamed") as error:
            ask()
        assert f"hf download {variant.hub.repo_id} {variant.hub.archive} --repo-type dataset" in error.value.hint
        assert variant.hub.revision in error.value.hint
        assert error.value.hint.endswith(f"--set source.path={variant.archive_folder}.")
