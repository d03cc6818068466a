"""The builder: the same rows prepared, streamed and made by two processes, with the bytes that are on the disk."""

import io

import numpy as np
import pytest
from datasets import Image, load_dataset
from PIL import Image as Pillow

from builders.errors import DataError
from builders.imagenet import ImageNet
from builders.runs.rows import captioned_features, source_features, synthetic_features
from builders.sources import open_source
from builders.variants import VARIANTS, get_variant

TINY = get_variant("tiny-imagenet")
CLASSES = [TINY.classes[place] for place in (0, 87, 199)]


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of Tiny ImageNet in its original layout: five training images each, two for validation."""
    root = tmp_path_factory.mktemp("tiny-imagenet-200")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for place, info in enumerate(CLASSES):
        images = root / "train" / info.wnid / "images"
        images.mkdir(parents=True)
        for number in range(5):
            (images / f"{info.wnid}_{number}.JPEG").write_bytes(jpeg(10 * place + number))
        for number in range(2):
            name = f"val_{2 * place + number}.JPEG"
            (root / "val" / "images" / name).write_bytes(jpeg(100 + 10 * place + number))
            lines.append(f"{name}\t{info.wnid}\t0\t0\t15\t15\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


@pytest.fixture
def builder(folder, tmp_path):
    return lambda **options: ImageNet(
        config_name="tiny-imagenet", path=str(folder), cache_dir=str(tmp_path / "cache"), **options
    )


def stored(dataset):
    """The rows with their images as stored, so that bytes can be compared."""
    return list(dataset.cast_column("image", Image(decode=False)))


def test_there_is_a_configuration_with_its_own_version_for_each_variant_of_photographs():
    found = {config.name: str(config.version) for config in ImageNet.BUILDER_CONFIGS}

    assert found == {name: "1.0.0" for name, variant in VARIANTS.items() if not variant.drawn}


def test_prepared_rows_carry_the_bytes_of_the_files(builder, folder):
    one = builder()
    one.download_and_prepare()
    train, validation = one.as_dataset("train"), one.as_dataset("validation")

    assert (len(train), len(validation)) == (15, 6)
    assert train.features == source_features([info.name for info in TINY.classes])
    for row in stored(train):
        wnid, name = row["source_id"].split("/")
        assert row["image"]["bytes"] == (folder / "train" / wnid / "images" / name).read_bytes()
        assert row["wnid"] == wnid
        assert row["label"] == TINY.by_wnid[wnid].index
        assert row["class_name"] == TINY.by_wnid[wnid].name == train.features["label"].int2str(row["label"])
    for row in stored(validation):
        assert row["image"]["bytes"] == (folder / "val" / "images" / row["source_id"].split("/")[1]).read_bytes()
    assert train[0]["image"].size == (16, 16)


def test_streamed_rows_and_rows_made_by_two_processes_are_the_same(builder, tmp_path):
    one = builder()
    one.download_and_prepare()
    two = ImageNet(config_name="tiny-imagenet", path=one.config.path, cache_dir=str(tmp_path / "two"))
    two.download_and_prepare(num_proc=2)

    for split in ("train", "validation"):
        rows = stored(one.as_dataset(split))
        stream = one.as_streaming_dataset(split)
        assert stream.num_shards == len(CLASSES)  # a class each, so that workers and processes have something to share
        assert stored(stream) == rows
        assert stored(two.as_dataset(split)) == rows


def test_a_limit_is_balanced_and_can_be_shared_out(builder):
    some = builder(limit_per_class=2)
    some.download_and_prepare(num_proc=2)

    rows = stored(some.as_dataset("train"))

    assert [row["wnid"] for row in rows] == [info.wnid for info in CLASSES for _ in range(2)]
    assert rows == stored(some.as_streaming_dataset("train"))


def test_a_prepared_parquet_folder_is_a_source_with_the_same_ids_and_bytes(builder, folder, tmp_path):
    builder().download_and_prepare(str(tmp_path / "rows"), file_format="parquet")

    for split in ("train", "validation"):
        files = open_source("tiny-imagenet", split, path=folder)
        table = open_source("tiny-imagenet", split, path=tmp_path / "rows")
        assert list(table.read(list(table.index()))) == list(files.read(list(files.index())))
    rows = load_dataset("parquet", data_files=str(tmp_path / "rows" / "*train*.parquet"), cache_dir=str(tmp_path / "c"))
    assert rows["train"].features == source_features([info.name for info in TINY.classes])


def test_files_of_the_same_name_in_the_current_folder_are_not_taken_for_the_images(
    builder, folder, tmp_path, monkeypatch
):
    wnid = CLASSES[0].wnid
    (tmp_path / wnid).mkdir()
    (tmp_path / wnid / f"{wnid}_0.JPEG").write_bytes(b"another file")
    (tmp_path / f"{wnid}_0.JPEG").write_bytes(b"another file")
    monkeypatch.chdir(tmp_path)

    row = stored(builder().as_streaming_dataset("train"))[0]

    assert row["image"]["bytes"] == (folder / "train" / wnid / "images" / f"{wnid}_0.JPEG").read_bytes()


def test_a_folder_that_gained_a_file_is_not_answered_from_the_cache(folder, tmp_path):
    wnid = CLASSES[0].wnid
    copy = tmp_path / "copy" / wnid
    copy.mkdir(parents=True)
    (copy / "a.jpg").write_bytes(jpeg(1))

    def count():
        found = ImageNet(config_name="tiny-imagenet", path=str(copy.parent), cache_dir=str(tmp_path / "cache"))
        found.download_and_prepare()
        assert list(found.info.splits) == ["train"]  # class folders without splits are not offered twice
        return len(found.as_dataset("train"))

    assert count() == 1
    (copy / "b.jpg").write_bytes(jpeg(2))
    assert count() == 2


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        ImageNet(
            config_name="imagenette", path=str(tmp_path / "nowhere"), cache_dir=str(tmp_path)
        ).as_streaming_dataset()


def test_the_columns_of_captions_and_of_synthetic_rows():
    names = ["circle", "square"]

    assert list(synthetic_features(names)) == [
        "image",
        "label",
        "wnid",
        "class_name",
        "prompt",
        "caption",
        "seed",
        "sample_id",
        "source_id",
        "prompt_tokens",
        "truncated",
        "safety",
        "retries",
        "caption_flags",
    ]
    assert synthetic_features(names)["label"].names == names
    assert "image" not in captioned_features(names)
    assert {"source_id", "caption", "source_sha256", "width", "height"} <= set(captioned_features(names))
