"""Audit a classifier: images of all classes with all levels of some factors, and where it is wrong more than elsewhere.

audit.yaml        what was asked for          prompts.parquet   what the images should show
run/              the images, a run folder     again/            images of what was suspected: such a folder each
audit.json        all that was found           audit.html        the same with images
repair.yaml       the recipe of images for what was found
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from builders.errors import did_you_mean, plural, quoted
from builders.files import atomic_text
from builders.stores.copies import on_disk
from builders.variants import ClassInfo, get_variant
from builders.yaml import dump
from hfsyn.errors import HfsynError, make_out
from hfsyn.gallery.rows import chosen_classes
from hfsyn.judging.audit.answers import NO_READER, RUN, Answering, Judged
from hfsyn.judging.audit.effects import FEWEST, Cell, Found, effects, findings, rows_by_cell, suspects
from hfsyn.judging.audit.page import write_page
from hfsyn.judging.audit.prompts import Axes, cells, recipe_for, repairing, within, write_prompts
from hfsyn.judging.audit.telling import NOTHING, cell_text, table_of, told
from hfsyn.judging.classifier import open_classifier
from hfsyn.judging.measures.metrics import dump_result, wilson
from hfsyn.judging.measures.results import Result, interval, row
from hfsyn.judging.scores.factors import reader_part
from hfsyn.judging.sets.shared import same_names
from hfsyn.recipes.factor_file import ASKED, CLASS, PROMPTS, Asked, Factors, load_factors, naming_classes, read_asked
from hfsyn.recipes.recipe import BUILTIN, Recipe, dump_recipe, load_recipe
from hfsyn.recipes.strategies import get_strategy
from hfsyn.runs.options import WorkOptions

AGAIN, RESULT, PAGE, REPAIR = "again", "audit.json", "audit.html", "repair.yaml"
_OBEYED = 0.5
"""A level, or a pair of levels, is left out if the reader sees it in fewer of its images."""
_FEWEST_AGAIN, _MOST_AGAIN = 50, 100
"""New images of a suspect: rather fewer suspects, the likeliest ones, than fewer images of each."""


class Audit(Result):
    """What `audit` found: see its docstring for the keys."""

    def rows(self) -> list[dict[str, str]]:
        """The findings, and what the factors explain."""
        found = [row(f"{100 * one['cost']:.1f} points", "", one["sentence"]) for one in self["findings"]]
        return found or [row("no finding", "", NOTHING)]

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
    confirm: int | None = 0,
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
    folder = on_disk(out)
    loaded = load_factors(factors)
    order = ordered(model, loaded, _base(recipe, loaded, overrides, generator), images, classes, reader, seed)
    _begin(folder, order)
    rows = order.axes.rows(cells(order.axes, images, seed), kind)
    how = Answering(model, order.asked.reader, order.recipe, order.axes, options)
    if (first := how.answers(folder, rows)) is None:
        return None
    looked = _looked(folder, how, order, first, images // 2 if confirm is None else confirm)
    if looked is None:
        return None
    found = _result(folder, model, order, looked)
    found["repair"] = _repair(folder, order, looked.findings, repair)
    atomic_text(folder / RESULT, dump_result(found))
    write_page(folder / PAGE, found, looked.every, [(one.mine, one.beside) for one in looked.findings])
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
    axes, left_out = axes_of(factors, recipe, infos)
    remarks += left_out
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
    reader, revision = reader_of(reader, recipe)
    asked = Asked(
        factors=axes.factors,
        classes=tuple(one.wnid for one in infos),
        images=images,
        seed=seed,
        reader=reader,
        revision=revision,
    )
    return Order(asked, axes, recipe, remarks)


def axes_of(factors: Factors, recipe: Recipe, infos: Sequence[ClassInfo]) -> tuple[Axes, list[str]]:
    """The columns of a design of some classes of a recipe, and remarks on the levels that are left out.

    Raises HfsynError if `never` names a class that the recipe's variant does not have, or no level is left.
    """
    _check_never(factors, recipe)
    remarks, dropped = list[str](), naming_classes(factors, infos)
    for name, levels in dropped.items():
        told = "; ".join(f"{level} (the class {word})" for level, word in levels.items())
        remarks.append(f"levels of {name} that name a class are left out: {told}")
    factors = factors.without({name: list(levels) for name, levels in dropped.items()}) if dropped else factors
    return Axes(factors, infos), remarks


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


def reader_of(reader: str | None, recipe: Recipe) -> tuple[str, str | None]:
    """Who reads back what images show, and in which revision: the one that is named, or the captioner of the recipe.
    Raises HfsynError if there is none.
    """
    captioner, revision = recipe.caption, None
    if reader is None and captioner and get_strategy(recipe.prompt.strategy).text_from != "class":
        reader, revision = captioner.model, captioner.revision
    elif reader is None and recipe.generate.model == BUILTIN:
        reader = BUILTIN
    if reader is None:
        said = "Nobody reads back whether the images show what they were asked to."
        raise HfsynError(said, "Name a reader: blip-base (of `hfsyn captioners ls`), vlm:smolvlm, or none.")
    if reader != NO_READER:
        reader_part(reader, revision)
    return reader, revision


def _begin(folder: Path, order: Order) -> None:
    """Write what was asked for, or compare it with what is there."""
    make_out(folder)
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
    atomic_text(folder / ASKED, dump(fields))


# --- what was found ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """What was looked at, and what it shows."""

    first: Judged
    """The images of the design, also those that do not show what they should."""
    barred: list[Cell]
    every: Judged
    """The images that count: those of the design, and then those of the second look."""
    suspected: list[Cell]
    unsettled: int
    """Suspects beyond those, which were not looked at again."""
    drawn: np.ndarray | None
    """Of each image that counts the number of the suspect for which it was made; -1 for those of the design. None if
    there was no second look.
    """
    findings: list[Found]


def _looked(folder: Path, how: Answering, order: Order, first: Judged, images: int) -> Looked | None:
    """Look at the images of the design, and at as many new ones, or fewer, of what is suspected; None in all but one
    process.
    """
    axes, shown, drawn = order.axes, first.shown(), None
    barred = _disobeyed(axes, first)
    suspected, looked_at = suspects(shown.table, shown.right, axes.sizes, _with_pairs(axes, barred))
    unsettled = 0
    if suspected and (most := images // _FEWEST_AGAIN):
        suspected, unsettled = suspected[:most], max(0, len(suspected) - most)
        each = min(images // len(suspected), _MOST_AGAIN)
        if (second := _again(folder, how, order, suspected, each)) is None:
            return None
        more, whose = second
        drawn = np.concatenate([np.full(len(shown.right), -1), whose])
        shown = shown.with_more(more)
    named = findings(shown.table, shown.right, axes.sizes, suspected, drawn=drawn, looked_at=looked_at)
    return Looked(first, barred, shown, suspected, unsettled, drawn, named)


def _again(
    folder: Path, how: Answering, order: Order, suspected: Sequence[Cell], images: int
) -> tuple[Judged, np.ndarray] | None:
    """That many new images of each suspect, and for which suspect each was made; None in all but one process.

    Another classifier has other suspects, and so its images have a folder of their own.
    """
    axes, rows, whose = order.axes, list[dict[str, Any]](), list[int]()
    for number, cell in enumerate(suspected):
        levels = {axes.names[column]: [axes.levels[column][level]] for column, level in zip(*cell, strict=True)}
        rows += within(axes, levels, images, order.asked.seed + number, "again", len(rows))
        whose += [number] * images
    again = folder / AGAIN / hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]
    make_out(again)
    atomic_text(again / ASKED, (folder / ASKED).read_text(encoding="utf-8"))
    if (judged := how.answers(again, rows)) is None:
        return None
    shown = judged.shown()
    return shown, np.array(whose)[shown.rows]


def _result(folder: Path, model: str, order: Order, looked: Looked) -> Audit:
    axes, obeyed, names = order.axes, looked.first.obeyed, dict(enumerate(order.axes.names))
    table, right, shows = looked.first.table[obeyed], looked.first.right[obeyed], looked.first.shows
    remarks = list(order.remarks)
    if count := int((~obeyed).sum()):
        remarks.append(
            f"{plural(count, 'image')} of {len(obeyed)} do not show what they were asked to, and do not count"
        )
    if looked.barred:
        remarks.append(f"the generator does not obey: {quoted([cell_text(axes, cell) for cell in looked.barred], 20)}")

    if looked.unsettled:
        enough = _FEWEST_AGAIN * (len(looked.suspected) + looked.unsettled)
        remarks.append(
            f"{plural(looked.unsettled, 'suspect')} more were not looked at again: --confirm {enough} would do"
        )
    explained = effects(table, right, axes.sizes, seed=order.asked.seed)
    pairs = list(combinations(range(len(axes.names)), 2))
    return Audit(
        {
            "model": model,
            "images": order.asked.images,
            "judged": len(right),
            "right": wilson(int(right.sum()), len(right)),
            "reader": order.asked.reader,
            "shown": {
                name: float((shows[:, c] == 1).sum() / max(1, (shows[:, c] >= 0).sum()))
                for c, name in names.items()
                if (shows[:, c] >= 0).any()
            },
            "left_out": [cell_text(axes, cell) for cell in looked.barred],
            "findings": [told(axes, one) for one in looked.findings],
            "suspects": _suspects(axes, looked),
            "effects": [
                {"factors": [names[c] for c in one.columns], "share": one.share, "p": one.p, "q": one.q}
                for one in explained
            ],
            "levels": {name: table_of(axes, table, right, c) for c, name in names.items()},
            "pairs": {f"{names[a]} x {names[b]}": table_of(axes, table, right, a, b) for a, b in pairs},
            "remarks": remarks,
            "repair": None,
            "page": str(folder / PAGE),
        }
    )


def _suspects(axes: Axes, looked: Looked) -> list[dict[str, Any]]:
    """The suspects as they were at first and, of new images, the second time."""

    def right(rows: np.ndarray) -> dict[str, Any]:
        return {"n": len(rows), **wilson(int(looked.every.right[rows].sum()), len(rows))}

    found = []
    for number, cell in enumerate(looked.suspected):
        rows = rows_by_cell(looked.every.table, axes.sizes, cell[0])[cell]
        first = rows if looked.drawn is None else rows[looked.drawn[rows] < 0]
        again = None if looked.drawn is None else right(np.flatnonzero(looked.drawn == number))
        named = any(
            one.columns == cell[0] and all(level in some for level, some in zip(cell[1], one.levels, strict=True))
            for one in looked.findings
        )
        found.append({"what": cell_text(axes, cell), "first": right(first), "again": again, "named": named})
    return found


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


def _repair(folder: Path, order: Order, found: Sequence[Found], images: int) -> str | None:
    """Write the recipe of images in the cells of the findings, and return its path; without findings there is none."""
    recipe, prompts = folder / REPAIR, folder / "repair.parquet"
    recipe.unlink(missing_ok=True)
    if not found or not images:
        return None
    write_prompts(prompts, repairing(order.axes, found, images, order.asked.seed + 1))
    atomic_text(recipe, dump_recipe(recipe_for(order.recipe, Path(prompts.name), "repair")))
    return str(recipe)
