"""The encoded images of a set by their number, wherever they lie: nothing is decoded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from builders.file_names import as_path
from builders.sources.parquet import stored_image
from builders.sources.rows import IndexEntry, Source


class Bytes(Protocol):
    """The images of a set by their number."""

    def __getitem__(self, number: int, /) -> bytes:
        """The encoded file; empty where it cannot be read."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files in a folder."""

    root: Path
    entries: Sequence[IndexEntry]

    def __getitem__(self, number: int) -> bytes:
        try:
            return (self.root / as_path(self.entries[number].location)).read_bytes()
        except OSError:  # gone, or forbidden: told by whoever decodes
            return b""


@dataclass(frozen=True)
class Drawn:
    """Drawings, drawn when they are first asked for and then kept: they are small, and drawing takes longest."""

    source: Source
    entries: Sequence[IndexEntry]
    kept: dict[int, bytes] = field(default_factory=dict)

    def __getitem__(self, number: int) -> bytes:
        if number not in self.kept:
            self.kept[number] = next(iter(self.source.read([self.entries[number]]))).image
        return self.kept[number]


class Table:
    """The image column of a `datasets.Dataset`: memory-mapped Arrow, read without its decoder."""

    def __init__(
        self, rows: Any, column: str, numbers: Sequence[int] | None = None, folders: Sequence[Path] | None = None
    ) -> None:
        """`numbers`: of the rows that are meant, None is all. `folders`: of the file of each of these rows."""
        self._rows = rows.select_columns([column]).with_format("arrow")
        self._column, self._numbers, self._folders = column, numbers, folders

    def __getitem__(self, number: int) -> bytes:
        row = int(number) if self._numbers is None else self._numbers[number]
        value = self._rows[row].column(self._column)[0].as_py()
        return stored_image(value, None if self._folders is None else self._folders[number])[0]


@dataclass(frozen=True)
class Some:
    """Some of another set's images."""

    images: Bytes
    numbers: Sequence[int]

    def __getitem__(self, number: int) -> bytes:
        return self.images[self.numbers[number]]
