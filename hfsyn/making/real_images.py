"""The real images of a recipe's source."""

from __future__ import annotations

from builders.sources import Source, open_source
from hfsyn.making.recipe import SourcePart


def opened(source: SourcePart) -> Source:
    """Open them.

    Raises:
        DataError: they are not there.
    """
    return open_source(
        source.variant,
        source.split,
        path=source.path,
        revision=source.revision,
        limit_per_class=source.limit_per_class,
    )
