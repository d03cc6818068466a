"""Small Parquet files of drawings for the tests of training and testing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from builders.sources.drawing import ShapesSource
from builders.variants import get_variant

NAMES = [info.name for info in get_variant("shapes").classes]
WNIDS = [info.wnid for info in get_variant("shapes").classes]


def rows_of(count: int, *, first: int = 0, split: str = "train") -> list[tuple[str, bytes]]:
    """``(class name, PNG bytes)`` of drawings; their classes take turns."""
    source = ShapesSource(variant="shapes", split=split)
    entries = [source.entry(number) for number in range(first, first + count)]
    by_wnid = dict(zip(WNIDS, NAMES, strict=True))
    return [(by_wnid[row.wnid], row.image) for row in source.read(entries)]


def write_table(
    path: Path,
    rows: Sequence[tuple[str, bytes]],
    *,
    names: Sequence[str] = NAMES,
    label: Any = "ClassLabel",
    wnid: bool = False,
    bad: Collection[int] = (),
) -> Path:
    """Write rows as a Parquet file. `names` is the order of the labels; `bad` rows get bytes that are not an image."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    data: dict[str, list[Any]] = {
        "image": [{"bytes": b"no image" if i in bad else image, "path": None} for i, (_, image) in enumerate(rows)]
    }
    features: dict[str, Any] = {"image": Image()}
    if label == "ClassLabel":
        data["label"] = [list(names).index(name) for name, _ in rows]
        features["label"] = ClassLabel(names=list(names))
    elif label == "number":
        data["label"], features["label"] = [0 for _ in rows], Value("int64")
    if wnid:
        data["wnid"] = [WNIDS[NAMES.index(name)] for name, _ in rows]
        features["wnid"] = Value("string")
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(data, features=Features(features)).to_parquet(path)
    return path
