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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from huggingface_hub import (
    HfFileSystem,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from builders.errors import DataError
from builders.hub.answers import Patience, patiently, said_plainly
from builders.hub.revisions import not_cached, resolve
from builders.published import ours
from builders.runs import layout
from builders.runs.layout import Manifest, load_manifest
from builders.runs.run_files import manifest_in
from builders.sources.cards import Card, read_card

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
            DataError: there is no such file, it is not text, or larger than a text of ours.
        """
        what = f"{self.prefix}{name} of {self.repo_id}"
        if (size := self._size(name)) > ours.MOST_BYTES:
            raise DataError(f"{what} has {size / 1e9:.1f} GB, and is not one of hfsyn's.", "Name another revision.")
        return _text(self.fetch(name), what)

    def _size(self, name: str) -> int:
        """Bytes of a file; 0 where that cannot be known before it is fetched."""
        path = f"{self.prefix}{name}"
        known = try_to_load_from_cache(self.repo_id, path, repo_type="dataset", revision=self.sha)
        if isinstance(known, str):
            return Path(known).stat().st_size
        if self.offline:
            return 0
        address = hf_hub_url(self.repo_id, path, repo_type="dataset", revision=self.sha)
        try:
            found = patiently(lambda: get_hf_file_metadata(address, token=self.token, timeout=30), self.patience)
        except EntryNotFoundError:
            return 0  # which the fetching says in words
        return found.size or 0

    def named(self, config_name: str) -> Published:
        """Another configuration of the same commit."""
        return replace(self, config_name=config_name)

    @property
    def patience(self) -> Patience:
        """How long the Hub is waited for; each request has its own."""
        return Patience(self.repo_id, revision=self.revision, token=self.token)

    def fetch(self, name: str) -> Path:
        """Download a file of the configuration whole, or find it in the cache.

        Raises:
            DataError: there is no such file, or it is not in the cache and the Hub cannot be asked.
        """
        path = f"{self.prefix}{name}"
        try:
            return Path(
                patiently(
                    lambda: hf_hub_download(
                        self.repo_id,
                        path,
                        repo_type="dataset",
                        revision=self.sha,
                        token=self.token,
                        local_files_only=self.offline,
                    ),
                    self.patience,
                )
            )
        except LocalEntryNotFoundError:
            raise not_cached(f"{path} of {self.repo_id} at {self.revision}", self.repo_id) from None
        except EntryNotFoundError:
            raise DataError(
                f"{self.repo_id} at {self.revision} has no {path}.", "It is damaged; name another revision."
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
                f"{folder} is not a run folder: there is no {layout.RECIPE} in it.", "Name one, or USER/NAME@VERSION."
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
    found, there = _looked(repo_id, revision, config, token)
    if found is not None:
        return found
    at = f"{repo_id} at {revision or 'main'}"
    if config is not None:
        known = f"It has: {', '.join(there)}." if there else "It has none."
        raise DataError(f"{at} has no configuration {config!r} that hfsyn published.", known)
    if len(there) > 1:
        raise DataError(
            f"{at} has several configurations, and its card names no default.", f"Say one: {', '.join(there)}."
        )
    raise DataError(
        f"{at} is not a dataset that hfsyn published: it has no {layout.RECIPE} and {layout.MANIFEST} of hfsyn's.",
        "Check the name and the revision.",
    )


def find_published(
    repo_id: str, revision: str | None = None, config: str | None = None, *, token: str | bool | None = None
) -> Published | None:
    """As `open_published`, but None where the configuration that is meant is somebody else's."""
    found, there = _looked(repo_id, revision, config, token, strangers=True)
    if found is None and config is not None and there:
        root = open_published(repo_id, revision, there[0], token=token).named(layout.DEFAULT_CONFIG)
        if config not in _card(root).configs:
            return open_published(repo_id, revision, config, token=token)  # which says what there is
    return found


def _looked(
    repo_id: str, revision: str | None, config: str | None, token: str | bool | None, *, strangers: bool = False
) -> tuple[Published | None, list[str]]:
    """The configuration that is meant, if hfsyn published it, and the names of those that it may have published.

    Without `strangers` what others put into the repository is not taken for what is meant.
    """
    _check_revision(revision)
    at = resolve(repo_id, revision or "main", token)
    root = Published(repo_id, revision or "main", at.sha, layout.DEFAULT_CONFIG, at.offline, token)
    maybe, asked = ours.candidates(at.paths), config
    if config is None and maybe:
        card = _card(root) if layout.CARD in at.paths else Card()
        config = ours.meant(card, maybe, strangers=strangers)
    if config in maybe and ours.published(root.text, config) is not None:
        found = root.named(config)
        found.fetch(layout.RECIPE)  # into the cache, where it tells what is ours when the Hub is not asked
        return found, maybe
    there = [name for name in maybe if ours.published(root.text, name) is not None]
    alone = there[0] if len(there) == 1 and asked is None and not strangers else None
    return root.named(alone) if alone is not None else None, there


def _card(root: Published) -> Card:
    """What the card says of configurations; nothing where it cannot be read."""
    try:
        return read_card({layout.CARD: root.text(layout.CARD)}, root.label)
    except DataError as error:
        if error.code != 2:
            raise
        return Card()


def _check_revision(revision: str | None) -> None:
    if revision is not None and not _REVISION.fullmatch(revision):
        raise DataError(f"{revision!r} is not a revision.", "It looks like v1.0.0, main, or a commit of 40 hex digits.")


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
    from datasets.exceptions import DatasetGenerationError

    from builders.runs.shard_rows import ShardRows

    found = open_published(repo_id, revision, config, token=token)
    manifest = found.manifest()
    if split not in (None, manifest.split):
        raise DataError(f"{repo_id} has no split {split!r}.", f"It has {manifest.split!r}.")
    files = shard_files(found, manifest, streaming=streaming)
    rows = ShardRows(files=files, entries=manifest.shards, split=manifest.split)
    if streaming:
        return rows.as_streaming_dataset(manifest.split)
    try:
        rows.download_and_prepare()
    except DatasetGenerationError as error:
        raise (error.__cause__ if isinstance(error.__cause__, DataError) else error) from None
    return rows.as_dataset(manifest.split)


def _bring(side: Published, wanted: list[str]) -> None:
    """Bring files into the cache, many at a time; one that is not there is told of by who reads it."""
    with suppress(EntryNotFoundError):
        patiently(
            lambda: snapshot_download(
                side.repo_id, repo_type="dataset", revision=side.sha, allow_patterns=wanted, token=side.token
            ),
            side.patience,
        )


def fetch_sidecars(side: Published | RunFolder) -> None:
    """Bring the sidecars of a published version into the cache, many at a time: one by one they take minutes."""
    if isinstance(side, Published) and not side.offline:
        _bring(side, [f"{side.prefix}{layout.SIDECARS}/*.json"])


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
        _bring(found, wanted)
    paths = [found.fetch(entry.file) for entry in manifest.shards]
    for path, entry in zip(paths, manifest.shards, strict=True):
        if path.stat().st_size != entry.bytes:
            raise DataError(
                f"{entry.file} of {found.repo_id} is cut short in the cache: {path.stat().st_size} of {entry.bytes} "
                "bytes.",
                f"Delete {path} and load again.",
            )
    return [str(path) for path in paths]
