"""The rows of the table of variants that only test a classifier: ImageNet anew, drawn, in renditions, and hard.

Each fact about a set says where it was read, or that it could not be verified.
"""

from __future__ import annotations

from collections.abc import Mapping

from builders.variants.variant import HubSource, Variant

_FACTS_OF_V2: Mapping[str, str] = {
    "classes": "a thousand of ten images each, with the label names of ImageNet-1k: TensorFlow Datasets' imagenet_v2",
    "labels": "the folders of the archive are class numbers, '0' tench, '1' goldfish: the authors in an issue of "
    "modestyachts/ImageNetV2. They are read as numbers, since in the order of their names '10' comes before '2'",
    "images in test": "README of modestyachts/ImageNetV2: 10,000 in each of the three sets",
    "split": "called test as TensorFlow Datasets does; the Hub calls everything train",
    "files": "repository page at the revision: three .tar.gz archives and no Parquet file. The Hub's own conversion "
    "has the 30,000 rows of all three in one split (Dataset Viewer, as read by a public project). It is not read: an "
    "archive of images alone gives no column of labels",
    "archive": "TensorFlow Datasets' imagenet_v2 names the file and the folder in it",
    "image format": "TensorFlow Datasets' imagenet_v2: jpeg; not verified: the sizes",
    "revision": "repository page: the head of main",
    "licence": "repository page: mit; README of the authors: MIT is for the code, the images are Flickr's, to be used "
    "as ImageNet itself",
    "gate": "TensorFlow Datasets downloads the archives without a token",
}


def _imagenet_v2(name: str, archive: str, how: str) -> Variant:
    """One of the three sets of ImageNetV2."""
    return Variant(
        name=f"imagenet-v2-{name}",
        title=f"ImageNetV2, {how}: for testing, a thousand classes photographed anew",
        splits={"test": 10_000},
        images="JPEG",
        licence="images of Flickr under their own licences, to be used as ImageNet itself; the repository says mit",
        hub=HubSource(
            repo_id="vaishaal/ImageNetV2",
            config=None,
            revision="d626240be2538720e83103a0e1178d24aca8b12c",
            splits={"test": "train"},
            image_column="jpeg",
            archive=f"imagenetv2-{archive}.tar.gz",
        ),
        homepage="https://github.com/modestyachts/ImageNetV2",
        facts=_FACTS_OF_V2,
        class_list="imagenet-1k",
        archive_folder=f"imagenetv2-{archive}-format-val",
        numbered_folders=True,
    )


EVALUATION_SETS: tuple[Variant, ...] = (
    _imagenet_v2("matched-frequency", "matched-frequency", "chosen as often as the images of ImageNet"),
    _imagenet_v2("threshold-0.7", "threshold0.7", "chosen by at least seven people of ten"),
    _imagenet_v2("top-images", "top-images", "chosen the most often"),
    Variant(
        name="imagenet-sketch",
        title="ImageNet-Sketch: for testing, a thousand classes as sketches in black and white",
        splits={"test": 50_889},
        images="JPEG by name, some of them not RGB",
        licence="not stated for the images; the authors' code is MIT",
        hub=HubSource(
            repo_id="songweig/imagenet_sketch",
            config="default",
            revision="0d8b8b5380efe50baae075842505918ad43c88fe",
            splits={"test": "train"},
            archive="data/ImageNet-Sketch.zip",
        ),
        homepage="https://github.com/HaohanWang/ImageNet-Sketch",
        facts={
            "classes": "the thousand of ImageNet-1k: README of HaohanWang/ImageNet-Sketch",
            "labels": "the folders of the archive are wnids (sketch/n01440764/sketch_13.JPEG in public code)",
            "images in test": "50,889 in a public project that checks its copy; the Dataset Viewer says 50.9k of "
            "another repository's copy; the authors' README and the repository's page round to 50,000",
            "image format": "names end in .JPEG, and some are not RGB (public code); not verified: the sizes",
            "split": "called test like the other sets; the Hub calls it train",
            "files": "repository page at the revision: data/ImageNet-Sketch.zip and a script, no Parquet file. Not "
            "verified: the Hub's own conversion, which is tried when refs/convert/parquet is asked for as revision; "
            "nateraw/imagenet-sketch had one (17 files, default/train), whose label numbers were not read",
            "archive": "public code downloads it and renames sketch/, the folder in it",
            "revision": "repository page: the head of main",
            "licence": "repository page: unknown; LICENSE of HaohanWang/ImageNet-Sketch: MIT",
            "gate": "public code downloads the archive without a token",
        },
        class_list="imagenet-1k",
        archive_folder="sketch",
    ),
    Variant(
        name="imagenet-r",
        title="ImageNet-R: for testing, two hundred classes as art, cartoons, toys and other renditions",
        splits={"test": 30_000},
        images="JPEG as far as is known, from 19 to 7,020 pixels wide",
        licence="not stated for the images; the repository and the authors' code say MIT",
        hub=HubSource(
            repo_id="axiong/imagenet-r",
            config="test",
            revision="762a23f169e080bef0be7c9d96bf73a126cbb660",
            splits={"test": "test"},
            label_column="wnid",
        ),
        homepage="https://github.com/hendrycks/imagenet-r",
        facts={
            "classes": "timm 1.0.31 (imagenet_r_synsets.txt) and imagenet_r_wnids in eval.py of hendrycks/imagenet-r: "
            "the same 200 wnids",
            "labels": "repository card: the columns image, wnid and class_name; the wnid is read (n02088094 beside "
            "afghan_hound in the Dataset Viewer)",
            "images in test": "repository card and README of hendrycks/imagenet-r: 30,000; the Dataset Viewer says "
            "so too, as read by a public project",
            "image size": "the Viewer's histogram goes from 19 to 7,020 pixels wide; not verified: the format",
            "files": "repository page: test/test-00000-of-00005.parquet and four more",
            "archive": "public code unpacks imagenet-r.tar to imagenet-r/, folders of which are wnids",
            "revision": "repository page: the head of main",
            "licence": "repository card: mit; LICENSE of hendrycks/imagenet-r: MIT",
            "gate": "public code loads it without a token",
        },
        archive_folder="imagenet-r",
    ),
    Variant(
        name="imagenet-a",
        title="ImageNet-A: for testing, photographs of two hundred classes that classifiers get wrong",
        splits={"test": 7_500},
        images="JPEG as far as is known, from 84 to 3,050 pixels wide",
        licence="not stated for the images; the repository and the authors' code say MIT",
        hub=HubSource(repo_id="barkermrl/imagenet-a", config=None, revision=None, splits={"test": "train"}),
        homepage="https://github.com/hendrycks/natural-adv-examples",
        facts={
            "classes": "timm 1.0.31 (imagenet_a_synsets.txt) and thousand_k_to_200 in eval.py of "
            "hendrycks/natural-adv-examples: the same 200 wnids",
            "labels": "the names of the 200 label numbers are wnids, from 0 n01498041 and 1 n01531178 on (Dataset "
            "Viewer); not verified: all 200, which are compared with the numbers whenever the set is read",
            "images in test": "the Dataset Viewer says 7.5k; not verified: 7,500 exactly, the number in the literature",
            "image size": "the Viewer's histogram goes from 84 to 3,050 pixels wide; not verified: the format",
            "split": "called test like the other sets; the repository calls it train",
            "files": "repository page: data/train-00000-of-00002-ab6d3d8ffc378699.parquet and one more",
            "archive": "public code unpacks imagenet-a.tar to imagenet-a/, folders of which are wnids",
            "revision": "not verified: only the beginning of the head's commit, 1d04812, was read",
            "licence": "repository page: mit; LICENSE of hendrycks/natural-adv-examples: MIT",
            "gate": "public code loads it without a token",
        },
        archive_folder="imagenet-a",
    ),
)
"""In the order in which they are listed."""
