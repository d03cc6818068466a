"""Open a variant's images, wherever they are: on the Hub, in a folder, or drawn.

    source = open_source("tiny-imagenet", "train", path="tiny-imagenet-200", limit_per_class=20)
    entries = list(source.index())          # cheap: no image is read
    for row in source.read(entries[:64]):   # bytes as stored
        ...

The order of an index is the same on all machines. Bytes are returned as stored: decoding them, and handling files that
are not images, is up to the caller (`builders.images.decoding.decode_rgb`).
"""

import os

from builders.errors import DataError
from builders.sources.rows import IndexEntry, Source, SourceRow
from builders.variants.class_maps import find_variant

__all__ = ["IndexEntry", "Source", "SourceRow", "open_source", "resolve_revision"]


def open_source(
    variant: str,
    split: str,
    *,
    path: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    limit_per_class: int | None = None,
    token: str | bool | None = None,
) -> Source:
    """Open one split of a variant, given by name or by the file of a class map (see `builders.variants.class_maps`).

    `path` is a local folder or Parquet file (class folders by wnid or class name, the original layouts of Tiny ImageNet
    and of the evaluation sets, Parquet); without it the variant's Hub repository is streamed at `revision` (a branch,
    tag or commit; default: the one that the variant was checked against, else the newest). A repository that holds an
    archive cannot be streamed. A drawn variant has no
    revision; without a path it is drawn. `limit_per_class` keeps the first images of each class in
    index order. `token` is passed to huggingface_hub.

    Raises DataError if there is no such variant, split, folder or access, or if labels cannot be mapped to wnids.
    """
    found = find_variant(variant)
    split = found.split(split)
    if limit_per_class is not None and limit_per_class < 1:
        raise DataError(f"The limit of images per class is {limit_per_class}.", "It must be at least 1.")
    if found.drawn and path is None:
        if revision is not None:
            said = f"The variant '{variant}' is drawn and has no revision."
            raise DataError(said, "Leave source.revision empty.")
        from builders.sources.drawing import ShapesSource

        return ShapesSource(variant=found.name, split=split, limit_per_class=limit_per_class)
    if path is not None:
        from builders.sources.folders import open_path

        return open_path(found, split, path, limit_per_class=limit_per_class)
    from builders.sources.parquet import open_hub

    return open_hub(found, split, revision=revision, limit_per_class=limit_per_class, token=token)


def resolve_revision(variant: str, revision: str | None = None, *, token: str | bool | None = None) -> str:
    """The commit of the variant's Hub repository that `revision` names now (default: as in `open_source`).

    Raises DataError for a drawn variant, offline, without access, and for an unknown revision.
    """
    from builders.sources.tables import snapshot

    return snapshot(find_variant(variant), revision, token=token).commit
