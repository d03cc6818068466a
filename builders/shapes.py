"""The drawn, built-in variants `shapes` and `shapes-context`: sources and a builder that need no network.

    source = ShapesSource(variant="shapes", split="train")
    rows = source.read(list(source.index())[:64])             # PNG bytes, as any other source gives them

    builder = Shapes(config_name="shapes-context", cache_dir=folder)
    builder.download_and_prepare(num_proc=2)
    train = builder.as_dataset("train")                       # or builder.as_streaming_dataset("train")

What is drawn, and how the two variants differ, is said in `builders.drawing`. Image `index` of a split has the class
`index % 10` and the source id `{wnid}/{split}_{index:06d}.png`.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, ClassVar

import datasets

from builders.drawing import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    SHAPES,
    TEXTURES,
    Drawing,
    caption_of,
    draw,
    sample_attributes,
)
from builders.errors import DataError
from builders.rows import IndexEntry, SourceRow
from builders.variants import ClassInfo, get_variant

__all__ = ["BACKGROUNDS", "COLOURS", "SHAPES", "TEXTURES", "Shapes", "ShapesSource"]

_SHARDS = 10


@lru_cache(maxsize=4096)
def _png(drawing: Drawing) -> bytes:
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
            yield SourceRow(source_id=entry.source_id, wnid=entry.wnid, image=_png(drawing), path=name.name)


class Shapes(datasets.GeneratorBasedBuilder):
    """The drawn variants as a `datasets` builder, with the attributes and the true caption of each image."""

    BUILDER_CONFIGS: ClassVar[list[datasets.BuilderConfig]] = [
        datasets.BuilderConfig(
            name="shapes",
            version=datasets.Version("1.0.0"),
            description="Ten drawn shapes; colours and texture are independent of the class.",
        ),
        datasets.BuilderConfig(
            name="shapes-context",
            version=datasets.Version("1.0.0"),
            description="Ten drawn shapes; colour, background and texture are usually the class's own.",
        ),
    ]
    DEFAULT_CONFIG_NAME = "shapes"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=self.config.description,
            features=datasets.Features(
                {
                    "image": datasets.Image(),
                    "label": datasets.ClassLabel(names=list(SHAPES)),
                    "wnid": datasets.Value("string"),
                    "class_name": datasets.Value("string"),
                    "source_id": datasets.Value("string"),
                    "shape": datasets.Value("string"),
                    "colour": datasets.Value("string"),
                    "background": datasets.Value("string"),
                    "texture": datasets.Value("string"),
                    "size": datasets.Value("float32"),
                    "x": datasets.Value("float32"),
                    "y": datasets.Value("float32"),
                    "rotation": datasets.Value("float32"),
                    "caption_truth": datasets.Value("string"),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        """A list in `gen_kwargs` is the sharding: consecutive ranges of the index, which keeps its order."""
        generators = []
        for split, count in get_variant(self.config.name).splits.items():
            bounds = [count * shard // _SHARDS for shard in range(_SHARDS + 1)]
            ranges = list(itertools.pairwise(bounds))
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "ranges": ranges}))
        return generators

    def _generate_examples(
        self, split: str, ranges: list[tuple[int, int]]
    ) -> Iterator[tuple[datasets.builder.Key, dict[str, Any]]]:
        source = ShapesSource(variant=self.config.name, split=split)
        for shard, (start, stop) in enumerate(ranges):
            for index in range(start, stop):
                entry, drawing = source.entry(index), source.drawing(index)
                label = index % len(SHAPES)
                yield (
                    datasets.builder.Key(shard, index - start),
                    {
                        "image": {"bytes": _png(drawing), "path": PurePosixPath(entry.source_id).name},
                        "label": label,
                        "wnid": entry.wnid,
                        "class_name": source.classes[label].name,
                        "source_id": entry.source_id,
                        "shape": drawing.shape,
                        "colour": drawing.colour,
                        "background": drawing.background,
                        "texture": drawing.texture,
                        "size": drawing.size,
                        "x": drawing.x,
                        "y": drawing.y,
                        "rotation": drawing.rotation,
                        "caption_truth": caption_of(drawing),
                    },
                )
