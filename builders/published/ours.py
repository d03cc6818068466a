"""Which configurations of a repository hfsyn published.

They have a ``recipe.yaml``, and a ``manifest.json`` that is valid (`builders.runs.layout.load_manifest`): other
repositories may have files of these names too. The card, which people rewrite, copy and remove, only decides which
configuration is meant if none is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from builders.errors import DataError
from builders.runs import layout
from builders.runs.layout import Manifest, load_manifest
from builders.sources.cards import Card

MOST_BYTES = 64 * 2**20
"""The largest manifest or card that is read: some hundred thousand shards."""
_CONFIG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def candidates(paths: Collection[str]) -> list[str]:
    """The configurations that have both files, sorted; their manifests decide whether they are ours."""
    there = set(paths)
    found = []
    for path in there:
        folder, slash, name = path.rpartition("/")
        config = folder or layout.DEFAULT_CONFIG
        plain = not slash or (_CONFIG.fullmatch(folder) is not None and folder != layout.DEFAULT_CONFIG)
        if name == layout.MANIFEST and plain and f"{layout.config_prefix(config)}{layout.RECIPE}" in there:
            found.append(config)
    return sorted(found)


def published(read: Callable[[str], str], config: str) -> Manifest | None:
    """The manifest of one of `candidates`, None if it is not ours.

    `read` gives the text of a file by its path, or raises DataError if it is not text or larger than `MOST_BYTES`.
    Raises DataError if the Hub does not answer or denies access (exit codes 3 and 4).
    """
    path = f"{layout.config_prefix(config)}{layout.MANIFEST}"
    try:
        return load_manifest(read(path), path)
    except DataError as error:
        if error.code != 2:
            raise
        return None


def meant(card: Card, found: Collection[str], *, strangers: bool) -> str | None:
    """The configuration that is meant if none is named, of those that hfsyn published, and with `strangers` of all on
    the card; None if it is ambiguous.
    """
    names = sorted({*found, *(card.configs if strangers else ())})
    if card.default is not None and card.default in names:
        return card.default
    return layout.DEFAULT_CONFIG if layout.DEFAULT_CONFIG in names else names[0] if len(names) == 1 else None
