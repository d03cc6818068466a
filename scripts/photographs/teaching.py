"""What the generator is taught: views of photographs with several texts each, as a data set for `hfsyn tune`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from builders.files import atomic_text, atomic_write
from hfsyn.rules import seed_of
from scripts.photographs import features, settings
from scripts.photographs.generator import class_prompts
from scripts.photographs.photographs import Photograph, flickr, thirds
from scripts.photographs.quality import said, saying

SET = "taught"
_ROWS = 4096  # in a file


def wordings(data: Path, out: Path) -> dict[str, list[str]]:
    """Captions of the photographs of the first two thirds, by name: the likeliest, then those that were drawn."""
    path = out / "wordings.json"
    if not path.is_file():
        wanted = {one.name for one in thirds(data)[0]}
        names, grid, pooled = features.load(out / "features" / "imagenette")
        rows = [number for number, name in enumerate(names) if name in wanted]
        names, grid, pooled = [names[row] for row in rows], grid[rows], pooled[rows]
        told = [said(saying(out), names, grid, pooled)]
        drawing = saying(out, temperature=settings.HEAT)
        for number in range(settings.WORDINGS):
            told.append(said(drawing, names, grid, pooled, number))
            print(f"wording {number + 1} of {settings.WORDINGS}", flush=True)
        atomic_text(path, json.dumps(dict(zip(names, map(list, zip(*told, strict=True)), strict=True))) + "\n")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def teach(data: Path, out: Path) -> None:
    """Write OUT/taught/*.parquet: ``image``, 32 x 32 as PNG, and ``texts``, of which a training draws one each time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    told, prompts = wordings(data, out), class_prompts()
    rows: list[tuple[Photograph, int, list[str]]] = []
    for one in thirds(data)[0]:
        name = prompts[one.wnid]
        likeliest, *drawn = told[one.name]
        texts = [name] * 3 + [f"{name}, {text}" for text in (likeliest, likeliest, *drawn)]
        rows += [(one, view, texts) for view in range(settings.VIEWS)]
    rows += [(one, 0, list(one.captions)) for one in flickr(data)]
    folder = out / SET
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), _ROWS):
        path = folder / f"train-{start // _ROWS:05d}.parquet"
        if path.is_file():
            continue
        lines = [
            {"image": {"bytes": _view(one, view), "path": f"{view}/{one.name}"}, "texts": texts}
            for one, view, texts in rows[start : start + _ROWS]
        ]
        atomic_write(path, lambda temporary, lines=lines: pq.write_table(pa.Table.from_pylist(lines), temporary))
        print(f"{min(start + _ROWS, len(rows)):,} of {len(rows):,} views", flush=True)


def _view(one: Photograph, view: int) -> bytes:
    """The first two views are the whole photograph; of the others each is a crop of its own."""
    from PIL import Image

    image: Any = one.image()
    box = (0.0, 0.0, float(image.width), float(image.height))
    if view > 1:
        draw = np.random.default_rng(seed_of(view, one.name, purpose="crop"))
        side = draw.uniform(*settings.CROP) ** 0.5
        left, top = (1 - side) * draw.uniform(size=2)
        box = tuple(size * x for size, x in zip(image.size * 2, (left, top, left + side, top + side), strict=True))
    side = settings.PIXELS
    return png(image.resize((side, side), Image.Resampling.LANCZOS, box=box))


def png(image: Any) -> bytes:
    """The bytes of an image, without loss."""
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def shrink(data: Path, out: Path) -> None:
    """Write the photographs at 32 pixels as folders in ImageNette's layout: OUT/small/first and OUT/small/val."""
    from PIL import Image

    from scripts.photographs.latents import small
    from scripts.photographs.photographs import imagenette

    images = small(data, out)
    for name, some in (("first", thirds(data)[0]), ("val", imagenette(data, "val"))):
        for one, pixels in zip(some, images[name], strict=True):
            split = "val" if name == "val" else "train"
            path = (out / "small" / name / split / one.name).with_suffix(".png")
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                content = png(Image.fromarray(pixels))
                atomic_write(path, lambda temporary, content=content: temporary.write_bytes(content))
