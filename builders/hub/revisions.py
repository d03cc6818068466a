"""Which commit a revision of a dataset is: asked on the Hub, or in the local cache by exactly that name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants

from builders.errors import DataError
from builders.hub.answers import ATTEMPTS, Patience, UnreachableError, is_offline, patiently

_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Resolved:
    """What a revision of a repository is."""

    sha: str
    """Its commit."""
    offline: bool
    """Whether only the cache was asked."""
    paths: tuple[str, ...]
    """The files of the commit; of one in the cache those that lie there."""


def resolve(repo_id: str, revision: str, token: str | bool | None = None) -> Resolved:
    """The commit that a revision of a dataset repository is now; in the cache, by exactly this name, where it must be.

    Raises:
        DataError: there is no such repository or revision; it is not open to this account (exit code 3); or the Hub
            does not answer and the cache does not have it (exit code 4).
    """
    if is_offline():
        sha = _cached(repo_id, revision, "HF_HUB_OFFLINE is set")
        return Resolved(sha, True, _snapshot_files(repo_id, sha))
    # Where the cache has it, a Hub that does not answer is not waited for.
    known = _known(repo_id, revision)
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
    """Note in the cache which commit a version is, as the client itself does when it downloads by that name."""
    if revision != sha:
        note = _storage(repo_id) / "refs" / revision
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(sha, encoding="utf-8")
        except OSError:
            pass  # a cache that cannot be written costs only the offline use


def _known(repo_id: str, revision: str) -> str | None:
    """The commit that the cache knows by exactly this name; never the nearest or the newest."""
    note = _storage(repo_id) / "refs" / revision
    sha = revision if _SHA.fullmatch(revision) else note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    return sha if _SHA.fullmatch(sha) and (_storage(repo_id) / "snapshots" / sha).is_dir() else None


def _cached(repo_id: str, revision: str, why: str) -> str:
    """As `_known`, or an error that says why only the cache was asked."""
    if (sha := _known(repo_id, revision)) is None:
        raise not_cached(f"{repo_id} at {revision}", repo_id, why)
    return sha


def not_cached(what: str, repo_id: str, why: str = "the Hub cannot be asked", *, code: int = 2) -> DataError:
    """Why nothing is read: another version would be the wrong one."""
    return DataError(
        f"{what} is not in the local cache, and {why}. No other version is taken in its place.",
        f"Load it once with a network, or: hf download --repo-type dataset {repo_id} --revision VERSION",
        code=code,
    )
