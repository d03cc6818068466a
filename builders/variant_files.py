"""Write the class map of a dataset: of a folder of class folders, of Parquet files, or of a repository on the Hub.

What it writes is a start: ids that WordNet does not know are made from what the source calls its classes, and a person
reads them over before the first dataset is made with them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from builders.access import is_offline, said_plainly
from builders.errors import DataError
from builders.files import atomic_text
from builders.folders import SPLIT_FOLDERS, class_folders, image_names, listed_images
from builders.labels import class_keys, shorten, spelling
from builders.own_variants import class_id, own_variant
from builders.parquet import IMAGE_COLUMNS, LABEL_COLUMNS, class_label, images_of, list_parquet, split_of
from builders.variants import get_variant

__all__ = ["new_variant"]

_log = logging.getLogger(__name__)

_Wanted = tuple[str | None, str | None]
"""Columns of images and labels that the user named."""


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
        config: a configuration of the repository.
        revision: a branch, tag or commit of the repository; None is the newest. The class map states the commit.
        image_column: where the repository's tables have the images; None finds it by its name.
        label_column: where the repository's tables have the labels; None finds it by its name.
        out: where to write; None is ``NAME.yaml`` in the current folder.
        token: as everywhere in huggingface_hub.

    Raises:
        DataError: the file exists; nothing there has classes; images lie where they are not read; or two classes are
            called alike.
    """
    path = Path(out or f"{name}.yaml").expanduser()
    if path.exists():
        raise DataError(f"{path} exists.", "Name another, or delete it first.")
    folder, wanted = Path(source).expanduser(), (image_column, label_column)
    if folder.exists():
        if any(wanted):
            raise DataError(
                f"--image-column and --label-column are for a repository on the Hub, and {source} is on this machine.",
                f"Local tables are read by the names of their columns: rename them, to '{IMAGE_COLUMNS[0]}' and "
                "'label'.",
            )
        place: dict[str, Any] = {"path": str(folder.resolve())}
        counts, labels = _of_folder(folder)
    elif is_offline():
        raise DataError(f"There is no folder {source}, and HF_HUB_OFFLINE is set.", "Unset it to ask the Hub.")
    else:
        counts, labels, hub = _of_repository(source, config, revision, wanted, token)
        place = {"hub": hub}
    if not labels:
        raise DataError(f"The tables in {source} have no row with a label.", "Expected a row for each image.")
    classes = _classes(labels)
    _check_alike(labels, classes, source)
    fields = {"name": name, "title": name, "licence": None, "splits": counts, **place, "classes": classes}
    own_variant({key: value for key, value in fields.items() if key != "path"}, where=source)
    atomic_text(path, _written(fields, source))
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


def _of_folder(root: Path) -> tuple[dict[str, int], list[str]]:
    """Images a split, and the labels in order: sorted by folder name, or numbered as a table does."""
    if root.is_file() and root.suffix.lower() != ".parquet":
        raise DataError(f"'{root}' is neither a folder nor a Parquet file.", "Give a folder of images, or *.parquet.")
    names = [root.name] if root.is_file() else list_parquet(root, None)
    if names:
        top = root.parent if root.is_file() else root
        try:
            return _of_tables(fsspec.filesystem("file"), str(top), names, (None, None))[:2]
        except (OSError, pa.ArrowException) as error:
            said = " ".join(str(error).split())
            raise DataError(f"A Parquet file in {top} cannot be read: {said}", "Copy it again.") from error
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
    repo_id: str, config: str | None, revision: str | None, wanted: _Wanted, token: str | bool | None
) -> tuple[dict[str, int], list[str], dict[str, Any]]:
    from huggingface_hub import HfApi, HfFileSystem

    api = HfApi(token=token)
    with said_plainly(repo_id, revision):
        commit, names = _files(api, repo_id, revision, config)
        if not names and revision is None:
            commit, names = _files(api, repo_id, "refs/convert/parquet", config)
        if not names:
            raise DataError(
                f"{repo_id} has no Parquet files{f' in {config}/' if config else ''}.",
                "Download it, and name the folder.",
            )
        filesystem = HfFileSystem(token=token)
        counts, labels, columns = _of_tables(filesystem, f"datasets/{repo_id}@{commit}", names, wanted)
    hub = {"repo_id": repo_id, "config": config, "revision": commit, "splits": {split: split for split in counts}}
    return counts, labels, {**{key: value for key, value in hub.items() if value is not None}, **columns}


def _files(api: Any, repo_id: str, revision: str | None, config: str | None) -> tuple[str, list[str]]:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        info = api.dataset_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        if revision == "refs/convert/parquet":
            return "", []
        raise
    names = [sibling.rfilename for sibling in info.siblings or ()]
    return info.sha, [
        name for name in names if name.endswith(".parquet") and (config is None or name.startswith(f"{config}/"))
    ]


def _of_tables(
    filesystem: Any, root: str, names: Sequence[str], wanted: _Wanted
) -> tuple[dict[str, int], list[str], dict[str, str]]:
    """Rows a split, the labels in order, and the two columns."""
    counts: dict[str, int] = {}
    texts: set[str] = set()
    labels: tuple[str, ...] | None = None
    columns: dict[str, str] = {}
    for name in sorted(names):
        with filesystem.open(f"{root}/{name}", "rb") as stream:
            file = pq.ParquetFile(stream)
            schema = file.schema_arrow
            image, label = (
                _column(schema, wanted[0], name, IMAGE_COLUMNS),
                _column(schema, wanted[1], name, LABEL_COLUMNS),
            )
            if not images_of(schema.field(image).type):
                raise DataError(
                    f"The column '{image}' of '{name}' holds no images, but {schema.field(image).type}.",
                    "Expected bytes, or {bytes, path} as `datasets` writes it.",
                )
            found = class_label(schema, label)
            if found is None and _is_text(schema.field(label).type):
                texts.update(filter(None, file.read(columns=[label]).column(0).unique().to_pylist()))
            elif found is None:
                raise DataError(
                    f"The labels of '{name}' are numbers without names (column '{label}').",
                    "Write the class map by hand: classes in the order of the numbers, and path: the file.",
                )
            labels = found if labels is None else labels
            columns = {"image_column": image, "label_column": label}
            split = split_of(name) or "train"
            counts[split] = counts.get(split, 0) + file.metadata.num_rows
    return counts, list(labels) if labels else sorted(texts), columns


def _is_text(kind: pa.DataType) -> bool:
    """Whether labels of this type are words; pandas's categories are stored as a dictionary of them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _column(schema: Any, wanted: str | None, name: str, known: Sequence[str]) -> str:
    among = [wanted] if wanted else known
    found = next((column for column in among if column in schema.names), None)
    if found is None:
        raise DataError(
            f"'{name}' has no column {shorten(among)}; its columns are {shorten(schema.names)}.",
            "Say which: --image-column, --label-column.",
        )
    return found
