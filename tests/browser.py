"""A page as a browser without a network sees it, if there is a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no chromium, chromium-browser or google-chrome on PATH")


def in_chromium(page: Path, folder: Path, script: str, *, width: int = 360, dark: bool = False) -> Any:
    """Open the page in a frame of that width, and return what the script says of its document `d`."""
    wrapped = folder / "wrapped.html"
    wrapped.write_text(
        f'<!doctype html><iframe id="f" style="width:{width}px;height:800px;border:0" '
        f'srcdoc="{html.escape(page.read_text(encoding="utf-8"))}"></iframe><script>f.onload = () => {{'
        f"const d = f.contentDocument; document.title = JSON.stringify({script}) }}</script>",
        encoding="utf-8",
    )
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=4000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--dump-dom",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        wrapped.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stderr[-500:]
    return json.loads(html.unescape(title[1]))
