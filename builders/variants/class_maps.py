"""Custom variants: a class map in a YAML file, for images that no variant of the table has.

    name: flowers
    splits: {train: 3000, test: 500}      # images in each, null if unknown
    path: photos/flowers                  # a local folder (source.path of a recipe goes before it), and/or:
    hub: {repo_id: alice/flowers, splits: {train: train, test: validation}}
    tables: {label_column: species}       # of Parquet files in path, where the common rules pick the wrong column
    classes:                              # in the order of the labels
    - {id: n11939491, name: daisy}        # a WordNet id if there is one
    - {id: dog-rose, name: dog rose, label: Rosa canina, definition: a wild rose with pink flowers}

A class is identified by its **id**: a WordNet id, or a word of your own (letters, digits, dashes, underscores), which
should mean the same in all your sets. `label` is the name of the class in the folder or dataset, where that is neither
the id nor the name; `lemmas`, `definition` and `hypernym` are for strategies that ask for them, and default to
WordNet's for ImageNet's classes.

The file is read once: a recipe then carries its content (`source.definition`) under a name with a hash of it,
`flowers@` and 16 hex digits, so that runs and published sets do not need the file. The hash covers name, classes,
splits and repository; title, licence, homepage and the counts may be changed at any time.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from builders.errors import DataError
from builders.variants import Choice, ClassInfo, HubSource, Variant, get_variant, register
from builders.yaml import is_yaml_name, load_file

MOST_CLASSES = 100_000
_MOST_LETTERS = 2_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_JOINERS = dict.fromkeys((0x200C, 0x200D))  # zero-width joiners, which Persian words and emoji contain
_MOST_IN_ID = 64
_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{_MOST_IN_ID - 1}}}")
_DIGITS = 12  # of the hash in an id: two of a hundred thousand labels collide with a probability of 1 in 50,000
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_SPLITS = ("train", "validation", "test")
_KEYS = ("name", "title", "licence", "homepage", "images", "splits", "hub", "tables", "classes")
_CLASS_KEYS = ("id", "name", "label", "lemmas", "definition", "hypernym")
_HUB_KEYS = ("repo_id", "config", "revision", "splits", "image_column", "label_column")
_TABLE_KEYS = ("config", "image_column", "label_column")


@dataclass(frozen=True, slots=True)
class OwnVariant(Variant):
    """A variant that a class map describes; see `Variant` for what each field means."""

    classes: tuple[ClassInfo, ...] = ()
    by_wnid: Mapping[str, ClassInfo] = field(default_factory=dict)
    hub_label_wnids: tuple[str, ...] = ()
    hub_label_names: tuple[str, ...] | None = None
    definition: Mapping[str, Any] = field(default_factory=dict)
    """What a recipe carries: the class map, every default left out."""


def find_variant(name: str | Path) -> Variant:
    """A variant by name or by the file of a class map; for names that a user gives, as `get_variant` opens no file.

    Raises DataError as `get_variant` and `read_variant`.
    """
    return read_variant(name)[0] if is_yaml_name(str(name)) else get_variant(str(name))


def read_variant(file: str | Path) -> tuple[OwnVariant, str | None]:
    """The variant of a class map, and the folder that it names, relative to the file's own.

    Raises DataError, naming the key, for a file that is not a class map.
    """
    fields = load_file(file, "class map", "`hfsyn variants new NAME --from FOLDER` (or USER/NAME) writes one.")
    folder = fields.pop("path", None)
    if folder is not None and (not isinstance(folder, str) or not folder):
        raise DataError(f"path in {file} is {folder!r}.", "Expected a folder or a Parquet file.")
    found = own_variant(fields, where=str(file))
    return found, None if folder is None else str(Path(file).expanduser().parent / Path(folder).expanduser())


def own_variant(
    definition: Mapping[str, Any], *, where: str = "source.definition", name: str | None = None
) -> OwnVariant:
    """The variant that a definition (untrusted input) describes, which `get_variant` then knows in this process.

    A definition is the content of a class map without `path`; messages call it `where`. Raises DataError, naming the
    key, for an invalid one, or one whose content does not match `name`.
    """
    found = _checked(definition, where)
    if name is not None and found.name != name:
        said = f"{where} is the class map of {found.name}, and source.variant is {name}."
        raise DataError(said, "Name the file of the class map in source.variant, and leave source.definition out.")
    register(found)
    return found


def class_id(label: str) -> str:
    """The id of a class with this label: a different one for each label, and the same on all systems.

    A label of ASCII letters, digits, dashes and blanks (or underscores) is its own id: `Rosa canina` is `Rosa_canina`.
    For any other label, its ASCII part is followed by a hash of the whole: `Öl` is `Ol-` and twelve hex digits.
    """
    text = " ".join(unicodedata.normalize("NFC", label).replace("_", " ").split())
    if _ID.fullmatch(plain := text.replace(" ", "_")):
        return plain
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    start = re.sub(r"[^A-Za-z0-9]+", "-", letters).strip("-")[: _MOST_IN_ID - _DIGITS - 1].strip("-")
    return f"{start or 'class'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:_DIGITS]}"


def _checked(definition: Mapping[str, Any], where: str) -> OwnVariant:
    _keys(definition, _KEYS, ("name", "splits", "classes"), where)
    name = definition["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataError(f"name in {where} is {name!r}.", "Letters, digits, dot, dash and underscore, at most 64.")
    splits = definition["splits"]
    if not isinstance(splits, Mapping) or not splits or not set(splits) <= set(_SPLITS):
        raise DataError(f"splits in {where} is {splits!r}.", f"Expected a number of images for {' or '.join(_SPLITS)}.")
    splits = {split: _count(count, f"splits.{split}", where) for split, count in splits.items()}
    hub = _hub(definition["hub"], splits, where) if definition.get("hub") is not None else None
    tables: dict[str, str] = {}
    if (fields := definition.get("tables")) is not None:
        _keys(fields, _TABLE_KEYS, (), f"tables of {where}")
        tables = {key: text for key in _TABLE_KEYS if (text := _text(fields.get(key), f"tables.{key}", where))}
    rows = definition["classes"]
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_CLASSES:
        raise DataError(f"classes in {where} is not a list of classes.", f"Expected 1 to {MOST_CLASSES:,} of them.")
    rows = [_class(row, number, where) for number, row in enumerate(rows)]
    _unique(rows, where)
    texts = {key: _text(definition.get(key), key, where) for key in ("title", "licence", "homepage", "images")}
    optional = {"tables": tables} if tables else {}
    repository = hub and {key: value for key, value in asdict(hub).items() if value is not None}
    content = {"name": name, "splits": sorted(splits), "hub": repository, "classes": rows, **optional}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    classes = tuple(_info(row, number) for number, row in enumerate(rows))
    ids, labels = tuple(row["id"] for row in rows), tuple(row.get("label", row["name"]) for row in rows)
    return OwnVariant(
        name=f"{name}@{digest[:16]}",
        title=texts["title"] or name,
        splits=MappingProxyType({split: splits[split] or 0 for split in _SPLITS if split in splits}),
        images=texts["images"],
        licence=texts["licence"] or "not stated",
        hub=hub,
        homepage=texts["homepage"],
        classes=classes,
        by_wnid=MappingProxyType({info.wnid: info for info in classes}),
        tables=Choice(**tables),
        label_ids=dict(zip(labels, ids, strict=True)),
        hub_label_wnids=ids,
        hub_label_names=labels,
        definition={
            "name": name,
            **{key: text for key, text in texts.items() if text},
            "splits": {split: splits[split] for split in _SPLITS if split in splits},
            **({"hub": repository} if repository else {}),
            **optional,
            "classes": rows,
        },
    )


def _count(count: Any, key: str, where: str) -> int | None:
    """A number of images; 1e3 is one."""
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 10**9):
        raise DataError(f"{key} in {where} is {repr(count)[:40]}.", "Expected a number of images, or null.")
    return count


def _hub(fields: Any, splits: Mapping[str, Any], where: str) -> HubSource:
    _keys(fields, _HUB_KEYS, ("repo_id",), f"hub of {where}")
    texts = {key: _text(fields.get(key), f"hub.{key}", where) for key in _HUB_KEYS if key != "splits"}
    if not _REPO.fullmatch(texts["repo_id"]):
        raise DataError(f"hub.repo_id in {where} is {texts['repo_id']!r}.", "Expected USER/NAME.")
    theirs = fields.get("splits") or {split: split for split in splits}
    if not isinstance(theirs, Mapping) or set(theirs) != set(splits):
        raise DataError(f"hub.splits in {where} is {theirs!r}.", f"Expected its name of each of {', '.join(splits)}.")
    optional = {key: text or None for key, text in texts.items() if key != "repo_id"}
    names = {split: _text(theirs[split], f"hub.splits.{split}", where) for split in splits}
    return HubSource(repo_id=texts["repo_id"], splits=names, **optional)


def _class(row: Any, number: int, where: str) -> dict[str, Any]:
    """One class, its defaults left out and ImageNet's knowledge of a wnid filled in."""
    place = f"classes[{number}] of {where}"
    _keys(row, _CLASS_KEYS, ("id",), place)
    identity = row["id"]
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        hint = "Put it in quotes." if isinstance(identity, int | float) else "A WordNet id, or a word of your own:"
        raise DataError(f"id in {place} is {identity!r}.", f"{hint} letters, digits, dash and underscore, at most 64.")
    known = get_variant("imagenet-1k").by_wnid.get(identity)
    name = _text(row.get("name"), "name", place) or (known.name if known else "")
    if not name:
        raise DataError(f"The class {identity} of {where} has no name.", "Give it one: what prompts call it.")
    lemmas = tuple(row["lemmas"]) if isinstance(row.get("lemmas"), list) else () if row.get("lemmas") is None else None
    if lemmas is None or not all(isinstance(lemma, str) and lemma for lemma in lemmas):
        raise DataError(f"lemmas in {place} is {row['lemmas']!r}.", "Expected a list of words.")
    words = [_text(lemma, "lemmas", place) for lemma in lemmas]
    found = {"id": identity, "name": name}
    optional: dict[str, Any] = {
        "label": _text(row.get("label"), "label", place),
        "lemmas": words or (list(known.lemmas) if known else []),
        "definition": _text(row.get("definition"), "definition", place) or (known.definition if known else ""),
        "hypernym": _text(row.get("hypernym"), "hypernym", place) or (known.hypernym if known else ""),
    }
    defaults = {"label": name, "lemmas": [name]}
    return found | {key: value for key, value in optional.items() if value and value != defaults.get(key)}


def _info(row: Mapping[str, Any], index: int) -> ClassInfo:
    lemmas = tuple(row.get("lemmas", (row["name"],)))
    return ClassInfo(row["id"], index, row["name"], lemmas, row.get("definition", ""), row.get("hypernym", ""))


def _keys(fields: Any, known: Sequence[str], needed: Sequence[str], where: str) -> None:
    if not isinstance(fields, Mapping):
        raise DataError(f"{where} is {str(fields)[:60]!r}.", f"Expected the keys {', '.join(known)}.")
    if unknown := [str(key) for key in fields if key not in known]:
        raise DataError(f"{where} has an unknown key '{unknown[0][:60]}'.", f"Allowed here: {', '.join(known)}.")
    if missing := [key for key in needed if fields.get(key) is None]:
        raise DataError(f"{where} has no '{missing[0]}'.", f"Needed here: {', '.join(needed)}.")


def _text(value: Any, key: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{key} in {where} is {value!r}.", "Expected a text: put it in quotes.")
    text = " ".join(value.split())
    if len(text) > _MOST_LETTERS or not text.translate(_JOINERS).isprintable():
        raise DataError(f"{key} in {where} is {text[:40]!r}...", f"Expected at most {_MOST_LETTERS} printable letters.")
    return text


def _unique(rows: Sequence[Mapping[str, Any]], where: str) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        for word in (row["id"], row["name"], row.get("label", "")):
            if word and seen.setdefault(word.casefold(), row["id"]) != row["id"]:
                said = f"Two classes of {where} are called '{word}': {seen[word.casefold()]} and {row['id']}."
                raise DataError(said, "Ids, names and labels must each mean one class.")
    if len({row["id"] for row in rows}) < len(rows):
        twice = next(row["id"] for row in rows if sum(other["id"] == row["id"] for other in rows) > 1)
        raise DataError(f"The id {twice} occurs twice in {where}.", "A class has one line.")
