"""The real images of a recipe's source: opened, listed, and counted by the variant's table where they are out of reach.

Counting reads no image, and without a network a Hub repository is not asked for: the table knows how many it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from builders.errors import DataError
from builders.hub.answers import UnreachableError, is_offline
from builders.sources import Source, open_source
from builders.variants import get_variant
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.recipes.recipe import Recipe, SourcePart
from hfsyn.runs.specs import Caption


def opened(source: SourcePart) -> Source:
    """Open them; raises DataError where they are not there."""
    return open_source(
        source.variant, source.split, path=source.path, revision=source.revision, limit_per_class=source.limit_per_class
    )


def check_order(recipe: Recipe) -> None:
    """Refuse to draw over real images that can only be read one after the other.

    Raises:
        HfsynError: they would be streamed, and are needed in the order of the plan.
    """
    source = recipe.source
    variant = get_variant(source.variant)
    hub = variant.hub
    if recipe.generate.init != "source" or source.path is not None or hub is None:
        return
    part = f" --include '{hub.config}/*'" if hub.config and not variant.label_ids else ""
    at = f" --revision {source.revision or hub.revision}" if source.revision or hub.revision else ""
    raise HfsynError(
        f"generate.init is source, and the images of {source.variant} are streamed from the Hub, in another order than "
        "they are needed.",
        f"Download them (hf download {hub.repo_id} --repo-type dataset{at}{part} --local-dir FOLDER) and --set "
        "source.path=FOLDER.",
    )


def indexed(recipe: Recipe, text: str | None, left_out: dict[str, int] | None = None) -> Iterator[Caption]:
    """A caption of that text for every image of the source; at the end `left_out` counts what is not read, by reason.

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
    """How many images the source has by the variant's table; 0 where the table does not say."""
    variant = get_variant(source.variant)
    images = variant.splits.get(variant.split(source.split), 0)
    if source.limit_per_class is not None:
        images = min(images, source.limit_per_class * len(variant.classes))
    return images
