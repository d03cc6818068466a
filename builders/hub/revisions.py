"""Revisions of datasets as commits: from the Hub, or from the local cache by exactly that name."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants

from builders.errors import DataError
from builders.hub.answers import ATTEMPTS, Patience, UnreachableError, is_offline, patiently

_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Resolved:
    """A commit."""

    sha: str
    offline: bool
    """Whether it comes from the cache."""
    paths: tuple[str, ...]
    """The files of the commit; offline, those in the cache."""


def resolve(repo_id: str, revision: str, token: str | bool | None = None) -> Resolved:
    """The current commit of a revision of a dataset; from the cache if the Hub cannot be asked.

    Raises DataError if there is no such repository or revision, without access (exit code 3), or if the Hub does not
    answer and the cache does not have it (exit code 4).
    """
    known = _known(repo_id, revision)
    if is_offline():
        if known is None:
            raise not_cached(f"{repo_id} at {revision}", repo_id, "HF_HUB_OFFLINE is set")
        return Resolved(known, True, _snapshot_files(repo_id, known))
    # If the cache has it, an unreachable Hub is tried only once.
    patience = Patience(repo_id, revision=revision, token=token, attempts=1 if known else ATTEMPTS, at_the_door=True)
    try:
        info = patiently(lambda: HfApi(token=token).dataset_info(repo_id, revision=revision, timeout=30), patience)
    except UnreachableError as error:
        if not known:
            raise not_cached(f"{repo_id} at {revision}", repo_id, error.clause, code=4) from error
        return Resolved(known, True, _snapshot_files(repo_id, known))
    sha = str(info.sha)
    _remember(repo_id, revision, sha)
    return Resolved(sha, False, tuple(sibling.rfilename for sibling in info.siblings or ()))


def _snapshot_files(repo_id: str, sha: str) -> tuple[str, ...]:
    snapshot = _storage(repo_id) / "snapshots" / sha
    return tuple(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def _storage(repo_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"datasets--{repo_id.replace('/', '--')}"


def _remember(repo_id: str, revision: str, sha: str) -> None:
    """Note a revision's commit in the cache, as the client itself does when it downloads by that name."""
    if revision != sha:
        note = _storage(repo_id) / "refs" / revision
        with suppress(OSError):  # only offline use needs it
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(sha, encoding="utf-8")


def _known(repo_id: str, revision: str) -> str | None:
    """The commit that the cache has under exactly this name."""
    note = _storage(repo_id) / "refs" / revision
    sha = revision if _SHA.fullmatch(revision) else note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    return sha if _SHA.fullmatch(sha) and (_storage(repo_id) / "snapshots" / sha).is_dir() else None


def not_cached(what: str, repo_id: str, why: str = "the Hub cannot be asked", *, code: int = 2) -> DataError:
    """The error for something that is not in the cache when the Hub cannot be asked."""
    return DataError(
        f"{what} is not in the local cache, and {why}. No other version is used instead.",
        f"Load it once while online, or: hf download --repo-type dataset {repo_id} --revision VERSION",
        code=code,
    )
