"""The page (stub)."""
from __future__ import annotations

from pathlib import Path


def report(out: str | Path) -> Path:
    """One page."""
    page = Path(out) / "report.html"
    page.write_text("<html></html>")
    return page
