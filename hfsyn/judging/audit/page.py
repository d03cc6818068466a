"""The page of an audit (thin)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builders.files import atomic_text


def write_page(path: Path, found: Any, run: Path) -> None:
    """Thin."""
    atomic_text(path, "")
