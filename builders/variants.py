"""The table of variants: named sets of ImageNet classes, and where their images are.

The **wnid** (WordNet 3.0 id, an `n` and eight digits) is a class's identity everywhere; a label number is only a column
of one dataset. `ClassInfo.index` counts a variant's classes in the order of `Variant.classes`: sorted by wnid for the
photographs (as folders of ImageNet always were), in the order of the class list for the drawn variants. What a
repository on the Hub numbers in another order is translated by `Variant.hub_label_wnids`.

Every fact about a dataset that is not ours has an entry in `Variant.facts` which says where it was read, or that it
could not be verified. To add a variant: add its class list to `data/subsets.json` and one entry to `VARIANTS`.

Only the standard library is imported, and the JSON files are read when a class list is first asked for.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from builders.errors import DataError

__all__ = ["VARIANTS", "ClassInfo", "HubSource", "Variant", "get_variant", "variant_names"]


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class of a variant."""

    wnid: str
    """WordNet 3.0 id: the identity of the class in every variant."""
    index: int
    """Position in `Variant.classes`, from 0."""
    name: str
    """As people read it, unique within the variant and the same in all of them: "tench", "crane (bird)"."""
    lemmas: tuple[str, ...]
    """WordNet's words for it, the most common first."""
    definition: str
    """WordNet's gloss, without examples."""
    hypernym: str
    """WordNet's more general word: "cyprinid" for a tench."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where a variant's images are on the Hugging Face Hub, as Parquet files."""

    repo_id: str
    config: str | None
    """Folder or configuration of the repository, None where it has one only."""
    revision: str | None
    """The commit that the facts were checked against, None where none is known (then: the newest)."""
    splits: Mapping[str, str]
    """Our name of a split -> the repository's."""
    image_column: str = "image"
    label_column: str = "label"

    @property
    def url(self) -> str:
        """The dataset's page, where its terms can be read and accepted."""
        return f"https://huggingface.co/datasets/{self.repo_id}"


@dataclass(frozen=True, slots=True)
class Variant:
    """A named set of classes, and what is known about its images."""

    name: str
    title: str
    splits: Mapping[str, int]
    """Name of a split -> its number of images."""
    images: str
    """Format and size of the images, in words."""
    licence: str
    hub: HubSource | None
    """None for the drawn variants, which need no source."""
    homepage: str = ""
    gated: bool = False
    """Whether the repository must be asked for access, while logged in, before it can be read."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Fact -> where it was read, or "not verified: ..."."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes in index order; read from the package's data at the first use."""
        return _classes(self.name)

    @property
    def by_wnid(self) -> Mapping[str, ClassInfo]:
        """The classes by wnid."""
        return _by_wnid(self.name)

    @property
    def drawn(self) -> bool:
        """Whether the images are drawn by this package rather than read from anywhere."""
        return self.hub is None

    @property
    def gate_url(self) -> str:
        """The page on which access is asked for; empty where no access need be asked for."""
        return self.hub.url if self.gated and self.hub else ""

    @property
    def hub_label_wnids(self) -> tuple[str, ...]:
        """The wnid of each label number of the Hub repository: the explicit map of its labels. Empty if drawn."""
        if self.hub is None:
            return ()
        subset = _subset(self.name)
        # ImageNet-1k itself is numbered by sorted wnids everywhere.
        return tuple(subset["hub_label_wnids"]) if subset else tuple(info.wnid for info in self.classes)

    @property
    def hub_label_names(self) -> tuple[str, ...] | None:
        """The names that the Hub repository gives to its labels, None where they were not read in full.

        They tell whether a repository is still the one that `hub_label_wnids` was made for; they are not trusted as
        names. Two repositories have wrong ones: see the provenance in `data/subsets.json`.
        """
        subset = _subset(self.name)
        return tuple(subset["hub_label_names"]) if subset and subset["hub_label_names"] else None

    def split(self, name: str) -> str:
        """The variant's own name of a split: "val" and "valid" are "validation".

        Raises DataError for a split that the variant does not have.
        """
        known = _SPLIT_ALIASES.get(name, name)
        if known not in self.splits:
            raise DataError(f"The variant '{self.name}' has no split '{name}'.", f"It has: {', '.join(self.splits)}.")
        return known


_SPLIT_ALIASES: Mapping[str, str] = MappingProxyType({"val": "validation", "valid": "validation"})

_IMAGENET_TERMS = "ImageNet terms of access: non-commercial research and education only"

_FACTS_OF_IMAGENET = "image-net.org terms of access, quoted in the gate text of copies of Tiny ImageNet on the Hub"

VARIANTS: dict[str, Variant] = {
    "imagenette": Variant(
        name="imagenette",
        title="Imagenette: ten easily told classes of ImageNet",
        splits={"train": 9_469, "validation": 3_925},
        images="JPEG in the original sizes (configuration full_size; the repository also has 320px and 160px, in which "
        "the shorter side is 320 or 160 pixels)",
        licence=f"{_IMAGENET_TERMS}; the repository says apache-2.0",
        hub=HubSource(
            repo_id="frgfm/imagenette",
            config="full_size",
            revision="4b23ffb92a8029db9958bdfdbd6978427d09b1a0",
            splits={"train": "train", "validation": "validation"},
        ),
        homepage="https://github.com/fastai/imagenette",
        facts={
            "labels": "imagenette.py of the repository (_LABEL_MAP and names), read in full",
            "configurations": "imagenette.py: full_size, 320px, 160px; the Dataset Viewer lists the same three",
            "images in train": "dataset_infos.json of the repository: 9,469",
            "images in validation": "TensorFlow Datasets' catalogue (full-size-v2): 3,925, and 9,469 in train",
            "revision": "named in public code that reads 160px/train-00000-of-00001.parquet and "
            "160px/validation-00000-of-00001.parquet at it; not verified: that full_size has the same file names there",
            "licence": "repository page: apache-2.0",
        },
    ),
    "imagewoof": Variant(
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
    "imagenet-100": Variant(
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
    "tiny-imagenet": Variant(
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
    "imagenet-1k": Variant(
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
            "licence": _FACTS_OF_IMAGENET,
        },
    ),
    "shapes": Variant(
        name="shapes",
        title="Shapes: ten drawn classes that need no download",
        splits={"train": 5_000, "test": 2_000},
        images="drawn by this package",
        licence="Apache-2.0, as this package",
        hub=None,
    ),
    "shapes-context": Variant(
        name="shapes-context",
        title="Shapes in context: the drawn classes, whose colours and textures mostly go with the class",
        splits={"train": 5_000, "test": 2_000},
        images="drawn by this package",
        licence="Apache-2.0, as this package",
        hub=None,
    ),
}
"""Every variant by name."""


def variant_names() -> list[str]:
    """The names of all variants, in the order of the table."""
    return list(VARIANTS)


def get_variant(name: str) -> Variant:
    """The variant of that name. Raises DataError, with the nearest name, for an unknown one."""
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(str(name).lower(), VARIANTS, n=1)
    guess = f"Did you mean '{near[0]}'? " if near else ""
    raise DataError(f"There is no variant '{name}'.", f"{guess}There are: {', '.join(VARIANTS)}.")


@cache
def _data(name: str) -> Any:
    return json.loads(files("builders").joinpath("data", name).read_text(encoding="utf-8"))


def _subset(name: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = _data("subsets.json")["subsets"].get(name)
    return found


@cache
def _classes(name: str) -> tuple[ClassInfo, ...]:
    if VARIANTS[name].drawn:
        rows = _data("drawn.json")["classes"]
    else:
        rows = _data("imagenet_1k.json")["classes"]  # sorted by wnid
        subset = _subset(name)
        if subset is not None:
            wanted = frozenset(subset["hub_label_wnids"])
            rows = [row for row in rows if row["wnid"] in wanted]
    return tuple(
        ClassInfo(
            wnid=row["wnid"],
            index=index,
            name=row["name"],
            lemmas=tuple(row["lemmas"]),
            definition=row["definition"],
            hypernym=row["hypernym"],
        )
        for index, row in enumerate(rows)
    )


@cache
def _by_wnid(name: str) -> Mapping[str, ClassInfo]:
    return MappingProxyType({info.wnid: info for info in _classes(name)})
