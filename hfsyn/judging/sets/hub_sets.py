"""Rows from the Hub at exactly the commit that was asked for: published versions, variants, plain image sets.

`datasets` alone would quietly take another version from its cache where the Hub does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builders.sources.cards import Tables
from builders.variants import Choice, Variant, get_variant
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.sets.labelled import Parts
from hfsyn.judging.sets.references import Reference, pick_split


@dataclass(frozen=True)
class HubTables:
    """The Parquet files of one split of a dataset on the Hub, at one commit."""

    repo_id: str
    commit: str
    tables: Tables
    split: str
    """The repository's own name of it."""
    filesystem: Any
    choice: Choice
    """Its columns, where they are known."""
    trusted: bool = False
    """Whether it is the own repository of the variant that is asked for."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files, relative to the repository."""
        return self.tables.splits[self.split]

    def urls(self) -> list[str]:
        """The addresses to stream from."""
        return [f"hf://datasets/{self.repo_id}@{self.commit}/{name}" for name in self.files]

    def open(self, url: str, mode: str) -> Any:
        """Open a file to read parts of it, by ranges."""
        return self.filesystem.open(url, mode, cache_type="none")

    def parts(self, token: str | bool | None) -> Parts:
        """The files, brought into the cache."""
        from huggingface_hub import snapshot_download

        from builders.hub.answers import Patience, patiently

        folder = patiently(
            lambda: snapshot_download(
                self.repo_id, repo_type="dataset", revision=self.commit, allow_patterns=list(self.files), token=token
            ),
            Patience(self.repo_id, revision=self.commit, token=token),
        )
        return Parts(
            Path(folder), self.files, self.split, self.commit, self.tables, self.choice, self.trusted, foreign=True
        )


def find_rows(
    found: Reference,
    split: str | None,
    default: Sequence[str],
    *,
    streaming: bool = False,
    token: str | bool | None = None,
) -> tuple[Any, str, str]:
    """The rows of a dataset on the Hub (or its tables), the split that they are, and the commit that they are from.

    A dataset that hfsyn published is read as such, from the cache too if it is there whole; any other only online.

    Raises:
        HfsynError: no such dataset, revision, configuration or split; or the Hub cannot be asked.
    """
    from builders.hub.answers import is_offline
    from builders.hub.revisions import resolve
    from builders.published.versions import find_published, load_version, open_published

    revision = found.revision or "main"
    entry = find_published(found.place, revision, found.config, token=token)
    if entry is None and not is_offline():
        return _find_plain(found, resolve(found.place, revision, token).sha, split, default, streaming, token)
    entry = entry or open_published(found.place, revision, found.config, token=token)  # which says what is wrong
    rows = load_version(found.place, revision, entry.config_name, split=split, streaming=streaming, token=token)
    return rows, entry.manifest().split, entry.sha


def _find_plain(
    found: Reference, sha: str, split: str | None, default: Sequence[str], streaming: bool, token: str | bool | None
) -> tuple[Any, str, str]:
    """As `find_rows`, of a dataset that is not ours: Parquet files by the card, others as `load_dataset` reads them."""
    from builders.hub.answers import Patience, patiently
    from builders.sources.hub import open_repository

    choice = _choice(found)
    there = patiently(
        lambda: open_repository(found.place, sha, choice.config, converted=False, token=token),
        Patience(found.place, revision=sha, token=token),
    )
    if not there.tables.splits:
        return _load_others(found, sha, split, default, streaming, token)
    picked = pick_split(list(there.tables.splits), split, default, str(found))
    return HubTables(found.place, sha, there.tables, picked, there.filesystem, choice), picked, sha


def _choice(found: Reference) -> Choice:
    """What is known of a repository's tables: what the reference says, and a variant whose own it is."""
    variant = get_variant(found.variant) if found.variant else None
    hub = variant.hub if variant else None
    if variant is None or hub is None or hub.repo_id != found.place:
        known = variant.tables if variant else Choice()
        return replace(known, config=found.config or known.config)
    return Choice(found.config or hub.config, hub.image_column, hub.label_column)


def find_variant_rows(
    variant: Variant, split: str, revision: str | None, *, token: str | bool | None = None
) -> HubTables:
    """The tables of a split of a variant's Hub repository.

    Raises:
        DataError: as `builders.sources.open_source`.
    """
    from builders.sources.hub import open_split

    # Its own reader checks access, revision, files and label names, and says plainly what is wrong.
    there, theirs = open_split(variant, split, revision=revision, token=token)
    hub = variant.hub
    assert hub is not None
    choice = Choice(None, hub.image_column, hub.label_column)
    return HubTables(hub.repo_id, there.commit, there.tables, theirs, there.filesystem, choice, trusted=True)


def _load_others(
    found: Reference, sha: str, split: str | None, default: Sequence[str], streaming: bool, token: str | bool | None
) -> tuple[Any, str, str]:
    from datasets import get_dataset_split_names, load_dataset

    try:
        there = get_dataset_split_names(found.place, found.config, revision=sha, token=token)
        picked = pick_split(there, split, default, str(found))
        rows = load_dataset(found.place, found.config, split=picked, revision=sha, streaming=streaming, token=token)
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HfsynError(f"{found} cannot be read: {reason}", "Check its page on the Hub.") from None
    return rows, picked, sha


def stream_tables(files: Sequence[str], token: str | bool | None = None) -> Any:
    """Rows of Parquet files, on the Hub or on the disk, that are read while they are used.

    Raises:
        HfsynError: they cannot be read.
    """
    from datasets import load_dataset

    try:
        return load_dataset("parquet", data_files={"train": list(files)}, split="train", streaming=True, token=token)
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HfsynError(
            f"The rows cannot be read: {reason}", "Check the network and the disk.", code=ExitCode.PREFLIGHT
        ) from None
