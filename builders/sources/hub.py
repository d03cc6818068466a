"""Variants streamed from the Hugging Face Hub: which commit, which files, and errors that say what to do."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import RevisionNotFoundError

from builders.errors import DataError
from builders.hub.answers import Patience, asked, is_offline, patiently
from builders.sources.cards import CARD_FILES, NoConfigurationError, Tables, find_tables, read_card, what_lies_there
from builders.sources.parquet import ParquetSource
from builders.variants import Choice, HubSource, Variant

_CONVERTED = "refs/convert/parquet"
"""The branch in which the Hub itself keeps a Parquet copy of repositories that have other files."""


@dataclass(frozen=True)
class Repository:
    """The tables of a dataset on the Hub at one commit."""

    repo_id: str
    commit: str
    tables: Tables
    others: str
    """What it is made of where it has no tables, in words."""
    filesystem: Any

    @property
    def root(self) -> str:
        """The commit's folder for the filesystem."""
        return f"datasets/{self.repo_id}@{self.commit}"

    def absent(self) -> DataError:
        """The error for a repository without tables."""
        return DataError(
            f"{self.repo_id} has no Parquet files at {self.commit}"
            f"{f', but {self.others}' if self.others else ''}, and only Parquet files are read from the Hub.",
            f"Download it (hf download {self.repo_id} --repo-type dataset --local-dir FOLDER), unpack what is packed, "
            "and name the folder.",
        )


def open_repository(
    repo_id: str,
    revision: str | None = None,
    config: str | None = None,
    *,
    converted: bool = True,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> Repository:
    """Look which tables a dataset on the Hub has: two requests, and one for each file that describes it.

    `converted`: whether the Hub's own conversion is looked at where the newest commit has no tables of the
    configuration. Raises DataError as `builders.sources.cards.find_tables`, and for what the Hub refuses.
    """
    api = HfApi(endpoint=endpoint, token=token)
    filesystem = HfFileSystem(endpoint=endpoint, token=token)
    try:
        found = _tables(api, filesystem, repo_id, revision, config)
        if found.tables.splits or not converted:
            return found
    except NoConfigurationError:
        if not converted:
            raise
        found = None
    with suppress(RevisionNotFoundError, NoConfigurationError):
        other = _tables(api, filesystem, repo_id, _CONVERTED, config)
        found = other if other.tables.splits else found
    return found or _tables(api, filesystem, repo_id, revision, config)


def _tables(api: Any, filesystem: Any, repo_id: str, revision: str | None, config: str | None) -> Repository:
    info = api.dataset_info(repo_id, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    root = f"datasets/{repo_id}@{info.sha}"
    texts = {
        name: filesystem.cat_file(f"{root}/{name}").decode("utf-8", "replace") for name in CARD_FILES if name in names
    }
    card = read_card(texts, repo_id)
    return Repository(
        repo_id, str(info.sha), find_tables(names, card, config, repo_id), what_lies_there(names), filesystem
    )


def resolve(
    variant: Variant, revision: str | None = None, *, token: str | bool | None = None, endpoint: str | None = None
) -> str:
    """The commit that `revision` names now; see `builders.sources.resolve_revision`."""
    return _snapshot(variant, revision, token, endpoint).commit


def open_hub(
    variant: Variant,
    split: str,
    *,
    revision: str | None = None,
    limit_per_class: int | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> ParquetSource:
    """A source that reads the variant's repository by ranges, at one commit; nothing is downloaded whole.

    `endpoint` is the address of another Hub than HF_ENDPOINT's. Raises DataError offline, without access, for an
    unknown revision, and if the repository has no Parquet files of the split: at once where it is known to hold an
    archive instead, unless a revision is asked for.
    """
    found, theirs = open_split(variant, split, revision=revision, token=token, endpoint=endpoint)
    hub = _hub(variant)
    names = found.tables.splits[theirs]
    return ParquetSource(
        variant,
        found.filesystem,
        found.root,
        names,
        f"{len(names)} Parquet files of {hub.repo_id} at {found.commit}",
        tables=found.tables,
        choice=Choice(None, hub.image_column, hub.label_column),
        trusted=True,
        local=False,
        limit_per_class=limit_per_class,
    )


def open_split(
    variant: Variant,
    split: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> tuple[Repository, str]:
    """The tables of a variant's repository, and what they call one of its splits. Raises DataError as `open_hub`."""
    hub = _hub(variant)
    found = _snapshot(variant, revision, token, endpoint)
    theirs = found.tables.split(hub.splits[split])
    if theirs is None:
        there = f" It has: {', '.join(found.tables.splits)}." if found.tables.splits else ""
        raise DataError(
            f"{hub.repo_id} at {found.commit} has no Parquet files of the split '{split}'.{there}",
            _how_to_unpack(variant, hub)
            or f"Choose another revision (see {hub.url}/tree/main), or give a local copy as the path.",
        )
    return found, theirs


def _hub(variant: Variant) -> HubSource:
    if variant.hub is None:
        if not variant.drawn:
            raise DataError(
                f"The class map of '{variant.name}' names no repository.",
                "Say where the images are: --set source.path=FOLDER.",
            )
        raise DataError(f"The variant '{variant.name}' is drawn and is not on the Hub.", "Leave source.revision empty.")
    return variant.hub


def _snapshot(variant: Variant, revision: str | None, token: str | bool | None, endpoint: str | None) -> Repository:
    """The tables of the commit that is meant."""
    hub = _hub(variant)
    if hub.archive is not None and revision is None:
        raise DataError(
            f"{hub.repo_id} holds '{variant.name}' as an archive ({hub.archive}), which cannot be streamed.",
            _how_to_unpack(variant, hub),
        )
    if is_offline():
        raise DataError(
            f"'{variant.name}' is read from the Hub ({hub.repo_id}), but HF_HUB_OFFLINE is set.",
            "Unset HF_HUB_OFFLINE, or give a local copy: --set source.path=FOLDER.",
        )

    def ask() -> Repository:
        if variant.gated:
            # The list of files can be read by everybody, the files cannot: ask now rather than at the first image.
            asked(lambda: HfApi(endpoint=endpoint, token=token).auth_check(hub.repo_id, repo_type="dataset"))
        return open_repository(
            hub.repo_id,
            revision or hub.revision,
            hub.config,
            converted=revision is None,
            token=token,
            endpoint=endpoint,
        )

    return patiently(
        ask, Patience(hub.repo_id, revision=revision or hub.revision, page=hub.url, token=token, at_the_door=True)
    )


def _how_to_unpack(variant: Variant, hub: HubSource) -> str:
    """What to do about an archive; empty for a repository of Parquet files."""
    if hub.archive is None:
        return ""
    at = f" --revision {hub.revision}" if hub.revision else ""
    return (
        f"Download it (hf download {hub.repo_id} {hub.archive} --repo-type dataset{at} --local-dir .), unpack it, and "
        f"give the folder: --set source.path={variant.archive_folder or 'FOLDER'}."
    )
