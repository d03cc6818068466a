"""Published versions, read back safely: the requested version, or an error.

    rows = load_version("user/imagenette-cip", "v1.0.0", split="train")
    rows = load_version("user/imagenette-cip", "v1.0.0", "basic", split="train", streaming=True)

Plain ``load_dataset(repo, revision="v1.0.0")`` gives the same rows while the Hub is reachable; offline, it silently
gives whatever version is in the cache. Here a version is resolved to its commit first.

A configuration is ours if it has a ``recipe.yaml``, and a ``manifest.json`` that is valid (`load_manifest`): other
repositories may have files of these names too. The card, which people rewrite, copy and remove, only decides which
configuration is meant if none is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
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

from builders.errors import DataError, near_path
from builders.hub import Patience, not_cached, patiently, resolve, said_plainly
from builders.runs import layout
from builders.runs.run_files import manifest_in
from builders.sources.cards import Card, read_card
from builders.stores.copies import is_address, is_away, readable

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}(/[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}){0,4}")
"""Tags, branches and commits, but nothing that could leave the folder of the cache."""
MOST_BYTES = 64 * 2**20  # the largest manifest or card that is read: some hundred thousand shards
_CONFIG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Published:
    """One configuration of a published dataset at one commit."""

    repo_id: str
    revision: str  # as requested: a tag, a branch or a commit
    sha: str
    config_name: str
    offline: bool  # whether files come only from the local cache
    token: str | bool | None = None

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.repo_id}@{self.revision}" + (f" ({self.config_name})" if self.prefix else "")

    @property
    def prefix(self) -> str:
        """The prefix of this configuration's paths in the repository."""
        return layout.config_prefix(self.config_name)

    def text(self, name: str) -> str:
        """A small text file of the configuration, e.g. ``recipe.yaml``.

        Raises DataError as `fetch`, and if it is too large or not text.
        """
        what = f"{self.prefix}{name} of {self.repo_id}"
        if (size := self._size(name)) > MOST_BYTES:
            raise DataError(f"{what} has {size / 1e9:.1f} GB, and is not one of hfsyn's.", "Name another revision.")
        return _text(self.fetch(name), what)

    def _size(self, name: str) -> int:
        """Bytes of a file; 0 if unknown before it is fetched."""
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
            return 0  # `fetch` raises
        return found.size or 0

    def named(self, config_name: str) -> Published:
        """Another configuration of the same commit."""
        return replace(self, config_name=config_name)

    @property
    def patience(self) -> Patience:
        """Retries of one request."""
        return Patience(self.repo_id, revision=self.revision, token=self.token)

    def fetch(self, name: str) -> Path:
        """Download a file of the configuration, or find it in the cache.

        Raises DataError if there is no such file, or if it is not in the cache and the Hub cannot be asked.
        """
        path = f"{self.prefix}{name}"
        download = partial(hf_hub_download, repo_type="dataset", revision=self.sha, token=self.token)
        try:
            return Path(patiently(lambda: download(self.repo_id, path, local_files_only=self.offline), self.patience))
        except LocalEntryNotFoundError:
            raise not_cached(f"{path} of {self.repo_id} at {self.revision}", self.repo_id) from None
        except EntryNotFoundError:
            said = f"{self.repo_id} at {self.revision} has no {path}."
            raise DataError(said, "It is damaged; name another revision.") from None

    def manifest(self) -> layout.Manifest:
        """The configuration's manifest."""
        return layout.load_manifest(self.text(layout.MANIFEST), f"{self.prefix}{layout.MANIFEST} of {self.repo_id}")

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file: by ranges from the Hub, or from the cache."""
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
        """The URL of a file at this commit, for fsspec and datasets."""
        return f"hf://datasets/{self.repo_id}@{self.sha}/{self.prefix}{name}"


@dataclass(frozen=True)
class RunFolder:
    """A finished local run, with the interface of `Published`."""

    folder: Path

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.folder}"

    def fetch(self, name: str) -> Path:
        """The path of a file. Raises DataError if there is no such file."""
        if not (path := self.folder / name).is_file():
            raise DataError(f"{self.folder} has no {name}.", f"Is it finished? hfsyn status {self.folder}")
        return path

    def text(self, name: str) -> str:
        """A small text file."""
        return _text(self.fetch(name), str(self.folder / name))

    def manifest(self) -> layout.Manifest:
        """The run's manifest."""
        found = manifest_in(self.fetch(layout.MANIFEST).parent)
        assert found is not None
        return found

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading."""
        path = self.fetch(name)
        return readable(path) if is_away(path) else path.open("rb")


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{what} is not UTF-8 text.", "It is damaged; name another revision.") from None


def open_reference(
    reference: str, config: str | None = None, *, token: str | bool | None = None
) -> Published | RunFolder:
    """Open a finished run folder, or ``USER/NAME[@REVISION]`` on the Hub.

    Raises DataError if it is neither, or as `open_published`.
    """
    if is_address(reference) and not reference.startswith("hf://datasets/"):
        layout.run_folder(reference)  # which refuses it
    folder = Path(reference).expanduser()
    if folder.is_dir():
        folder = folder / config if config not in (None, layout.DEFAULT_CONFIG) else folder
        return RunFolder(layout.run_folder(folder, "Name one, or USER/NAME@VERSION."))
    repo_id, revision = parse_reference(reference)
    return open_published(repo_id, revision, config, token=token)


def parse_reference(reference: str) -> tuple[str, str | None]:
    """Repository and revision of ``[hf://datasets/]USER/NAME[@REVISION]``; raises DataError for any other form."""
    repo_id, at, revision = reference.removeprefix("hf://datasets/").partition("@")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id) or (at and not revision):
        said = f"{reference!r} is neither a run folder nor a dataset on the Hub.{near_path(reference)}"
        raise DataError(said, "A dataset looks like USER/NAME@v1.0.0.")
    return repo_id, revision or None


def open_published(
    repo_id: str, revision: str | None = None, config: str | None = None, *, token: str | bool | None = None
) -> Published:
    """Resolve a revision (a tag, branch or commit; None: the head of main) to its commit, and choose a configuration.

    `config` None is the card's default. If the Hub cannot be reached, only a version that the local cache has under
    exactly this name is taken. Raises DataError if there is no such repository, revision or configuration, no access,
    or if it is not in the cache.
    """
    found, there = _looked(repo_id, revision, config, token)
    if found is not None:
        return found
    at = f"{repo_id} at {revision or 'main'}"
    if config is not None:
        known = f"It has: {', '.join(there)}." if there else "It has none."
        raise DataError(f"{at} has no configuration {config!r} that hfsyn published.", known)
    if len(there) > 1:
        said = f"{at} has several configurations, and its card names no default."
        raise DataError(said, f"Name one: {', '.join(there)}.")
    said = f"{at} is not a dataset that hfsyn published: it has no {layout.RECIPE} and {layout.MANIFEST} of hfsyn's."
    raise DataError(said, "Check the name and the revision.")


def find_published(
    repo_id: str, revision: str | None = None, config: str | None = None, *, token: str | bool | None = None
) -> Published | None:
    """As `open_published`, but None if hfsyn did not publish the configuration that is meant."""
    found, there = _looked(repo_id, revision, config, token, strangers=True)
    if found is None and config is not None and there:
        root = open_published(repo_id, revision, there[0], token=token).named(layout.DEFAULT_CONFIG)
        if config not in _card(root).configs:
            return open_published(repo_id, revision, config, token=token)  # raises
    return found


def _looked(
    repo_id: str, revision: str | None, config: str | None, token: str | bool | None, *, strangers: bool = False
) -> tuple[Published | None, list[str]]:
    """The configuration that is meant, if hfsyn published it, and the names of those that it may have published.

    With `strangers`, a configuration of others may be meant too.
    """
    _check_revision(revision)
    at = resolve(repo_id, revision or "main", token)
    root = Published(repo_id, revision or "main", at.sha, layout.DEFAULT_CONFIG, at.offline, token)
    maybe, asked = candidates(at.paths), config
    if config is None and maybe:
        card = _card(root) if layout.CARD in at.paths else Card()
        config = _meant(card, maybe, strangers=strangers)
    if config in maybe and our_manifest(root.text, config) is not None:
        found = root.named(config)
        found.fetch(layout.RECIPE)  # into the cache, where `candidates` looks for it when offline
        return found, maybe
    there = [name for name in maybe if our_manifest(root.text, name) is not None]
    alone = there[0] if len(there) == 1 and asked is None and not strangers else None
    return root.named(alone) if alone is not None else None, there


def _card(root: Published) -> Card:
    """The repository's card; empty if it is damaged."""
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
    """The rows of one published version, never of another.

    Args:
        repo_id: ``USER/NAME``.
        revision: a tag (``v1.0.0``) or a commit; a branch is read at its current commit.
        config: a configuration's name; None is the card's default one.
        split: None is the only split that a configuration has.
        streaming: read by ranges while iterating, instead of downloading first.
        token: as everywhere in huggingface_hub.

    Returns:
        A `datasets.Dataset`, or with `streaming` an `IterableDataset`.

    Raises:
        DataError: as `open_published`; the Hub cannot be asked and the cache is not complete; or an unknown split.
    """
    from datasets.exceptions import DatasetGenerationError

    from builders.runs.rows import ShardRows

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
    """Download files into the cache in parallel; missing ones are ignored."""
    download = partial(snapshot_download, repo_type="dataset", revision=side.sha, token=side.token)
    with suppress(EntryNotFoundError):
        patiently(lambda: download(side.repo_id, allow_patterns=wanted), side.patience)


def fetch_sidecars(side: Published | RunFolder) -> None:
    """Download the sidecars of a published version into the cache in parallel: one by one they take minutes."""
    if isinstance(side, Published) and not side.offline:
        _bring(side, [f"{side.prefix}{layout.SIDECARS}/*.json"])


def shard_files(found: Published, manifest: layout.Manifest, *, streaming: bool) -> list[str]:
    """The shards in order: URLs to stream from, or paths of complete files.

    Raises DataError if a shard in the cache is incomplete, or missing when offline.
    """
    if streaming and not found.offline:
        return [found.url(entry.file) for entry in manifest.shards]
    if not found.offline:
        _bring(found, [f"{found.prefix}{entry.file}" for entry in manifest.shards])
    paths = [found.fetch(entry.file) for entry in manifest.shards]
    for path, entry in zip(paths, manifest.shards, strict=True):
        if path.stat().st_size != entry.bytes:
            cut = f"is cut short in the cache: {path.stat().st_size} of {entry.bytes} bytes"
            raise DataError(f"{entry.file} of {found.repo_id} {cut}.", f"Delete {path} and load again.")
    return [str(path) for path in paths]


def candidates(paths: Collection[str]) -> list[str]:
    """The configurations that have both files, sorted; their manifests decide whether they are ours."""
    there = set(paths)
    found = []
    for path in there:
        folder, slash, name = path.rpartition("/")
        config = folder or layout.DEFAULT_CONFIG
        plain = not slash or (_CONFIG.fullmatch(folder) is not None and folder != layout.DEFAULT_CONFIG)
        if name == layout.MANIFEST and plain and f"{layout.config_prefix(config)}{layout.RECIPE}" in there:
            found.append(config)
    return sorted(found)


def our_manifest(read: Callable[[str], str], config: str) -> layout.Manifest | None:
    """The manifest of one of `candidates`, None if it is not ours.

    `read` gives the text of a file by its path, or raises DataError if it is not text or larger than `MOST_BYTES`.
    Raises DataError if the Hub does not answer or denies access (exit codes 3 and 4).
    """
    path = f"{layout.config_prefix(config)}{layout.MANIFEST}"
    try:
        return layout.load_manifest(read(path), path)
    except DataError as error:
        if error.code != 2:
            raise
        return None


def _meant(card: Card, found: Collection[str], *, strangers: bool) -> str | None:
    """The configuration that is meant if none is named, of those that hfsyn published, and with `strangers` of all on
    the card; None if it is ambiguous.
    """
    names = sorted({*found, *(card.configs if strangers else ())})
    if card.default is not None and card.default in names:
        return card.default
    return layout.DEFAULT_CONFIG if layout.DEFAULT_CONFIG in names else names[0] if len(names) == 1 else None
