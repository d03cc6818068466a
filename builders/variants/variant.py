"""One variant of ImageNet: its classes, where its images are, and what is known about it.

The **wnid** (WordNet 3.0 id, an `n` and eight digits) is a class's identity everywhere; a label number is only a column
of one dataset. Classes of one's own that WordNet does not know have an id in its place
(`builders.variants.class_maps`). `ClassInfo.index` counts a variant's classes in the order of `Variant.classes`: sorted
by wnid for the photographs (as folders of ImageNet always were), in the order of the class list for the drawn variants
and those of one's own. What a repository on the Hub numbers in another order is translated by
`Variant.hub_label_wnids`.

Only the standard library is imported, and the JSON files are read when a class list is first asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from builders.errors import DataError

SPLIT_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": ("train", "training"),
        "validation": ("val", "validation", "valid", "dev"),
        "test": ("test", "testing", "eval", "evaluation"),
    }
)
"""Our name of a split -> what people call it, folders and files included: the words that `datasets` knows."""


def usual_split(name: str) -> str:
    """Our name of a split that is called so: "dev" is validation; a name that means none of ours stays as it is."""
    return next((split for split, words in SPLIT_WORDS.items() if name.lower() in words), name)


_WHOLE = "imagenet-1k"
"""The class list that is no part of another."""


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class of a variant."""

    wnid: str
    """WordNet 3.0 id, or an id of one's own: the identity of the class in every variant."""
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
class Choice:
    """What somebody has said about a dataset's tables; None is found by the common rules."""

    config: str | None = None
    """One of several configurations."""
    image_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where a variant's images are on the Hugging Face Hub: as Parquet files, or as an archive to download."""

    repo_id: str
    config: str | None
    """Folder or configuration of the repository, None where it has one only."""
    revision: str | None
    """The commit that the facts were checked against, None where none is known (then: the newest)."""
    splits: Mapping[str, str]
    """Our name of a split -> the repository's."""
    image_column: str | None = "image"
    label_column: str | None = "label"
    """None where the columns are found by the common rules (`builders.sources.columns`)."""
    archive: str | None = None
    """The file that holds the images where the repository has no Parquet files: it is downloaded and unpacked by the
    user, whose folder is then read as a local path."""

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
    class_list: str = ""
    """The class list in `data/`, where it is not called like the variant: one that another variant has too."""
    archive_folder: str = ""
    """The folder that the original archive unpacks to; it is looked for in a local path."""
    numbered_folders: bool = False
    """Whether the original folders are called by the number of the class, "0" to "999", instead of its wnid."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes in index order; read from the package's data at the first use."""
        return _classes(self._list)

    @property
    def by_wnid(self) -> Mapping[str, ClassInfo]:
        """The classes by wnid."""
        return _by_wnid(self._list)

    @property
    def _list(self) -> str:
        return self.class_list or ("drawn" if self.drawn else self.name)

    @property
    def drawn(self) -> bool:
        """Whether the images are drawn by this package rather than read from anywhere."""
        return self.hub is None

    @property
    def label_ids(self) -> Mapping[str, str]:
        """Labels that a class map gives, exactly as the source has them -> wnid; the table's variants need none."""
        return {}

    @property
    def tables(self) -> Choice:
        """What a class map says of tables on the disk; the table's variants are found by the common rules."""
        return Choice()

    @property
    def tests_only(self) -> bool:
        """Whether the set has no images to train on."""
        return set(self.splits) == {"test"}

    @property
    def hub_label_wnids(self) -> tuple[str, ...]:
        """The wnid of each label number of the Hub repository: the explicit map of its labels. Empty if drawn."""
        if self.hub is None:
            return ()
        subset = _subset(self._list)
        # All thousand are numbered by sorted wnids everywhere.
        return tuple(subset["hub_label_wnids"]) if subset else tuple(info.wnid for info in self.classes)

    @property
    def hub_label_names(self) -> tuple[str, ...] | None:
        """The names that the Hub repository gives to its labels, None where they were not read in full.

        They tell whether a repository is still the one that `hub_label_wnids` was made for; they are not trusted as
        names. Two repositories have wrong ones: see the provenance in `data/subsets.json`.
        """
        subset = None if self.hub is None else _subset(self._list)
        return tuple(subset["hub_label_names"]) if subset and subset["hub_label_names"] else None

    def split(self, name: str) -> str:
        """The variant's own name of a split: "val" and "dev" are "validation", or "test" where that is all there is.

        Raises DataError for a split that the variant does not have.
        """
        known = name if name in self.splits else usual_split(name)
        if known == "validation" and self.tests_only:
            known = "test"
        if known not in self.splits:
            raise DataError(f"The variant '{self.name}' has no split '{name}'.", f"It has: {', '.join(self.splits)}.")
        return known


@cache
def _data(name: str) -> Any:
    return json.loads(files("builders.variants").joinpath("data", name).read_text(encoding="utf-8"))


def _subset(name: str) -> dict[str, Any] | None:
    """The entry of a class list in subsets.json, None for the thousand classes. KeyError if there is no such list."""
    if name == _WHOLE:
        return None
    found: dict[str, Any] = _data("subsets.json")["subsets"][name]
    return found


@cache
def _classes(name: str) -> tuple[ClassInfo, ...]:
    if name == "drawn":
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
