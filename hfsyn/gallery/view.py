"""Real beside synthetic: a picture of some rows of each class, and a page that filters them."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders.errors import plural, size_text
from builders.files import atomic_text
from builders.published import Published, RunFolder, open_reference
from builders.runs import layout
from hfsyn.checks.diff import recipe_of
from hfsyn.errors import HfsynError
from hfsyn.gallery.rows import (
    Choice,
    Seen,
    add_real_images,
    best_and_worst,
    check_flag,
    chosen_classes,
    chosen_rows,
    rows_in_all,
)
from hfsyn.pages.html import page, picture, table, tag_of
from hfsyn.recipes.recipe import Recipe
from hfsyn.runs.sheets import Row, Tile, contact_sheet, save_png, told

MOST_ROWS = 500
"""On a page: about 5 MB of pictures."""
_BARS = 40  # of a histogram
_CLASSES, _PER_CLASS, _WIDEST = 20, 3, 12  # of the picture: classes, and images of each


@dataclass(frozen=True)
class View:
    """What was looked at, and where it was written."""

    label: str
    picture: str | None
    page: str | None
    remarks: list[str]
    """What is not shown, and why."""
    rows: list[dict[str, Any]]
    """Of what is shown: ``class_name``, ``prompt``, ``caption``, ``seed``, ids, ``flags``, ``score``, and the
    ``command`` that makes the image again."""
    seen: list[Seen] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in vars(self).items() if name != "seen"}

    def _repr_html_(self) -> str:
        shown = self.seen[:30]
        cells = (
            {
                "real": one.real and tag_of(one.real),
                "synthetic": tag_of(one.made, one.row["prompt"]),
                **{key: one.row[key] for key in ("class_name", "prompt", "seed", "flags")},
            }
            for one in shown
        )
        more = f", the first {len(shown)} of {len(self.seen)} rows" if len(self.seen) > len(shown) else ""
        return table(cells, f"{self.label}{more}")


def look(
    what: str | Path,
    *,
    out: str | Path | None = None,
    html: bool | str | Path | None = None,
    classes: str | Sequence[str] | None = None,
    per_class: int | None = None,
    flag: str | None = None,
    words: str | None = None,
    by: str | None = None,
    source: str | None = None,
    config_name: str | None = None,
    token: str | bool | None = None,
    quiet: bool = False,
) -> View:
    """Show real images beside what was made of them, as a PNG file or as a page that filters.

    Args:
        what: a run folder, finished or not, or ``USER/NAME[@REVISION]``.
        out: the PNG file; None is ``preview/look.png`` of the run, or ``NAME-look.png`` here, and none with `html`.
        html: write a page, there or, if it is True, to ``look.html`` beside where the picture would be; it needs no
            other file.
        classes: names or wnids, as a list or separated by commas; None is all (20 in the picture).
        per_class: images of each class; None is 3 in the picture, and any number on the page, which has at most 500.
        flag: only rows with it, such as ``truncated``.
        words: only rows with all of these in their prompt or caption.
        by: a column of the scores: of each class `per_class` (or 3) images with the largest and as many with the
            smallest values, from the largest to the smallest.
        source: where the real images are now, if not where the recipe says.
        config_name: a configuration of a published set; None is the default one.
        token: of the Hub; None is the stored one.
        quiet: no remarks on the error stream.

    Raises:
        HfsynError: there is no such set, class or flag; no row is as wanted; or as `open_reference`.
    """
    side = open_reference(str(what), config_name, token=token)
    recipe = recipe_of(side)
    choice, remarks = _choice(recipe, classes or (), per_class, flag, words, picture=not html)
    choice = choice if by is None else _by_score(side, choice, by, remarks)
    seen, cut = chosen_rows(side, choice)
    if not seen:
        raise _nothing(side, classes or (), flag, words)
    _sort(seen, choice, _reproducing(side, config_name), by)
    if html and (cut or len(seen) == MOST_ROWS):
        remarks += _share(len(seen), None if flag or words else rows_in_all(side, choice.wnids), choice.per_class)
    if problem := add_real_images(seen, side, recipe, source, token):
        remarks.append(f"without real images: {problem}" if all(one.real is None for one in seen) else problem)
    home = side.folder / layout.PREVIEW if isinstance(side, RunFolder) else Path()
    stem = "look" if isinstance(side, RunFolder) else f"{side.repo_id.rpartition('/')[2]}-look"
    png = save_png(_sheet(recipe, seen, side.label), _path(out or home / f"{stem}.png")) if out or not html else None
    written = None
    if html:
        written = _path(home / f"{stem}.html" if html is True else html)
        atomic_text(written, _page(recipe, seen, side.label, remarks, by, choice.every))
        remarks.append(f"a page of {size_text(written.stat().st_size)}")
    if remarks and not quiet:
        print("\n".join(remarks), file=sys.stderr)
    at_png, at_page = (None if path is None else str(path) for path in (png, written))
    return View(side.label, at_png, at_page, remarks, [one.row for one in seen], seen)


def _sort(seen: list[Seen], choice: Choice, command: str, by: str | None) -> None:
    """Put rows in the order of the classes, each in the order of the set or from the largest value to the smallest; and
    say of each row its score, and the command that makes it again.
    """
    by_wnid, values = {wnid: place for place, wnid in enumerate(choice.wnids)}, choice.values or {}
    seen.sort(key=lambda one: (by_wnid[one.row["wnid"]], -(values.get(one.row["sample_id"]) or 0.0)))
    for one in seen:
        one.row["score"] = None if by is None else f"{by} {values[one.row['sample_id']]:.3g}"
        one.row["command"] = f"{command} {shlex.quote(one.row['sample_id'])}"


def _reproducing(side: Published | RunFolder, config_name: str | None) -> str:
    """The command that makes an image of the set again, but for the image's id."""
    where, at = side.label, ""
    if not isinstance(side, RunFolder):
        where, at = f"{side.repo_id}@{side.revision}", config_name or ""
    return f"hfsyn reproduce {shlex.quote(where)}{at and f' --config-name {shlex.quote(at)}'} --sample-id"


def _choice(
    recipe: Recipe,
    classes: str | Sequence[str],
    per_class: int | None,
    flag: str | None,
    words: str | None,
    *,
    picture: bool,
) -> tuple[Choice, list[str]]:
    """Which rows are wanted, and what is left out of the picture for its size."""
    check_flag(flag)
    names = classes.split(",") if isinstance(classes, str) else classes
    wnids, remarks = list(chosen_classes(recipe, [name.strip() for name in names if name.strip()])), []
    if picture and len(wnids) > _CLASSES:
        remarks.append(f"the first {_CLASSES} of {len(wnids):,} classes; --classes names others")
        wnids = wnids[:_CLASSES]
    if picture and (per_class or 0) > _WIDEST:
        remarks.append(f"{_WIDEST} images of each class, which is the most in a picture; --html shows more")
    number = min(per_class or _PER_CLASS, _WIDEST) if picture else per_class
    return Choice(wnids, flag, tuple((words or "").lower().split()), number, MOST_ROWS), remarks


def _by_score(side: Published | RunFolder, choice: Choice, by: str, remarks: list[str]) -> Choice:
    """The choice of the best and the worst of each class."""
    each = choice.per_class or _PER_CLASS
    remarks.append(f"of each class {each} images with the largest {by} and {each} with the smallest")
    return best_and_worst(side, choice, by, each)


def _nothing(side: Any, classes: str | Sequence[str], flag: str | None, words: str | None) -> HfsynError:
    wanted = {"classes": classes if isinstance(classes, str) else ", ".join(classes), "flag": flag, "words": words}
    given = " and ".join(f"{name} {value!r}" for name, value in wanted.items() if value)
    if not given:
        return HfsynError(f"{side.label} has no finished image yet.", f"See: hfsyn status {side.label}")
    return HfsynError(f"No row of {side.label} matches {given}.", "Ask for others, or leave one of them out.")


def _path(path: str | Path) -> Path:
    found = Path(path).expanduser()
    if found.is_dir():
        raise HfsynError(f"{found} is a folder.", f"Name a file, such as {found / 'look.png'}.")
    return found


def _share(shown: int, total: int | None, per_class: int | None) -> list[str]:
    """How many of the rows a page shows, if not all of them."""
    each = f", at most {per_class} of each class" if per_class else ""
    if total is None:
        return [f"the first {shown:,} rows that match{each}"]
    return [f"the first {shown:,} of {total:,} rows{each}"] if shown < total else []


def _sheet(recipe: Recipe, seen: Sequence[Seen], label: str) -> Any:
    """One row per class: its real images, then what was made of them, with captions or prompts below."""
    by_class: dict[str, list[Seen]] = {}
    for one in seen:
        by_class.setdefault(one.row["class_name"], []).append(one)
    with_real = any(one.real is not None for one in seen)
    lines = []
    for name, some in by_class.items():
        real = [Tile(one.real or one.made.resize((1, 1))) for one in some] if with_real else []
        made = [Tile(one.made, one.row["score"] or told(one.row, recipe)) for one in some]
        lines.append(Row(name, [real, made] if with_real else [made]))
    heads = ["real images", "synthetic"] if with_real else ["synthetic"]
    return contact_sheet(f"{recipe.name} ({label})", heads, lines)


def _bars(values: Sequence[float]) -> list[tuple[float, str]]:
    """A histogram: height of each bar in per cent of the highest, and what it stands for."""
    low, high = min(values), max(values)
    width = (high - low) / _BARS or 1.0
    counts = Counter(min(int((value - low) / width), _BARS - 1) for value in values)
    most = max(counts.values())
    ends = [(low + place * width, low + (place + 1) * width) for place in range(_BARS)]
    return [
        (100 * counts[place] / most, f"{plural(counts[place], 'row')} from {start:.3g} to {stop:.3g}")
        for place, (start, stop) in enumerate(ends)
    ]


def _page(
    recipe: Recipe, seen: Sequence[Seen], label: str, remarks: Sequence[str], by: str | None, every: Sequence[float]
) -> str:
    cards = [
        {**one.row, "made": picture(one.made, max(one.made.size)), "real": one.real and picture(one.real)}
        for one in seen
    ]
    return page(
        "hfsyn.gallery",
        name=recipe.name,
        label=label,
        remarks=remarks,
        cards=cards,
        classes=list(dict.fromkeys(one.row["class_name"] for one in seen)),
        flags=sorted({flag for one in seen for flag in one.row["flags"]}),
        by=by,
        bars=_bars(every) if every else [],
        ends=(min(every), max(every), len(every)) if every else None,
    )
