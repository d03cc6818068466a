"""What a card states about one configuration, before any of it is text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from builders.errors import DataError
from builders.runs import layout
from builders.variants import Variant, get_variant
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import Recipe, fingerprint
from hfsyn.recipes.strategies import Strategy, get_strategy

What = Literal["data", "captions"]
DEFAULT = "default"
"""The configuration at the root of a repository; `load_dataset` takes one of this name where none is asked for."""

TRIED_DATASETS = ("2.14.7", "2.21.0", "3.6.0", "4.4.2", "5.2.0")
"""Releases of `datasets` in which `scripts/check_clients.py` loads what is published; the first is the least."""

MOST_EXAMPLES = 5
_EXAMPLE = ("class_name", "caption", "prompt", "seed", "sample_id", "source_id")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)


@dataclass(frozen=True)
class CardFacts:
    """Everything that the block of one configuration states."""

    config_name: str
    what: What
    manifest: Mapping[str, Any]
    """manifest.json of the finished run; of an unfinished one, what its recipe tells."""
    software: Mapping[str, Sequence[str]]
    """Library, or `device` -> every version of it that made a shard."""
    example: Mapping[str, Any] | None
    """One row without its image."""
    examples: Sequence[Mapping[str, Any]]
    """A few rows without their images, at most one a class."""
    download_bytes: int
    """Size of the configuration's Parquet files."""
    folder: str = ""
    """Where the run folder lies in the repository; empty for the root."""
    in_progress: bool = False
    """Whether the run is unfinished, so that its counts are those of the moment."""

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return Recipe.model_validate(self.manifest["recipe"])

    @property
    def variant(self) -> Variant:
        """Where the real images are from."""
        return get_variant(self.recipe.source.variant)

    @property
    def strategy(self) -> Strategy:
        """How the prompts were written."""
        return get_strategy(self.recipe.prompt.strategy)

    @property
    def split(self) -> str:
        """The one split of the configuration."""
        return str(self.manifest["split"])

    @property
    def rows(self) -> int:
        """Rows of the configuration: images, or captions."""
        return int(self.manifest["readable_rows" if self.what == "captions" else "rows"])

    @property
    def digest(self) -> dict[str, Any]:
        """The few facts that the other blocks need; the configuration's block carries them from publish to publish."""
        recipe = self.recipe
        return {
            "config": self.config_name,
            "what": self.what,
            "folder": self.folder,
            "split": self.split,
            "rows": self.rows,
            **({"shards": len(shards)} if (shards := self.manifest["shards"]) else {}),  # none yet of a run at work
            "classes": len(self.manifest["classes"]) or len(self.variant.classes),
            "name": recipe.name,
            "variant": recipe.source.variant,
            **({"source": source_facts(self.variant)} if recipe.source.definition is not None else {}),
            "strategy": recipe.prompt.strategy,
            "captioner": recipe.caption.model if recipe.caption else None,
            "captioner_revision": recipe.caption.revision if recipe.caption else None,
            "generator": recipe.generate.model,
            "generator_revision": recipe.generate.revision,
            "sample_id": self.example["sample_id"] if self.example and self.what == "data" else None,
            **({"starts_from": "source"} if recipe.generate.init == "source" and self.what == "data" else {}),
            **(
                {"lora": recipe.generate.lora, "lora_revision": recipe.generate.lora_revision}
                if recipe.generate.lora and self.what == "data"
                else {}
            ),
            "in_progress": self.in_progress,
        }


@dataclass(frozen=True, slots=True)
class ChangelogEntry:
    """One line of the changelog."""

    version: str
    """``v1.0.0``."""
    date: str
    """``2026-11-23``: entries are ordered by it."""
    text: str
    """One sentence: what is new."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for the card of a dataset that is still being made."""

    done: int
    """Images."""
    total: int
    shards_done: int
    shards_total: int
    updated: str
    """When, as the caller wants it read: rendering asks no clock."""
    branch: str = ""
    """Where on the Hub its finished shards lie."""


def facts(
    manifest: Mapping[str, Any],
    software: Mapping[str, Sequence[str]],
    *,
    config_name: str = DEFAULT,
    what: What = "data",
    rows: Iterable[Mapping[str, Any]] = (),
    download_bytes: int | None = None,
    folder: str | None = None,
) -> CardFacts:
    """The facts of a finished run.

    Args:
        manifest: of the run.
        software: library, or `device` -> its versions, from the sidecars.
        config_name: letters, digits, dot, dash and underscore.
        what: the synthetic images, or the captions alone.
        rows: some of its rows, from which the examples are taken (see `example_rows`).
        download_bytes: size of its Parquet files; for images the manifest knows it.
        folder: where it lies in the repository; None is the root for `default`, else the folder `config_name`.

    Raises:
        HfsynError: the name cannot be one of a configuration.
    """
    if not _NAME.fullmatch(config_name):
        raise HfsynError(
            f"{config_name!r} cannot be the name of a configuration.", "Letters, digits, dot, dash and underscore can."
        )
    examples = _examples(rows)
    if download_bytes is None:
        download_bytes = int(manifest.get("bytes", 0)) if what == "data" else 0
    return CardFacts(
        config_name=config_name,
        what=what,
        manifest=manifest,
        software=software,
        example=examples[0] if examples else None,
        examples=examples,
        download_bytes=download_bytes,
        folder=folder if folder is not None else ("" if config_name == DEFAULT else config_name),
    )


def facts_in_progress(
    recipe: Recipe,
    split: str,
    rows_done: int,
    rows_planned: int,
    *,
    config_name: str = DEFAULT,
    rows: Iterable[Mapping[str, Any]] = (),
    software: Mapping[str, Sequence[str]] | None = None,
) -> CardFacts:
    """The facts of a run that is still at work and has no manifest yet: its recipe, and how many rows there are."""
    manifest = {
        "name": recipe.name,
        "fingerprint": fingerprint(recipe),
        "recipe": recipe.model_dump(),
        "split": split,
        "rows": rows_done,
        "rows_planned": rows_planned,
        "source_rows": None,
        "readable_rows": 0,
        "bytes": 0,
        "rejected": {},
        "flags": {},
        "classes": [],
        "shards": [],
    }
    known = facts(manifest, software or {}, config_name=config_name, rows=rows)
    return replace(known, in_progress=True)


def example_rows(folder: Path) -> list[dict[str, Any]]:
    """A few rows of a run folder without their images, one a class, for `facts`; the only thing here that reads.

    Of a run that has only captions so far, they are captions.
    """
    import pyarrow.parquet as pq

    found: dict[str, dict[str, Any]] = {}
    shards = list(layout.finished_shards(folder / layout.DATA)) or list(
        layout.finished_shards(folder / layout.CAPTIONS)
    )
    for shard in shards:
        with pq.ParquetFile(shard) as parquet:
            columns = [name for name in _EXAMPLE if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    found.setdefault(row["class_name"], row)
                if len(found) >= MOST_EXAMPLES:
                    return list(found.values())[:MOST_EXAMPLES]
    return list(found.values())


def source_facts(variant: Variant) -> dict[str, Any]:
    """What the shared blocks of a card say of a variant: title, page (or ""), terms, repository (or None), whether its
    images are drawn.
    """
    return {
        "title": variant.title,
        "page": variant.hub.url if variant.hub else variant.homepage,
        "licence": variant.licence.replace("this package", "hfsyn"),
        "repo_id": variant.hub.repo_id if variant.hub else None,
        "drawn": variant.drawn,
    }


def source_of(digest: Mapping[str, Any]) -> dict[str, Any]:
    """`source_facts` of a configuration: what its digest carries of a class map, else what the table says.

    Raises:
        DataError: there is no such variant, and the digest does not carry them either.
    """
    carried = digest.get("source")
    if "@" not in str(digest["variant"]):
        return source_facts(get_variant(digest["variant"]))
    if not isinstance(carried, Mapping) or {k: type(v) for k, v in carried.items() if k != "repo_id"} != _SOURCE:
        raise DataError(f"The card says nothing about the variant {digest['variant']}.")
    repo_id = carried.get("repo_id")
    return {**carried, "repo_id": repo_id if isinstance(repo_id, str) else None, "drawn": False}


_SOURCE = {"title": str, "page": str, "licence": str, "drawn": bool}


def size_category(rows: int) -> str:
    """The Hub's word for a number of rows."""
    return next((name for limit, name in _SIZES if rows < limit), "1B<n<10B")


def _examples(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(str(row.get("class_name")), {key: row.get(key) for key in _EXAMPLE})
        if len(found) == MOST_EXAMPLES:
            break
    return list(found.values())
