"""Two checks before the tag: the rows in each Parquet footer, and one row as `load_dataset` reads it."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import brief
from builders.hub import without_token
from builders.published import Published
from builders.runs.layout import Manifest, ShardEntry
from builders.stores.copies import readable
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub.repo import HubRepo

_READERS = 8  # footers that are read at once: a few kilobytes each, so the time goes into waiting for answers


def not_sent(repo: HubRepo, problem: str, hint: str = "") -> HfsynError:
    """The error if the Hub has something else than what was sent (exit code 4)."""
    hint = f"Nothing is tagged. {f'{hint} Then run' if hint else 'Run'} the same command again."
    return HfsynError(f"{repo.repo_id} is not what was sent: {problem}", hint, code=ExitCode.PARTIAL)


def compare_footers(repo: HubRepo, commit: str, config_name: str, manifest: Manifest) -> None:
    """Count the rows of every shard in its Parquet footer, on the Hub.

    Raises HfsynError if a shard cannot be read, or has other rows than the manifest says (exit code 4).
    """
    there = Published(repo.repo_id, commit, commit, config_name, offline=False, token=repo.token)

    def rows(entry: ShardEntry) -> int:
        def read() -> int:
            with there.open(entry.file) as handle:
                try:
                    return int(pq.read_metadata(handle).num_rows)
                except pa.ArrowException:
                    raise not_sent(repo, f"{entry.file} cannot be read as Parquet.") from None

        return repo.call(f"read {there.prefix}{entry.file} back", read)

    entries = [*manifest.shards, *manifest.captions]
    with ThreadPoolExecutor(_READERS, "footers") as pool:
        for entry, found in zip(entries, pool.map(rows, entries), strict=True):
            if found != entry.rows:
                raise not_sent(repo, f"{entry.file} has {found} rows, and {entry.rows} were sent.")


def compare_row(repo: HubRepo, commit: str, config_name: str, manifest: Manifest, folder: Path) -> None:
    """Stream the first row through ``load_dataset`` and compare it with the run's.

    Raises HfsynError if it does not load, or is another row (exit code 4).
    """
    if not manifest.rows:
        return
    first = next(entry for entry in manifest.shards if entry.rows)
    with pq.ParquetFile(readable(folder / first.file)) as parquet:
        mine: dict[str, Any] = next(parquet.iter_batches(1)).to_pylist()[0]
    try:
        theirs = repo.call(f"load {repo.repo_id} back", lambda: _first_row(repo, commit, config_name, manifest.split))
    except HfsynError:
        raise
    except Exception as error:  # anything that stops `load_dataset` here would stop every user of the version
        words = without_token(brief(error), repo.token)
        raise not_sent(repo, f"load_dataset fails with {type(error).__name__}: {words}.") from error
    if theirs != mine:
        names = [name for name in mine if theirs.get(name) != mine[name]]
        raise not_sent(repo, f"its first row differs in {', '.join(names) or 'its columns'}.")


def _first_row(repo: HubRepo, commit: str, config_name: str, split: str) -> dict[str, Any]:
    from datasets import Image, load_dataset

    # An empty cache: if the Hub does not answer, `load_dataset` takes any version that it finds in its cache.
    with tempfile.TemporaryDirectory() as cache, _impatient():
        rows = load_dataset(
            repo.repo_id, config_name, split=split, revision=commit, streaming=True, token=repo.token, cache_dir=cache
        )
        for column, feature in rows.features.items():
            if isinstance(feature, Image):
                rows = rows.cast_column(column, Image(decode=False))
        return dict(next(iter(rows)))


@contextmanager
def _impatient() -> Iterator[None]:
    """Let `datasets` fail at once: by itself it retries for a quarter of an hour, and so does `HubRepo.call`."""
    from datasets import config

    before = config.STREAMING_READ_MAX_RETRIES, config.STREAMING_OPEN_MAX_RETRIES
    config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = 1
    try:
        yield
    finally:
        config.STREAMING_READ_MAX_RETRIES, config.STREAMING_OPEN_MAX_RETRIES = before
