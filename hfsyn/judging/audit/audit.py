"""Audit a classifier: images of all classes with all levels of some factors, and where it is wrong more than elsewhere.

audit.yaml        what was asked for          prompts.parquet   what the images should show
run/              the images, a run folder     audit.json        all that was found
audit.html        the same with images         repair.yaml       the recipe of images for what was found
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from builders.errors import did_you_mean, plural, quoted
from builders.files import atomic_text, make_folder
from builders.runs import layout
from builders.variants import ClassInfo, get_variant
from builders.yaml import dump
from hfsyn.building import build
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.gallery.rows import chosen_classes
from hfsyn.judging.audit.effects import FEWEST, Cell, Found, cell_table, effects, findings, rows_by_cell
from hfsyn.judging.audit.page import write_page
from hfsyn.judging.audit.prompts import Axes, cells, recipe_for, repairing, write_prompts
from hfsyn.judging.classifier import open_classifier
from hfsyn.judging.measures.metrics import dump_result, wilson
from hfsyn.judging.measures.results import Result, interval, row
from hfsyn.judging.scores.factors import SHOWS, reader_part
from hfsyn.judging.scores.scoring import score_set
from hfsyn.judging.sets.shared import same_names
from hfsyn.recipes.factor_file import ASKED, CLASS, PROMPTS, Asked, Factors, load_factors, naming_classes, read_asked
from hfsyn.recipes.recipe import BUILTIN, Recipe, dump_recipe, load_recipe
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.scores import ID
from hfsyn.runs.shards import StoredRows

RUN, RESULT, PAGE, REPAIR = "run", "audit.json", "audit.html", "repair.yaml"
NO_READER = "none"
_OBEYED = 0.5
"""A level, or a pair of levels, is left out if the reader sees it in fewer of its images."""


class Audit(Result):
    """What `audit` found: see its docstring for the keys."""

    def rows(self) -> list[dict[str, str]]:
        """The findings, and what the factors explain."""
        found = [row(f"{100 * one['cost']:.1f} points", "", one["sentence"]) for one in self["findings"]]
        return found or [row("no finding", "", "nothing is wrong more often than elsewhere by more than chance")]

    def title(self) -> str:
        """Of what."""
        return f"{self['model']}: {interval(self['right'], percent=True)} of {self['judged']} images right"

    def remarks(self) -> list[str]:
        """What was left out, and why."""
        return list(self["remarks"])


@dataclass(frozen=True)
class Order:
    """What an audit will do, checked before anything is spent."""

    asked: Asked
    axes: Axes
    recipe: Recipe
    remarks: list[str]


def audit(
    model: str,
    factors: str,
    out: str | Path,
    *,
    recipe: str | Path | Recipe | None,
    images: int,
    repair: int,
    classes: Sequence[str],
    reader: str | None,
    overrides: Sequence[str],
    generator: str | None,
    seed: int,
    options: WorkOptions,
    kind: str = "audit",
) -> Audit | None:
    """See `hfsyn.api.scoring.audit`, whose arguments and errors these are; None in all but one process. `kind` is in
    the ids of the images.
    """
    folder = Path(out).expanduser()
    loaded = load_factors(factors)
    order = ordered(model, loaded, _base(recipe, loaded, overrides, generator), images, classes, reader, seed)
    _begin(folder, order, kind)
    run = build(recipe_for(order.recipe, (folder / PROMPTS).resolve(), "audit"), folder / RUN, options=options)
    judges = [f"model={model}", *([] if order.asked.reader == NO_READER else [f"factors=factors:{folder}"])]
    how: dict[str, Any] = {"out": None, "config_name": None, "overwrite": True, "options": options}
    if score_set(str(run.folder), judges, **how) is None:
        return None
    judged = _judged(folder, order.axes)
    found, named = _found(folder, model, order, judged)
    found["repair"] = _repair(folder, order, named, repair)
    atomic_text(folder / RESULT, dump_result(found))
    write_page(folder / PAGE, found, _shown(judged), [(one.mine, one.beside) for one in named], folder / RUN)
    return found


def _base(recipe: Any, factors: Factors, overrides: Sequence[str], generator: str | None) -> Recipe:
    named = factors.recipe if recipe is None else recipe
    if named is None:
        raise HfsynError("Nothing says who draws the images.", "Name a recipe: --recipe imagenette-basic")
    return load_recipe(named, overrides, generator=generator)


def ordered(
    model: str, factors: Factors, recipe: Recipe, images: int, classes: Sequence[str], reader: str | None, seed: int
) -> Order:
    """Check what is asked for, and say what of it is left out. Raises HfsynError if that cannot be done."""
    infos, remarks = _known(model, recipe, list(chosen_classes(recipe, classes).values()))
    _check_never(factors, recipe)
    dropped = naming_classes(factors, infos)
    for name, levels in dropped.items():
        told = "; ".join(f"{level} (the class {word})" for level, word in levels.items())
        remarks.append(f"levels of {name} that name a class are left out: {told}")
    factors = factors.without({name: list(levels) for name, levels in dropped.items()}) if dropped else factors
    axes = Axes(factors, infos)
    least = max(axes.sizes)
    if images < least:
        what = "classes" if axes.sizes[0] == least else f"levels of {axes.names[axes.sizes.index(least)]}"
        said = f"{plural(images, 'image')} are too few: not each of the {least} {what} would have one."
        raise HfsynError(said, f"--images {max(least * min(axes.sizes[1:]) * FEWEST, least)} would do for its pairs.")
    widest = max(a * b for a, b in combinations(axes.sizes, 2))
    if images < FEWEST * widest:
        remarks.append(
            f"{images} images are fewer than {FEWEST} for each pair of levels: some pairs will not be looked at"
        )
    asked = Asked(
        factors=factors,
        classes=tuple(one.wnid for one in infos),
        images=images,
        seed=seed,
        reader=_reader(reader, recipe),
    )
    return Order(asked, axes, recipe, remarks)


def _check_never(factors: Factors, recipe: Recipe) -> None:
    """Refuse a class in `never` that the recipe's variant does not have."""
    variant = get_variant(recipe.source.variant)
    words = {word for info in variant.classes for word in (info.name, info.wnid)}
    for wrong in (name for pair in factors.never for name in pair.get(CLASS, ()) if name not in words):
        near = did_you_mean(wrong, [info.name for info in variant.classes])
        said = f"never names the class {wrong[:60]!r}, which {variant.name.partition('@')[0]} does not have.{near}"
        raise HfsynError(said, f"Its classes: {quoted(info.name for info in variant.classes)}.")


def _known(model: str, recipe: Recipe, infos: list[ClassInfo]) -> tuple[list[ClassInfo], list[str]]:
    """Those of the classes that the classifier has, and a remark on the others."""
    names = {info.wnid: info.name for info in infos}
    classifier = open_classifier(model, device="cpu", among=names)
    known = [info for info in infos if info.wnid in classifier.classes]
    variant = get_variant(recipe.source.variant).name.partition("@")[0]
    if len(known) < 2:
        some = quoted(list(classifier.classes.values()), 5)
        said = f"{model} has {plural(len(known), 'class')} of the {len(infos)} of {variant}."
        raise HfsynError(said, f"Name a recipe of its classes, two or more: it tells apart {some}.")
    shared = {info.wnid: info.name for info in known}
    theirs = {wnid: name for wnid, name in classifier.classes.items() if wnid in shared}
    same_names([(model, theirs), (variant, shared)])
    unknown = [info.name for info in infos if info.wnid not in shared]
    return known, [f"classes that {model} does not have are left out: {quoted(unknown)}"] if unknown else []


def _reader(reader: str | None, recipe: Recipe) -> str:
    if reader is None and recipe.caption is not None:
        reader = recipe.caption.model
    elif reader is None and recipe.generate.model == BUILTIN:
        reader = BUILTIN
    if reader is None:
        said = "Nobody reads back whether the images show what they were asked to."
        raise HfsynError(said, "--reader blip-base (of `hfsyn captioners ls`), vlm:smolvlm, or none.")
    if reader != NO_READER:
        reader_part(reader)
    return reader


def _begin(folder: Path, order: Order, kind: str) -> None:
    """Write what was asked for, or compare it with what is there."""
    try:
        make_folder(folder)
    except OSError as error:
        raise HfsynError(
            f"--out {folder} cannot be created: {error.strerror}.", "Name another.", ExitCode.PREFLIGHT
        ) from None
    fields = json.loads(order.asked.model_dump_json())
    if (folder / ASKED).exists():
        there = json.loads(read_asked(folder).model_dump_json())
        if differing := [key for key in fields if fields[key] != there[key]]:
            key = differing[0]
            what = f"other {key}" if isinstance(fields[key], dict | list) else f"{key} {there[key]}, not {fields[key]}"
            raise HfsynError(f"{folder} holds an audit with {what}.", "Name another --out.")
    elif strangers := [path.name for path in folder.iterdir() if path.name not in (PROMPTS, RUN)]:
        raise HfsynError(
            f"{folder} holds files that are not of an audit: {quoted(strangers, 3)}.", "Name another --out."
        )
    rows = order.axes.rows(cells(order.axes, order.asked.images, order.asked.seed), kind)
    if not (folder / PROMPTS).exists():
        write_prompts(folder / PROMPTS, rows)
    atomic_text(folder / ASKED, dump(fields))


# --- what was found ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """The images that were judged: their levels, whether they were right, and whether they show each level."""

    ids: list[str]
    table: np.ndarray
    right: np.ndarray
    shows: np.ndarray  # int8 (n, columns): 1 yes, 0 no, -1 not read
    called: list[str]
    """What each was called, by name."""

    @property
    def obeyed(self) -> np.ndarray:
        """Which show all that they were asked to, as far as that was read; bool (n,)."""
        return np.asarray((self.shows != 0).all(1))


def _judged(folder: Path, axes: Axes) -> Judged:
    run = folder / RUN
    prompts = pq.read_table(folder / PROMPTS, columns=["source_id", "wnid", "levels"]).to_pylist()
    of_prompt = {line["source_id"]: line for line in prompts}
    scores = pq.read_table(run / layout.SCORES_TABLE).to_pylist()
    sources = dict(zip(*StoredRows(run).table([ID, "source_id"]).to_pydict().values(), strict=True))
    places = [{level: number for number, level in enumerate(levels)} for levels in axes.levels]
    by_wnid = {info.wnid: number for number, info in enumerate(axes.classes)}
    kept = [one for one in scores if one["predicted"] is not None]
    lines = [of_prompt[sources[one[ID]]] for one in kept]
    factors = list(zip(axes.names, places, strict=True))[1:]
    table = [[by_wnid[line["wnid"]], *(place[line["levels"][name]] for name, place in factors)] for line in lines]
    shows = [[-1 if (v := one.get(f"{SHOWS}{name}")) is None else int(v) for name in axes.names] for one in kept]
    return Judged(
        [one[ID] for one in kept],
        np.array(table, np.int64).reshape(len(kept), len(places)),
        np.array([one["predicted"] == line["wnid"] for one, line in zip(kept, lines, strict=True)], bool),
        np.array(shows, np.int8).reshape(len(kept), len(places)),
        [axes.classes[by_wnid[one["predicted"]]].name for one in kept],
    )


def _shown(judged: Judged) -> Judged:
    """Those images that count."""
    kept = judged.obeyed
    ids, called = ([one for one, good in zip(some, kept, strict=True) if good] for some in (judged.ids, judged.called))
    return Judged(ids, judged.table[kept], judged.right[kept], judged.shows[kept], called)


def _found(folder: Path, model: str, order: Order, judged: Judged) -> tuple[Audit, list[Found]]:
    axes, obeyed = order.axes, judged.obeyed
    barred = _disobeyed(axes, judged)
    table, right = judged.table[obeyed], judged.right[obeyed]
    explained = effects(table, right, axes.sizes, seed=order.asked.seed)
    found = findings(table, right, axes.sizes, explained, _with_pairs(axes, barred))
    remarks = list(order.remarks)
    if count := int((~obeyed).sum()):
        remarks.append(
            f"{plural(count, 'image')} of {len(obeyed)} do not show what they were asked to, and do not count"
        )
    if barred:
        remarks.append(f"the generator does not obey: {quoted([_cell_text(axes, cell) for cell in barred], 20)}")
    names = dict(enumerate(axes.names))

    def named(*columns: int) -> list[dict[str, Any]]:
        lines = cell_table(table, right, axes.sizes, columns)
        levels = ([axes.levels[c][k] for c, k in zip(columns, line["levels"], strict=True)] for line in lines)
        return [{**line, "levels": some} for line, some in zip(lines, levels, strict=True)]

    pairs = list(combinations(range(len(axes.names)), 2))
    result = Audit(
        {
            "model": model,
            "images": order.asked.images,
            "judged": len(right),
            "right": wilson(int(right.sum()), len(right)),
            "reader": order.asked.reader,
            "shown": {
                name: float((judged.shows[:, c] == 1).sum() / max(1, (judged.shows[:, c] >= 0).sum()))
                for c, name in names.items()
                if (judged.shows[:, c] >= 0).any()
            },
            "left_out": [_cell_text(axes, cell) for cell in barred],
            "findings": [_told(axes, one) for one in found],
            "effects": [
                {"factors": [names[c] for c in one.columns], "share": one.share, "p": one.p, "q": one.q}
                for one in explained
            ],
            "levels": {name: named(c) for c, name in names.items()},
            "pairs": {f"{names[a]} x {names[b]}": named(a, b) for a, b in pairs},
            "remarks": remarks,
            "repair": None,
            "page": str(folder / PAGE),
        }
    )
    return result, found


def _disobeyed(axes: Axes, judged: Judged) -> list[Cell]:
    """Levels that fewer than half of their images show, and pairs that are so though their levels are not."""
    found: dict[Cell, None] = {}
    every = range(len(axes.names))
    for columns in [*((c,) for c in every), *combinations(every, 2)]:
        read = (judged.shows[:, columns] >= 0).all(1)
        seen = (judged.shows[read][:, columns] == 1).all(1)
        for cell, rows in rows_by_cell(judged.table[read], axes.sizes, columns).items():
            single = [((c,), (level,)) for c, level in zip(*cell, strict=True)]
            if len(rows) >= FEWEST and seen[rows].mean() < _OBEYED and not any(one in found for one in single):
                found[cell] = None
    return list(found)


def _with_pairs(axes: Axes, barred: Sequence[Cell]) -> frozenset[Cell]:
    """Cells that are left out, and with a level all of its pairs."""
    found = set(barred)
    for a, b in combinations(range(len(axes.names)), 2):
        for place in np.ndindex(axes.sizes[a], axes.sizes[b]):
            if {((a,), (place[0],)), ((b,), (place[1],))} & found:
                found.add(((a, b), (int(place[0]), int(place[1]))))
    return frozenset(found)


def _cell_text(axes: Axes, cell: Cell) -> str:
    return words_of(axes, cell[0], tuple((level,) for level in cell[1]))


def words_of(axes: Axes, columns: Sequence[int], levels: Sequence[Sequence[int]]) -> str:
    """``heart with colour red or blue``, ``texture striped``: what some images have in common."""
    parts = []
    for column, some in zip(columns, levels, strict=True):
        named = " or ".join(axes.levels[column][level] for level in some)
        parts.append(named if axes.names[column] == CLASS else f"{axes.names[column]} {named}")
    return " with ".join(parts)


def _told(axes: Axes, one: Found) -> dict[str, Any]:
    what = words_of(axes, one.columns, one.levels)
    one_class = one.columns[0] == 0 and len(one.columns) == 2 and len(one.levels[0]) == 1
    beside = f"{axes.levels[0][one.levels[0][0]]} elsewhere" if one_class else "elsewhere"
    here, there = (interval(some, percent=True) for some in (one.here, one.elsewhere))
    return {
        "sentence": f"{what}: {here} right, {beside} {there}",
        "what": what,
        "beside": beside,
        "cost": one.cost,
        "n": one.n,
        "levels": {
            axes.names[c]: [axes.levels[c][level] for level in some]
            for c, some in zip(one.columns, one.levels, strict=True)
        },
        "here": one.here,
        "elsewhere": one.elsewhere,
    }


def _repair(folder: Path, order: Order, found: Sequence[Found], images: int) -> str | None:
    """Write the recipe of images in the cells of the findings, and return its path; without findings there is none."""
    recipe, prompts = folder / REPAIR, (folder / "repair.parquet").resolve()
    recipe.unlink(missing_ok=True)
    if not found or not images:
        return None
    write_prompts(prompts, repairing(order.axes, found, images, order.asked.seed + 1))
    atomic_text(recipe, dump_recipe(recipe_for(order.recipe, prompts, "repair")))
    return str(recipe)
