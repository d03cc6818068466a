"""Which column of a table is the image, which the label, and which class a label is: asked by all that reads tables.

A table is whatever has an Arrow schema: a Parquet file, rows of `datasets`, a stream. Its **image** is a column of
bytes, or of {bytes, path} as `datasets` writes it. Its **label** is found by name, the surest first (`LABEL_COLUMNS`);
where several columns could be it, they must name the same class in every row, since nobody could tell which is right.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builders.errors import DataError
from builders.sources.labels import check_names, hub_labels, label_map, refuse, spelling
from builders.variants import Choice, Variant
from builders.wording import quoted

LABEL_COLUMNS = ("wnid", "synset", "label", "labels", "class", "class_name", "fine_label", "target")
"""Columns that may hold the class, the surest first."""

IMAGE_COLUMNS = ("image", "img", "jpg", "image_bytes")
"""Columns that may hold the image, the surest first."""

_NO_LABEL, _UNKNOWN = -1, -2
_SAY_WHICH = (
    "Say which: `hfsyn variants new NAME --from PLACE {flag} COLUMN` writes a class map that knows it; then name "
    "NAME.yaml as the variant."
)


class UnknownLabelsError(DataError):
    """Labels that are not classes of the variant."""

    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Label:
    """A column that says a class."""

    column: str
    numbered: bool
    names: tuple[str, ...] | None = None
    """What its numbers mean; None for a column of text, and for numbers that nobody has named."""

    def spoken(self, value: Any) -> str:
        """A stored label as people would call it in a message."""
        if self.numbered and self.names is not None and value is not None and 0 <= value < len(self.names):
            return self.names[value]
        return "no label" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one table that matter."""

    where: str
    """How to call the table in a message."""
    image: str
    nested: bool
    """Whether an image is {bytes, ...} rather than bytes."""
    has_path: bool
    labels: tuple[Label, ...]
    """All that could be the label, the surest first."""
    id: str | None
    """Rows that this project wrote say their id themselves."""

    @property
    def for_index(self) -> list[str]:
        """What an index reads: never the bytes."""
        name = [self.id] if self.id else [f"{self.image}.path"] if self.has_path else []
        return [*(label.column for label in self.labels), *name]

    def names(self, table: pa.Table) -> list[str | None]:
        """The name of each row's image, None where it has none; `table` has the columns `for_index`."""
        if self.id:
            return [None if name is None else str(name) for name in table.column(self.id).to_pylist()]
        if not self.has_path:
            return [None] * len(table)
        paths = pc.struct_field(table.column(self.image), "path").to_pylist()
        names = [path.replace("\\", "/").rsplit("/", 1)[-1] if path else "" for path in paths]
        return [name if name and name.isprintable() else None for name in names]


def find_columns(
    schema: pa.Schema, where: str, *, choice: Choice | None = None, names: Mapping[str, Sequence[str]] | None = None
) -> Columns:
    """The columns of images and classes of a table.

    Args:
        schema: its columns, with what `datasets` says of them in the metadata.
        where: how to call it in a message.
        choice: columns that somebody named; they go before any others.
        names: label names of columns of numbers that the table itself does not have (a dataset's card may say them).

    Raises:
        DataError: there is no such column, several that could be the image, or one of another kind than is read.
    """
    choice = choice or Choice()
    if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise DataError(f"{where} has several columns of one name: {quoted(twice)}.", "Rename or drop them.")
    image = _image_column(schema, where, choice.image_column)
    kind = schema.field(image).type
    nested = pa.types.is_struct(kind)
    # A synthetic row's source id may stand in several rows, so that its own goes before.
    identity = next((column for column in ("sample_id", "source_id") if column in schema.names), None)
    return Columns(
        where,
        image,
        nested,
        nested and kind.get_field_index("path") >= 0,
        _label_columns(schema, where, choice.label_column, names or {}),
        identity,
    )


def class_label(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The label names that `datasets` keeps in the metadata of a table, None if there are none."""
    names = _feature(schema, column).get("names")
    return tuple(map(str, names)) if isinstance(names, list) else None


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images: bytes, or {bytes, path} as `datasets` writes it."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_bytes(kind.field(place).type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _feature(schema: pa.Schema, column: str) -> Mapping[str, Any]:
    """What `datasets` says of a column in the metadata; empty where it says nothing."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
    except (KeyError, TypeError, ValueError):
        return {}
    return feature if isinstance(feature, Mapping) else {}


def _image_column(schema: pa.Schema, where: str, wanted: str | None) -> str:
    if wanted is not None and wanted not in schema.names:
        raise DataError(
            f"{where} has no column of images '{wanted}'; its columns are {quoted(schema.names)}.",
            "Say which one holds the images.",
        )
    able = [field.name for field in schema if holds_images(field.type)]
    if wanted is None:
        declared = [name for name in able if _feature(schema, name).get("_type") == "Image"]
        known = [name for name in IMAGE_COLUMNS if name in able]
        nested = [name for name in able if pa.types.is_struct(schema.field(name).type)]
        found = [name for name in known if name in declared][:1] or known[:1] or declared or nested
        if len(found) > 1:
            raise DataError(
                f"{where} has several columns of images: {quoted(found)}.", _SAY_WHICH.format(flag="--image-column")
            )
        wanted = found[0] if found else next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    if wanted is None:
        raise DataError(
            f"{where} has no column of images; its columns are {quoted(schema.names)}.",
            f"Expected one of {quoted(IMAGE_COLUMNS)}, of bytes, or of {{bytes, path}} as `datasets` writes it. "
            + (_SAY_WHICH.format(flag="--image-column") if able else ""),
        )
    if wanted not in able:
        raise DataError(
            f"The column '{wanted}' of {where} holds no images, but {schema.field(wanted).type}.",
            "Expected bytes, or {bytes, path} as `datasets` writes it.",
        )
    return wanted


def _label_columns(
    schema: pa.Schema, where: str, wanted: str | None, names: Mapping[str, Sequence[str]]
) -> tuple[Label, ...]:
    """The columns that could be the label: those with a meaning of their own, else numbers that nobody has named."""
    if wanted is not None and wanted not in schema.names:
        raise DataError(
            f"{where} has no column of classes '{wanted}'; its columns are {quoted(schema.names)}.",
            "Say which one holds the labels.",
        )
    known = [wanted] if wanted else [name for name in LABEL_COLUMNS if name in schema.names]
    declared = [field.name for field in schema if class_label(schema, field.name) or field.name in names]
    found = [_as_label(schema, column, names.get(column), where) for column in known]
    if not wanted and not any(label is not None and _meant(label) for label in found):
        # Other columns with label names count only where no column is called like one: CIFAR-100 has coarse ones too.
        found += [_as_label(schema, column, names.get(column), where) for column in declared if column not in known]
    labels = [label for label in found if label is not None]
    if labels:
        return tuple(filter(_meant, labels)) or tuple(labels)
    if known:
        raise DataError(
            f"The column '{known[0]}' of {where} holds {schema.field(known[0]).type}, which is not one label an image.",
            "Expected text, or whole numbers with label names.",
        )
    raise DataError(
        f"{where} has no column of classes; its columns are {quoted(schema.names)}.",
        f"Expected one of {quoted(LABEL_COLUMNS)}. {_SAY_WHICH.format(flag='--label-column')}",
    )


def _meant(label: Label) -> bool:
    return not label.numbered or label.names is not None


def _as_label(schema: pa.Schema, column: str, said: Sequence[str] | None, where: str) -> Label | None:
    """A column as a label; None where its type is none of a label."""
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):  # as pandas stores categories
        kind = kind.value_type
    if any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return Label(column, False)
    if not any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)):
        return None
    own = class_label(schema, column)
    if own is not None and said is not None and own != tuple(said):
        raise DataError(
            f"The labels of {where} (column '{column}') are named {quoted(own, 4)} in the file and {quoted(said, 4)} "
            "by the dataset's card.",
            "They must be the same: put the card (dataset_info) right.",
        )
    return Label(column, True, own or (None if said is None else tuple(said)))


def plain(values: pa.ChunkedArray, label: Label, where: str) -> pa.Array:
    """The labels of a column as text or as whole numbers, null where a row has none: null, NaN, -1 or an empty text.

    Raises:
        DataError: a number that is not whole, with its row.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if not label.numbered:
        array = array.cast(pa.string())
        return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    if pa.types.is_floating(array.type):
        array = array.cast(pa.float64())
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)
        whole = pc.and_(pc.is_finite(array), pc.equal(pc.floor(array), array))
        if pc.any(pc.invert(whole)).as_py():
            row = pc.index(whole, False).as_py()
            raise DataError(
                f"The label in row {row} of {where} (column '{label.column}') is {array[row].as_py()}, which is not a "
                "whole number.",
                "Labels are text, or whole numbers with label names.",
            )
    try:
        array = array.cast(pa.int64())
    except pa.ArrowInvalid:
        raise DataError(
            f"The labels of {where} (column '{label.column}') are too large for label numbers.", "Write text instead."
        ) from None
    return pc.if_else(pc.equal(array, -1), pa.scalar(None, pa.int64()), array)


def meanings(
    label: Label, values: Iterable[Any], variant: Variant, *, trusted: bool = False, where: str = ""
) -> tuple[dict[Any, str | None], bool]:
    """The wnid of each label, None for what is not a class of the variant; and whether they go by number.

    Args:
        label: the column.
        values: as `plain` gives them, without null.
        variant: whose classes they are.
        trusted: whether the table is the variant's own on the Hub, so that its numbers must be those that are known.
        where: how to call the table in a message.

    Raises:
        DataError: numbers without names; or names of the variant's own repository that are others than those known.
    """
    if not label.numbered:
        return {value: wnid for value, wnid in label_map(variant, values).items() if value is not None}, False
    names = label.names
    if names is None and variant.label_ids:
        names = variant.hub_label_names  # a class map says them
    if names is None:
        raise DataError(
            f"The labels of {where or label.column} are numbers without names (column '{label.column}').",
            "Write the file with `datasets` and a ClassLabel feature, or add a column 'wnid'.",
        )
    # A class map knows each name by itself, whatever number it has.
    known = check_names(variant, names) if trusted and not variant.label_ids else hub_labels(variant, names)
    by_name = label_map(variant, names)
    # A name that stands twice means two classes, and which of them by number is not said.
    times = Counter(names)
    by_number: Sequence[str | None] = known or [by_name[name] if times[name] == 1 else None for name in names]
    found = {value: by_number[value] if 0 <= value < len(by_number) else None for value in values}
    return found, known is not None


def wnids_of(
    columns: Columns, table: pa.Table, variant: Variant, *, trusted: bool = False
) -> tuple[list[str | None], bool]:
    """The wnid of each row, None for a row without a label; and whether the labels go by the variant's numbers.

    Args:
        columns: of the table.
        table: at least the label columns.
        variant: whose classes they are.
        trusted: as in `meanings`.

    Raises:
        UnknownLabelsError: labels that are not classes of the variant.
        DataError: two columns that could be the label and disagree; or as in `plain` and `meanings`.
    """
    coded: list[tuple[Label, pa.Array, np.ndarray[Any, Any], list[str], bool]] = []
    places = {info.wnid: place for place, info in enumerate(variant.classes)}
    for label in columns.labels:
        values = plain(table.column(label.column), label, columns.where)
        encoded = values.dictionary_encode() if len(values) else values
        there = encoded.dictionary.to_pylist() if len(values) else []
        meaning, by_number = meanings(label, there, variant, trusted=trusted, where=columns.where)
        known = [_UNKNOWN if meaning[value] is None else places[str(meaning[value])] for value in there]
        codes = np.array([*known, _NO_LABEL], np.int64)
        rows = encoded.indices.fill_null(len(there)).to_numpy(zero_copy_only=False) if len(values) else []
        unknown = [label.spoken(value) for value in there if meaning[value] is None]
        coded.append((label, values, codes[np.asarray(rows, np.int64)], unknown, by_number))
    # The surest column all of whose labels are classes; one without any label says nothing.
    best = min(coded, key=lambda one: (bool(one[3]), not (one[2] >= 0).any(), len(one[3])))
    _check_agreement(columns, variant, best, [one for one in coded if one is not best])
    if best[3]:
        raise unknown_labels(variant, best[3], columns.where)
    wnids: list[str | None] = [info.wnid for info in variant.classes]
    return [None if code < 0 else wnids[code] for code in best[2].tolist()], best[4]


def unknown_labels(variant: Variant, labels: Iterable[str], where: str) -> UnknownLabelsError:
    """The error for labels that are not classes of the variant."""
    unmatched = sorted(set(labels))
    said = refuse(variant, unmatched, where)
    error = UnknownLabelsError(said.message, said.hint)
    error.labels = tuple(unmatched)
    return error


def _check_agreement(columns: Columns, variant: Variant, best: Any, others: Sequence[Any]) -> None:
    """Refuse another column that names other classes than the chosen one, unless by a word that both of them have."""
    for other in others:
        differ = np.flatnonzero((best[2] >= 0) & (other[2] >= 0) & (best[2] != other[2]))
        _, firsts = np.unique(np.stack([best[2][differ], other[2][differ]]), axis=1, return_index=True)
        for row in sorted(differ[firsts].tolist()):
            said = [one[0].spoken(one[1][row].as_py()) for one in (best, other)]
            classes = [variant.classes[int(one[2][row])] for one in (best, other)]
            words = [label_words(variant, info.wnid) for info in classes]
            if spelling(said[1]) not in words[0] and spelling(said[0]) not in words[1]:
                raise disagreement(columns.where, (best[0].column, other[0].column), said, row)


def label_words(variant: Variant, wnid: str) -> set[str]:
    """What a class may be called, as `builders.sources.labels.spelling` gives it: a word may be another class's too."""
    info = variant.by_wnid[wnid]
    return {spelling(text) for text in (info.name, *info.lemmas, ", ".join(info.lemmas))}


def disagreement(where: str, columns: Sequence[str], said: Sequence[Any], row: int | None = None) -> DataError:
    """The error for two columns that could both be the label and do not mean the same."""
    at = "" if row is None else f"in row {row}, "
    return DataError(
        f"Two columns of {where} could be the label, and they disagree: {at}'{columns[0]}' says '{said[0]}' and "
        f"'{columns[1]}' says '{said[1]}'.",
        _SAY_WHICH.format(flag="--label-column"),
    )
