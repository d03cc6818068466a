"""The run folder: who writes which file, under which name, and what the small JSON files hold.

A run folder has one shape, on disk and on the Hub::

    runs/imagenette-cip/
    ├── recipe.yaml                           the resolved recipe: everything that decides the bytes
    ├── source.parquet                        the index of the source: id and class of every real image that is used
    ├── captions/
    │   ├── train-00000-of-00010.parquet      what was read of each real image, and its caption
    │   └── train-00000-of-00010.json         its sidecar
    ├── plan.parquet                          one line for each image to make: id, class, prompt, seed
    ├── data/
    │   ├── train-00000-of-00010.parquet      the synthetic rows, published as they lie
    │   └── train-00000-of-00010.json         its sidecar
    ├── rejected.jsonl                        every image that was set aside, with its reason
    ├── manifest.json                         the table of contents; its existence means that the run is finished
    ├── README.md                             the card
    ├── preview/                              contact sheets
    └── .locks/                               advisory locks of the processes at work; never published

A sidecar is written after its shard and its existence means that the shard is done. Delete a sidecar, or a shard with
its sidecar, and that one shard is made again. Nobody else in this project writes one of these names.

A sidecar, shortened::

    {"stage": "generate", "shard": 3, "of": 10, "start": 3000, "stop": 4000, "rows": 999, "sha256": "9f...",
     "bytes": 104857600, "fingerprint": "51...", "rejected": [{"id": "...", "reason": "safety checker, 4 attempts"}],
     "counts": {"n01440764": 96}, "seconds": 812.4, "device": "cuda (NVIDIA H200)", "software": {"torch": "2.11.0"}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from builders.errors import DataError

RECIPE = "recipe.yaml"
SOURCE = "source.parquet"
CAPTIONS = "captions"
PLAN = "plan.parquet"
DATA = "data"
REJECTED = "rejected.jsonl"
MANIFEST = "manifest.json"
CARD = "README.md"
PREVIEW = "preview"
LOCKS = ".locks"

KNOWN = frozenset({RECIPE, SOURCE, CAPTIONS, PLAN, DATA, REJECTED, MANIFEST, CARD, PREVIEW, LOCKS})
"""Every name that may stand at the top of a run folder."""

_SHARD = re.compile(r"(?P<split>[A-Za-z0-9_.]+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is known of one finished shard; see the module's docstring for an example."""

    stage: str
    """``caption`` or ``generate``."""
    shard: int
    of: int
    start: int
    """First line of the source index (caption) or of the plan (generate) that the shard covers."""
    stop: int
    """One past its last line."""
    rows: int
    """Rows in the file: ``stop - start`` less the rejected ones."""
    sha256: str
    bytes: int
    fingerprint: str
    rejected: tuple[Mapping[str, str], ...] = ()
    """One ``{"id", "reason"}`` for each line that gave no row."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows of each wnid."""
    flags: Mapping[str, int] = field(default_factory=dict)
    """How many rows raised which flag: truncated, safety, retried, and the caption checks."""
    seconds: float = 0.0
    """Wall time of this shard alone, without loading the model."""
    device: str = ""
    worker: str = ""
    """``RANK of WORLD``: which process made it; nothing in the shard depends on it."""
    software: Mapping[str, str] = field(default_factory=dict)

    def dump(self) -> str:
        """The sidecar as JSON text with a final newline."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def load_sidecar(path: Path) -> Sidecar:
    """Read a sidecar.

    Raises:
        DataError: the file is not the JSON of a sidecar.
    """
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Sidecar(**{**fields, "rejected": tuple(fields.get("rejected", ()))})
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not a sidecar ({error}).", "Delete it, and its shard is made again.") from error


def shard_name(split: str, number: int, count: int) -> str:
    """``train-00003-of-00010.parquet``: the name that the Hub's own tools give a shard."""
    return f"{split}-{number:05d}-of-{count:05d}.parquet"


def shard_number(path: Path) -> tuple[str, int, int] | None:
    """``(split, number, count)`` of a shard's file name; None where it is not one."""
    found = _SHARD.fullmatch(path.name)
    return (found["split"], int(found["number"]), int(found["count"])) if found else None


def sidecar_of(shard: Path) -> Path:
    """The sidecar's path for a shard's path."""
    return shard.with_suffix(".json")


def shard_count(rows: int, shard_rows: int) -> int:
    """How many shards `rows` lines make: the last one may be short; no line, no shard."""
    return -(-rows // shard_rows)


def shard_range(number: int, rows: int, shard_rows: int) -> tuple[int, int]:
    """First and one-past-last line of a shard."""
    return number * shard_rows, min(rows, (number + 1) * shard_rows)


def finished_shards(folder: Path) -> Iterator[Path]:
    """The shards in `folder` whose sidecar stands, in order. A missing folder has none."""
    for sidecar in sorted(folder.glob("*.json")):
        shard = sidecar.with_suffix(".parquet")
        if shard_number(shard) and shard.exists():
            yield shard


def is_run_folder(folder: Path) -> bool:
    """Whether `folder` holds a run (finished or not): a recipe stands in it."""
    return (folder / RECIPE).is_file()


def strangers(folder: Path) -> list[str]:
    """Names in `folder` that are no part of a run folder, sorted; empty for a missing folder.

    Operating-system droppings (``.DS_Store`` and other dot files) do not count.
    """
    if not folder.exists():
        return []
    return sorted(p.name for p in folder.iterdir() if p.name not in KNOWN and not p.name.startswith("."))
