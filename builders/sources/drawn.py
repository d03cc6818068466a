"""The drawn, built-in variants `shapes` and `shapes-context` as sources that need no network.

    source = ShapesSource(variant="shapes", split="train")
    rows = source.read(list(source.index())[:64])             # PNG bytes, as any other source gives them

What is drawn, and how the two variants differ, is said in `builders.sources.drawing`. Image `index` of a split has the
class `index % 10` and the source id `{wnid}/{split}_{index:06d}.png`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath

from builders.errors import DataError
from builders.sources.drawing import CANVAS, SHAPES, Drawing, draw, sample_attributes
from builders.sources.rows import IndexEntry, SourceRow
from builders.variants import ClassInfo, get_variant


@lru_cache(maxsize=4096)
def png_of(drawing: Drawing) -> bytes:
    """The drawing as a PNG file of about 2 KB; kept, as the same few thousand are asked for again in every test."""
    buffer = io.BytesIO()
    draw(drawing).save(buffer, format="PNG")
    return buffer.getvalue()


class ShapesSource:
    """One split of a drawn variant; nothing is drawn before `read`.

    `seed` picks another set of drawings of the same kind; 0 is the variant itself. `limit_per_class` keeps the first so
    many drawings of each class.
    """

    def __init__(
        self, *, variant: str = "shapes", split: str = "train", seed: int = 0, limit_per_class: int | None = None
    ) -> None:
        found = get_variant(variant)
        if not found.drawn:
            raise DataError(f"The variant '{variant}' is not a drawn one.", "The drawn ones: shapes, shapes-context.")
        self.variant = found.name
        self.split = found.split(split)
        self.seed = seed
        self._classes = found.classes
        per_class = found.splits[self.split] // len(SHAPES)
        self._count = len(SHAPES) * (per_class if limit_per_class is None else min(limit_per_class, per_class))

    def __len__(self) -> int:
        return self._count

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The ten classes in label order."""
        return self._classes

    @property
    def layout(self) -> str:
        """What is there, in one line."""
        return f"{self._count} images of {CANVAS} x {CANVAS} pixels, drawn on demand ({self.variant}, seed {self.seed})"

    def drawing(self, index: int) -> Drawing:
        """Everything that image `index` of the split shows."""
        return sample_attributes(self.seed, self.split, index, world=self.variant)

    @property
    def left_out(self) -> Mapping[str, int]:
        """Nothing: every drawing is in the index."""
        return {}

    def index(self) -> Iterator[IndexEntry]:
        """The images in the order of their numbers: the classes take turns."""
        for number in range(self._count):
            yield self.entry(number)

    def entry(self, index: int) -> IndexEntry:
        """The index's entry of one image."""
        wnid = self._classes[index % len(SHAPES)].wnid
        source_id = f"{wnid}/{self.split}_{index:06d}.png"
        return IndexEntry(source_id=source_id, wnid=wnid, location=source_id, row=0)

    def read(self, entries: Sequence[IndexEntry]) -> Iterator[SourceRow]:
        """Draw the images of these entries, in the order given, as PNG files."""
        for entry in entries:
            name = PurePosixPath(entry.source_id)
            drawing = self.drawing(int(name.stem.rpartition("_")[2]))
            yield SourceRow(source_id=entry.source_id, wnid=entry.wnid, image=png_of(drawing), path=name.name)
