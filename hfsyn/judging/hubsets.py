"""Rows from the Hub at exactly the commit that was asked for: published versions, variants, plain image sets.

`datasets` alone would quietly take another version from its cache where the Hub does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from builders.variants import Variant
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.references import Reference


def load_rows(
    found: Reference,
    split: str | None,
    default: Sequence[str],
    *,
    streaming: bool = False,
    token: str | bool | None = None,
) -> tuple[Any, str, str]:
    """The rows of a dataset on the Hub, the split that they are, and the commit that they are from.

    A dataset that hfsyn published is read as such, from the cache too if it is there whole; any other only online.

    Raises:
        HfsynError: no such dataset, revision, configuration or split; or the Hub cannot be asked.
    """
    from builders.access import is_offline
    from builders.published import find_published, load_version, open_published
    from builders.revisions import resolve

    revision = found.revision or "main"
    entry = find_published(found.place, revision, found.config, token=token)
    if entry is None and not is_offline():
        return _load_plain(found, resolve(found.place, revision, token).sha, split, default, streaming, token)
    entry = entry or open_published(found.place, revision, found.config, token=token)  # which says what is wrong
    rows = load_version(found.place, revision, entry.config_name, split=split, streaming=streaming, token=token)
    return rows, entry.manifest().split, entry.sha


def load_variant(
    variant: Variant, split: str, revision: str | None, *, streaming: bool = False, token: str | bool | None = None
) -> tuple[Any, str]:
    """The rows of a split of a variant's Hub repository, and the commit that they are from.

    Raises:
        DataError: as `builders.sources.open_source`.
    """
    from builders.hub import open_hub

    # Its own reader checks access, revision, files and label names, and says plainly what is wrong.
    source = open_hub(variant, split, revision=revision, token=token)
    hub = variant.hub
    assert hub is not None
    commit = source.layout.rsplit(" ", 1)[-1]
    files = [f"hf://datasets/{hub.repo_id}@{commit}/{name}" for name in source.parts()]
    return _from_parquet(files, split, streaming, token), commit


def _load_plain(
    found: Reference, sha: str, split: str | None, default: Sequence[str], streaming: bool, token: str | bool | None
) -> tuple[Any, str, str]:
    from datasets import get_dataset_split_names, load_dataset

    from hfsyn.judging.imagesets import pick_split

    try:
        there = get_dataset_split_names(found.place, found.config, revision=sha, token=token)
        picked = pick_split(there, split, default, str(found))
        rows = load_dataset(found.place, found.config, split=picked, revision=sha, streaming=streaming, token=token)
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HfsynError(f"{found} cannot be read: {reason}", "Check its page on the Hub.") from None
    return rows, picked, sha


def _from_parquet(files: list[str], split: str, streaming: bool, token: str | bool | None) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset("parquet", data_files={split: files}, split=split, streaming=streaming, token=token)
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HfsynError(
            f"The rows cannot be read: {reason}", "Check the network and the disk.", code=ExitCode.PREFLIGHT
        ) from None
