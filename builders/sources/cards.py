"""Which Parquet files of a dataset are which split of which configuration, on the Hub or in a folder.

Where the dataset's card (the front matter of its README.md) has `configs`, it decides, as for `load_dataset`; else the
patterns of `datasets` decide: folders and file names with "train", "dev", "test" and so on in them. Tables of several
configurations are never put together: one is asked for.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from builders.errors import DataError
from builders.images.formats import IMAGE_SUFFIXES
from builders.variants import SPLIT_WORDS, usual_split
from builders.wording import quoted
from builders.yaml import front_matter, load

CARD_FILES = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""Where `datasets` reads about a dataset; the last one is of old."""

_log = logging.getLogger(__name__)

_WORDS = {word for words in SPLIT_WORDS.values() for word in words}
_OTHERS = {
    "image files": IMAGE_SUFFIXES,
    "tar archives (WebDataset)": {".tar"},
    "archives": {".zip", ".gz", ".tgz", ".xz", ".zst", ".7z", ".rar"},
    "Arrow files (save_to_disk)": {".arrow"},
    "tables of another format": {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".h5", ".lance", ".orc", ".avro"},
}
"""What a dataset without Parquet files may be made of."""


class NoConfigurationError(DataError):
    """There is no configuration of the name that was asked for."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a dataset says of itself, as far as tables go."""

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default: str | None = None
    names: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Configuration -> column -> the names of its label numbers."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The Parquet files of one configuration."""

    splits: Mapping[str, tuple[str, ...]]
    """The dataset's own name of a split -> its files, relative to the dataset, sorted."""
    config: str | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> the names of its label numbers, where the card says them."""
    named: bool = True
    """Whether the splits are the dataset's own; files that say none are called train."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What lies beside the tables and is not read, by reason."""

    def split(self, wanted: str) -> str | None:
        """The dataset's own name of a split: "dev" where validation is asked for; None where it has none."""
        if wanted in self.splits:
            return wanted
        alike = [split for split in self.splits if usual_split(split) == usual_split(wanted)]
        if alike:
            return alike[0]
        # The only one there is, called by a word of its own ("full"), is what there is to train on.
        lone = len(self.splits) == 1 and usual_split(wanted) == "train" and not split_in(next(iter(self.splits)))
        return next(iter(self.splits), None) if lone or not self.named else None

    def files(self, wanted: str) -> tuple[str, ...]:
        """The files of a split, by its own or by our name; none where there is no such split."""
        split = self.split(wanted)
        return () if split is None else self.splits[split]


def read_card(texts: Mapping[str, str], where: str) -> Card:
    """What the files of `CARD_FILES` say, each by its name; those that a dataset does not have are left out.

    Raises:
        DataError: one is damaged, or `configs` is not what `datasets` reads.
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
            if len(old) == 1:  # called "user--name" once
                old = dict(zip(["default"], old.values(), strict=True))
            infos = {**old, **infos}
    except Exception as error:  # whatever a stranger's YAML makes of these libraries
        said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise DataError(
            f"{at} of {where} is damaged: {said[:300].rstrip('.')}.",
            "It says what configurations and splits there are: put it right, or name a revision or a copy without it.",
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
    """The Parquet files of one configuration by split; of no split where it has none.

    Args:
        files: the names of all files of the dataset.
        card: what it says of itself.
        config: the name of a configuration, or the folder of one; None is the card's default, or the only one.
        where: how to call the dataset in a message.

    Raises:
        DataError: several configurations and none asked for, no such configuration, or files that the card names and
            that are not there.
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
            there = f"Folders with tables: {quoted(folders)}." if folders else "It has one alone: leave the name out."
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
    """Split -> the files that ``load_dataset`` takes for a configuration, of whatever format and in its order.

    Unlike `find_tables` it judges nothing: a pattern may match no file, a file that two patterns match comes twice, and
    a path without a pattern in it is among them whether there is such a file or not.

    Args:
        card: of the dataset.
        config: one of the card's; None is what is found where no card says anything.
        files: the names of all files of the dataset.
        where: how to call the dataset in a message.

    Raises:
        DataError: the patterns are not what `datasets` reads.
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
    """The files that a pattern means but for hidden ones that it does not name."""
    from glob import has_magic

    from datasets.data_files import (
        _is_inside_unrequested_special_dir,
        _is_unrequested_hidden_file_or_is_inside_unrequested_hidden_dir,
    )

    whole = posixpath.join(base, pattern)
    if "://" in pattern:  # somewhere else
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
    """What a dataset without Parquet files is made of, in words; empty where nothing can be said."""
    endings = Counter(posixpath.splitext(name)[1].lower() for name in files if not _hidden(name))
    found = {what: sum(endings[ending] for ending in kinds) for what, kinds in _OTHERS.items()}
    return ", ".join(f"{count} {what}" for what, count in found.items() if count)


def is_table(name: str) -> bool:
    """Whether a file is a Parquet file by its name."""
    return name.lower().endswith(".parquet")


def _hidden(name: str) -> bool:
    """What `datasets` passes over: names that begin with a dot, and folders that begin with two underscores."""
    *folders, _ = parts = name.split("/")
    return any(part.startswith(".") for part in parts) or any(folder.startswith("__") for folder in folders)


def _configured(card: Card, config: str | None, where: str) -> str:
    """The configuration of a card that is meant."""
    there = f"Its card names: {quoted(card.configs, 20)}."
    if config is not None and config not in card.configs:
        raise NoConfigurationError(f"{where} has no configuration '{config}'.", there)
    found = config or card.default
    if found is None:
        raise DataError(f"{where} has several configurations: {quoted(card.configs, 20)}.", _ASK)
    return found


_ASK = (
    "They are never put together. Ask for one: --config NAME where a class map is written (hfsyn variants new), "
    "PLACE#NAME where a dataset is named."
)


def _said(config: Mapping[str, Any], tables: Sequence[str], where: str) -> tuple[str, dict[str, list[str]]]:
    """The folder of a card's configuration, and split -> patterns within it."""
    from datasets.data_files import sanitize_patterns

    base = posixpath.normpath(str(config.get("data_dir") or ".")).strip("/").removeprefix(".")
    if config.get("data_files") is None:
        return base, _patterns(tables, base, where)
    try:
        return base, {str(split): list(globs) for split, globs in sanitize_patterns(config["data_files"]).items()}
    except ValueError as error:
        raise DataError(f"The card of {where} is damaged: {str(error).splitlines()[0]}", "Put it right.") from None


def _given(config: Mapping[str, Any], tables: Sequence[str], where: str) -> list[str]:
    base, patterns = _said(config, tables, where)
    return [name for globs in patterns.values() for glob in globs for name in _matching(glob, base, tables)]


def _patterns(tables: Sequence[str], base: str, where: str) -> dict[str, list[str]]:
    """Split -> patterns, as `datasets` finds them where no card says any."""
    from datasets.data_files import _get_data_files_patterns

    def resolve(pattern: str) -> list[str]:
        return _matching(pattern, base, tables)

    try:
        return {str(split): list(globs) for split, globs in _get_data_files_patterns(resolve).items()}
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(
            f"The files of {where} name splits that cannot be: {str(error).splitlines()[0]}", "Rename them."
        ) from None


def _matching(pattern: str, base: str, files: Iterable[str]) -> list[str]:
    """The files that a pattern means, which is relative to a folder."""
    from fsspec.utils import glob_translate

    meant = re.compile(glob_translate("/" + posixpath.normpath(f"{base}/{pattern}").lstrip("/")))
    return [name for name in files if meant.match(f"/{name}")]


def _by_split(
    patterns: Mapping[str, Sequence[str]], base: str, files: Sequence[str], where: str, *, stated: bool
) -> dict[str, tuple[str, ...]]:
    """Split -> its Parquet files; empty where the patterns mean files of another kind alone."""
    found: dict[str, set[str]] = {}
    for split, globs in patterns.items():
        found[split] = set()
        for glob in globs:
            matched = _matching(glob, base, files)
            if not matched and stated:
                raise DataError(
                    f"The card of {where} says that the split '{split}' is '{posixpath.join(base, glob)}', which is "
                    "not there.",
                    "Put `data_files` in the card right, or bring the files.",
                )
            found[split] |= set(matched)
    if stated and not any(found.values()):
        raise DataError(f"The card of {where} gives no files to its splits.", "Put `data_files` in the card right.")
    splits = {split: tuple(sorted(filter(is_table, names))) for split, names in found.items()}
    if lacking := [split for split, names in splits.items() if not names and any(splits.values())]:
        raise DataError(
            f"The split '{lacking[0]}' of {where} is {quoted(sorted(found[lacking[0]]), 3)}, and the others are "
            "Parquet files.",
            "All splits must be Parquet files.",
        )
    return {split: names for split, names in splits.items() if names}


def split_in(name: str) -> str | None:
    """The split that the name of a folder or file says."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((usual_split(word) for word in words if word in _WORDS), None)


def folder_parts(folder: str) -> str:
    """A folder without what says a split, and without data/: what is left tells configurations apart."""
    return "/".join(part for part in folder.split("/") if part not in ("", "data") and split_in(part) is None)


def _one_part(splits: Mapping[str, Sequence[str]], base: str, where: str) -> None:
    """Refuse tables in several folders that no card explains."""
    there = {folder_parts(posixpath.dirname(name.removeprefix(base))) for names in splits.values() for name in names}
    if len(there) > 1:
        folders = [posixpath.join(base, part) or "(the top folder)" for part in sorted(there)]
        if all("=" in part for part in there):
            raise DataError(
                f"{where} is parted by a column whose values are the names of folders: {quoted(folders)}.",
                "Write it as one table with that column in it.",
            )
        raise DataError(
            f"{where} has tables in {len(folders)} folders, and no card says whether they are one set: "
            f"{quoted(folders)}.",
            f"{_ASK} Or say in README.md what they are (`configs`).",
        )


def _tell_shared(splits: Mapping[str, Sequence[str]], where: str) -> None:
    times = Counter(name for names in splits.values() for name in names)
    if shared := [name for name, count in times.items() if count > 1]:
        _log.warning("The card of %s gives %s to more than one split.", where, quoted(shared, 3))
