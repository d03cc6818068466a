"""Reads what the clients' own library leaves in a folder in place of the Xet storage, so that the Hub can serve it.

A client that was told `local://FOLDER` as the address of the storage writes its chunks into files called xorbs, and
what they make up into shards. A commit names contents by SHA-256 only; the shards know that, and the chunks. The
library itself could rebuild the contents, but only for one process at a time, and the client has the folder open.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
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


@cache
def places_of(xorb: Path) -> list[int]:
    """Where the chunks of a xorb begin, and where the last one ends; then comes the footer."""
    found, size = [0], xorb.stat().st_size
    with xorb.open("rb") as handle:
        while found[-1] < size:
            handle.seek(found[-1])
            head = handle.read(8)
            if head[0] != 0:
                break
            found.append(found[-1] + 8 + int.from_bytes(head[1:4], "little"))
    return found


def read_chunks(xorb: Path, first: int, end: int) -> Iterator[bytes]:
    """Some chunks of a xorb. Each is version, packed size, kind of packing, size, and the packed bytes."""
    import pyarrow as pa

    places = places_of(xorb)
    with xorb.open("rb") as handle:
        handle.seek(places[first])
        data = handle.read(places[end] - places[first])
    for start, stop in pairwise(place - places[first] for place in places[first : end + 1]):
        kind, length = data[start + 4], int.from_bytes(data[start + 5 : start + 8], "little")
        raw = data[start + 8 : stop]
        if kind:
            raw = pa.Codec("lz4").decompress(raw, length).to_pybytes()
        yield ungrouped(raw) if kind == 2 else raw


def ungrouped(grouped: bytes) -> bytes:
    """The bytes of a chunk that was packed as bytes 0, 4, 8 ... first, then 1, 5, 9 ... and so on."""
    raw, start = bytearray(len(grouped)), 0
    for offset in range(4):
        part = len(range(offset, len(grouped), 4))
        raw[offset::4] = grouped[start : start + part]
        start += part
    return bytes(raw)


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
            yield from read_chunks(self._folder / "xorbs" / f"default.{xorb}", first, end)
