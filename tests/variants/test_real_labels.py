"""ReaL labels: all of ImageNet's validation images, as wnids, read without timm or torch being imported."""

import subprocess
import sys

import pytest

from builders.errors import DataError
from builders.variants import get_variant
from builders.variants import real_labels as module
from builders.variants.real_labels import real_labels, validation_file


def test_every_validation_image_is_there_and_some_have_several_labels_or_none():
    labels = real_labels()

    assert len(labels) == 50_000
    assert list(labels) == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    counts = [len(found) for found in labels.values()]
    assert counts.count(0) == 3_163
    assert max(counts) == 9
    assert all(len(set(found)) == len(found) for found in labels.values())


def test_labels_are_wnids_of_imagenet_1k():
    labels = real_labels()
    thousand = get_variant("imagenet-1k")

    assert {wnid for found in labels.values() for wnid in found} == set(thousand.by_wnid)
    # The numbers 970 and 795 of the second image in timm's file, in its order.
    assert labels["ILSVRC2012_val_00000002.JPEG"] == (thousand.classes[970].wnid, thousand.classes[795].wnid)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("ILSVRC2012_val_00000293.JPEG", "ILSVRC2012_val_00000293.JPEG"),
        ("n01440764/ILSVRC2012_val_00000293_n01440764.JPEG", "ILSVRC2012_val_00000293.JPEG"),
        ("val\\n01440764\\ILSVRC2012_val_00000293.jpeg", "ILSVRC2012_val_00000293.JPEG"),
        ("n01440764_10026.JPEG", None),
        ("ILSVRC2012_test_00000293.JPEG", None),
        ("xILSVRC2012_val_00000293.JPEG", None),
    ],
)
def test_an_image_is_found_by_its_source_id(path, name):
    assert validation_file(path) == name
    assert name is None or name in real_labels()


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from builders.variants.real_labels import real_labels; assert len(real_labels()) == 50_000; "
        "heavy = {'timm', 'torch', 'numpy', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def reread():
    real_labels.cache_clear()
    yield
    real_labels.cache_clear()


def test_without_timm_the_error_says_what_to_install(monkeypatch, reread):
    monkeypatch.setattr(module, "find_spec", lambda name: None)

    with pytest.raises(DataError, match=r"timm, which is not installed.*pip install timm"):
        real_labels()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read from"),
        ("[[1], ", "cannot be read from"),
        ("[[1], [1000]]", "cannot be read from"),
        ("[[1], [2, 3], []]", r"has the labels of 3 images.*50,000"),
    ],
)
def test_a_file_that_is_gone_or_another_one_is_refused(monkeypatch, reread, tmp_path, content, said):
    path = tmp_path / "data" / "_info" / "imagenet_real_labels.json"
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(module, "_timm_folder", lambda: tmp_path)

    with pytest.raises(DataError, match=said):
        real_labels()
