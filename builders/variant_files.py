"""Write the class map of a dataset: of a folder of class folders, of Parquet files, or of a repository on the Hub.

What it writes is a start: ids that WordNet does not know are made from what the source calls its classes, and a person
reads them over before the first dataset is made with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from builders.access import is_offline, said_plainly
from builders.errors import DataError
from builders.folders import SPLIT_FOLDERS, class_folders, image_names
from builders.labels import class_keys, shorten, spelling
from builders.own_variants import class_id, own_variant
from builders.parquet import IMAGE_COLUMNS, LABEL_COLUMNS, class_label, list_parquet, split_of
from builders.variants import get_variant

__all__ = ["new_variant"]

_LABELS = (*LABEL_COLUMNS, "fine_label", "target")
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
        image_column: where tables have the images; None finds it by its name.
        label_column: where tables have the labels; None finds it by its name.
        out: where to write; None is ``NAME.yaml`` in the current folder.
        token: as everywhere in huggingface_hub.

    Raises:
        DataError: the file exists, or nothing there has classes.
    """
    path = Path(out or f"{name}.yaml").expanduser()
    if path.exists():
        raise DataError(f"{path} exists.", "Name another, or delete it first.")
    folder, wanted = Path(source).expanduser(), (image_column, label_column)
    if folder.exists():
        place: dict[str, Any] = {"path": str(folder.resolve())}
        counts, labels = _of_folder(folder, wanted)
    elif is_offline():
        raise DataError(f"There is no folder {source}, and HF_HUB_OFFLINE is set.", "Unset it to ask the Hub.")
    else:
        counts, labels, hub = _of_repository(source, config, revision, wanted, token)
        place = {"hub": hub}
    fields = {"name": name, "title": name, "licence": None, "splits": counts, **place, "classes": _classes(labels)}
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
    # Either all of them are ImageNet's, or none is: "crane" among a builder's tools is no bird.
    if None not in known and len(set(known)) == len(labels):
        return [
            {"id": wnid, "name": thousand.by_wnid[str(wnid)].name, **({} if wnid == label else {"label": label})}
            for wnid, label in zip(known, labels, strict=True)
        ]
    found: list[dict[str, Any]] = []
    taken: set[str] = set()
    for number, label in enumerate(labels):
        identity = plain = class_id(label) or f"class-{number}"
        while identity in taken:
            identity = f"{plain[:58]}-{number}"
        taken.add(identity)
        name = " ".join(label.replace("_", " ").split()) or identity
        found.append({"id": identity, "name": name, **({} if name == label else {"label": label})})
    return found


def _of_folder(root: Path, wanted: _Wanted) -> tuple[dict[str, int], list[str]]:
    """Images a split, and the labels in order: sorted by folder name, or numbered as a table does."""
    names = [root.name] if root.is_file() else list_parquet(root, None)
    if names:
        return _of_tables(fsspec.filesystem("file"), str(root.parent if root.is_file() else root), names, wanted)[:2]
    places = {
        split: folder
        for split, folders in SPLIT_FOLDERS.items()
        for folder in map(root.joinpath, folders)
        if folder.is_dir() and class_folders(folder)
    }
    counts: dict[str, int] = {}
    labels: set[str] = set()
    for split, folder in (places or {"train": root}).items():
        found = class_folders(folder)
        labels |= found.keys()
        counts[split] = sum(1 for places in found.values() for place in places for _ in image_names(place))
    if not labels:
        raise DataError(f"There are no class folders with images in {root}.", "Sort the images into a folder a class.")
    return counts, sorted(labels)


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
            image, label = (_column(schema, wanted[0], name, IMAGE_COLUMNS), _column(schema, wanted[1], name, _LABELS))
            found = class_label(schema, label)
            if found is None and str(schema.field(label).type) in ("string", "large_string"):
                texts.update(filter(None, file.read(columns=[label]).column(0).unique().to_pylist()))
            elif found is None:
                raise DataError(
                    f"The labels of '{name}' are numbers without names (column '{label}').",
                    "Write the class map by hand: classes in the order of the numbers.",
                )
            labels = found if labels is None else labels
            columns = {"image_column": image, "label_column": label}
            split = split_of(name) or "train"
            counts[split] = counts.get(split, 0) + file.metadata.num_rows
    return counts, list(labels) if labels else sorted(texts), columns


def _column(schema: Any, wanted: str | None, name: str, known: Sequence[str]) -> str:
    among = [wanted] if wanted else known
    found = next((column for column in among if column in schema.names), None)
    if found is None:
        raise DataError(
            f"'{name}' has no column {shorten(among)}; its columns are {shorten(schema.names)}.",
            "Say which: --image-column, --label-column.",
        )
    return found
