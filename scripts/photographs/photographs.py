"""The photographs of DIR: ImageNette, train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, and Flickr8k with its captions."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scripts.photographs import settings

IMAGENETTE, FLICKR = "imagenette-128", "flickr8k-128/all.parquet"


@dataclass(frozen=True)
class Photograph:
    """One photograph, read when it is asked for."""

    name: str  # unique in its set; of ImageNette <wnid>/<file>
    read: Callable[[], bytes]
    captions: tuple[str, ...] = ()  # by people

    def image(self) -> Image.Image:
        """Its pixels, RGB."""
        return Image.open(io.BytesIO(self.read())).convert("RGB")

    @property
    def wnid(self) -> str:
        """Its class, of ImageNette."""
        return self.name.partition("/")[0]


def imagenette(data: Path, split: str) -> list[Photograph]:
    """The photographs of ``train`` or ``val``, class by class, in the order of their names."""
    classes = sorted((data / IMAGENETTE / split).glob("*"))
    most = settings.LIMIT if split == "train" else None
    files = [file for folder in classes for file in sorted(folder.glob("*"))[:most]]
    if not files:
        raise SystemExit(f"There are no photographs in {data / IMAGENETTE / split}.")
    return [Photograph(f"{file.parent.name}/{file.name}", file.read_bytes) for file in files]


def thirds(data: Path) -> tuple[list[Photograph], list[Photograph]]:
    """ImageNette's training photographs: of each class the first two thirds by name, and the last."""
    first: list[Photograph] = []
    last: list[Photograph] = []
    photographs = imagenette(data, "train")
    for wnid in sorted({one.wnid for one in photographs}):
        mine = [one for one in photographs if one.wnid == wnid]
        cut = round(len(mine) * 2 / 3)
        first += mine[:cut]
        last += mine[cut:]
    return first, last


def flickr(data: Path) -> list[Photograph]:
    """The photographs of Flickr8k in the order of SHA-256 of their names, with the words of their captions."""
    import pyarrow.parquet as pq

    if not (data / FLICKR).is_file():
        raise SystemExit(f"There is no {data / FLICKR}.")
    table = pq.read_table(data / FLICKR).to_pylist()
    found = [
        Photograph(
            row["source_id"],
            lambda content=row["image"]["bytes"]: content,
            tuple(words(text) for text in row["captions"] if words(text)),
        )
        for row in table
    ]
    most = None if settings.LIMIT is None else 30 * settings.LIMIT
    return sorted(found, key=lambda one: hashlib.sha256(one.name.encode()).digest())[:most]


def words(text: str) -> str:
    """A caption as it is learnt and compared: lower case, without punctuation, one space between words."""
    return " ".join(re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower()))


def folders(data: Path, out: Path) -> tuple[Path, Path]:
    """Two folders in ImageNette's layout with links to its photographs: the first two thirds, and the last third."""
    found = out / "photographs" / "first", out / "photographs" / "last"
    for folder, photographs in zip(found, thirds(data), strict=True):
        for one in photographs:
            link = folder / "train" / one.name
            if not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((data / IMAGENETTE / "train" / one.name).resolve())
    return found


def batches(photographs: list[Photograph], size: int) -> Iterator[list[Photograph]]:
    """The photographs, at most `size` at once."""
    for start in range(0, len(photographs), size):
        yield photographs[start : start + size]
