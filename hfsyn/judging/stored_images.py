"""The encoded images of a set by their number, wherever they lie: nothing is decoded here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from builders.file_names import as_path
from builders.rows import IndexEntry, Source


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

    def __init__(self, rows: Any, column: str) -> None:
        self._rows = rows.select_columns([column]).with_format("arrow")
        self._column = column

    def __getitem__(self, number: int) -> bytes:
        value = self._rows[int(number)].column(self._column)[0].as_py()
        return stored_bytes(value)


def stored_bytes(value: Any) -> bytes:
    """The bytes of an image as Arrow or `datasets` stores it: bytes, or a struct with bytes and a path."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        try:
            return Path(str(value.get("path"))).read_bytes()
        except OSError:
            return b""
    return bytes(value) if value is not None else b""


@dataclass(frozen=True)
class Some:
    """Some of another set's images."""

    images: Bytes
    numbers: Sequence[int]

    def __getitem__(self, number: int) -> bytes:
        return self.images[self.numbers[number]]
