"""Write the class map of a dataset: of a folder of class folders, of Parquet files, or of a repository on the Hub.

What it writes is a start: ids that WordNet does not know are made from what the source calls its classes, and a person
reads them over before the first dataset is made with them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from builders.access import is_offline, said_plainly
from builders.errors import DataError
from builders.folders import SPLIT_FOLDERS, class_folders, image_names, listed_images
from builders.labels import class_keys, shorten, spelling
from builders.own_variants import class_id, own_variant
from builders.variants import Choice, get_variant

__all__ = ["new_variant"]

_log = logging.getLogger(__name__)

def new_variant(
    name: str,
    source: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    out: str | Path | None = None,
    token: str | bool | None = None,
) -> Path:
    """Write ``NAME.yaml``, the class map of a dataset, and return its path.

    Args:
        name: of the variant.
        source: a folder with class folders (in split folders or not) or Parquet files, or ``USER/NAME`` on the Hub.
        config: a configuration of tables.
        revision: a branch, tag or commit of the repository; None is the newest. The class map states the commit.
        image_column: where tables have the images; None finds it by its name.
        label_column: where tables have the labels; None finds it by its name.
        out: where to write; None is ``NAME.yaml`` in the current folder.
        token: as everywhere in huggingface_hub.

    Raises:
        DataError: the file exists; nothing there has classes; images lie where they are not read; or two classes are
            called alike.
    """
    path = Path(out or f"{name}.yaml").expanduser()
    if path.exists():
        raise DataError(f"{path} exists.", "Name another, or delete it first.")
    folder, choice = Path(source).expanduser(), Choice(config, image_column, label_column)
    if folder.exists():
        place: dict[str, Any] = {"path": str(folder.resolve())}
        counts, labels, said = _of_path(folder, choice)
        place |= {"tables": said} if said else {}
    elif is_offline():
        raise DataError(f"There is no folder {source}, and HF_HUB_OFFLINE is set.", "Unset it to ask the Hub.")
    else:
        counts, labels, hub = _of_repository(source, revision, choice, token)
        place = {"hub": hub}
    if not labels:
        raise DataError(f"The tables in {source} have no row with a label.", "Expected a row for each image.")
    classes = _classes(labels)
    _check_alike(labels, classes, source)
    fields = {"name": name, "title": name, "licence": None, "splits": counts, **place, "classes": classes}
    own_variant({key: value for key, value in fields.items() if key != "path"}, where=source)
    path.write_text(_written(fields, source), encoding="utf-8")
    return path


def _written(fields: Mapping[str, Any], source: str) -> str:
    """The fields as YAML (each value as JSON, which is YAML), one class a line."""
    lines = [
        f"# The classes of {source}. Read the ids and names over: prompts say the names, and an id means",
        "# one class in all of your sets. Where a class has a WordNet id, take that. Other ids or names make",
        "# another variant.",
    ]
    for key, value in fields.items():
        if key == "classes":
            lines += ["classes:", *(f"- {json.dumps(row, ensure_ascii=False)}" for row in value)]
        elif value is None:
            lines.append(f"{key}: null   # the terms of the images: the card of a dataset states them")
        else:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _classes(labels: Sequence[str]) -> list[dict[str, Any]]:
    """A class for each label, in order: ImageNet's where the label is its wnid or its name, else one made from it.

    Labels that mean the same class of ImageNet, or whose ids would be equal, get ids of their own.
    """
    thousand = get_variant("imagenet-1k")
    keys = class_keys(thousand.classes)
    known = [keys.get(spelling(label)) for label in labels]
    # By name either all of them are ImageNet's, or none is: "crane" among a builder's tools is no bird.
    if None not in known and len(set(known)) == len(labels):
        return [
            {"id": wnid, "name": thousand.by_wnid[str(wnid)].name, **({} if wnid == label else {"label": label})}
            for wnid, label in zip(known, labels, strict=True)
        ]
    found: list[dict[str, Any]] = []
    taken: set[str] = set(labels) & thousand.by_wnid.keys()
    for number, label in enumerate(labels):
        if label in thousand.by_wnid:
            found.append({"id": label, "name": thousand.by_wnid[label].name})
            continue
        identity = plain = class_id(label) or f"class-{number}"
        while identity in taken:
            identity = f"{plain[:58]}-{number}"
        taken.add(identity)
        name = " ".join(label.replace("_", " ").split()) or identity
        found.append({"id": identity, "name": name, **({} if name == label else {"label": label})})
    return found


def _check_alike(labels: Sequence[str], classes: Sequence[Mapping[str, Any]], source: str) -> None:
    """Refuse two labels that a class map could not tell apart, by what the source calls them."""
    seen: dict[str, str] = {}
    for label, row in zip(labels, classes, strict=True):
        for word in (label, row["id"], row["name"]):
            other = seen.setdefault(word.casefold(), label)
            if other != label:
                raise DataError(
                    f"Two classes of {source} are called alike: '{other}' and '{label}'.",
                    "Neither capitals nor underscores tell classes apart. Rename one of them, or put their images "
                    "together.",
                )


def _of_path(root: Path, choice: Choice) -> tuple[dict[str, int], list[str], dict[str, str]]:
    """Images a split, the labels in order, and what was said of its tables."""
    from builders.sources.table_classes import local_classes

    if root.is_file() and root.suffix.lower() != ".parquet":
        raise DataError(f"'{root}' is neither a folder nor a Parquet file.", "Give a folder of images, or *.parquet.")
    said = {key: value for key, value in asdict(choice).items() if value is not None}
    if (found := local_classes(root, choice)) is not None:
        return dict(found.counts), list(found.labels), said
    if said:
        raise DataError(
            f"{', '.join('--' + key.replace('_', '-') for key in said)} is for tables, and {root} has no Parquet files "
            "with images.",
            "Leave it out: the classes of image files are their folders.",
        )
    return *_of_folder(root), {}


def _of_folder(root: Path) -> tuple[dict[str, int], list[str]]:
    """Images a split, and the labels in order: sorted by folder name."""
    places: dict[str, Path] = {}
    for split, folders in SPLIT_FOLDERS.items():
        for folder in filter(Path.is_dir, map(root.joinpath, folders)):
            if class_folders(folder):
                places[split] = folder
            elif any(True for _ in image_names(folder)):
                raise DataError(
                    f"'{folder}' holds images, but nothing there says their classes.",
                    "Sort them into a folder for each class; lists such as metadata.csv are not read.",
                )
    counts: dict[str, int] = {}
    labels: set[str] = set()
    for split, folder in (places or {"train": root}).items():
        if listed := listed_images(folder):
            labels |= listed.keys()
            counts[split] = sum(map(len, listed.values()))
            continue
        found = class_folders(folder)
        _check_depth(folder, found)
        labels |= found.keys()
        counts[split] = sum(1 for places in found.values() for place in places for _ in image_names(place))
    if not labels:
        raise DataError(f"There are no class folders with images in {root}.", "Sort the images into a folder a class.")
    return counts, sorted(labels)


def _check_depth(folder: Path, found: Mapping[str, Sequence[Path]]) -> None:
    """Refuse images that lie deeper than class folders are read; say which folders have no image at all."""
    deep: list[str] = []
    empty: list[str] = []
    for item in sorted(folder.iterdir()):
        if item.name.startswith(".") or not item.is_dir():
            continue
        read = {str(place) for place in found.get(item.name, ())}
        there = [
            inner for inner, _, _ in os.walk(item) if inner not in read and any(True for _ in image_names(Path(inner)))
        ]
        deep += there[:1]
        if not there and not read:
            empty.append(item.name)
    if deep:
        raise DataError(
            f"{len(deep)} folders of '{folder}' have images that are not read, since they lie too deep: "
            f"{shorten(deep)}.",
            "A class folder has its images in itself, or in images/. Move them there, or give the folder that holds "
            "the class folders.",
        )
    if empty:
        _log.warning("Folders in %s without images, which are no classes: %s.", folder, shorten(empty))


def _of_repository(
    repo_id: str, revision: str | None, choice: Choice, token: str | bool | None
) -> tuple[dict[str, int], list[str], dict[str, Any]]:
    from builders.hub import open_repository
    from builders.sources.table_classes import classes_of

    with said_plainly(repo_id, revision):
        there = open_repository(repo_id, revision, choice.config, converted=revision is None, token=token)
        if not there.tables.splits:
            raise there.absent()
        found = classes_of(there.filesystem, there.root, there.tables, choice, repo_id)
    hub: dict[str, Any] = {
        "repo_id": repo_id, "config": there.tables.config, "revision": there.commit, "splits": dict(found.splits),
        "image_column": found.image_column, "label_column": found.label_column,
    }  # fmt: skip
    return dict(found.counts), list(found.labels), {key: value for key, value in hub.items() if value is not None}
