"""Variants streamed from the Hugging Face Hub: which commit, which files, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import RevisionNotFoundError

from builders.access import is_offline, said_plainly
from builders.errors import DataError
from builders.parquet import ParquetSource, pick_parquet, split_of
from builders.variants import HubSource, Variant

__all__ = ["open_hub", "resolve"]

_CONVERTED = "refs/convert/parquet"
"""The branch in which the Hub itself keeps a Parquet copy of repositories that have other files."""


def resolve(
    variant: Variant, revision: str | None = None, *, token: str | bool | None = None, endpoint: str | None = None
) -> str:
    """The commit that `revision` names now; see `builders.sources.resolve_revision`."""
    return _snapshot(variant, revision, token, endpoint)[0]


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
    hub = _hub(variant)
    commit, files = _snapshot(variant, revision, token, endpoint)
    names = _pick(hub, files, split)
    if not names:
        raise DataError(
            f"{hub.repo_id} at {commit} has no Parquet files of the split '{split}'.",
            _how_to_unpack(variant, hub)
            or f"Choose another revision (see {hub.url}/tree/main), or give a local copy as the path.",
        )
    with said_plainly(hub.repo_id, revision or hub.revision, hub.url):
        filesystem = HfFileSystem(endpoint=endpoint, token=token)
    return ParquetSource(
        variant,
        filesystem,
        f"datasets/{hub.repo_id}@{commit}",
        names,
        f"{len(names)} Parquet files of {hub.repo_id} at {commit}",
        trusted=True,
        local=False,
        limit_per_class=limit_per_class,
    )


def _hub(variant: Variant) -> HubSource:
    if variant.hub is None:
        if not variant.drawn:
            raise DataError(
                f"The class map of '{variant.name}' names no repository.",
                "Say where the images are: --set source.path=FOLDER.",
            )
        raise DataError(f"The variant '{variant.name}' is drawn and is not on the Hub.", "Leave source.revision empty.")
    return variant.hub


def _snapshot(
    variant: Variant, revision: str | None, token: str | bool | None, endpoint: str | None
) -> tuple[str, list[str]]:
    """The commit that is meant and the names of its files: one request, two for a gated repository."""
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
    api = HfApi(endpoint=endpoint, token=token)
    with said_plainly(hub.repo_id, revision or hub.revision, hub.url):
        if variant.gated:
            # The list of files can be read by everybody, the files cannot: ask now rather than at the first image.
            api.auth_check(hub.repo_id, repo_type="dataset")
        commit, files = _files(api, hub, revision or hub.revision)
        if revision is None and not any(_pick(hub, files, split) for split in hub.splits):
            with suppress(RevisionNotFoundError):
                commit, files = _files(api, hub, _CONVERTED)
    return commit, files


def _pick(hub: HubSource, files: Sequence[str], split: str) -> list[str]:
    """The Parquet files of a split of ours, which the repository may call otherwise: "train" for a set to test on."""
    return pick_parquet(files, split_of(hub.splits[split]) or split, hub.config)


def _how_to_unpack(variant: Variant, hub: HubSource) -> str:
    """What to do about an archive; empty for a repository of Parquet files."""
    if hub.archive is None:
        return ""
    at = f" --revision {hub.revision}" if hub.revision else ""
    return (
        f"Download it (hf download {hub.repo_id} {hub.archive} --repo-type dataset{at} --local-dir .), unpack it, and "
        f"give the folder: --set source.path={variant.archive_folder or 'FOLDER'}."
    )


def _files(api: Any, hub: HubSource, revision: str | None) -> tuple[str, list[str]]:
    """The commit that a revision is, and its files; those of the variant's configuration, where it has one."""
    info = api.dataset_info(hub.repo_id, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    return info.sha, [name for name in names if hub.config is None or name.startswith(f"{hub.config}/")]
