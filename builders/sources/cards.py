"""The Parquet files of each split and configuration of a dataset, on the Hub or in a folder.

As for `load_dataset`, `configs` in the dataset's card (the front matter of its README.md) decide, or else the patterns
of `datasets`: folders and file names that contain "train", "dev", "test" and so on. Tables of several configurations
are never combined: the user must choose one.
"""

import json
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from builders.errors import DataError, first_line, quoted
from builders.images.formats import IMAGE_SUFFIXES
from builders.variants import SPLIT_WORDS, usual_split
from builders.yaml import front_matter, load

CARD_FILES = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""The files that describe a dataset to `datasets`; the last one is deprecated."""

_log = logging.getLogger(__name__)

_WORDS = {word for words in SPLIT_WORDS.values() for word in words}
_OTHER_KINDS = {
    "image files": IMAGE_SUFFIXES,
    "tar archives (WebDataset)": {".tar"},
    "archives": {".zip", ".gz", ".tgz", ".xz", ".zst", ".7z", ".rar"},
    "Arrow files (save_to_disk)": {".arrow"},
    "tables of another format": {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".h5", ".lance", ".orc", ".avro"},
}
"""What a dataset without Parquet files may consist of."""


class NoConfigurationError(DataError):
    """There is no configuration of the requested name."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a dataset's card says about its tables."""

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default: str | None = None
    names: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Configuration -> column -> label names."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The Parquet files of one configuration."""

    splits: Mapping[str, tuple[str, ...]]
    """The dataset's own name of a split -> its files, relative to the dataset, sorted."""
    config: str | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column -> label names of the card
    named: bool = True  # whether the dataset itself names its splits; otherwise all files are the split "train"
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of files beside the tables that are not read."""

    def split(self, wanted: str) -> str | None:
        """The dataset's own name of a split, such as "dev" for validation; None if it does not have the split."""
        if wanted in self.splits:
            return wanted
        if alike := [split for split in self.splits if usual_split(split) == usual_split(wanted)]:
            return alike[0]
        # A single split with an unknown name ("full") is the one to train on.
        lone = len(self.splits) == 1 and usual_split(wanted) == "train" and not split_in(next(iter(self.splits)))
        return next(iter(self.splits), None) if lone or not self.named else None

    def files(self, wanted: str) -> tuple[str, ...]:
        """The files of a split, by its own or our name; empty if there is no such split."""
        split = self.split(wanted)
        return () if split is None else self.splits[split]


def read_card(texts: Mapping[str, str], where: str) -> Card:
    """The content of those `CARD_FILES` that a dataset has, by name -> text.

    Raises DataError if one is damaged, or if `datasets` does not accept its `configs`.
    """
    from datasets.info import DatasetInfo, DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    at = "README.md"
    try:
        fields = front_matter(texts.get(at, ""), at)
        if (at := ".huggingface.yaml") in texts:
            fields |= load(texts[at], at, finite=False) or {}
        data, at = DatasetCardData(**fields), "README.md"
        configs = MetadataConfigs.from_dataset_card_data(data)
        infos = DatasetInfosDict.from_dataset_card_data(data)
        default = configs.get_default_config_name()
        if (at := "dataset_infos.json") in texts:
            old = {name: DatasetInfo.from_dict(info) for name, info in json.loads(texts[at]).items()}
            if len(old) == 1:  # it used to be named "user--name"
                old = {"default": next(iter(old.values()))}
            infos = {**old, **infos}
    except Exception as error:  # these libraries raise many kinds for malformed YAML
        raise DataError(
            f"{at} of {where} is damaged: {first_line(error)[:300]}.",
            "It defines configurations and splits: fix it, or use a revision or a copy without it.",
        ) from None
    names = {str(name): _label_names(info.features) for name, info in infos.items()}
    for name, said in configs.items():
        names[str(name)] = {**names.get(str(name), {}), **_label_names(said.get("features"))}
    return Card({str(name): said for name, said in configs.items()}, default and str(default), names)


def _label_names(features: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    from datasets import ClassLabel

    items = (features or {}).items()
    return {column: tuple(kind.names) for column, kind in items if isinstance(kind, ClassLabel) and kind.names}


def find_tables(files: Iterable[str], card: Card, config: str | None, where: str) -> Tables:
    """The Parquet files of one configuration, given all files of a dataset that messages call `where`.

    `config` is the name or folder of a configuration; None is the card's default, or the only one. Raises DataError
    for several configurations if `config` is None, an unknown one, or files that the card names and that do not exist.
    """
    names = [name for name in files if not _hidden(name)]
    tables = sorted(filter(is_table, names))
    inside = config is not None and any(name.startswith(f"{config}/") for name in tables)
    if card.configs and not (inside and config not in card.configs):
        config = _configured(card, config, where)
        base, patterns = _said(card.configs[config], tables, where)
        stated = card.configs[config].get("data_files") is not None
        splits = _by_split(patterns, base, names, where, stated=stated)
        given = {name for other in card.configs.values() for name in _given(other, tables, where)}
        beside = [name for name in tables if name not in given]
        reason = "Parquet file that the card gives to no split"
    else:
        if config is not None and not inside and tables:
            folders = sorted({name.split("/")[0] for name in tables if "/" in name})
            there = f"Folders with tables: {quoted(folders)}." if folders else "It has only one: omit the name."
            raise NoConfigurationError(f"{where} has no configuration '{config}'.", there)
        base, patterns = config or "", _patterns(tables, config or "", where)
        splits = _by_split(patterns, base, tables, where, stated=False)
        _one_part(splits, base, where)
        taken = {name for part in splits.values() for name in part}
        beside = [name for name in tables if name not in taken and name.startswith(base and f"{base}/")]
        reason = "Parquet file of no split"
    _tell_shared(splits, where)
    only = next(iter(card.names.values()), {}) if len(card.names) == 1 else {}
    return Tables(
        splits,
        config,
        card.names.get(config or "default", only),
        any(patterns[split] != ["**"] for split in splits),
        {reason: len(beside)} if beside else {},
    )


def files_loaded(card: Card, config: str | None, files: Iterable[str], where: str) -> dict[str, list[str]]:
    """Split -> the files of any format that ``load_dataset`` takes for a configuration of the card, in its order.

    Without `config`, as if there were no card. Unlike in `find_tables`, a pattern may match no file, a file may be
    matched twice, and a path without a pattern is included even if there is no such file. Raises DataError for patterns
    that `datasets` does not accept.
    """
    from datasets.data_files import FILES_TO_IGNORE
    from datasets.packaged_modules import _ALL_ALLOWED_EXTENSIONS

    def is_data(name: str) -> bool:
        _, *endings = posixpath.basename(name).split(".")
        return any(f".{ending}" in _ALL_ALLOWED_EXTENSIONS for ending in endings)

    names = [name for name in sorted(files) if is_data(name) and posixpath.basename(name) not in FILES_TO_IGNORE]
    if config is None:
        base, patterns = "", _patterns(names, "", where)
    else:
        base, patterns = _said(card.configs[config], names, where)
    return {split: [name for glob in globs for name in _taken(glob, base, names)] for split, globs in patterns.items()}


def _taken(pattern: str, base: str, files: Sequence[str]) -> list[str]:
    """The files that a pattern matches, without hidden ones that it does not name."""
    from glob import has_magic

    from datasets.data_files import (
        _is_inside_unrequested_special_dir,
        _is_unrequested_hidden_file_or_is_inside_unrequested_hidden_dir,
    )

    whole = posixpath.join(base, pattern)
    if "://" in pattern:  # elsewhere
        return [pattern]
    if not has_magic(pattern):
        return [posixpath.normpath(whole)]
    return [
        name
        for name in _matching(pattern, base, files)
        if not _is_inside_unrequested_special_dir(name, whole)
        and not _is_unrequested_hidden_file_or_is_inside_unrequested_hidden_dir(name, whole)
    ]


def what_lies_there(files: Iterable[str]) -> str:
    """What a dataset without Parquet files consists of, in words; empty if unknown."""
    endings = Counter(posixpath.splitext(name)[1].lower() for name in files if not _hidden(name))
    found = {what: sum(endings[ending] for ending in kinds) for what, kinds in _OTHER_KINDS.items()}
    return ", ".join(f"{count} {what}" for what, count in found.items() if count)


def is_table(name: str) -> bool:
    """Whether a file is a Parquet file by its name."""
    return name.lower().endswith(".parquet")


def _hidden(name: str) -> bool:
    """Whether `datasets` ignores a file: dot files, and folders that begin with two underscores."""
    *folders, _ = parts = name.split("/")
    return any(part.startswith(".") for part in parts) or any(folder.startswith("__") for folder in folders)


def _configured(card: Card, config: str | None, where: str) -> str:
    there = f"Its card names: {quoted(card.configs, 20)}."
    if config is not None and config not in card.configs:
        raise NoConfigurationError(f"{where} has no configuration '{config}'.", there)
    found = config or card.default
    if found is None:
        raise DataError(f"{where} has several configurations: {quoted(card.configs, 20)}.", _ASK)
    return found


_ASK = "They are never combined. Choose one: --config-name NAME of `hfsyn variants new`, or PLACE#NAME as a dataset."


def _said(config: Mapping[str, Any], tables: Sequence[str], where: str) -> tuple[str, dict[str, list[str]]]:
    """The folder of a card's configuration, and split -> patterns relative to it."""
    from datasets.data_files import sanitize_patterns

    base = posixpath.normpath(str(config.get("data_dir") or ".")).strip("/").removeprefix(".")
    if config.get("data_files") is None:
        return base, _patterns(tables, base, where)
    try:
        return base, {str(split): list(globs) for split, globs in sanitize_patterns(config["data_files"]).items()}
    except ValueError as error:
        raise DataError(f"The card of {where} is damaged: {first_line(error)}.", "Fix it.") from None


def _given(config: Mapping[str, Any], tables: Sequence[str], where: str) -> list[str]:
    base, patterns = _said(config, tables, where)
    return [name for globs in patterns.values() for glob in globs for name in _matching(glob, base, tables)]


def _patterns(tables: Sequence[str], base: str, where: str) -> dict[str, list[str]]:
    """Split -> patterns, as `datasets` finds them without a card."""
    from datasets.data_files import _get_data_files_patterns

    try:
        found = _get_data_files_patterns(lambda pattern: _matching(pattern, base, tables))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"The files of {where} name invalid splits: {first_line(error)}.", "Rename them.") from None
    return {str(split): list(globs) for split, globs in found.items()}


def _matching(pattern: str, base: str, files: Iterable[str]) -> list[str]:
    """The files that a pattern, relative to the folder `base`, matches."""
    from fsspec.utils import glob_translate

    meant = re.compile(glob_translate("/" + posixpath.normpath(f"{base}/{pattern}").lstrip("/")))
    return [name for name in files if meant.match(f"/{name}")]


def _by_split(
    patterns: Mapping[str, Sequence[str]], base: str, files: Sequence[str], where: str, *, stated: bool
) -> dict[str, tuple[str, ...]]:
    """Split -> its Parquet files; empty if the patterns match only other kinds of files."""
    found: dict[str, set[str]] = {split: set() for split in patterns}
    for split, glob in ((split, glob) for split, globs in patterns.items() for glob in globs):
        matched = _matching(glob, base, files)
        if not matched and stated:
            absent = f"'{posixpath.join(base, glob)}', which is not there"
            said = f"The split '{split}' in the card of {where} is {absent}."
            raise DataError(said, "Fix `data_files` in the card, or add the files.")
        found[split] |= set(matched)
    if stated and not any(found.values()):
        raise DataError(f"The card of {where} gives no files to its splits.", "Fix `data_files` in the card.")
    splits = {split: tuple(sorted(filter(is_table, names))) for split, names in found.items()}
    if lacking := [split for split, names in splits.items() if not names and any(splits.values())]:
        theirs = quoted(sorted(found[lacking[0]]), 3)
        said = f"The split '{lacking[0]}' of {where} is {theirs}, and the others are Parquet files."
        raise DataError(said, "All splits must be Parquet files.")
    return {split: names for split, names in splits.items() if names}


def split_in(name: str) -> str | None:
    """The split in the name of a folder or file."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((usual_split(word) for word in words if word in _WORDS), None)


def folder_parts(folder: str) -> str:
    """A folder's path without data/ and names of splits: the rest distinguishes configurations."""
    return "/".join(part for part in folder.split("/") if part not in ("", "data") and split_in(part) is None)


def _one_part(splits: Mapping[str, Sequence[str]], base: str, where: str) -> None:
    there = {folder_parts(posixpath.dirname(name.removeprefix(base))) for names in splits.values() for name in names}
    if len(there) <= 1:
        return
    folders = quoted(posixpath.join(base, part) or "(the top folder)" for part in sorted(there))
    if all("=" in part for part in there):
        said = f"{where} is partitioned by a column whose values are the names of folders: {folders}."
        raise DataError(said, "Write it as one table with that column in it.")
    said = f"{where} has tables in {len(there)} folders, and no card says whether they are one set: {folders}."
    raise DataError(said, f"{_ASK} Or define them in README.md (`configs`).")


def _tell_shared(splits: Mapping[str, Sequence[str]], where: str) -> None:
    times = Counter(name for names in splits.values() for name in names)
    if shared := [name for name, count in times.items() if count > 1]:
        _log.warning("The card of %s gives %s to more than one split.", where, quoted(shared, 3))
