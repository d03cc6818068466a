"""The photographs of a variant as a `datasets` builder: from the Hub, or from a local folder in any layout.

    builder = ImageNet(config_name="tiny-imagenet", path="tiny-imagenet-200")
    builder.download_and_prepare(num_proc=4)
    train = builder.as_dataset("train")

    ImageNet(config_name="imagenette").as_streaming_dataset("train")     # nothing is written
    ImageNet(variant="flowers.yaml", path="photos/flowers")              # custom classes

Images are not re-encoded. A file that is not a valid image makes a row like any other: for such sources iterate with
`Image(decode=False)` and decode with `builders.images.decoding.decode_rgb`.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from builders.files import as_text
from builders.runs.rows import source_features
from builders.sources import open_source, resolve_revision
from builders.sources.folders import FolderSource, local_splits
from builders.sources.parquet import ParquetSource
from builders.sources.rows import IndexEntry
from builders.variants import VARIANTS, Variant
from builders.variants.class_maps import find_variant

_CHUNK = 256  # rows per shard if there is a limit: small enough to be distributed over processes


@dataclass
class ImageNetConfig(datasets.BuilderConfig):
    """A variant, and where its images are."""

    path: str | os.PathLike[str] | None = None
    """A local folder or Parquet file; None streams the variant's Hub repository."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository; None is the one that the variant was checked against, or the newest.
    Prepared data is cached by the name of the revision: give a commit if that matters."""
    limit_per_class: int | None = None  # keep only the first images of each class
    variant: str | None = None  # the file of a class map (see `builders.variants.class_maps`), for custom classes

    @property
    def described(self) -> Variant:
        """The variant. Raises DataError if there is none of this name."""
        return find_variant(self.variant or self.name)

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """The name of the cache folder, which depends on the files of a local path."""
        kwargs = dict(config_kwargs)
        if self.variant is not None:
            kwargs |= {"variant": self.described.name}
        if self.path is not None:
            kwargs |= {"path": str(Path(self.path).absolute()), "content": _fingerprint(Path(self.path))}
        return super().create_config_id(kwargs, custom_features)


class ImageNet(datasets.GeneratorBasedBuilder):
    """Source rows of an ImageNet variant: image, label, wnid, class_name, source_id.

    The label names are all `Variant.classes`, even if a folder has only some.
    """

    BUILDER_CONFIG_CLASS = ImageNetConfig
    # The class attribute VERSION is ignored for named configurations.
    BUILDER_CONFIGS = [  # noqa: RUF012 (`datasets` reads it as a class attribute)
        ImageNetConfig(name=variant.name, version=datasets.Version("1.0.0"), description=variant.title)
        for variant in VARIANTS.values()
        if not variant.drawn
    ]

    def _info(self) -> datasets.DatasetInfo:
        variant = self.config.described
        return datasets.DatasetInfo(
            description=variant.title,
            features=source_features([info.name for info in variant.classes]),
            homepage=variant.homepage,
            license=variant.licence,
        )

    def _split_generators(self, dl_manager: object) -> list[datasets.SplitGenerator]:
        variant = self.config.described
        if self.config.path is None:
            splits = list(variant.splits)
            # All processes must read the same commit.
            revision = resolve_revision(variant.name, self.config.revision, token=self.token)
        else:
            splits, revision = local_splits(variant, self.config.path), None
        return [
            datasets.SplitGenerator(
                name=split, gen_kwargs={"shards": self._shards(split, revision), "split": split, "revision": revision}
            )
            for split in splits
        ]

    def _shards(self, split: str, revision: str | None) -> list[Any]:
        """The units of work for processes and data loader workers: a class, a file, or, with a limit, some entries."""
        source = self._open(split, revision)
        if self.config.limit_per_class is None:
            return source.parts()
        entries = list(source.index())
        # Tuples, as `datasets` would treat nested lists as shards too.
        return [tuple(entries[start : start + _CHUNK]) for start in range(0, len(entries), _CHUNK)]

    def _open(self, split: str, revision: str | None) -> FolderSource | ParquetSource:
        config = self.config
        source = open_source(
            config.described.name,
            split,
            path=config.path,
            revision=revision,
            limit_per_class=config.limit_per_class,
            token=self.token,
        )
        assert isinstance(source, FolderSource | ParquetSource)  # the drawn variants have no configuration here
        return source

    def _generate_examples(
        self, shards: Sequence[str | tuple[IndexEntry, ...]], split: str, revision: str | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        source = self._open(split, revision)
        classes = self.config.described.by_wnid
        for shard in shards:
            entries = list(source.index_part(shard)) if isinstance(shard, str) else shard
            for row in source.read(entries):
                yield row.source_id, row.columns(classes[row.wnid])


def _fingerprint(path: Path) -> str:
    """A hash of the names and times of folders, and of the sizes and times of tables and lists, but not of images."""
    found = hashlib.sha256()
    if path.is_file():
        found.update(f"{path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    for folder, folders, files in os.walk(path):
        folders.sort()
        found.update(f"{as_text(folder)} {Path(folder).stat().st_mtime_ns}\n".encode())
        for name in sorted(files):
            if name.endswith((".parquet", ".txt", ".csv")) and (file := Path(folder) / name).is_file():
                status = file.stat()
                found.update(f"{as_text(name)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()[:16]
