"""Single files of a model, where they are at hand: in its folder, or in the cache. Nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.models.checkpoint_files import Kind
from hfsyn.models.finding import locate
from hfsyn.recipes.recipe import is_content_hash


def at_hand(model: str, revision: str | None, name: str, kind: Kind = "generator") -> Path | None:
    """Where a file of a model is on this machine, by its path in the model; None where it is not here."""
    from huggingface_hub import try_to_load_from_cache

    try:
        place = locate(model, kind)
    except HfsynError:
        return None
    if Path(place).is_dir():
        path = Path(place) / name
        return path if path.is_file() else None
    found = try_to_load_from_cache(place, name, revision=None if is_content_hash(revision) else revision)
    return Path(found) if isinstance(found, str) else None


def configuration(model: str, revision: str | None, name: str, kind: Kind = "generator") -> dict[str, Any]:
    """A JSON file of a model that is at hand; empty where it is not, or is no JSON object."""
    path = at_hand(model, revision, name, kind)
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
