"""Which configurations of a repository hfsyn published: the one answer, for all that reads from a repository or writes.

A configuration is published by hfsyn where its ``recipe.yaml`` and its ``manifest.json`` both lie in the repository and
the manifest reads as one of ours (`builders.runs.layout.load_manifest`). The names of files alone say nothing:
repositories of others have a ``manifest.json`` too. Nor does the card, which people rewrite, copy and remove; it is
only asked which configuration is meant where none is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from builders.errors import DataError
from builders.runs import layout
from builders.runs.layout import Manifest, load_manifest
from builders.sources.cards import Card

MOST_BYTES = 64 * 2**20
"""Of a manifest or a card that is read: some hundred thousand shards. What is larger is not ours."""
_CONFIG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def candidates(paths: Collection[str]) -> list[str]:
    """The configurations that have both files, by name; whether they are ours only the manifest's content says."""
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
    """The manifest of a candidate, None where it is not one of ours.

    Args:
        read: the text of a file of the repository by its path; raises DataError for one that is not text, or larger
            than `MOST_BYTES`.
        config: one of `candidates`.

    Raises:
        DataError: the Hub does not answer, or does not let us (exit codes 3 and 4).
    """
    path = f"{layout.config_prefix(config)}{layout.MANIFEST}"
    try:
        return load_manifest(read(path), path)
    except DataError as error:
        if error.code != 2:
            raise
        return None


def meant(card: Card, found: Collection[str], *, strangers: bool) -> str | None:
    """The configuration that is meant where none is named; None where there are several, and nothing says which.

    Args:
        card: of the repository.
        found: those of hfsyn's.
        strangers: whether it may be one that others put there.
    """
    names = sorted({*found, *(card.configs if strangers else ())})
    if card.default is not None and card.default in names:
        return card.default
    return layout.DEFAULT_CONFIG if layout.DEFAULT_CONFIG in names else names[0] if len(names) == 1 else None
