"""Variants streamed from the Hugging Face Hub: the commit, its files, and errors that say what to do."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import RevisionNotFoundError

from builders.errors import DataError
from builders.hub import Patience, asked, is_offline, patiently
from builders.sources.cards import CARD_FILES, NoConfigurationError, Tables, find_tables, read_card, what_lies_there
from builders.sources.parquet import ParquetSource
from builders.variants import Choice, HubSource, Variant, how_to_unpack

_CONVERTED = "refs/convert/parquet"
"""The branch with the Hub's own conversion to Parquet of repositories in other formats."""


@dataclass(frozen=True)
class Repository:
    """The tables of a dataset on the Hub at one commit."""

    repo_id: str
    commit: str
    tables: Tables
    others: str  # what it consists of if it has no tables, in words
    filesystem: Any

    @property
    def root(self) -> str:
        """The commit's folder for the filesystem."""
        return f"datasets/{self.repo_id}@{self.commit}"

    def absent(self) -> DataError:
        """The error for a repository without tables."""
        but = f", but {self.others}" if self.others else ""
        return DataError(
            f"{self.repo_id} has no Parquet files at {self.commit}{but}, and only Parquet files are read from the Hub.",
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
) -> Repository:
    """The tables of a dataset on the Hub: two requests, and one for each file that describes it.

    With `converted`, the Hub's own conversion is used if this revision has no tables of the configuration. Raises
    DataError as `builders.sources.cards.find_tables`, and errors of huggingface_hub.
    """
    found = None
    try:
        found = _tables(repo_id, revision, config, token)
    except NoConfigurationError:
        if not converted:
            raise
    if converted and not (found and found.tables.splits):
        with suppress(RevisionNotFoundError, NoConfigurationError):
            other = _tables(repo_id, _CONVERTED, config, token)
            found = other if other.tables.splits else found
    return found or _tables(repo_id, revision, config, token)  # raises the first error


def _tables(repo_id: str, revision: str | None, config: str | None, token: str | bool | None) -> Repository:
    info = HfApi(token=token).dataset_info(repo_id, revision=revision)
    filesystem = HfFileSystem(token=token)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    root = f"datasets/{repo_id}@{info.sha}"
    described = [name for name in CARD_FILES if name in names]
    texts = {name: filesystem.cat_file(f"{root}/{name}").decode("utf-8", "replace") for name in described}
    tables = find_tables(names, read_card(texts, repo_id), config, repo_id)
    return Repository(repo_id, str(info.sha), tables, what_lies_there(names), filesystem)


def open_hub(
    variant: Variant,
    split: str,
    *,
    revision: str | None = None,
    limit_per_class: int | None = None,
    token: str | bool | None = None,
) -> ParquetSource:
    """A source that reads the variant's repository by ranges, at one commit.

    Raises DataError offline, without access, for an unknown revision, and if the repository has no Parquet files of the
    split: at once if it is known to hold an archive instead, unless a revision is given.
    """
    found, theirs = open_split(variant, split, revision=revision, token=token)
    hub, names = _hub(variant), found.tables.splits[theirs]
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
    variant: Variant, split: str, *, revision: str | None = None, token: str | bool | None = None
) -> tuple[Repository, str]:
    """The tables of a variant's repository, and their name of one of its splits. Raises DataError as `open_hub`."""
    hub, found = _hub(variant), snapshot(variant, revision, token=token)
    theirs = found.tables.split(hub.splits[split])
    if theirs is None:
        there = f" It has: {', '.join(found.tables.splits)}." if found.tables.splits else ""
        other = f"choose another revision (see {hub.url}/tree/main), or give a local copy as the path"
        said = f"{hub.repo_id} at {found.commit} has no Parquet files of the split '{split}'.{there}"
        raise DataError(said, f"To read it, {how_to_unpack(variant) or other}.")
    return found, theirs


def _hub(variant: Variant) -> HubSource:
    if variant.hub is not None:
        return variant.hub
    if variant.drawn:
        raise DataError(f"The variant '{variant.name}' is drawn and is not on the Hub.", "Leave source.revision empty.")
    said = f"The class map of '{variant.name}' names no repository."
    raise DataError(said, "Say where the images are: --set source.path=FOLDER.")


def snapshot(variant: Variant, revision: str | None, *, token: str | bool | None) -> Repository:
    """The tables of a variant's repository at the commit that `revision` names now. Raises DataError as `open_hub`."""
    hub = _hub(variant)
    if hub.archive is not None and revision is None:
        said = f"{hub.repo_id} holds '{variant.name}' as an archive ({hub.archive}), which cannot be streamed."
        raise DataError(said, f"To read it, {how_to_unpack(variant)}.")
    if is_offline():
        said = f"'{variant.name}' is read from the Hub ({hub.repo_id}), but HF_HUB_OFFLINE is set."
        raise DataError(said, "Unset HF_HUB_OFFLINE, or give a local copy: --set source.path=FOLDER.")

    def ask() -> Repository:
        if variant.gated:
            # Listing files needs no access, reading them does: check it now rather than at the first image.
            asked(lambda: HfApi(token=token).auth_check(hub.repo_id, repo_type="dataset"))
        wanted = revision or hub.revision
        return open_repository(hub.repo_id, wanted, hub.config, converted=revision is None, token=token)

    patience = Patience(hub.repo_id, revision=revision or hub.revision, page=hub.url, token=token, at_the_door=True)
    return patiently(ask, patience)
