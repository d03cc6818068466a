"""The rows of the table of variants: the sets that a classifier is trained on, and the drawn ones.

Each fact about a set says where it was read, or that it could not be verified.
"""

from __future__ import annotations

from collections.abc import Mapping

from builders.variants.variant import HubSource, Variant

_IMAGENET_TERMS = "ImageNet terms of access: non-commercial research and education only"

_FACTS_OF_IMAGENET = "image-net.org terms of access, quoted in the gate text of copies of Tiny ImageNet on the Hub"

_IMAGENETTE_REVISION = "4b23ffb92a8029db9958bdfdbd6978427d09b1a0"

_FACTS_OF_IMAGENETTE: Mapping[str, str] = {
    "labels": "imagenette.py of the repository (_LABEL_MAP and names), read in full",
    "configurations": "imagenette.py: full_size, 320px, 160px; the Dataset Viewer lists the same three, of 13.4k rows "
    "each (9.47k and 3.93k)",
    "images in train": "dataset_infos.json of the repository: 9,469",
    "images in validation": "TensorFlow Datasets' catalogue (full-size-v2): 3,925, and 9,469 in train",
    "licence": "repository page: apache-2.0",
}


def _imagenette(pixels: int, revision: str) -> Variant:
    """Imagenette at a smaller size: the same images, classes and splits."""
    return Variant(
        name=f"imagenette-{pixels}",
        title=f"Imagenette with the shorter side at {pixels} pixels",
        splits={"train": 9_469, "validation": 3_925},
        images=f"JPEG, the shorter side {pixels} pixels",
        licence=f"{_IMAGENET_TERMS}; the repository says apache-2.0",
        hub=HubSource(
            repo_id="frgfm/imagenette",
            config=f"{pixels}px",
            revision=_IMAGENETTE_REVISION,
            splits={"train": "train", "validation": "validation"},
        ),
        homepage="https://github.com/fastai/imagenette",
        facts={**_FACTS_OF_IMAGENETTE, "revision": revision},
        class_list="imagenette",
    )


TRAINING_SETS: tuple[Variant, ...] = (
    Variant(
        name="imagenette",
        title="Imagenette: ten easily told classes of ImageNet",
        splits={"train": 9_469, "validation": 3_925},
        images="JPEG in the original sizes",
        licence=f"{_IMAGENET_TERMS}; the repository says apache-2.0",
        hub=HubSource(
            repo_id="frgfm/imagenette",
            config="full_size",
            revision=_IMAGENETTE_REVISION,
            splits={"train": "train", "validation": "validation"},
        ),
        homepage="https://github.com/fastai/imagenette",
        facts={
            **_FACTS_OF_IMAGENETTE,
            "revision": "named in public code that reads 160px/train-00000-of-00001.parquet and "
            "160px/validation-00000-of-00001.parquet at it; not verified: that full_size has the same file names there",
        },
    ),
    _imagenette(
        320, "named in public code that reads 160px at it; not verified: that 320px has the same file names there"
    ),
    _imagenette(
        160, "public code reads 160px/train-00000-of-00001.parquet and 160px/validation-00000-of-00001.parquet at it"
    ),
    Variant(
        name="imagewoof",
        title="Imagewoof: ten breeds of dog, hard to tell apart",
        splits={"train": 9_025, "validation": 3_929},
        images="JPEG in the original sizes (configuration full_size; the repository also has 320px and 160px, in which "
        "the shorter side is 320 or 160 pixels)",
        licence=f"{_IMAGENET_TERMS}; the repository says apache-2.0",
        hub=HubSource(
            repo_id="frgfm/imagewoof",
            config="full_size",
            revision=None,
            splits={"train": "train", "validation": "validation"},
        ),
        homepage="https://github.com/fastai/imagenette#imagewoof",
        facts={
            "labels": "imagewoof.py of the repository (_LABEL_MAP), read; the names in its dataset_infos.json are in "
            "another order than the labels, so that only the numbers are used",
            "numbering": "not verified: that imagewoof.py numbers by _LABEL_MAP is taken from imagenette.py of the "
            "same author, read in full; file names that carry a wnid are compared with it whenever it is read",
            "configurations": "the Dataset Viewer lists full_size, 320px, 160px",
            "images in train": "dataset_infos.json of the repository: 9,025",
            "images in validation": "dataset_infos.json of the repository: 3,929",
            "files": "not verified: that the main branch has Parquet files; where it has none, the Hub's own "
            "conversion (refs/convert/parquet, seen with full_size/train/0000.parquet) is read",
            "licence": "repository page: apache-2.0",
        },
    ),
    Variant(
        name="imagenet-100",
        title="ImageNet-100: the hundred classes of Contrastive Multiview Coding (CMC)",
        splits={"train": 126_689, "validation": 5_000},
        images="JPEG, the shorter side 160 pixels as far as is known",
        licence=f"{_IMAGENET_TERMS}; the repository names no licence",
        hub=HubSource(
            repo_id="clane9/imagenet-100",
            config=None,
            revision="0519dc2f402a3a18c6e57f7913db059215eee25b",
            splits={"train": "train", "validation": "validation"},
        ),
        homepage="https://github.com/HobbitLong/CMC",
        facts={
            "classes": "HobbitLong/CMC, imagenet100.txt, read in full; other lists of a hundred go by the same name",
            "labels": "scripts/classes.py of the repository: CMC's list in CMC's order (first 30 entries read)",
            "revision": "head of main on the stored repository page; named in several public projects",
            "images in train": "a public project's manifest of this revision: 126,689; the Viewer says 127k",
            "images in validation": "the same manifest: 5,000; the Viewer says 5k",
            "image size": "not verified: the Viewer's histogram starts at 160 pixels wide",
            "licence": "not verified: the stored repository page shows none",
        },
    ),
    Variant(
        name="tiny-imagenet",
        title="Tiny ImageNet: two hundred classes at 64 x 64 pixels",
        splits={"train": 100_000, "validation": 10_000},
        images="JPEG, 64 x 64 pixels, some of them grey",
        licence=f"{_IMAGENET_TERMS}; the repository names no licence",
        hub=HubSource(
            repo_id="zh-plus/tiny-imagenet",
            config=None,
            revision=None,
            splits={"train": "train", "validation": "valid"},
        ),
        homepage="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        facts={
            "classes": "wnids.txt of the original archive, read in a public copy that adds two classes (202 lines)",
            "labels": "the repository's 200 label names are sorted wnids, 18 of which are another sense of the same "
            "word (n02666347, the slab of a column, for the counting frame n02666196). Names read in three public "
            "copies, the corrections in two, which agree; the corrected names are the original's 200",
            "images in train": "repository card: 100,000, 500 a class; the Viewer says 100k",
            "images in validation": "repository card: 50 a class; the Viewer says 10k",
            "splits": "the Viewer lists train and valid; the original test split has no labels",
            "gate": "not verified: public code loads it without a token",
            "licence": f"not verified: {_FACTS_OF_IMAGENET}",
        },
    ),
    Variant(
        name="imagenet-1k",
        title="ImageNet-1k: the thousand classes of ILSVRC 2012",
        splits={"train": 1_281_167, "validation": 50_000},
        images="JPEG in the original sizes, a few of them grey, CMYK or PNG",
        licence=_IMAGENET_TERMS,
        hub=HubSource(
            repo_id="ILSVRC/imagenet-1k",
            config=None,
            revision=None,
            splits={"train": "train", "validation": "validation"},
        ),
        homepage="https://www.image-net.org",
        gated=True,
        facts={
            "classes": "timm 1.0.31, ImageNetInfo('imagenet-1k')",
            "labels": "numbered by sorted wnids (the beginning of IMAGENET2012_CLASSES read in copies in public code); "
            "not verified: the repository's own classes.py; the order of its label names is compared when it is read",
            "images": "public code that reads the repository: 1,281,167 in train, 50,000 in validation; 100,000 in "
            "test, which has no labels and is left out",
            "files": "public code reads data/train-00000-of-00294.parquet and data/validation-00000-of-00014.parquet",
            "gate": "public code asks for a token and accepted terms",
            "ReaL labels": "of the validation images, several an image: builders.variants.real_labels reads timm's",
            "licence": _FACTS_OF_IMAGENET,
        },
    ),
)
"""In the order in which they are listed."""

DRAWN_SETS: tuple[Variant, ...] = (
    Variant(
        name="shapes",
        title="Shapes: ten drawn classes that need no download",
        splits={"train": 5_000, "test": 2_000},
        images="drawn by this package",
        licence="Apache-2.0, as this package",
        hub=None,
    ),
    Variant(
        name="shapes-context",
        title="Shapes in context: the drawn classes, whose colours and textures mostly go with the class",
        splits={"train": 5_000, "test": 2_000},
        images="drawn by this package",
        licence="Apache-2.0, as this package",
        hub=None,
    ),
)
"""The sets that this package draws itself."""
