"""What EfficientNet-Lite0 sees of photographs, computed once: OUT/features/SET/00000.safetensors, and names.json.

Of each photograph and its mirror image ``grid``, float16 (n, views, 25, 472), the network's maps at three depths on the
cells of the last one, and ``pooled``, float16 (n, views, 1280), from which it tells classes. A shard is whole once it
has its name, so that a run that was stopped goes on with the next one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from builders.files import atomic_text, atomic_write
from hfsyn.progress import Progress
from scripts.photographs.captioner import Lite0
from scripts.photographs.photographs import Photograph

ROWS, BATCH = 512, 32


def make(photographs: list[Photograph], folder: Path, *, mirrored: bool) -> None:
    """Compute what is missing of the features of these photographs."""
    import torch
    from PIL import ImageOps
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    atomic_text(folder / "names.json", json.dumps([one.name for one in photographs]) + "\n")
    network = Lite0()
    with Progress(f"features of {folder.name}", len(photographs)) as progress:
        for start in range(0, len(photographs), ROWS):
            path = folder / f"{start // ROWS:05d}.safetensors"
            rows = photographs[start : start + ROWS]
            if not path.is_file():
                parts = []
                for first in range(0, len(rows), BATCH):
                    images = [one.image() for one in rows[first : first + BATCH]]
                    views = [images, [ImageOps.mirror(image) for image in images]][: 2 if mirrored else 1]
                    parts.append([network(view) for view in views])
                found = {
                    name: torch.cat([torch.stack([view[n] for view in part], dim=1) for part in parts]).half()
                    for n, name in enumerate(("grid", "pooled"))
                }
                atomic_write(path, lambda temporary, found=found: save_file(found, temporary))
            progress.add(len(rows))


def load(folder: Path) -> tuple[list[str], Any, Any]:
    """Names of the photographs, and their ``grid`` and ``pooled`` as in the shards, as arrays of numpy."""
    from safetensors.numpy import load_file

    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    grid, pooled = (np.concatenate([shard[name] for shard in shards]) for name in ("grid", "pooled"))
    if len(grid) != len(names):
        raise SystemExit(f"{folder} holds the features of {len(grid)} photographs, of {len(names)}: make them first.")
    return names, grid, pooled
