"""What a card states about one configuration, before it becomes text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from builders.errors import DataError
from builders.runs import layout
from builders.stores.copies import readable
from builders.variants import Variant, get_variant
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import Recipe, fingerprint
from hfsyn.recipes.strategies import Strategy, get_strategy

What = Literal["data", "captions"]
TRIED_DATASETS = ("2.14.7", "2.21.0", "3.6.0", "4.4.2", "5.2.0")
"""Releases of `datasets` in which `scripts/check_clients.py` loads what is published; the first is the least."""

MOST_EXAMPLES = 5
_EXAMPLE = ("class_name", "caption", "prompt", "seed", "sample_id", "source_id")
CONFIG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_POWERS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B")


@dataclass(frozen=True)
class CardFacts:
    """Everything that the block of one configuration states."""

    config_name: str
    what: What
    manifest: Mapping[str, Any]
    """manifest.json of the finished run; of an unfinished one, what is known from its recipe."""
    software: Mapping[str, Sequence[str]]  # library, or `device` -> every version of it that made a shard
    examples: Sequence[Mapping[str, Any]]  # a few rows without their images, at most one a class
    download_bytes: int  # size of the configuration's Parquet files
    folder: str = ""  # the run folder's path in the repository; empty for the root
    in_progress: bool = False  # whether the run is unfinished, so that its counts will change

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return Recipe.model_validate(self.manifest["recipe"])

    @property
    def variant(self) -> Variant:
        """The source of the real images."""
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
        recipe, draw = self.recipe, self.recipe.generate
        shards = self.manifest["shards"]
        of_images = self.what == "data"
        found = {
            "config": self.config_name,
            "what": self.what,
            "folder": self.folder,
            "split": self.split,
            "rows": self.rows,
            "shards": len(shards) or None,  # none yet of a run at work
            "classes": len(self.manifest["classes"]) or len(self.variant.classes),
            "name": recipe.name,
            "variant": recipe.source.variant,
            "source": source_facts(self.variant) if recipe.source.definition is not None else None,
            "strategy": recipe.prompt.strategy,
            "captioner": recipe.caption.model if recipe.caption else None,
            "captioner_revision": recipe.caption.revision if recipe.caption else None,
            "generator": draw.model,
            "generator_revision": draw.revision,
            "sample_id": self.examples[0]["sample_id"] if self.examples and of_images else None,
            "starts_from": "source" if draw.init == "source" and of_images else None,
            "lora": draw.lora if of_images else None,
            "lora_revision": draw.lora_revision if of_images else None,
            "lora_tuned_on": draw.lora_tuned_on if of_images else None,
            "tuned_on": draw.tuned_on if of_images else None,
            "scores": bool(self.manifest.get("judges")) and of_images,
            "in_progress": self.in_progress,
        }
        optional = ("scores", "shards", "source", "starts_from", "lora", "lora_revision", "lora_tuned_on", "tuned_on")
        return {key: value for key, value in found.items() if value or key not in optional}


@dataclass(frozen=True, slots=True)
class ChangelogEntry:
    """One line of the changelog."""

    version: str  # `v1.0.0`
    date: str  # `2026-11-23`; entries are sorted by it
    text: str  # one sentence about what is new


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for the card of a dataset that is still being made."""

    done: int  # images
    total: int
    shards_done: int
    shards_total: int
    updated: str  # the time, as it is shown
    branch: str = ""  # the branch on the Hub that has its finished shards


def facts(
    manifest: Mapping[str, Any],
    software: Mapping[str, Sequence[str]],
    *,
    config_name: str = layout.DEFAULT_CONFIG,
    what: What = "data",
    rows: Iterable[Mapping[str, Any]] = (),
    download_bytes: int | None = None,
    folder: str | None = None,
) -> CardFacts:
    """The facts of a finished run.

    Args:
        manifest: of the run.
        software: library, or `device` -> its versions, from the sidecars.
        rows: some of its rows, from which the examples are taken (see `example_rows`).
        download_bytes: size of its Parquet files; for images None takes it from the manifest.
        folder: its path in the repository; None is the root for `default`, else the folder `config_name`.

    Raises:
        HfsynError: the name cannot be that of a configuration.
    """
    if not CONFIG_NAME.fullmatch(config_name):
        hint = "Letters, digits, dot, dash and underscore can."
        raise HfsynError(f"{config_name!r} cannot be the name of a configuration.", hint)
    examples: dict[str, dict[str, Any]] = {}
    for row in rows:
        examples.setdefault(str(row.get("class_name")), {key: row.get(key) for key in _EXAMPLE})
    return CardFacts(
        config_name=config_name,
        what=what,
        manifest=manifest,
        software=software,
        examples=list(examples.values())[:MOST_EXAMPLES],
        download_bytes=int(manifest.get("bytes", 0)) * (what == "data") if download_bytes is None else download_bytes,
        folder=layout.config_prefix(config_name).rstrip("/") if folder is None else folder,
    )


def facts_in_progress(
    recipe: Recipe,
    split: str,
    rows_done: int,
    rows_planned: int,
    *,
    config_name: str = layout.DEFAULT_CONFIG,
    rows: Iterable[Mapping[str, Any]] = (),
    software: Mapping[str, Sequence[str]] | None = None,
) -> CardFacts:
    """The facts of a run at work, which has no manifest yet: its recipe, and how many rows there are."""
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
    """A few rows of a run folder without images, one a class, for `facts`; of captions while there are no images."""
    import pyarrow.parquet as pq

    found: dict[str, dict[str, Any]] = {}
    images, captions = (layout.finished_shards(folder / name) for name in (layout.DATA, layout.CAPTIONS))
    for shard in list(images) or captions:
        with pq.ParquetFile(readable(shard)) as parquet:
            columns = [name for name in _EXAMPLE if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    found.setdefault(row["class_name"], row)
                if len(found) >= MOST_EXAMPLES:
                    return list(found.values())[:MOST_EXAMPLES]
    return list(found.values())


def source_facts(variant: Variant) -> dict[str, Any]:
    """What the shared blocks of a card say about a variant."""
    return {
        "title": variant.title,
        "page": variant.hub.url if variant.hub else variant.homepage,
        "licence": variant.licence.replace("this package", "hfsyn"),
        "repo_id": variant.hub.repo_id if variant.hub else None,
        "drawn": variant.drawn,
    }


def source_of(digest: Mapping[str, Any]) -> dict[str, Any]:
    """`source_facts` of a configuration: for a class map those that its digest carries.

    Raises:
        DataError: there is no such variant, or it is a class map and the digest does not carry them.
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
    digits = min(len(str(rows)), 10)
    return "n<1K" if digits < 4 else f"{_POWERS[digits - 4]}<n<{_POWERS[digits - 3]}"
