"""The report where others see it: a static Space on the Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from builders.files import sha256_of
from builders.hub import page_of
from builders.yaml import dump
from hfsyn.hub.repo import HubRepo, LocalFile, check_repo_id
from hfsyn.judging.bench.cells import MATRIX
from hfsyn.judging.bench.matrix import load_matrix
from hfsyn.judging.bench.page import PLOTS, write_page
from hfsyn.progress import teller

INDEX = "index.html"


def report(
    out: str | Path, *, push_to_hub: str | None = None, private: bool = False, quiet: bool = False
) -> Path | str:
    """See `hfsyn.api.looping.report`, whose arguments and errors these are, for a bench."""
    if push_to_hub is None:
        return write_page(out)
    repo = HubRepo(check_repo_id(push_to_hub), repo_type="space", say=teller(quiet))
    repo.need_token()
    written = write_page(out)
    with tempfile.TemporaryDirectory() as temporary:
        page = write_page(out, Path(temporary))
        found = {path.relative_to(temporary).as_posix(): path for path in sorted(Path(temporary).rglob("*.*"))}
        files = {name: LocalFile(path, sha256_of(path)) for name, path in found.items() if path.is_file()}
        files[INDEX] = files.pop(page.name)
        files["README.md"] = LocalFile.made(_card(written.parent))
        repo.create(private=private)
        repo.bring(files, "Add the report", folders=[f"{PLOTS}/"])
    return page_of(push_to_hub, "space")


def _card(folder: Path) -> str:
    """The Space's README.md, whose front matter says what it is."""
    found = [folder / MATRIX] if (folder / MATRIX).is_file() else sorted(folder.glob(f"*/{MATRIX}"))
    matrices = [load_matrix(path) for path in found]
    names = ", ".join(matrix.name for matrix in matrices)
    about = {
        "title": f"What the images are worth: {names}"[:100],
        "emoji": "📊",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "static",
        "app_file": INDEX,
        "pinned": False,
        "tags": ["hfsyn", "image-classification", "synthetic-data"],
    }
    arms = "\n".join(f"- {matrix.name}: {', '.join(matrix.arms)}" for matrix in matrices)
    return f"""---
{dump(about).strip()}
---

Classifiers trained on real and on synthetic images, and tested on real ones; made with hfsyn. The page is `{INDEX}`,
and its table as CSV and LaTeX is beside it. Compared are:

{arms}
"""
