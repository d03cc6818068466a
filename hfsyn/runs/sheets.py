"""Pictures for people: contact sheets of real and synthetic images side by side."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from builders.files import atomic_write
from builders.images.decoding import ImageRejected, decode_rgb
from builders.runs import layout
from builders.sources import IndexEntry, open_source
from builders.variants import ClassInfo, get_variant
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import published_recipe
from hfsyn.runs.run import Run, index_entries
from hfsyn.runs.stored_rows import StoredRows

_TILE = 112
_SHOWN = 512
_GAP = 8
_TEXT = 13
_LINES = 4
_MOST_CLASSES = 20
_COLUMNS = ["image", "prompt", "caption"]
_INK, _SOFT, _PAPER = (24, 26, 30), (110, 116, 126), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of a contact sheet with the words beneath it."""

    image: Image.Image
    text: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a contact sheet: a title, then groups of tiles, as many as there are headings."""

    title: str
    groups: Sequence[Sequence[Tile]]


def contact_sheet(title: str, headings: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Draw rows of tiles in columns.

    Args:
        title: above all; may have several lines.
        headings: of the groups.
        rows: each with one group for each heading; a group's tiles may be fewer than another row's.

    Returns:
        An RGB image; tiles are 112 px wide, small images enlarged without smoothing.
    """
    font, bold = ImageFont.load_default(_TEXT), ImageFont.load_default(_TEXT + 5)
    per_group = [max((len(row.groups[g]) for row in rows), default=0) for g in range(len(headings))]
    margin, head = 110, 46 + 22 * (title.count("\n") + 1)
    wide = any(tile.text for row in rows for group in row.groups for tile in group)
    row_height = _TILE + _GAP + (_LINES * (_TEXT + 3) if wide else 0)
    widths = [n * (_TILE + _GAP) + 2 * _GAP for n in per_group]
    sheet = Image.new("RGB", (margin + sum(widths) + _GAP, head + len(rows) * row_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((_GAP, _GAP), title, fill=_INK, font=bold, spacing=4)
    left = margin
    for heading, width in zip(headings, widths, strict=True):
        draw.text((left, head - 24), heading, fill=_INK, font=font)
        left += width
    for i, row in enumerate(rows):
        top = head + i * row_height
        draw.multiline_text((_GAP, top + _TILE // 2 - 10), textwrap.fill(row.title, 14), fill=_INK, font=font)
        left = margin
        for group, width in zip(row.groups, widths, strict=True):
            for k, tile in enumerate(group):
                x = left + k * (_TILE + _GAP)
                picture = _fit(tile.image)
                sheet.paste(picture, (x + (_TILE - picture.width) // 2, top + (_TILE - picture.height) // 2))
                draw.multiline_text((x, top + _TILE + 2), _wrapped(tile.text, font), fill=_SOFT, font=font, spacing=1)
            left += width
    return sheet


def _fit(image: Image.Image) -> Image.Image:
    """The image within a tile: enlarged by whole pixels where it is small, reduced smoothly where it is large."""
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _wrapped(text: str, font: Any) -> str:
    """Text in at most `_LINES` lines of a tile's width."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) > _TILE and line:
            lines.append(line)
            line = word
        else:
            line = longer
    lines.append(line)
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1] + " ..."]
    return "\n".join(lines)


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a PNG, whole or not at all."""
    atomic_write(path, lambda temporary: image.save(temporary, "PNG", optimize=True))
    return path


def compare_runs(
    runs: Sequence[Run], *, title: str, per_class: int = 3, max_classes: int = _MOST_CLASSES
) -> Image.Image:
    """One row a class: real images, then what each run made of these same images, with prompts' captions beneath.

    Args:
        runs: finished runs over one source; the real images are those of the first.
        title: of the sheet.
        per_class: images of each kind in a row.
        max_classes: rows at most.

    Raises:
        HfsynError: a run has no image of the chosen real ones.
    """
    rows = []
    for info, samples in shared_samples(runs, per_class=per_class, max_classes=max_classes):
        groups: list[list[Tile]] = [[Tile(sample.real) for sample in samples]]
        for number in range(len(runs)):
            answers = [sample.rows[number] for sample in samples]
            groups.append([_tile(row) for row in answers])
        rows.append(Row(info.name, groups))
    headings = ["real images", *(f"{run.recipe.name}: {published_recipe(run.recipe).prompt.strategy}" for run in runs)]
    return contact_sheet(title, headings, rows)


@dataclass(frozen=True)
class Sample:
    """A real image, and the row that each of several runs made of it."""

    real: Image.Image
    rows: Sequence[dict[str, Any]]


def shared_samples(
    runs: Sequence[Run], *, per_class: int, max_classes: int = _MOST_CLASSES
) -> list[tuple[ClassInfo, list[Sample]]]:
    """The first real images of each class that every run answered, with the answers.

    Raises:
        HfsynError: there is none.
    """
    stored = [StoredRows(run.folder) for run in runs]
    tables = [rows.table(["source_id", "wnid"]) for rows in stored]
    shared = tables[0]
    for table in tables[1:]:
        shared = shared.filter(pc.is_in(shared["source_id"], value_set=table["source_id"].combine_chunks()))
    if not len(shared):
        raise HfsynError("These runs share no real image.", "Compare runs over one source and split.")
    classes = runs[0].classes
    wnids = sorted(shared["wnid"].unique().to_pylist(), key=lambda wnid: classes[wnid].index)[:max_classes]
    chosen = {
        wnid: sorted(pc.unique(shared["source_id"].filter(pc.equal(shared["wnid"], wnid))).to_pylist())[:per_class]
        for wnid in wnids
    }
    ids = [source_id for of_class in chosen.values() for source_id in of_class]
    real = _real_images(runs[0], ids)
    answers = [
        dict(zip(ids, rows.read([pc.index(table["source_id"], i).as_py() for i in ids], _COLUMNS), strict=True))
        for rows, table in zip(stored, tables, strict=True)
    ]
    return [
        (classes[wnid], [Sample(real[i], [of_run[i] for of_run in answers]) for i in of_class])
        for wnid, of_class in chosen.items()
    ]


def sample_sheet(run: Run, *, per_class: int = 6) -> Image.Image:
    """One row a class of a run's synthetic images with their captions or prompts; at most 20 classes.

    No real image is in it: a source's licence may not allow to pass its photographs on.
    """
    stored = StoredRows(run.folder)
    column = stored.table(["wnid"])["wnid"]
    wnids = sorted(column.unique().to_pylist(), key=lambda wnid: run.classes[wnid].index)
    sheet = []
    for wnid in wnids[:_MOST_CLASSES]:
        numbers = pc.indices_nonzero(pc.equal(column, wnid))[:per_class].to_pylist()
        sheet.append(Row(run.classes[wnid].name, [[_tile(row) for row in stored.read(numbers, _COLUMNS)]]))
    more = f", {len(sheet)} of {len(wnids)} classes" if len(wnids) > len(sheet) else ""
    heading = published_recipe(run.recipe).prompt.strategy
    return contact_sheet(f"{run.recipe.name}: synthetic images{more}", [heading], sheet)


def peek(
    name: str, split: str, out: str | Path, *, path: str | None = None, revision: str | None = None, per_class: int = 6
) -> Path:
    """A contact sheet of the first images of each class of a variant, at most 20 classes; returns the picture's
    path.
    """
    variant = get_variant(name)
    source = open_source(name, split, path=path, revision=revision, limit_per_class=per_class)
    by_class: dict[str, list[IndexEntry]] = {}
    for entry in source.index():
        by_class.setdefault(entry.wnid, []).append(entry)
    wnids = sorted(by_class, key=lambda wnid: variant.by_wnid[wnid].index)[:_MOST_CLASSES]
    rows = []
    for wnid in wnids:
        tiles = []
        for row in source.read(by_class[wnid][:per_class]):
            try:
                tiles.append(Tile(_fit(decode_rgb(row.image))))
            except ImageRejected as problem:
                tiles.append(Tile(Image.new("RGB", (1, 1), (230, 230, 230)), row.problem or problem.reason))
        rows.append(Row(variant.by_wnid[wnid].name, [tiles]))
    more = f", the first {len(rows)} of {len(by_class)} classes" if len(by_class) > len(rows) else ""
    return save_png(contact_sheet(f"{variant.title} ({split}{more})", [""], rows), Path(out).expanduser())


def _tile(row: dict[str, Any]) -> Tile:
    """A stored row's image above its words; reduced at once, so that a sheet holds no large images."""
    return Tile(_fit(image_of(row)), row["caption"] or row["prompt"])


def image_of(row: dict[str, Any]) -> Image.Image:
    """The decoded image of a stored row."""
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def _real_images(run: Run, source_ids: Sequence[str]) -> dict[str, Image.Image]:
    """The chosen real images, decoded, and reduced where they are larger than any sheet shows them."""
    index = pq.read_table(run.checked(layout.SOURCE))
    lines = index.filter(pc.is_in(index["source_id"], value_set=pa.array(source_ids))).to_pylist()
    found = {}
    for row in run.open_source().read(index_entries(lines)):
        found[row.source_id] = image = decode_rgb(row.image)
        image.thumbnail((_SHOWN, _SHOWN), Image.Resampling.LANCZOS)
    return found
