"""The classes that occur in tables, for a new class map: there is no variant yet that says what a label means."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import DataError, brief, quoted
from builders.sources.cards import Tables
from builders.sources.columns import Columns, disagreement, find_columns, label_words, plain
from builders.sources.parquet import different_images, in_parallel
from builders.sources.rows import class_keys, spelling
from builders.sources.tables import local_tables
from builders.variants import SPLIT_WORDS, Choice, get_variant, usual_split

_Values = tuple[str | None, ...]  # the labels of a row in each of the columns that could be the label, in words
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableClasses:
    """What a class map says about tables."""

    counts: Mapping[str, int]  # our name of a split -> its number of rows with a label
    labels: Sequence[str]  # in the order of the label numbers, or sorted
    splits: Mapping[str, str]  # our name of a split -> theirs
    image_column: str
    label_column: str


def local_classes(root: Path, choice: Choice) -> TableClasses | None:
    """The classes of the tables in a folder, or of the file that `root` is; None if there are no tables.

    Raises DataError as `classes_of`, or if a file cannot be read.
    """
    try:
        there = local_tables(root, choice.config)
        if there is None or not there[1].splits:
            return None
        return classes_of(fsspec.filesystem("file"), str(there[0]), there[1], choice, str(root))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"A Parquet file in {root} cannot be read: {brief(error)}", "Copy it again.") from error


def classes_of(filesystem: Any, root: str, tables: Tables, choice: Choice, where: str) -> TableClasses:
    """The classes of tables; reads their label columns.

    Raises DataError for tables without a column of images or of labels, columns that could both be the label and
    disagree, and numbers without label names.
    """
    splits = _our_splits(tables, where)
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
        label_names = columns.labels[place].names or ()
        if twice := [one for one, count in Counter(label_names).items() if count > 1]:
            raise DataError(
                f"{len(twice)} label names of '{name}' stand for two numbers: {quoted(twice)}.",
                "A name means one class. Give them different names (ClassLabel), or name another --label-column.",
            )
        names |= dict.fromkeys(label_names)
        for values, count in rows.items():
            if (text := values[place]) is not None:
                texts.add(text)
                counts[split_of[name]] += count
    images = sorted({columns.image for columns, _ in found})
    if len(images) > 1:
        raise different_images(where, images)
    return TableClasses(counts, list(names) if names else sorted(texts), splits, images[0], label)


def _our_splits(tables: Tables, where: str) -> dict[str, str]:
    """Our name of each split -> the tables' own."""
    known = {split: split for split in tables.splits if split in SPLIT_WORDS}
    for split in tables.splits:
        if usual_split(split) in SPLIT_WORDS:
            known.setdefault(usual_split(split), split)
    if not known and len(tables.splits) == 1:
        known = {"train": next(iter(tables.splits))}
    if not known:
        said = f"The splits of {where} are called {quoted(tables.splits)}: it is unclear which of them is for training."
        raise DataError(said, "Write the class map by hand: hub: {repo_id: ..., splits: {train: ONE OF THEM}}.")
    if others := [split for split in tables.splits if split not in known.values()]:
        _log.warning("Splits of %s that a class map has no name for, and are not read: %s.", where, quoted(others))
    return {split: known[split] for split in SPLIT_WORDS if split in known}


def _rows(columns: Columns, table: pa.Table) -> Iterator[_Values]:
    spoken = []
    for label in columns.labels:
        column = f"column '{label.column}'"
        if label.numbered and label.names is None:
            raise DataError(
                f"The labels of {columns.where} are numbers without names ({column}).",
                "Write the class map by hand: classes in the order of the numbers, and path: the file.",
            )
        values = plain(table.column(label.column), label, columns.where)
        said = {value: None if value is None else label.spoken(value) for value in values.unique().to_pylist()}
        for value in said:
            if label.names and value is not None and not 0 <= value < len(label.names):
                what = f"has the label {value}, and names for {len(label.names)}"
                raise DataError(f"The {column} of {columns.where} {what}.", "Fix the names (ClassLabel) or the labels.")
        spoken.append([said[value] for value in values.to_pylist()])
    return zip(*spoken, strict=True)


def _label(found: Sequence[tuple[Columns, Counter[_Values]]], where: str) -> str:
    """The label column of all tables: the most reliable that they all have, with which the others agree."""
    names_of = [[label.column for label in columns.labels] for columns, _ in found]
    everywhere = [name for name in names_of[0] if all(name in names for names in names_of)]
    pairs: dict[tuple[str, str], set[tuple[str, str]]] = {}
    said: set[str] = set()
    for names, (_, rows) in zip(names_of, found, strict=True):
        for values in rows:
            row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            said |= row.keys()
            first = next((name for name in everywhere if name in row), None)
            for name, value in row.items():
                if first is not None and name != first:
                    pairs.setdefault((first, name), set()).add((row[first], value))
    label = next((name for name in everywhere if name in said), None)
    if label is None and said:
        there = quoted(sorted({name for names in names_of for name in names}))
        raise DataError(f"The tables of {where} have their labels in different columns: {there}.", "Rename them.")
    if label is None:
        raise DataError(f"The tables in {where} have no row with a label.", "Expected a row for each image.")
    for columns, both in pairs.items():
        if (odd := _odd(both)) is not None:
            raise disagreement(where, columns, odd)
    return label


def _odd(pairs: set[tuple[str, str]]) -> tuple[str, str] | None:
    """Two labels of one row which show that two columns do not mean the same, None if there are none."""
    thousand = get_variant("imagenet-1k")
    keys = class_keys(thousand.classes)
    lefts, rights = ({spelling(pair[side]) for pair in pairs} for side in (0, 1))
    there: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for left, right in sorted(pairs):
        a, b = spelling(left), spelling(right)
        if any(x in thousand.by_wnid and y in label_words(thousand, x) for x, y in ((left, b), (right, a))):
            continue  # a word for that class, which may also be one for others
        one_to_one = there[0].setdefault(a, b) == b and there[1].setdefault(b, a) == a
        swapped = a != b and (b in lefts or a in rights)
        other = a != b and keys.get(a) is not None and keys.get(b) is not None and keys[a] != keys[b]
        if not one_to_one or swapped or other:
            return left, right
    return None
