"""What a source gives: entries of its index, then rows with the bytes of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from builders.variants import ClassInfo


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One image of a source, before it is read."""

    source_id: str
    """`{wnid}/{file name}`: unique in a split, the same in every layout that keeps file names."""
    wnid: str
    location: str
    """The file, relative to the root of the source, with forward slashes."""
    row: int
    """Row of that file, from 0; 0 if the file is the image."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One image of a source: the stored bytes, not decoded."""

    source_id: str
    wnid: str
    image: bytes
    """The encoded file; empty if it cannot be read. It may not be a valid image."""
    path: str
    """The image's file name."""
    problem: str = ""
    """Why `image` is empty, in words; the same for the same fault."""

    def columns(self, info: ClassInfo) -> dict[str, Any]:
        """The values of `builders.runs.schema.source_features`, given the class."""
        # Bytes alone: with a path, `datasets` would look for a file of that name in the current folder.
        row = {"image": self.image, "label": info.index, "wnid": self.wnid, "class_name": info.name}
        return {**row, "source_id": self.source_id}


class Source(Protocol):
    """A split of a variant, wherever it is."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes that occur, as the variant has them (same index), in the variant's order."""
        ...

    @property
    def layout(self) -> str:
        """What was found, in one line."""
        ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """Reason in words -> number of files, folders or rows that are not in the index."""
        ...

    def index(self) -> Iterator[IndexEntry]:
        """The images in a fixed order, without reading any; with a limit, the first of each class."""
        ...

    def read(self, entries: Sequence[IndexEntry]) -> Iterator[SourceRow]:
        """One row for each entry, in order; a bad image does not raise.

        Raises DataError (exit code 4) if the source itself is gone or has changed since it was indexed.
        """
        ...
