"""Synthetic: the finished shards of a run folder, or a published version, as a `datasets` builder.

>>> from builders.synthetic import Synthetic
>>> rows = Synthetic(run="runs/shapes-cip").as_streaming_dataset("train")  # doctest: +SKIP
>>> rows = Synthetic(repo="user/shapes", revision="v1.0.0").as_streaming_dataset("train")  # doctest: +SKIP

Plain ``load_dataset`` gives the same rows of a finished run folder or a published version. This builder also reads the
finished shards of unfinished runs, refuses a finished run that is incomplete, and reads exactly the requested version
of a published set, or none (see `builders.published`).
"""

from dataclasses import dataclass
from typing import Any

import datasets

from builders.errors import DataError
from builders.published import open_published, shard_files
from builders.runs import layout
from builders.runs.rows import Files, ShardRows
from builders.runs.run_files import shards


@dataclass
class SyntheticConfig(datasets.BuilderConfig):
    """A run folder, or a published version."""

    run: str | None = None
    repo: str | None = None  # ``USER/NAME`` on the Hub
    revision: str | None = None  # a tag such as ``v1.0.0``, or a commit; a published set needs one
    configuration: str | None = None  # a configuration of the published set; None is its default one

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: Any = None) -> str:
        """Part of the cache's path, with the commit of a version, so that a branch that has moved is read again."""
        if self.repo and self.revision:
            found = open_published(self.repo, self.revision, self.configuration)
            config_kwargs = {**config_kwargs, "revision": found.sha}
        return str(super().create_config_id(config_kwargs, custom_features))


class Synthetic(ShardRows):
    """Rows in the order of the plan; one shard of the builder for each shard of the run or version."""

    BUILDER_CONFIG_CLASS = SyntheticConfig

    def _shards(self) -> dict[str, Files]:
        if bool(self.config.run) == bool(self.config.repo):
            raise DataError(
                "Name a run folder, or a published dataset.",
                'For instance: Synthetic(run="runs/shapes-cip") or Synthetic(repo="user/shapes", revision="v1.0.0").',
            )
        if self.config.repo:
            return self._published()
        folder = layout.run_folder(self.config.run)
        found: dict[str, list[tuple[str, layout.ShardEntry | None]]] = {}
        for shard in shards(folder, layout.DATA):
            split, _, _ = layout.shard_number(shard) or ("", 0, 0)
            found.setdefault(split, []).append((str(shard), None))
        if not found:
            raise DataError(f"{folder} has no finished shard yet.", f"Run: hfsyn generate {folder}")
        return dict(found)

    def _published(self) -> dict[str, Files]:
        if not self.config.revision:
            raise DataError(f"No version of {self.config.repo} was named.", 'For instance: revision="v1.0.0".')
        found = open_published(self.config.repo, self.config.revision, self.config.configuration)
        manifest = found.manifest()
        files = shard_files(found, manifest, streaming=True)
        return {manifest.split: list(zip(files, manifest.shards, strict=True))}
