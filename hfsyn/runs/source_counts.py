"""How many real images a recipe reads: of a run, by the source's index, or by the variant's table where there is none.

No image is read, and without a network a Hub repository is not asked for: the table knows how many it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from builders.errors import DataError
from builders.hub.answers import UnreachableError, is_offline
from builders.sources import open_source
from builders.variants import get_variant
from hfsyn.errors import ExitCode
from hfsyn.recipes.recipe import Recipe, SourcePart
from hfsyn.runs.real_images import opened
from hfsyn.runs.specs import Caption


@dataclass(frozen=True, slots=True)
class TableCounts:
    """What the variant's table says, and why the source itself was not asked."""

    images: int
    classes: int
    why: str


def counted(source: SourcePart) -> TableCounts | None:
    """The counts of the variant's table where the source cannot be indexed; None where it can be.

    Raises:
        HfsynError: the source is wrong, rather than out of reach.
    """
    variant = get_variant(source.variant)
    if source.path is not None or variant.hub is None:
        return None
    try:
        if is_offline():
            raise UnreachableError("HF_HUB_OFFLINE is set.")
        open_source(source.variant, source.split, revision=source.revision)
    except DataError as error:
        refused = error.code == ExitCode.PREFLIGHT or variant.hub.archive is not None
        images = in_table(source)
        if not images or not (refused or isinstance(error, UnreachableError)):
            raise
        return TableCounts(images, len(variant.classes), error.message)
    return None


def in_table(source: SourcePart) -> int:
    """How many images the variant's table promises; 0 where it does not say."""
    variant = get_variant(source.variant)
    images = variant.splits.get(variant.split(source.split), 0)
    if source.limit_per_class is not None:
        images = min(images, source.limit_per_class * len(variant.classes))
    return images


def indexed(recipe: Recipe, text: str | None, left_out: dict[str, int] | None = None) -> Iterator[Caption]:
    """A caption of that text for every image of the source; then `left_out` says what it does not read, by reason.

    Raises:
        HfsynError: the source is missing, or damaged.
    """
    source = opened(recipe.source)
    for entry in source.index():
        yield Caption(entry.source_id, entry.wnid, text)
    if left_out is not None:
        left_out.update(source.left_out)


def index_of_run(index: Path, text: str | None) -> Iterator[Caption]:
    """A caption of that text for every line of a run's source index."""
    with pq.ParquetFile(index) as file:
        for batch in file.iter_batches(columns=["source_id", "wnid"]):
            for source_id, wnid in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Caption(source_id, wnid, text)
