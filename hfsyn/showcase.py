"""The demo: the whole path on the drawn variant with the small models, ending in a contact sheet."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from builders import layout
from hfsyn.building import build
from hfsyn.runs import Run, status
from hfsyn.sheets import compare_runs, save_png

RECIPES = ("shapes-basic", "shapes-cip")
LIMIT = 20
"""Real images a class."""


def demo(
    out: str | Path = "runs/demo",
    *,
    limit: int = LIMIT,
    num_processes: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Build `shapes-basic` and `shapes-cip` and draw real, class-name and caption images side by side.

    Args:
        out: folder for the two run folders and the sheet.
        limit: real images a class.
        num_processes, device, overwrite, quiet: as for `build`.

    Returns:
        The path of the contact sheet (PNG).
    """
    folder = Path(out).expanduser().resolve()
    runs: list[Run] = []
    for name in RECIPES:
        started = time.monotonic()
        run = build(
            name,
            folder / name,
            overrides=[f"source.limit_per_class={limit}"],
            num_processes=num_processes,
            device=device,
            overwrite=overwrite,
            quiet=quiet,
        )
        runs.append(run)
        if not quiet:
            parts = ", ".join(f"{stage.stage} {stage.seconds:.1f} s" for stage in status(run.folder).stages)
            seconds = time.monotonic() - started
            print(
                f"{name}: {run.planned_rows} images in {seconds:.1f} s (time of all processes: {parts})",
                file=sys.stderr,
            )
    title = (
        "Real images, and what a small Stable Diffusion makes of their class names and of their captions.\n"
        "Colours and textures of the real images come back in the caption images only."
    )
    sheet = compare_runs(runs, title=title)
    return save_png(sheet, folder / layout.PREVIEW / "contact_sheet.png")
