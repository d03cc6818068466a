"""Write the class map of a dataset: of a folder of class folders, of Parquet files, or of a repository on the Hub.

A class is ImageNet's if its label is a wnid, or if all labels are names of ImageNet's classes. Names of other wnids are
looked up in lists in the folder (words.txt, LOC_synset_mapping.txt). Ids of other classes are made from their labels,
for the user to check before the class map is used.
"""

import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from builders.errors import DataError, near_path, quoted, shown
from builders.files import as_path, atomic_text
from builders.hub import Patience, is_offline, patiently
from builders.sources.folder_contents import Part, find_place, listing, refuse_others
from builders.sources.folder_layouts import folder_layout
from builders.sources.folders import beside, images_of
from builders.sources.rows import class_keys, is_wnid, spelling
from builders.variants import Choice, get_variant
from builders.variants.class_maps import class_id, own_variant

_LISTS = ("words.txt", "LOC_synset_mapping.txt", "map_clsloc.txt")
_NUMBERED = re.compile(r"\d+[\s._-]+(?=.*[^\W\d_])")
_WNID_FIRST = re.compile(r"(n\d{8})[\s._-]+(?=.*[^\W\d_])")
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
        image_column: the tables' column of images; None finds it by its name.
        label_column: the tables' column of labels; None finds it by its name.
        out: where to write; None is ``NAME.yaml`` in the current folder.
        token: as everywhere in huggingface_hub.

    Raises:
        DataError: the file exists; nothing there has classes; images lie where they are not read; or two classes have
            the same name.
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
        near = near_path(source)
        raise DataError(f"There is no folder {source}, and HF_HUB_OFFLINE is set.{near}", "Unset it to ask the Hub.")
    else:
        counts, labels, hub = _of_repository(source, revision, choice, token)
        place = {"hub": hub}
    if not labels:
        raise DataError(f"The tables in {source} have no row with a label.", "Expected a row for each image.")
    classes, remarks = _name_classes(labels, folder if folder is not None and folder.is_dir() else None)
    _check_alike(labels, classes, source)
    fields = {"name": name, "title": name, "licence": None, "splits": counts, **place, "classes": classes}
    named = [{**row, "name": row["name"] or row["id"]} for row in classes]
    own_variant({key: value for key, value in fields.items() if key != "path"} | {"classes": named}, where=source)
    for remark in remarks:
        _log.warning("%s", remark)
    atomic_text(path, _written(fields, source))
    return path


def _written(fields: Mapping[str, Any], source: str) -> str:
    """The fields as YAML (each value as JSON, which is YAML), one class per line."""
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


# --- where the classes come from ---------------------------------------------------------------------------------


def _of_path(top: Path, choice: Choice) -> tuple[dict[str, int], list[str], dict[str, str]]:
    """Images per split, the labels in order, and the user's choice of tables."""
    from builders.sources.table_classes import local_classes

    said = {key: value for key, value in asdict(choice).items() if value is not None}
    if (found := local_classes(top, choice)) is not None:
        return dict(found.counts), list(found.labels), said
    if said:
        flags = ", ".join("--" + key.replace("_", "-") for key in said)
        problem = f"{flags} is for tables, and {shown(top)} has no Parquet files with images."
        raise DataError(problem, "Leave it out: the classes of image files are their folders.")
    return *_of_folder(top), {}


def _of_folder(top: Path) -> tuple[dict[str, int], list[str]]:
    """Images per split, and the labels, sorted."""
    layout = folder_layout(top)
    if not layout.parts:
        raise refuse_others(top) or DataError(
            f"There are no class folders with images in {shown(top)}: {listing(top)}.",
            "Sort the images into a folder per class.",
        )
    parts = {split: part for split, part in layout.parts.items() if isinstance(part, Part)}
    counts = {split or "train": _count(part) for split, part in parts.items()}
    for split, part in layout.parts.items():
        if isinstance(part, DataError):
            rest = f" Or move {split} away: the classes of {quoted(counts)} are known." if counts else ""
            raise DataError(part.message, f"{part.hint}{rest}", part.code)
    if others := layout.beside:
        _log.warning("Not read in %s: %s, beside the splits.", shown(layout.root), quoted(others))
    if layout.root != top:
        _log.warning("The classes are in %s.", shown(layout.root))
    return counts, sorted({label for part in parts.values() for label in part.labels})


def _count(part: Part) -> int:
    """The number of images of a part. Refuses images deeper than class folders; warns about what else is not read."""
    empty, deeper, left = beside(part)
    others = Counter(left)
    count = 0
    for label in part.labels:
        found = images_of(part, [label], label)
        count += len(found.names)
        deeper |= found.deeper
        others.update({**found.others, "archive not unpacked": len(found.archives)})
    place = shown(part.folder)
    if deeper:
        raise DataError(
            f"{len(deeper)} folder{'s' if len(deeper) > 1 else ''} of '{place}' with images that are not "
            f"read, since they lie too deep: {quoted(part.folder / name for name in sorted(deeper))}.",
            "A class folder has its images in itself, or in images/. Move them there, or give the folder that holds "
            "the class folders.",
        )
    if empty:
        _log.warning("Folders in %s without images, which are not classes: %s.", place, quoted(empty))
    for reason, number in others.items():
        if number:
            _log.warning("Not read in %s: %s, %d.", place, reason, number)
    return count


def _of_repository(
    repo_id: str, revision: str | None, choice: Choice, token: str | bool | None
) -> tuple[dict[str, int], list[str], dict[str, Any]]:
    """Images per split, the labels in order, and the class map's description of the repository."""
    from builders.sources.table_classes import TableClasses, classes_of
    from builders.sources.tables import Repository, open_repository

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


# --- ids and names -----------------------------------------------------------------------------------------------


def _name_classes(labels: Sequence[str], folder: Path | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The class of each label, in order, and remarks; ``name`` is None for an unknown wnid, and if it is not UTF-8.

    `folder` is where lists of names may lie.
    """
    thousand = get_variant("imagenet-1k")
    keys = class_keys(thousand.classes)
    known = {label: keys.get(spelling(label)) for label in labels}
    # Either all of them are names of ImageNet's classes, or none is: among tools, "crane" is not the bird.
    if None not in known.values() and len(set(known.values())) == len(labels):
        return [_row(str(wnid), thousand.by_wnid[str(wnid)].name, label) for label, wnid in known.items()], []
    # Numbers in front are left out if all labels have one and still differ without it.
    cut = {label: _blanks(_NUMBERED.sub("", label, count=1)) for label in labels if _NUMBERED.match(label)}
    numbered = len({spelling(name) for name in cut.values()}) == len(labels) > 1
    names = cut if numbered else {label: _blanks(label) or label for label in labels}
    wnids = {label: found for label in labels if (found := _wnid_of(label))}
    words = _names_in(folder, set(wnids.values()) - thousand.by_wnid.keys()) if folder is not None else {}
    rows = []
    for label in labels:
        wnid = wnids.get(label)
        if wnid is None:
            rows.append(_row(class_id(names[label]), names[label] if as_path(label) == label else None, label))
        elif wnid in thousand.by_wnid:
            rows.append(_row(wnid, thousand.by_wnid[wnid].name, label))
        else:
            first = _WNID_FIRST.match(label)
            rows.append(_row(wnid, words.get(wnid) or (_blanks(label[first.end() :]) if first else None), label))
    return rows, list(_remarks(rows, names, numbered, len(words)))


def _row(identity: str, name: str | None, label: str) -> dict[str, Any]:
    return {"id": identity, "name": name, **({} if label in (identity, name) else {"label": label})}


def _wnid_of(label: str) -> str | None:
    """The wnid that a label is, or begins with, as in Stanford Dogs: n02085620-Chihuahua."""
    found = _WNID_FIRST.match(label)
    return label if is_wnid(label) else found[1] if found else None


def _blanks(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).replace("_", " ").split())


def _names_in(folder: Path, wnids: set[str]) -> dict[str, str]:
    """Names of wnids from lists in a folder: a wnid, then blanks or a tab, then its words, separated by commas."""
    found: dict[str, str] = {}
    for file in (place / name for name in _LISTS for place in (folder, folder.parent) if wnids):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        for line in lines:
            wnid, _, words = line.strip().replace("\t", " ").partition(" ")
            if wnid in wnids and (first := _blanks(re.sub(r"^\d+\s", "", words).partition(",")[0])):
                found.setdefault(wnid, first)
    return found


def _remarks(
    rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], numbered: bool, looked_up: int
) -> Iterator[str]:
    if changed := [f"{label} -> {name}" for label, name in names.items() if label != name and not _wnid_of(label)]:
        how = "without the numbers in front and " if numbered else ""
        yield f"Names are written {how}with blanks for underscores: {quoted(changed, 3)}."
    if looked_up:
        yield f"Names of WordNet ids that were found in the lists beside the folders: {looked_up}."
    if nameless := [row["id"] for row in rows if row["name"] is None]:
        yield (
            "Classes without a name, since their folders are named by WordNet ids outside of ImageNet-1k, or not in "
            f"UTF-8: {quoted(nameless, 3)}. Write it where the class map says null. WordNet's words.txt, put into the "
            "folder of the images, gives the names of ids."
        )
    if numbers := [label for label in names if label.isdecimal()]:
        yield f"Classes that are named by numbers, which prompts would say: {quoted(numbers, 3)}."


def _check_alike(labels: Sequence[str], classes: Sequence[Mapping[str, Any]], source: str) -> None:
    seen: dict[str, str] = {}
    for label, row in zip(labels, classes, strict=True):
        for word in (label, row["id"], row["name"]):
            other = seen.setdefault(spelling(word or label), label)
            if other != label:
                raise DataError(
                    f"Two classes of {shown(source)} are called alike: '{shown(other)}' and '{shown(label)}'.",
                    "Case and underscores do not distinguish classes. Rename one, or put their images together.",
                )
