"""Write the class map of a dataset: of a folder of class folders, of Parquet files, or of a repository on the Hub.

What it writes is a start: ids that WordNet does not know are made from what the source calls its classes, and a person
reads them over before the first dataset is made with them.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from builders.access import is_offline, said_plainly
from builders.class_names import name_classes
from builders.errors import DataError
from builders.file_names import shown
from builders.folder_layouts import Part
from builders.folders import beside, images_first, images_of_label, layout_of
from builders.labels import shorten
from builders.other_layouts import check_place, listing, refuse_others
from builders.own_variants import own_variant
from builders.parquet import IMAGE_COLUMNS, LABEL_COLUMNS, class_label, images_of, list_parquet, split_of

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
        counts, labels = _of_place(folder)
    elif is_offline():
        raise DataError(f"There is no folder {source}, and HF_HUB_OFFLINE is set.", "Unset it to ask the Hub.")
    else:
        counts, labels, hub = _of_repository(source, config, revision, wanted, token)
        place = {"hub": hub}
    if not labels:
        raise DataError(f"The tables in {source} have no row with a label.", "Expected a row for each image.")
    classes, remarks = name_classes(labels, folder if folder.is_dir() else None, source)
    fields = {"name": name, "title": name, "licence": None, "splits": counts, **place, "classes": classes}
    named = [{**row, "name": row["name"] or row["id"]} for row in classes]
    own_variant({key: value for key, value in fields.items() if key != "path"} | {"classes": named}, where=source)
    for remark in remarks:
        _log.warning("%s", remark)
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


def _of_place(path: Path) -> tuple[dict[str, int], list[str]]:
    """Images a split, and the labels in order: sorted by folder name, or numbered as a table does."""
    top = check_place(path)
    names = [top.name] if top.is_file() else list_parquet(top, None)
    layout = None if top.is_file() else layout_of(top)
    if names and (layout is None or not images_first(layout)):
        root = top.parent if top.is_file() else top
        try:
            return _of_tables(fsspec.filesystem("file"), str(root), names, (None, None))[:2]
        except (OSError, pa.ArrowException) as error:
            said = " ".join(str(error).split())
            raise DataError(f"A Parquet file in {root} cannot be read: {said}", "Copy it again.") from error
    assert layout is not None
    if not layout.parts:
        raise refuse_others(top) or DataError(
            f"There are no class folders with images in {shown(top)}: {listing(top)}.",
            "Sort the images into a folder a class.",
        )
    counts = {split or "train": _count(part) for split, part in layout.parts.items() if isinstance(part, Part)}
    for split, part in layout.parts.items():
        if isinstance(part, DataError):
            rest = f" Or move {split} away: the classes of {shorten(counts)} are known." if counts else ""
            raise DataError(part.message, f"{part.hint}{rest}", part.code)
    if others := layout.beside:
        _log.warning("Not read in %s: %s, beside the splits.", shown(layout.root), shorten(others))
    if layout.root != top:
        _log.warning("The classes are in %s.", shown(layout.root))
    labels = {label for part in layout.parts.values() if isinstance(part, Part) for label in part.labels}
    return counts, sorted(labels)


def _count(part: Part) -> int:
    """The images of a part. Refuses images that lie deeper than class folders are read; says what else is not read."""
    empty, deeper, left = beside(part)
    others = Counter(left)
    count = 0
    for label in part.labels:
        found = images_of_label(part, label)
        count += len(found.names)
        deeper |= found.deeper
        others.update(found.others)
        others.update({"archive not unpacked": len(found.archives)})
    if deeper:
        raise DataError(
            f"{len(deeper)} folder{'s' if len(deeper) > 1 else ''} of '{shown(part.folder)}' with images that are not "
            f"read, since they lie too deep: {shorten(part.folder / name for name in sorted(deeper))}.",
            "A class folder has its images in itself, or in images/. Move them there, or give the folder that holds "
            "the class folders.",
        )
    if empty:
        _log.warning("Folders in %s without images, which are no classes: %s.", shown(part.folder), shorten(empty))
    for reason, number in others.items():
        if number:
            _log.warning("Not read in %s: %s, %d.", shown(part.folder), reason, number)
    return count


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
