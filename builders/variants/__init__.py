"""The table of variants: named sets of ImageNet classes, and where their images are.

    get_variant("imagenette").classes      # ClassInfo by ClassInfo, in index order
    get_variant("imagenet-r").splits       # {"test": 30000}

The rows are in `data/variants.json`, the class lists in `data/subsets.json`. Each fact about a dataset that is not ours
says where it was read, or that it could not be verified.

The **wnid** (WordNet 3.0 id, an `n` and eight digits) is a class's identity everywhere; a label number is only a column
of one dataset. Custom classes that WordNet does not know have an id in its place (`builders.variants.class_maps`).
Only the standard library is imported, and the class lists are read when they are first needed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from builders.errors import DataError, did_you_mean

SPLIT_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": ("train", "training"),
        "validation": ("val", "validation", "valid", "dev"),
        "test": ("test", "testing", "eval", "evaluation"),
    }
)
"""Our name of a split -> the names that people give it, those that `datasets` knows."""


def usual_split(name: str) -> str:
    """Our name of a split: "dev" is validation; any other name stays as it is."""
    return next((split for split, words in SPLIT_WORDS.items() if name.lower() in words), name)


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class of a variant."""

    wnid: str  # WordNet 3.0 id, or a custom id: the identity of the class in every variant
    index: int
    """Position in `Variant.classes`, from 0: sorted by wnid for photographs, else in the order of the class list."""
    name: str  # unique within the variant and the same in all of them: "tench", "crane (bird)"
    lemmas: tuple[str, ...]  # WordNet's words for it, the most common first
    definition: str  # WordNet's gloss, without examples
    hypernym: str  # WordNet's more general word: "cyprinid" for a tench


@dataclass(frozen=True, slots=True)
class Choice:
    """Configuration and columns of a dataset's tables; None is found by the common rules."""

    config: str | None = None
    image_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where a variant's images are on the Hugging Face Hub: as Parquet files, or as an archive to download."""

    repo_id: str
    config: str | None  # folder or configuration of the repository, None if it has only one
    revision: str | None  # the commit that the facts were checked against; None is the newest
    splits: Mapping[str, str]  # our name of a split -> the repository's
    image_column: str | None = "image"
    label_column: str | None = "label"  # None if the columns are found by the common rules (`builders.sources.columns`)
    archive: str | None = None
    """The archive that holds the images if the repository has no Parquet files; users download and unpack it."""

    @property
    def url(self) -> str:
        """The dataset's page."""
        return f"https://huggingface.co/datasets/{self.repo_id}"


@dataclass(frozen=True, slots=True)
class Variant:
    """A named set of classes, and what is known about its images."""

    name: str
    title: str
    splits: Mapping[str, int]  # name of a split -> its number of images
    images: str  # format and size of the images, in words
    licence: str
    hub: HubSource | None
    homepage: str = ""
    gated: bool = False  # whether one must request access to the repository
    facts: Mapping[str, str] = field(default_factory=dict)  # fact -> where it was read, or "not verified: ..."
    class_list: str = ""  # the class list in `data/`; empty if it has the name of the variant
    archive_folder: str = ""  # the folder that the original archive unpacks to; it is looked for in a local path
    numbered_folders: bool = False
    """Whether the original folders are named by class number, "0" to "999", instead of by wnid."""
    drawn: bool = False  # whether this package draws the images
    label_ids: Mapping[str, str] = field(default_factory=dict)
    """Of a class map: label, exactly as the source has it -> wnid."""
    tables: Choice = field(default_factory=Choice)  # of a class map: the configuration and columns of local tables
    groups: tuple[str, ...] = ()
    """Folders, each with a version of all images, if a test is one of several versions: "gaussian_noise/3"."""
    border: int = 0  # pixels on each side of an image that do not belong to it
    also_right: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """wnid -> other classes of ImageNet that are as right an answer for an image of this class."""
    has_more: bool = False  # whether the original folders hold other classes too, which are left out

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes in index order."""
        return _classes(self._list)

    @property
    def by_wnid(self) -> Mapping[str, ClassInfo]:
        """The classes by wnid."""
        return _by_wnid(self._list)

    @property
    def _list(self) -> str:
        return self.class_list or ("drawn" if self.drawn else self.name)

    @property
    def tests_only(self) -> bool:
        """Whether the set has no images to train on."""
        return set(self.splits) == {"test"}

    @property
    def hub_label_wnids(self) -> tuple[str, ...]:
        """The wnid of each label number of the Hub repository. Empty if drawn."""
        if self.hub is None:
            return ()
        subset = _subset(self._list)
        # All thousand are numbered by sorted wnids everywhere.
        return tuple(subset["hub_label_wnids"]) if subset else tuple(info.wnid for info in self.classes)

    @property
    def hub_label_names(self) -> tuple[str, ...] | None:
        """The names that the Hub repository gives to its labels, None if they were not read in full.

        They tell whether the repository is still the one that `hub_label_wnids` was made for. Two repositories have
        wrong names: see the provenance in `data/subsets.json`.
        """
        subset = None if self.hub is None else _subset(self._list)
        return tuple(subset["hub_label_names"]) if subset and subset["hub_label_names"] else None

    def split(self, name: str) -> str:
        """The variant's own name of a split: "val" and "dev" are "validation", or "test" if it only has that.

        Raises DataError for a split that the variant does not have.
        """
        known = name if name in self.splits else usual_split(name)
        if known == "validation" and self.tests_only:
            known = "test"
        if known not in self.splits:
            raise DataError(f"The variant '{self.name}' has no split '{name}'.", f"It has: {', '.join(self.splits)}.")
        return known


@cache
def data(name: str) -> Any:
    """The content of a JSON file of the package."""
    return json.loads(files("builders.variants").joinpath("data", name).read_text(encoding="utf-8"))


def _subset(name: str) -> dict[str, Any] | None:
    """The entry of a class list in subsets.json, None for the thousand classes."""
    if name == "objectnet":
        wnids = sorted(wnids[0] for wnids in data("objectnet.json")["folders"].values())
        return {"hub_label_wnids": wnids, "hub_label_names": None}
    return None if name == "imagenet-1k" else dict(data("subsets.json")["subsets"][name])


@cache
def _classes(name: str) -> tuple[ClassInfo, ...]:
    rows = data("drawn.json" if name == "drawn" else "imagenet_1k.json")["classes"]  # ImageNet's are sorted by wnid
    if name != "drawn" and (subset := _subset(name)) is not None:
        wanted = frozenset(subset["hub_label_wnids"])
        rows = [row for row in rows if row["wnid"] in wanted]
    return tuple(ClassInfo(**{**row, "index": index, "lemmas": tuple(row["lemmas"])}) for index, row in enumerate(rows))


@cache
def _by_wnid(name: str) -> Mapping[str, ClassInfo]:
    return MappingProxyType({info.wnid: info for info in _classes(name)})


def facts_of(variant: Variant) -> dict[str, Any]:
    """All that is known about a variant, and how to get its images; None if there is nothing to say."""
    hub, by_name = variant.hub, "found by its name"
    return {
        "name": variant.name,
        "title": variant.title,
        "classes": len(variant.classes),
        "splits": dict(variant.splits),
        "images": variant.images or None,
        "licence": variant.licence,
        "hub": hub.repo_id if hub else None,
        "config": hub.config if hub else None,
        "revision": (hub.revision or "the newest") if hub else None,
        "columns": {"image": hub.image_column or by_name, "label": hub.label_column or by_name} if hub else None,
        "repository's splits": dict(hub.splits) if hub else None,
        "labels": _labels(variant) if hub and hub.archive is None else None,
        "access": how_to_get(variant),
        "homepage": variant.homepage or None,
        "facts": dict(variant.facts),
    }


def access(variant: Variant) -> str:
    """How to get the images, in a word."""
    if variant.hub is None:
        return "drawn" if variant.drawn else "folder"
    return "archive" if variant.hub.archive else "gated" if variant.gated else "streamed"


def how_to_get(variant: Variant) -> str:
    """How to get the images, in a sentence."""
    if variant.drawn:
        return "drawn by this package, with no network"
    if variant.hub is None:
        return "a local folder: --set source.path=FOLDER"
    if variant.hub.archive is not None:
        return f"an archive, which cannot be streamed: {how_to_unpack(variant)}"
    if variant.gated:
        return f"gated: ask for access at {variant.hub.url}, then hf auth login with a token that can read"
    return "streamed from the Hub without an account"


def how_to_unpack(variant: Variant) -> str:
    """What to do about an archive; empty for a repository of Parquet files."""
    hub = variant.hub
    if hub is None or hub.archive is None:
        return ""
    at = f" --revision {hub.revision}" if hub.revision else ""
    return (
        f"download it (hf download {hub.repo_id} {hub.archive} --repo-type dataset{at} --local-dir .), unpack it, and "
        f"give the folder: --set source.path={variant.archive_folder or 'FOLDER'}"
    )


def _labels(variant: Variant) -> str:
    wnids = variant.hub_label_wnids
    if variant.hub and variant.hub.label_column == "wnid":
        return "wnids as they stand"
    order = "in the order of the classes" if list(wnids) == [info.wnid for info in variant.classes] else "by a map"
    names = "names compared when read" if variant.hub_label_names is None else "names known and compared when read"
    return f"numbers 0 to {len(wnids) - 1} {order}, the first {wnids[0]}, the last {wnids[-1]}; {names}"


def _table() -> dict[str, Variant]:
    rows: dict[str, dict[str, Any]] = {}
    for row in data("variants.json")["variants"]:
        base = rows.get(row.get("like"), {})
        nested = {key: {**base.get(key, {}), **(row.get(key) or {})} or None for key in ("hub", "facts")}
        rows[row["name"]] = {**base, **row, **nested, "groups": tuple(row.get("groups", ()))}
    folders = data("objectnet.json")["folders"]
    rows["objectnet"] |= {
        "label_ids": {folder: wnids[0] for folder, wnids in folders.items()},
        "also_right": {wnids[0]: tuple(wnids[1:]) for wnids in folders.values() if len(wnids) > 1},
        "has_more": True,
    }
    return {
        name: Variant(
            hub=row["hub"] and HubSource(**row["hub"]),
            facts=row["facts"] or {},
            **{key: value for key, value in row.items() if key not in ("hub", "facts", "like")},
        )
        for name, row in rows.items()
    }


VARIANTS: dict[str, Variant] = _table()
"""Every variant by name: sets to train on, sets that only test a classifier, and the drawn ones."""

_OWN: dict[str, Variant] = {}
"""Variants of class maps that this process has read, by name, which includes a hash of their content."""


def register(variant: Variant) -> None:
    """Let `get_variant` know a variant that a class map describes (see `builders.variants.class_maps`)."""
    _OWN[variant.name] = variant


def own_class(wnid: str) -> ClassInfo | None:
    """A custom class by its id, as described by some class map that this process has read."""
    return next((variant.by_wnid[wnid] for variant in _OWN.values() if wnid in variant.by_wnid), None)


def get_variant(name: str) -> Variant:
    """The variant of that name. Raises DataError, with the nearest name, for an unknown one."""
    if found := VARIANTS.get(name) or _OWN.get(name):
        return found
    asked = str(name)
    family = [known for known in VARIANTS if known.startswith(f"{asked.lower()}-")]  # "imagenet-v2" is three sets
    some = 0 < len(family) <= 3
    guess = f" Did you mean {' or '.join(map(repr, family))}?" if some else did_you_mean(asked, VARIANTS)
    said = f"There is no variant '{asked[:100]}'.{guess}"
    raise DataError(said, f"There are: {', '.join(VARIANTS)}. Classes of your own: hfsyn variants new")
