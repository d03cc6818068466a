"""Which column of a table is the image, which the label, and which class a label means; asked by all table readers.

The image is a column of bytes, or of {bytes, path} as `datasets` writes it. The label is found by name, the most
reliable first (`LABEL_COLUMNS`); if several columns could be the label, they must name the same class in each row.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builders.errors import DataError, quoted
from builders.sources.rows import check_names, hub_labels, label_map, refuse, spelling
from builders.variants import Choice, Variant

LABEL_COLUMNS = ("wnid", "synset", "label", "labels", "class", "class_name", "fine_label", "target")
IMAGE_COLUMNS = ("image", "img", "jpg", "image_bytes")
"""Names of columns that may hold the class or the image, the most reliable first."""

_NO_LABEL, _UNKNOWN = -1, -2
_BYTES = "bytes, or {bytes, path} as `datasets` writes it."
_SAY_WHICH = (
    "Say which: `hfsyn variants new NAME --from PLACE {flag} COLUMN` writes a class map that knows it; then name "
    "NAME.yaml as the variant."
)


class UnknownLabelsError(DataError):
    """Labels that are not classes of the variant."""

    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Label:
    """A column with classes."""

    column: str
    numbered: bool
    names: tuple[str, ...] | None = None
    """The meaning of its numbers; None for a column of text, and for numbers without names."""

    def spoken(self, value: Any) -> str:
        """A stored label, for a message."""
        if self.numbered and self.names is not None and value is not None and 0 <= value < len(self.names):
            return self.names[value]
        return "no label" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Columns:
    """The relevant columns of one table."""

    where: str  # the table's name in a message
    image: str
    nested: bool  # whether an image is {bytes, ...} rather than bytes
    has_path: bool
    labels: tuple[Label, ...]  # all that could be the label, the most reliable first
    id: str | None  # the column of ids, in rows that hfsyn wrote

    @property
    def for_index(self) -> list[str]:
        """What an index reads: everything but the bytes."""
        name = [self.id] if self.id else [f"{self.image}.path"] if self.has_path else []
        return [*(label.column for label in self.labels), *name]

    def names(self, table: pa.Table) -> list[str | None]:
        """The name of each row's image, None if it has none; `table` has the columns `for_index`."""
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
    """The columns of images and classes of a table, which messages call `where`.

    The columns of `choice` take precedence. `names` are label names that a dataset's card gives for columns of numbers.
    Raises DataError if there is no such column, several could be the image, or one has an unsupported type.
    """
    choice = choice or Choice()
    if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise DataError(f"{where} has several columns of one name: {quoted(twice)}.", "Rename or drop them.")
    for what, wanted in (("images", choice.image_column), ("classes", choice.label_column)):
        if wanted is not None and wanted not in schema.names:
            said = f"{where} has no column of {what} '{wanted}'; its columns are {quoted(schema.names)}."
            raise DataError(said, f"Say which one holds the {what}.")
    image = _image_column(schema, where, choice.image_column)
    kind = schema.field(image).type
    nested = pa.types.is_struct(kind)
    labels = _label_columns(schema, where, choice.label_column, names or {})
    # Several synthetic rows may have the same source id, so the sample id comes first.
    identity = next((column for column in ("sample_id", "source_id") if column in schema.names), None)
    return Columns(where, image, nested, nested and kind.get_field_index("path") >= 0, labels, identity)


def class_label(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The label names that `datasets` keeps in the metadata of a table, None if there are none."""
    names = _feature(schema, column).get("names")
    return tuple(map(str, names)) if isinstance(names, list) else None


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images: bytes, or {bytes, path} as `datasets` writes it."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        kind = kind.field(place).type if place >= 0 else pa.null()
    return _is_any(kind, "binary", "large_binary", "fixed_size_binary", "binary_view")


def _is_any(kind: pa.DataType, *names: str) -> bool:
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def _feature(schema: pa.Schema, column: str) -> Mapping[str, Any]:
    """What `datasets` says about a column in the metadata, if anything."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
    except (KeyError, TypeError, ValueError):
        return {}
    return feature if isinstance(feature, Mapping) else {}


def _image_column(schema: pa.Schema, where: str, wanted: str | None) -> str:
    able = [field.name for field in schema if holds_images(field.type)]
    say_which = _SAY_WHICH.format(flag="--image-column")
    if wanted is None:
        declared = [name for name in able if _feature(schema, name).get("_type") == "Image"]
        known = [name for name in IMAGE_COLUMNS if name in able]
        nested = [name for name in able if pa.types.is_struct(schema.field(name).type)]
        found = [name for name in known if name in declared][:1] or known[:1] or declared or nested
        if len(found) > 1:
            raise DataError(f"{where} has several columns of images: {quoted(found)}.", say_which)
        wanted = found[0] if found else next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    if wanted is None:
        said = f"{where} has no column of images; its columns are {quoted(schema.names)}."
        raise DataError(said, f"Expected one of {quoted(IMAGE_COLUMNS)}, of {_BYTES} {say_which if able else ''}")
    if wanted not in able:
        said = f"The column '{wanted}' of {where} holds no images, but {schema.field(wanted).type}."
        raise DataError(said, f"Expected {_BYTES}")
    return wanted


def _label_columns(
    schema: pa.Schema, where: str, wanted: str | None, names: Mapping[str, Sequence[str]]
) -> tuple[Label, ...]:
    """The columns that could be the label: text and named numbers, else numbers without names."""
    known = [wanted] if wanted else [name for name in LABEL_COLUMNS if name in schema.names]
    found = [_as_label(schema, column, names.get(column), where) for column in known]
    if not wanted and not any(label is not None and _meant(label) for label in found):
        # Other columns with label names count only if none has a known name: CIFAR-100 has coarse labels too.
        declared = [field.name for field in schema if class_label(schema, field.name) or field.name in names]
        found += [_as_label(schema, column, names.get(column), where) for column in declared if column not in known]
    labels = [label for label in found if label is not None]
    if labels:
        return tuple(filter(_meant, labels)) or tuple(labels)
    if known:
        said = f"The column '{known[0]}' of {where} holds {schema.field(known[0]).type}, not one label per image."
        raise DataError(said, "Expected text, or whole numbers with label names.")
    said = f"{where} has no column of classes; its columns are {quoted(schema.names)}."
    raise DataError(said, f"Expected one of {quoted(LABEL_COLUMNS)}. {_SAY_WHICH.format(flag='--label-column')}")


def _meant(label: Label) -> bool:
    return not label.numbered or label.names is not None


def _as_label(schema: pa.Schema, column: str, said: Sequence[str] | None, where: str) -> Label | None:
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):  # as pandas stores categories
        kind = kind.value_type
    if _is_any(kind, "string", "large_string", "string_view"):
        return Label(column, False)
    if not _is_any(kind, "integer", "floating", "boolean"):
        return None
    own = class_label(schema, column)
    if own is not None and said is not None and own != tuple(said):
        raise DataError(
            f"The labels of {where} (column '{column}') are named {quoted(own, 4)} in the file and {quoted(said, 4)} "
            "by the dataset's card.",
            "They must be the same: fix the card (dataset_info).",
        )
    return Label(column, True, own or (None if said is None else tuple(said)))


def plain(values: pa.ChunkedArray, label: Label, where: str) -> pa.Array:
    """The labels of a column as text or int64; null for a row without one (null, NaN, -1 or an empty text).

    Raises DataError, with the row, for a number that is not whole.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    array = values.combine_chunks()
    if not label.numbered:
        array = array.cast(pa.string())
        return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    labels = f"of {where} (column '{label.column}')"
    if pa.types.is_floating(array.type):
        array = array.cast(pa.float64())
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)
        whole = pc.and_(pc.is_finite(array), pc.equal(pc.floor(array), array))
        if pc.any(pc.invert(whole)).as_py():
            row = pc.index(whole, False).as_py()
            said = f"The label in row {row} {labels} is {array[row].as_py()}, which is not a whole number."
            raise DataError(said, "Labels are text, or whole numbers with label names.")
    try:
        array = array.cast(pa.int64())
    except pa.ArrowInvalid:
        raise DataError(f"The labels {labels} are too large for label numbers.", "Write text instead.") from None
    return pc.if_else(pc.equal(array, -1), pa.scalar(None, pa.int64()), array)


def meanings(
    label: Label, values: Iterable[Any], variant: Variant, *, trusted: bool = False, where: str = ""
) -> tuple[dict[Any, str | None], bool]:
    """The wnid of each label value, None for what is not a class of the variant; and whether they go by number.

    `values` are as from `plain`, without null. `trusted` tables are from the variant's own repository. Raises DataError
    for numbers without names, and for a trusted table whose label names are not those that the variant knows.
    """
    if not label.numbered:
        return {value: wnid for value, wnid in label_map(variant, values).items() if value is not None}, False
    names = label.names
    if names is None and variant.label_ids:
        names = variant.hub_label_names  # of the class map
    if names is None:
        said = f"The labels of {where or label.column} are numbers without names (column '{label.column}')."
        raise DataError(said, "Write the file with `datasets` and a ClassLabel feature, or add a column 'wnid'.")
    # A class map matches labels by name, whatever their number.
    known = check_names(variant, names) if trusted and not variant.label_ids else hub_labels(variant, names)
    by_name, times = label_map(variant, names), Counter(names)
    # A name that occurs twice is ambiguous.
    by_number: Sequence[str | None] = known or [by_name[name] if times[name] == 1 else None for name in names]
    found = {value: by_number[value] if 0 <= value < len(by_number) else None for value in values}
    return found, known is not None


class _Coded(NamedTuple):
    label: Label
    values: pa.Array
    codes: np.ndarray[Any, Any]  # for each row the index of its class, or _NO_LABEL or _UNKNOWN
    unknown: list[str]
    by_number: bool


def wnids_of(
    columns: Columns, table: pa.Table, variant: Variant, *, trusted: bool = False
) -> tuple[list[str | None], bool]:
    """The wnid of each row, None for a row without a label; and whether the labels go by the variant's numbers.

    Raises UnknownLabelsError for labels that are not classes of the variant, and DataError if two columns that could be
    the label disagree, or as `plain` and `meanings`.
    """
    coded = []
    wnids = [info.wnid for info in variant.classes]
    places: dict[str | None, int] = {wnid: place for place, wnid in enumerate(wnids)}
    for label in columns.labels:
        values = plain(table.column(label.column), label, columns.where)
        there = [value for value in values.unique().to_pylist() if value is not None]
        meaning, by_number = meanings(label, there, variant, trusted=trusted, where=columns.where)
        code_of = {value: places.get(meaning[value], _UNKNOWN) for value in there} | {None: _NO_LABEL}
        codes = np.array([code_of[value] for value in values.to_pylist()], np.int64)
        unknown = [label.spoken(value) for value in there if meaning[value] is None]
        coded.append(_Coded(label, values, codes, unknown, by_number))
    # The most reliable column all of whose labels are classes; an empty one says nothing.
    best = min(coded, key=lambda one: (bool(one.unknown), not (one.codes >= 0).any(), len(one.unknown)))
    _check_agreement(columns, variant, best, [one for one in coded if one is not best])
    if best.unknown:
        raise unknown_labels(variant, best.unknown, columns.where)
    return [None if code < 0 else wnids[code] for code in best.codes.tolist()], best.by_number


def unknown_labels(variant: Variant, labels: Iterable[str], where: str) -> UnknownLabelsError:
    """The error for labels that are not classes of the variant."""
    unmatched = sorted(set(labels))
    said = refuse(variant, unmatched, where)
    error = UnknownLabelsError(said.message, said.hint)
    error.labels = tuple(unmatched)
    return error


def _check_agreement(columns: Columns, variant: Variant, best: _Coded, others: Sequence[_Coded]) -> None:
    """Refuse another column that names other classes than the chosen one, unless by a word that both classes share."""
    for other in others:
        differ = np.flatnonzero((best.codes >= 0) & (other.codes >= 0) & (best.codes != other.codes))
        _, firsts = np.unique(np.stack([best.codes[differ], other.codes[differ]]), axis=1, return_index=True)
        for row in sorted(differ[firsts].tolist()):
            said = [one.label.spoken(one.values[row].as_py()) for one in (best, other)]
            words = [label_words(variant, variant.classes[one.codes[row]].wnid) for one in (best, other)]
            if spelling(said[1]) not in words[0] and spelling(said[0]) not in words[1]:
                raise disagreement(columns.where, (best.label.column, other.label.column), said, row)


def label_words(variant: Variant, wnid: str) -> set[str]:
    """All words for a class, normalized by `spelling`; some may be another class's too."""
    info = variant.by_wnid[wnid]
    return {spelling(text) for text in (info.name, *info.lemmas, ", ".join(info.lemmas))}


def disagreement(where: str, columns: Sequence[str], said: Sequence[Any], row: int | None = None) -> DataError:
    """The error for two columns that could both be the label and disagree."""
    at = "" if row is None else f"in row {row}, "
    return DataError(
        f"Two columns of {where} could be the label, and they disagree: {at}'{columns[0]}' says '{said[0]}' and "
        f"'{columns[1]}' says '{said[1]}'.",
        _SAY_WHICH.format(flag="--label-column"),
    )
