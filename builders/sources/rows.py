"""What a source gives: entries of its index, then rows with the bytes of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from builders.variants import ClassInfo


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One image of a source, before anything of it is read."""

    source_id: str
    """`{wnid}/{file name}`: unique in a split, the same in every layout that keeps file names."""
    wnid: str
    location: str
    """The file, relative to the root of the source, with forward slashes."""
    row: int
    """Row of that file, from 0; 0 where the file is the image."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One image of a source: the bytes as they are stored, not decoded."""

    source_id: str
    wnid: str
    image: bytes
    """The encoded file. Empty where it cannot be read; not an image at all where the source is dirty."""
    path: str
    """The image's file name."""
    problem: str = ""
    """Why `image` is empty although the source has more to give; in words for people, the same for the same fault."""


class Source(Protocol):
    """A split of a variant, wherever it is."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes that are there, as the variant has them (same index), in the variant's order."""
        ...

    @property
    def layout(self) -> str:
        """What was found, in one line."""
        ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """What lies in the split and is not in the index: reason in plain words -> number of files, folders or rows."""
        ...

    def index(self) -> Iterator[IndexEntry]:
        """The images in a fixed order, without reading any; with a limit, the first so many of each class."""
        ...

    def read(self, entries: Sequence[IndexEntry]) -> Iterator[SourceRow]:
        """One row for each entry, in the order given. Never raises for an image that is bad.

        Raises DataError (exit code 4) where the source itself cannot be read any more, or is not the one of the index:
        what could not be read would else pass for images that are bad.
        """
        ...
