"""The encoded images of a set by their number, wherever they are kept."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from builders.files import as_path
from builders.sources.parquet import stored_image
from builders.sources.rows import IndexEntry, Source
from hfsyn.judging.sets.tables import Labelled


class Bytes(Protocol):
    """The encoded images of a set by their number; empty if one cannot be read."""

    def __getitem__(self, number: int, /) -> bytes: ...

    def lengths(self, numbers: Sequence[int], /) -> list[int] | None:
        """Bytes of these images, 0 for one that cannot be read; None where they are not known without reading all."""
        ...


@dataclass(frozen=True)
class Files:
    """Files in folders."""

    root: Path
    entries: Sequence[IndexEntry]

    def __getitem__(self, number: int) -> bytes:
        try:
            return (self.root / as_path(self.entries[number].location)).read_bytes()
        except OSError:  # deleted, or no permission: reported when it is decoded
            return b""

    def lengths(self, numbers: Sequence[int]) -> list[int]:
        """See `Bytes`."""
        found = []
        for number in numbers:
            try:
                found.append((self.root / as_path(self.entries[number].location)).stat().st_size)
            except OSError:
                found.append(0)
        return found


@dataclass(frozen=True)
class Drawn:
    """Drawings, drawn on first use and then kept: they are small and slow to draw."""

    source: Source
    entries: Sequence[IndexEntry]
    kept: dict[int, bytes] = field(default_factory=dict)

    def __getitem__(self, number: int) -> bytes:
        if number not in self.kept:
            self.kept[number] = next(iter(self.source.read([self.entries[number]]))).image
        return self.kept[number]

    def lengths(self, numbers: Sequence[int]) -> None:
        """See `Bytes`."""
        return


@dataclass(frozen=True)
class Stored:
    """The image column of a `datasets.Dataset` in Arrow format: memory-mapped, read without its decoder."""

    rows: Any
    labelled: Labelled

    def __getitem__(self, number: int) -> bytes:
        labelled = self.labelled
        row = int(number) if labelled.rows is None else labelled.rows[number]
        value = self.rows[row].column(labelled.image)[0].as_py()
        return stored_image(value, labelled.folders[number] if labelled.folders else None)[0]

    def lengths(self, numbers: Sequence[int]) -> list[int] | None:
        """See `Bytes`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self.rows[:].column(self.labelled.image)
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)) or column.null_count:
            return None  # files beside the table
        every = pc.binary_length(column).to_numpy()
        rows = self.labelled.rows
        return [int(every[number if rows is None else rows[number]]) for number in numbers]


@dataclass(frozen=True)
class Joined:
    """Those of several sets, one after another."""

    sets: Sequence[Bytes]
    starts: Sequence[int]  # the number of each set's first image

    def __getitem__(self, number: int) -> bytes:
        which = bisect_right(self.starts, number) - 1
        return self.sets[which][number - self.starts[which]]

    def lengths(self, numbers: Sequence[int]) -> list[int] | None:
        """See `Bytes`."""
        found = []
        for number in numbers:
            which = bisect_right(self.starts, number) - 1
            one = self.sets[which].lengths([number - self.starts[which]])
            if one is None:
                return None
            found += one
        return found


@dataclass(frozen=True)
class Some:
    """Some of them."""

    images: Bytes
    numbers: Sequence[int]

    def __getitem__(self, number: int) -> bytes:
        return self.images[self.numbers[number]]

    def lengths(self, numbers: Sequence[int]) -> list[int] | None:
        """See `Bytes`."""
        return self.images.lengths([self.numbers[number] for number in numbers])
