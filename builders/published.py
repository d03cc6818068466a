"""Published versions, read back safely: the version that was asked for, or an error.

    rows = load_version("user/imagenette-cip", "v1.0.0", split="train")
    rows = load_version("user/imagenette-cip", "v1.0.0", "basic", split="train", streaming=True)

Plain ``load_dataset(repo, revision="v1.0.0")`` gives the same rows as long as the Hub answers. Offline, or when the Hub
cannot be reached, it quietly gives whatever version it has in its cache. Here a version is first resolved to its
commit, and only files of that commit are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from huggingface_hub import HfApi, HfFileSystem, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from builders import layout
from builders.access import UnreachableError, is_offline, said_plainly
from builders.errors import DataError
from builders.layout import Manifest, load_manifest
from builders.run_files import manifest_in
from builders.yaml import front_matter

__all__ = [
    "Published", "RunFolder", "fetch_sidecars", "load_version", "open_published", "open_reference", "parse_reference",
    "published_configs", "shard_files",
]  # fmt: skip

_SHA = re.compile(r"[0-9a-f]{40}")
_CONFIG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}(/[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}){0,4}")
"""Names of tags and branches, and commits: nothing that leaves the cache's folder, or is another place to a server."""


@dataclass(frozen=True)
class Published:
    """One configuration of a published dataset at one commit."""

    repo_id: str
    revision: str
    """As it was asked for: a tag, a branch or a commit."""
    sha: str
    """The commit that it is."""
    config_name: str
    offline: bool
    """Whether the Hub was not asked, and files come from the local cache alone."""
    token: str | bool | None = None

    @property
    def label(self) -> str:
        """How to call it."""
        return f"{self.repo_id}@{self.revision}" + (f" ({self.config_name})" if self.prefix else "")

    @property
    def prefix(self) -> str:
        """What stands before this configuration's paths in the repository."""
        return layout.config_prefix(self.config_name)

    def text(self, name: str) -> str:
        """A small text file of the configuration, e.g. ``recipe.yaml``.

        Raises:
            DataError: there is no such file.
        """
        return _text(self.fetch(name), f"{self.prefix}{name} of {self.repo_id}")

    def fetch(self, name: str) -> Path:
        """Download a file of the configuration whole, or find it in the cache.

        Raises:
            DataError: there is no such file, or it is not in the cache and the Hub cannot be asked.
        """
        with said_plainly(self.repo_id, self.revision):
            try:
                return Path(
                    hf_hub_download(
                        self.repo_id, f"{self.prefix}{name}", repo_type="dataset", revision=self.sha,
                        token=self.token, local_files_only=self.offline,
                    )
                )  # fmt: skip
            except LocalEntryNotFoundError:
                raise _not_cached(f"{self.prefix}{name} of {self.repo_id} at {self.revision}", self.repo_id) from None
            except EntryNotFoundError:
                raise DataError(
                    f"{self.repo_id} at {self.revision} has no {self.prefix}{name}.",
                    f"Its configurations: {', '.join(published_configs(self.repo_id, self.sha, token=self.token))}.",
                ) from None

    def manifest(self) -> Manifest:
        """The configuration's table of contents, checked."""
        return load_manifest(self.text(layout.MANIFEST), f"{self.prefix}{layout.MANIFEST} of {self.repo_id}")

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file to read parts of it: by ranges from the Hub, or from the cache."""
        if self.offline:
            with self.fetch(name).open("rb") as local:
                yield local
            return
        with (
            said_plainly(self.repo_id, self.revision),
            HfFileSystem(token=self.token).open(self.url(name), block_size=2**20) as remote,
        ):
            yield remote

    def url(self, name: str) -> str:
        """The path of a file, at this commit, for fsspec and datasets."""
        return f"hf://datasets/{self.repo_id}@{self.sha}/{self.prefix}{name}"


@dataclass(frozen=True)
class RunFolder:
    """A finished run on this disk, read in the same way."""

    folder: Path

    @property
    def label(self) -> str:
        """How to call it."""
        return str(self.folder)

    def fetch(self, name: str) -> Path:
        """The path of a file.

        Raises:
            DataError: there is no such file.
        """
        path = self.folder / name
        if not path.is_file():
            raise DataError(f"{self.folder} has no {name}.", f"Is it finished? hfsyn status {self.folder}")
        return path

    def text(self, name: str) -> str:
        """A small text file."""
        return _text(self.fetch(name), str(self.folder / name))

    def manifest(self) -> Manifest:
        """The run's table of contents, checked."""
        found = manifest_in(self.folder)
        if found is None:
            raise DataError(f"{self.folder} has no {layout.MANIFEST}.", f"Is it finished? hfsyn status {self.folder}")
        return found

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for reading."""
        with self.fetch(name).open("rb") as local:
            yield local


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{what} is not UTF-8 text.", "It is damaged; name another revision.") from None


def open_reference(
    reference: str, config: str | None = None, *, token: str | bool | None = None
) -> Published | RunFolder:
    """Open a finished run folder, or ``USER/NAME[@REVISION]`` on the Hub.

    Raises:
        DataError: it is neither, or as `open_published`.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        folder = folder / config if config not in (None, layout.DEFAULT_CONFIG) else folder
        if not layout.is_run_folder(folder):
            raise DataError(
                f"{folder} is no run folder: there is no {layout.RECIPE} in it.", "Name one, or USER/NAME@VERSION."
            )
        return RunFolder(folder)
    repo_id, revision = parse_reference(reference)
    return open_published(repo_id, revision, config, token=token)


def parse_reference(reference: str) -> tuple[str, str | None]:
    """Repository and revision of ``[hf://datasets/]USER/NAME[@REVISION]``.

    Raises:
        DataError: it is not of that form.
    """
    repo_id, at, revision = reference.removeprefix("hf://datasets/").partition("@")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id) or (at and not revision):
        raise DataError(
            f"{reference!r} is no run folder and no dataset on the Hub.", "A dataset looks like USER/NAME@v1.0.0."
        )
    return repo_id, revision or None


def open_published(
    repo_id: str, revision: str | None = None, config: str | None = None, *, token: str | bool | None = None
) -> Published:
    """Resolve a revision (None: the head of main) to its commit, and pick a configuration.

    Offline, and where the Hub cannot be reached, only a version that is in the local cache under that very name is
    taken.

    Args:
        repo_id: ``USER/NAME``.
        revision: a tag (``v1.0.0``), a branch or a commit.
        config: a configuration's name; None is the card's default one.
        token: as everywhere in huggingface_hub; None takes the stored one.

    Raises:
        DataError: no such repository, revision or configuration, no access, or not in the cache.
    """
    _check_revision(revision)
    sha, offline = _resolve(repo_id, revision or "main", token)
    found = Published(repo_id, revision or "main", sha, layout.DEFAULT_CONFIG, offline, token)
    configs = _configs(found)
    if config is None:
        config = next((name for name, default in configs.items() if default), next(iter(configs), None))
    if config not in configs:
        raise DataError(
            f"{repo_id} at {revision or 'main'} has no configuration {config!r} made by hfsyn.",
            f"It has: {', '.join(configs)}." if configs else "Its card names none.",
        )
    return Published(repo_id, revision or "main", sha, config, offline, token)


def _check_revision(revision: str | None) -> None:
    if revision is not None and not _REVISION.fullmatch(revision):
        raise DataError(f"{revision!r} is no revision.", "It looks like v1.0.0, main, or a commit of 40 hex digits.")


def published_configs(repo_id: str, revision: str | None = None, *, token: str | bool | None = None) -> dict[str, bool]:
    """The configurations that the card names, and whether each is the default one."""
    _check_revision(revision)
    sha, offline = _resolve(repo_id, revision or "main", token)
    return _configs(Published(repo_id, revision or "main", sha, layout.DEFAULT_CONFIG, offline, token))


def load_version(
    repo_id: str,
    revision: str,
    config: str | None = None,
    *,
    split: str | None = None,
    streaming: bool = False,
    token: str | bool | None = None,
) -> Any:
    """The rows of one published version, and never of another.

    Args:
        repo_id: ``USER/NAME``.
        revision: a tag (``v1.0.0``) or a commit. A branch is taken too, and read at the commit that it is now.
        config: a configuration's name; None is the card's default one.
        split: None is the only split that a configuration has.
        streaming: read by ranges while iterating, instead of downloading first.
        token: as everywhere in huggingface_hub.

    Returns:
        A `datasets.Dataset`, or with `streaming` an `IterableDataset`.

    Raises:
        DataError: as `open_published`; the files are not whole in the cache and the Hub cannot be asked; or another
            split is asked for.
    """
    from datasets.io.parquet import ParquetDatasetReader

    found = open_published(repo_id, revision, config, token=token)
    manifest = found.manifest()
    if split not in (None, manifest.split):
        raise DataError(f"{repo_id} has no split {split!r}.", f"It has {manifest.split!r}.")
    files = shard_files(found, manifest, streaming=streaming)
    return ParquetDatasetReader(files, split=manifest.split, streaming=streaming).read()


def fetch_sidecars(side: Published | RunFolder) -> None:
    """Bring the sidecars of a published version into the cache, many at a time: one by one they take minutes."""
    if isinstance(side, Published) and not side.offline:
        wanted = [f"{side.prefix}{top}/*.json" for top in (layout.DATA, layout.CAPTIONS)]
        with said_plainly(side.repo_id, side.revision):
            snapshot_download(
                side.repo_id, repo_type="dataset", revision=side.sha, allow_patterns=wanted, token=side.token
            )


def shard_files(found: Published, manifest: Manifest, *, streaming: bool) -> list[str]:
    """Paths of the shards in order: addresses to stream from, or files that are there whole.

    Raises:
        DataError: offline, and a shard is not in the cache, or is cut short there.
    """
    if streaming and not found.offline:
        return [found.url(entry.file) for entry in manifest.shards]
    if not found.offline:
        # By commit: a branch may have moved since it was resolved. `_remember` has noted the name that was asked for.
        wanted = [f"{found.prefix}{entry.file}" for entry in manifest.shards]
        with said_plainly(found.repo_id, found.revision):
            snapshot_download(
                found.repo_id, repo_type="dataset", revision=found.sha, allow_patterns=wanted, token=found.token
            )
    paths = [found.fetch(entry.file) for entry in manifest.shards]
    for path, entry in zip(paths, manifest.shards, strict=True):
        if path.stat().st_size != entry.bytes:
            raise DataError(
                f"{entry.file} of {found.repo_id} is cut short in the cache: {path.stat().st_size} of {entry.bytes} "
                "bytes.",
                f"Delete {path} and load again.",
            )
    return [str(path) for path in paths]


def _configs(found: Published) -> dict[str, bool]:
    text = found.text(layout.CARD)
    try:
        entries = front_matter(text, layout.CARD).get("configs") or []
        names = {str(entry["config_name"]): bool(entry.get("default")) for entry in entries}
        if not all(_CONFIG.fullmatch(name) for name in names):
            raise TypeError("a configuration's name is none")
        return names
    except (DataError, AttributeError, TypeError, KeyError):
        raise DataError(
            f"The card of {found.repo_id} at {found.revision} does not say what configurations there are.",
            "Its front matter is damaged; publish it again, or name another revision.",
        ) from None


def _resolve(repo_id: str, revision: str, token: str | bool | None) -> tuple[str, bool]:
    """The commit of a revision, and whether only the cache was asked."""
    if is_offline():
        return _cached(repo_id, revision, "HF_HUB_OFFLINE is set"), True
    try:
        with said_plainly(repo_id, revision):
            sha = str(HfApi(token=token).dataset_info(repo_id, revision=revision, timeout=30).sha)
    except UnreachableError as error:
        return _cached(repo_id, revision, error.message[0].lower() + error.message[1:]), True
    _remember(repo_id, revision, sha)
    return sha, False


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


def _cached(repo_id: str, revision: str, why: str) -> str:
    """The commit that the cache knows by exactly this name; never the nearest or the newest."""
    note = _storage(repo_id) / "refs" / revision
    sha = revision if _SHA.fullmatch(revision) else note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    if not _SHA.fullmatch(sha) or not (_storage(repo_id) / "snapshots" / sha).is_dir():
        raise _not_cached(f"{repo_id} at {revision}", repo_id, why.removesuffix("."))
    return sha


def _not_cached(what: str, repo_id: str, why: str = "the Hub cannot be asked") -> DataError:
    return DataError(
        f"{what} is not in the local cache, and {why}. No other version is taken in its place.",
        f"Load it once with a network, or: hf download --repo-type dataset {repo_id} --revision VERSION",
    )
