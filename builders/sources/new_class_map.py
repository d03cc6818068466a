"""Write the class map of a dataset: of a folder of class folders, of Parquet files, or of a repository on the Hub.

What it writes is a start: ids that WordNet does not know are made from what the source calls its classes, and a person
reads them over before the first dataset is made with them.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from builders.errors import DataError
from builders.file_names import shown
from builders.files import atomic_text
from builders.hub.answers import Patience, is_offline, patiently
from builders.sources.class_names import name_classes
from builders.sources.folder_contents import find_place, listing, refuse_others
from builders.sources.folder_layouts import Part, folder_layout
from builders.sources.folders import beside, images_of_label
from builders.variants import Choice
from builders.variants.class_maps import own_variant
from builders.wording import quoted

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
    folder, choice = find_place(source), Choice(config, image_column, label_column)
    if folder is not None:
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
    classes, remarks = name_classes(labels, folder if folder is not None and folder.is_dir() else None, source)
    fields = {"name": name, "title": name, "licence": None, "splits": counts, **place, "classes": classes}
    named = [{**row, "name": row["name"] or row["id"]} for row in classes]
    own_variant({key: value for key, value in fields.items() if key != "path"} | {"classes": named}, where=source)
    for remark in remarks:
        _log.warning("%s", remark)
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


def _of_path(top: Path, choice: Choice) -> tuple[dict[str, int], list[str], dict[str, str]]:
    """Images a split, the labels in order, and what was said of its tables."""
    from builders.sources.table_classes import local_classes

    said = {key: value for key, value in asdict(choice).items() if value is not None}
    if (found := local_classes(top, choice)) is not None:
        return dict(found.counts), list(found.labels), said
    if said:
        raise DataError(
            f"{', '.join('--' + key.replace('_', '-') for key in said)} is for tables, and {shown(top)} has no Parquet "
            "files with images.",
            "Leave it out: the classes of image files are their folders.",
        )
    return *_of_folder(top), {}


def _of_folder(top: Path) -> tuple[dict[str, int], list[str]]:
    """Images a split, and the labels in order: sorted by folder name."""
    layout = folder_layout(top)
    if not layout.parts:
        raise refuse_others(top) or DataError(
            f"There are no class folders with images in {shown(top)}: {listing(top)}.",
            "Sort the images into a folder a class.",
        )
    counts = {split or "train": _count(part) for split, part in layout.parts.items() if isinstance(part, Part)}
    for split, part in layout.parts.items():
        if isinstance(part, DataError):
            rest = f" Or move {split} away: the classes of {quoted(counts)} are known." if counts else ""
            raise DataError(part.message, f"{part.hint}{rest}", part.code)
    if others := layout.beside:
        _log.warning("Not read in %s: %s, beside the splits.", shown(layout.root), quoted(others))
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
            f"read, since they lie too deep: {quoted(part.folder / name for name in sorted(deeper))}.",
            "A class folder has its images in itself, or in images/. Move them there, or give the folder that holds "
            "the class folders.",
        )
    if empty:
        _log.warning("Folders in %s without images, which are no classes: %s.", shown(part.folder), quoted(empty))
    for reason, number in others.items():
        if number:
            _log.warning("Not read in %s: %s, %d.", shown(part.folder), reason, number)
    return count


def _of_repository(
    repo_id: str, revision: str | None, choice: Choice, token: str | bool | None
) -> tuple[dict[str, int], list[str], dict[str, Any]]:
    from builders.sources.hub import Repository, open_repository
    from builders.sources.table_classes import TableClasses, classes_of

    def ask() -> tuple[Repository, TableClasses]:
        there = open_repository(repo_id, revision, choice.config, converted=revision is None, token=token)
        if not there.tables.splits:
            raise there.absent()
        return there, classes_of(there.filesystem, there.root, there.tables, choice, repo_id)

    there, found = patiently(ask, Patience(repo_id, revision=revision, token=token))
    hub: dict[str, Any] = {
        "repo_id": repo_id,
        "config": there.tables.config,
        "revision": there.commit,
        "splits": dict(found.splits),
        "image_column": found.image_column,
        "label_column": found.label_column,
    }
    return dict(found.counts), list(found.labels), {key: value for key, value in hub.items() if value is not None}
