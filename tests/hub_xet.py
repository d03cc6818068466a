"""Reads what the clients' own library leaves in a folder in place of the Xet storage, so that the Hub can serve it.

A client that was told `local://FOLDER` as the address of the storage writes its chunks into files called xorbs, and
what they make up into shards. A commit names contents by SHA-256 only; the shards know that, and the chunks. The
library itself could rebuild the contents, but only for one process at a time, and the client has the folder open.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

RECORD = 48  # bytes of every record in a shard, the header among them
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30


@dataclass
class Content:
    """A file's Xet hash and the runs of chunks, (xorb, first, end), that it is made of."""

    xet_hash: str
    runs: list[tuple[str, int, int]]
    size: int


def text_of(raw: bytes) -> str:
    """A hash as it is written: four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def read_shard(data: bytes) -> Iterator[tuple[str, Content]]:
    """Every file that a shard lists, by its Xet hash and, where it is there, by SHA-256: a header, its runs, as many
    checksums, and the SHA-256.
    """
    place = RECORD
    while data[place : place + 32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", data, place + 32)
        content = Content(text_of(data[place : place + 32]), [], 0)
        place += RECORD
        for number in range(count):
            run = place + number * RECORD
            _, size, first, end = struct.unpack_from("<4I", data, run + 32)
            content.runs.append((text_of(data[run : run + 32]), first, end))
            content.size += size
        place += count * RECORD * (2 if flags & HAS_VERIFICATION else 1)
        yield content.xet_hash, content
        if flags & HAS_METADATA:
            yield text_of(data[place : place + 32]), content
            place += RECORD


@lru_cache(maxsize=4)  # many small files share one
def read_chunks(xorb: Path) -> list[bytes]:
    """The chunks of a xorb: version, packed size, kind of packing, size, and the packed bytes; then the footer."""
    import pyarrow as pa

    data = xorb.read_bytes()
    chunks, place = [], 0
    while place < len(data) and data[place] == 0:
        packed, kind, size = (
            int.from_bytes(data[place + 1 : place + 4], "little"),
            data[place + 4],
            data[place + 5 :][:3],
        )
        length = int.from_bytes(size, "little")
        raw = data[place + 8 : place + 8 + packed]
        if kind:
            raw = pa.Codec("lz4").decompress(raw, length).to_pybytes()
        if kind == 2:  # bytes 0, 4, 8 ... first, then 1, 5, 9 ... and so on
            grouped, raw = raw, bytearray(length)
            start = 0
            for offset in range(4):
                part = len(range(offset, length, 4))
                raw[offset::4] = grouped[start : start + part]
                start += part
        chunks.append(bytes(raw))
        place += 8 + packed
    return chunks


class Xet:
    """The storage in `folder`, whose `url` clients are told."""

    def __init__(self, folder: Path) -> None:
        self.url = f"local://{folder.resolve()}"
        self._folder = folder / "xet" / "xorbs"
        self._known: dict[str, Content] = {}
        self._seen: set[str] = set()

    def find(self, sha256: str) -> Content | None:
        if sha256 in self._known:
            return self._known[sha256]
        for path in sorted((self._folder / "shards").glob("*.mdb")):
            if path.name not in self._seen:
                self._known.update(read_shard(path.read_bytes()))
                self._seen.add(path.name)
        return self._known.get(sha256)

    def read(self, content: Content) -> Iterator[bytes]:
        for xorb, first, end in content.runs:
            yield from read_chunks(self._folder / "xorbs" / f"default.{xorb}")[first:end]
