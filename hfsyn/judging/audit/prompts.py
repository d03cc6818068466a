"""The images that an audit asks for: rows of a design as prompts in a table, and the recipe of the run that draws them.

The run is an ordinary one. Its source is the table of the prompts, which has a blank picture wherever another source
has a real image; its captions file is the same table.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.files import atomic_text, atomic_write
from builders.runs import layout
from builders.variants import ClassInfo, get_variant
from hfsyn.errors import HfsynError
from hfsyn.judging.audit.design import design
from hfsyn.judging.audit.effects import Found
from hfsyn.recipes.factor_file import CLASS, Factors
from hfsyn.recipes.recipe import Recipe, dump_recipe, stored_recipe

_AT_ONCE = 500  # images in memory once more while they are written


class Axes:
    """The columns of a design, the classes first, and what their levels are."""

    def __init__(self, factors: Factors, classes: Sequence[ClassInfo]) -> None:
        self.factors, self.classes = factors, list(classes)
        self.names = [CLASS, *factors.factors]
        self.levels: list[list[str]] = [[info.name for info in classes], *map(list, factors.factors.values())]

    @property
    def sizes(self) -> list[int]:
        """How many levels each column has."""
        return [len(levels) for levels in self.levels]

    def allowed(self) -> dict[tuple[int, int], np.ndarray]:
        """Which pairs of levels may occur, of the columns of which some may not. Raises HfsynError if a level may not
        occur at all.
        """
        found: dict[tuple[int, int], np.ndarray] = {}
        for pair in self.factors.never:
            (a, mine), (b, theirs) = sorted((self.names.index(name), levels) for name, levels in pair.items())
            barred = found.setdefault((a, b), np.ones((self.sizes[a], self.sizes[b]), bool))
            barred[np.ix_(self._places(a, mine), self._places(b, theirs))] = False
        for (a, b), pairs in found.items():
            for column, other, free in ((a, b, pairs.any(1)), (b, a, pairs.any(0))):
                if not free.all():
                    level = self.levels[column][int(free.argmin())]
                    said = f"{self.names[column]} {level} fits no {self.names[other]}: `never` bars every pair of them."
                    raise HfsynError(said, "Leave that level out, or bar fewer pairs.")
        return found

    def _places(self, column: int, levels: Sequence[str]) -> list[int]:
        """The levels' numbers; of classes also by wnid, and those that are not audited have none."""
        known = {level: number for number, level in enumerate(self.levels[column])}
        if column == 0:
            known |= {info.wnid: number for number, info in enumerate(self.classes)}
        return [known[level] for level in levels if level in known]

    def rows(self, table: np.ndarray, kind: str, start: int = 0) -> list[dict[str, Any]]:
        """The rows of a design as prompts: ``source_id``, ``wnid``, ``prompt``, and of each factor the ``levels``."""
        found = []
        for number, row in enumerate(table.tolist(), start):
            info = self.classes[row[0]]
            levels = {name: self.levels[c][row[c]] for c, name in enumerate(self.names) if c}
            one = {"source_id": f"{info.wnid}/{kind}_{number:06d}", "wnid": info.wnid, "class_name": info.name}
            found.append({**one, "prompt": self.factors.prompt_of(info, levels), "levels": levels})
        return found


def cells(axes: Axes, images: int, seed: int) -> np.ndarray:
    """The design of that many images over all classes and levels."""
    return design(axes.sizes, images, allowed=axes.allowed(), seed=seed)


def repairing(axes: Axes, found: Sequence[Found], images: int, seed: int) -> list[dict[str, Any]]:
    """The prompts of a repair: images in the cells of the findings, each finding's number by what it costs."""
    costs = np.array([max(one.cost, 1e-9) for one in found])
    ends = np.rint(np.cumsum(costs) / costs.sum() * images).astype(int)
    rows: list[dict[str, Any]] = []
    for one, last in zip(found, ends, strict=True):
        named = zip(one.columns, one.levels, strict=True)
        levels = {axes.names[column]: [axes.levels[column][level] for level in some] for column, some in named}
        rows += within(axes, levels, int(last) - len(rows), seed + len(rows), "repair", len(rows))
    return rows


def within(
    axes: Axes, levels: Mapping[str, Sequence[str]], images: int, seed: int, kind: str, start: int = 0
) -> list[dict[str, Any]]:
    """Prompts of images that have some levels of some factors, with all that is not named as even as can be; `kind` and
    the number from `start` on make their ids.
    """
    if images < 1:
        return []
    kept = [
        [place for place, level in enumerate(known) if level in levels.get(name, known)]
        for name, known in zip(axes.names, axes.levels, strict=True)
    ]
    allowed = {(a, b): pairs[np.ix_(kept[a], kept[b])] for (a, b), pairs in axes.allowed().items()}
    table = design([len(some) for some in kept], images, allowed=allowed, seed=seed)
    return axes.rows(np.column_stack([np.array(some)[table[:, c]] for c, some in enumerate(kept)]), kind, start)


def write_prompts(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write prompts as a table that is a source and a captions file at once. A row may have the ``image``, as bytes,
    that its own begins from.
    """
    from PIL import Image

    blank = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(blank, "png")

    def table(some: Sequence[Mapping[str, Any]]) -> pa.Table:
        columns = {name: [row[name] for row in some] for name in rows[0]}
        images = pa.array([row.get("image", blank.getvalue()) for row in some], pa.binary())
        return pa.table({**columns, "image": images})

    def write(place: Path) -> None:
        size = _AT_ONCE if "image" in rows[0] else len(rows)
        with pq.ParquetWriter(place, table(rows[:1]).schema) as writer:
            for start in range(0, len(rows), size):
                writer.write_table(table(rows[start : start + size]))

    atomic_write(path, write)


def at_home(run: Path, prompts: Path) -> None:
    """Let a run that is there, and was moved together with its prompts, find them where they are now."""
    if layout.is_run_folder(run) and (recipe := stored_recipe(run)).source.path != str(prompts):
        moved = recipe.with_fields("source", path=str(prompts)).with_fields("prompt", captions_file=str(prompts))
        atomic_text(run / layout.RECIPE, dump_recipe(moved))


def recipe_for(base: Recipe, prompts: Path, purpose: str) -> Recipe:
    """The recipe that draws a table of prompts as another recipe draws its own."""
    source = base.source.model_copy(update={"path": str(prompts), "revision": None, "limit_per_class": None})
    own: dict[str, Any] = {"strategy": "captions-file", "strategy_sha256": None, "domain": None, "pairing": "own"}
    own |= {"captions_file": str(prompts), "captions_revision": None, "images_per_caption": 1}
    variant = get_variant(base.source.variant).name.partition("@")[0]
    return base.model_copy(
        update={
            "name": f"{variant}-{purpose}",
            "source": source,
            "caption": None,
            "prompt": base.prompt.model_copy(update=own),
            # There is no real image to start from.
            "generate": base.generate.model_copy(update={"init": "none", "strength": 0.75}),
            "tune": None,
        }
    )
