"""The drawn, built-in variants `shapes` and `shapes-context` as a `datasets` builder that works offline.

    builder = Shapes(config_name="shapes-context", cache_dir=folder)
    builder.download_and_prepare(num_proc=2)
    train = builder.as_dataset("train")                       # or builder.as_streaming_dataset("train")

The images, and how the two variants differ, are described in `builders.sources.drawing`.
"""

import itertools
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, ClassVar

import datasets

from builders.runs.rows import source_features
from builders.sources.drawing import SHAPES, ShapesSource, caption_of, png_of
from builders.variants import get_variant

_SHARDS = 10
_WORDS = ("shape", "colour", "background", "texture")
_NUMBERS = ("size", "x", "y", "rotation")


class Shapes(datasets.GeneratorBasedBuilder):
    """The drawn variants as a `datasets` builder, with the attributes and the true caption of each image."""

    BUILDER_CONFIGS: ClassVar[list[datasets.BuilderConfig]] = [
        datasets.BuilderConfig(name=name, version=datasets.Version("1.0.0"), description=f"Ten drawn shapes; {text}.")
        for name, text in (
            ("shapes", "colours and texture are independent of the class"),
            ("shapes-context", "colour, background and texture are usually the class's own"),
        )
    ]
    DEFAULT_CONFIG_NAME = "shapes"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=self.config.description,
            features=datasets.Features(
                {
                    **source_features(SHAPES),
                    **{name: datasets.Value("string") for name in _WORDS},
                    **{name: datasets.Value("float32") for name in _NUMBERS},
                    "caption_truth": datasets.Value("string"),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        """The list in `gen_kwargs` defines the shards: consecutive ranges of the index, which keeps its order."""
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
                        "image": {"bytes": png_of(drawing), "path": PurePosixPath(entry.source_id).name},
                        "label": label,
                        "wnid": entry.wnid,
                        "class_name": source.classes[label].name,
                        "source_id": entry.source_id,
                        **{name: getattr(drawing, name) for name in (*_WORDS, *_NUMBERS)},
                        "caption_truth": caption_of(drawing),
                    },
                )
