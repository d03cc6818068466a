"""The images of an audit: made, judged by the classifier, and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from builders.runs import layout
from hfsyn.building import build
from hfsyn.judging.audit.prompts import Axes, at_home, recipe_for, write_prompts
from hfsyn.judging.scores.factors import SHOWS
from hfsyn.judging.scores.scoring import score_set
from hfsyn.recipes.factor_file import PROMPTS
from hfsyn.recipes.recipe import Recipe
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.scores import ID
from hfsyn.runs.shards import StoredRows

RUN = "run"
NO_READER = "none"


@dataclass(frozen=True)
class Judged:
    """The images that were judged: their levels, whether they were right, and whether they show each level."""

    places: list[tuple[Path, str]]
    """The run that holds each, and its id there."""
    called: list[str]
    """What each was called, by name."""
    rows: np.ndarray
    """The number of each one's prompt."""
    table: np.ndarray
    right: np.ndarray
    shows: np.ndarray  # int8 (n, columns): 1 yes, 0 no, -1 not read

    @property
    def obeyed(self) -> np.ndarray:
        """Which show all that they were asked to, as far as that was read; bool (n,)."""
        return np.asarray((self.shows != 0).all(1))

    def shown(self) -> Judged:
        """Those images that count."""
        kept = np.flatnonzero(self.obeyed)
        arrays = (some[kept] for some in (self.rows, self.table, self.right, self.shows))
        return Judged([self.places[number] for number in kept], [self.called[number] for number in kept], *arrays)

    def with_more(self, other: Judged) -> Judged:
        """These, and then the others."""
        arrays = ((self.rows, other.rows), (self.table, other.table), (self.right, other.right))
        joined = (np.concatenate(pair) for pair in (*arrays, (self.shows, other.shows)))
        return Judged(self.places + other.places, self.called + other.called, *joined)


@dataclass(frozen=True)
class Answering:
    """Who judges images, who reads them back, and how they are made."""

    model: str
    reader: str
    recipe: Recipe
    axes: Axes
    options: WorkOptions

    def answers(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> Judged | None:
        """Make the images of some prompts in a folder, or what is missing of them, and judge them; None in all but one
        process. The folder holds what was asked for.
        """
        prompts = (folder / PROMPTS).resolve()
        if not prompts.exists():
            write_prompts(prompts, rows)
        at_home(folder / RUN, prompts)
        run = build(recipe_for(self.recipe, prompts, "audit"), folder / RUN, options=self.options)
        judges = [f"model={self.model}", *([] if self.reader == NO_READER else [f"factors=factors:{folder}"])]
        how: dict[str, Any] = {"out": None, "config_name": None, "overwrite": True, "options": self.options}
        return None if score_set(str(run.folder), judges, **how) is None else self._judged(folder)

    def _judged(self, folder: Path) -> Judged:
        axes, run = self.axes, folder / RUN
        prompts = pq.read_table(folder / PROMPTS, columns=["source_id", "wnid", "levels"]).to_pylist()
        numbers = {line["source_id"]: number for number, line in enumerate(prompts)}
        sources = dict(zip(*StoredRows(run).table([ID, "source_id"]).to_pydict().values(), strict=True))
        places = [{level: number for number, level in enumerate(levels)} for levels in axes.levels]
        by_wnid = {info.wnid: number for number, info in enumerate(axes.classes)}
        kept = [one for one in pq.read_table(run / layout.SCORES_TABLE).to_pylist() if one["predicted"] is not None]
        rows = np.array([numbers[sources[one[ID]]] for one in kept], np.int64)
        lines = [prompts[number] for number in rows]
        factors = list(zip(axes.names, places, strict=True))[1:]
        table = [[by_wnid[line["wnid"]], *(place[line["levels"][name]] for name, place in factors)] for line in lines]
        shows = [[-1 if (v := one.get(f"{SHOWS}{name}")) is None else int(v) for name in axes.names] for one in kept]
        return Judged(
            [(run, one[ID]) for one in kept],
            [axes.classes[by_wnid[one["predicted"]]].name for one in kept],
            rows,
            np.array(table, np.int64).reshape(len(kept), len(places)),
            np.array([one["predicted"] == line["wnid"] for one, line in zip(kept, lines, strict=True)], bool),
            np.array(shows, np.int8).reshape(len(kept), len(places)),
        )
