"""The classes that tables have, for a class map to be written from them: no variant says yet what a label means."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import DataError
from builders.sources.cards import Tables
from builders.sources.columns import Columns, disagreement, find_columns, label_words, plain
from builders.sources.labels import class_keys, spelling
from builders.sources.on_disk import local_tables
from builders.sources.parquet import different_images, in_parallel
from builders.variants import SPLIT_WORDS, Choice, get_variant, usual_split
from builders.wording import quoted

_log = logging.getLogger(__name__)

_Values = tuple[str | None, ...]
"""What each of the columns that could be the label says in a row, as people would call it."""


@dataclass(frozen=True)
class TableClasses:
    """What a class map says of tables."""

    counts: Mapping[str, int]
    """Our name of a split -> its rows with a label."""
    labels: Sequence[str]
    """What the tables call their classes: in the order of the label numbers, or sorted."""
    splits: Mapping[str, str]
    """Our name of a split -> theirs."""
    image_column: str
    label_column: str


def local_classes(root: Path, choice: Choice) -> TableClasses | None:
    """The classes of the tables in a folder, or of the file that `root` is; None where there are no tables.

    Raises:
        DataError: as `classes_of`, or a file cannot be read.
    """
    try:
        there = local_tables(root, choice.config)
        if there is None or not there[1].splits:
            return None
        return classes_of(fsspec.filesystem("file"), str(there[0]), there[1], choice, str(root))
    except (OSError, pa.ArrowException) as error:
        said = " ".join(str(error).split())
        raise DataError(f"A Parquet file in {root} cannot be read: {said}", "Copy it again.") from error


def classes_of(filesystem: Any, root: str, tables: Tables, choice: Choice, where: str) -> TableClasses:
    """Read the label columns of all tables.

    Raises:
        DataError: no column of images or of labels, two that could be the label and disagree, or labels that nobody has
            named.
    """
    splits = our_splits(tables, where)
    split_of = {name: ours for ours, theirs in splits.items() for name in tables.splits[theirs]}
    files = sorted(split_of)

    def read(name: str) -> tuple[Columns, Counter[_Values]]:
        with filesystem.open(f"{root}/{name}", "rb") as stream:
            file = pq.ParquetFile(stream)
            columns = find_columns(file.schema_arrow, f"'{name}'", choice=choice, names=tables.names)
            return columns, Counter(_rows(columns, file.read(columns=[label.column for label in columns.labels])))

    found = list(in_parallel(read, files))
    label = _label(found, where)
    counts = dict.fromkeys(splits, 0)
    names: dict[str, None] = {}
    texts: set[str] = set()
    for name, (columns, rows) in zip(files, found, strict=True):
        place = [one.column for one in columns.labels].index(label)
        names |= dict.fromkeys(_names_once(columns.labels[place].names or (), name))
        for values, count in rows.items():
            if (text := values[place]) is not None:
                texts.add(text)
                counts[split_of[name]] += count
    images = sorted({columns.image for columns, _ in found})
    if len(images) > 1:
        raise different_images(where, images)
    return TableClasses(counts, list(names) if names else sorted(texts), splits, images[0], label)


def our_splits(tables: Tables, where: str) -> dict[str, str]:
    """Our name of each split -> the tables' own.

    Raises:
        DataError: several splits, and none is called like one of ours.
    """
    known = {split: split for split in tables.splits if split in SPLIT_WORDS}
    for split in tables.splits:
        if usual_split(split) in SPLIT_WORDS:
            known.setdefault(usual_split(split), split)
    if not known and len(tables.splits) == 1:
        known = {"train": next(iter(tables.splits))}
    if not known:
        raise DataError(
            f"The splits of {where} are called {quoted(tables.splits)}: which of them is for training is not said.",
            "Write the class map by hand: hub: {repo_id: ..., splits: {train: ONE OF THEM}}.",
        )
    if others := [split for split in tables.splits if split not in known.values()]:
        _log.warning("Splits of %s that a class map has no name for, and are not read: %s.", where, quoted(others))
    return {split: known[split] for split in SPLIT_WORDS if split in known}


def _rows(columns: Columns, table: pa.Table) -> Iterator[_Values]:
    spoken = []
    for label in columns.labels:
        if label.numbered and label.names is None:
            raise DataError(
                f"The labels of {columns.where} are numbers without names (column '{label.column}').",
                "Write the class map by hand: classes in the order of the numbers, and path: the file.",
            )
        values = plain(table.column(label.column), label, columns.where)
        said = {value: None if value is None else label.spoken(value) for value in values.unique().to_pylist()}
        wrong = [value for value in said if label.names and value is not None and not 0 <= value < len(label.names)]
        if wrong:
            raise DataError(
                f"The column '{label.column}' of {columns.where} has the label {wrong[0]}, and names for "
                f"{len(label.names or ())}.",
                "Put the names right (ClassLabel), or the labels.",
            )
        spoken.append([said[value] for value in values.to_pylist()])
    return zip(*spoken, strict=True)


def _names_once(names: Sequence[str], where: str) -> Sequence[str]:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"{len(twice)} label names of '{where}' stand for two numbers: {quoted(twice)}.",
            "A name means one class. Give them names of their own (ClassLabel), or name another --label-column.",
        )
    return names


def _label(found: Sequence[tuple[Columns, Counter[_Values]]], where: str) -> str:
    """The label column of all tables: the surest that they all have, with which the others agree."""
    everywhere = [
        label.column
        for label in found[0][0].labels
        if all(label.column in {one.column for one in columns.labels} for columns, _ in found)
    ]
    pairs: dict[str, set[tuple[str, str]]] = {}
    said: set[str] = set()
    for columns, rows in found:
        names = [label.column for label in columns.labels]
        for values in rows:
            row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            said |= row.keys()
            first = next((name for name in everywhere if name in row), None)
            for name, value in row.items():
                if first is not None and name != first:
                    pairs.setdefault(f"{first}\n{name}", set()).add((row[first], value))
    label = next((name for name in everywhere if name in said), None)
    if label is None:
        there = sorted({one.column for columns, _ in found for one in columns.labels})
        if said:
            raise DataError(
                f"The tables of {where} have their labels in different columns: {quoted(there)}.",
                "Rename them, so that they are alike.",
            )
        raise DataError(f"The tables in {where} have no row with a label.", "Expected a row for each image.")
    for key, both in pairs.items():
        if (odd := _odd(both)) is not None:
            raise disagreement(where, key.split("\n"), odd)
    return label


def _odd(pairs: set[tuple[str, str]]) -> tuple[str, str] | None:
    """Two labels of one row which show that two columns do not mean the same, None where they do."""
    thousand = get_variant("imagenet-1k")
    keys = class_keys(thousand.classes)
    lefts, rights = ({spelling(pair[side]) for pair in pairs} for side in (0, 1))
    there: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for left, right in sorted(pairs):
        a, b = spelling(left), spelling(right)
        if any(x in thousand.by_wnid and y in label_words(thousand, x) for x, y in ((left, b), (right, a))):
            continue  # a word for that class, which may be one for others too
        one_to_one = there[0].setdefault(a, b) == b and there[1].setdefault(b, a) == a
        swapped = a != b and (b in lefts or a in rights)
        other = a != b and keys.get(a) is not None and keys.get(b) is not None and keys[a] != keys[b]
        if not one_to_one or swapped or other:
            return left, right
    return None
