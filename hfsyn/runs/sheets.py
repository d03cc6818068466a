"""Pictures for people: contact sheets of real and synthetic images side by side."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from builders.files import atomic_write
from builders.images.decoding import ImageRejected, decode_rgb
from builders.runs import layout
from builders.sources import IndexEntry, Source, open_source
from builders.stores.copies import on_disk
from builders.variants import ClassInfo, get_variant
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import Recipe, published_recipe
from hfsyn.recipes.strategies import is_user_strategy
from hfsyn.runs.run import Run, index_entries
from hfsyn.runs.shards import StoredRows, image_of

_TILE, _GAP, _MARGIN = 112, 8, 110
_TEXT, _LINES = 13, 4
_SHOWN = 512
_MOST_CLASSES, _WIDE = 20, 8  # rows of a tall sheet, columns of a wide one
_COLUMNS = ["image", "prompt", "caption"]
_INK, _SOFT, _PAPER = (24, 26, 30), (110, 116, 126), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of a contact sheet with the words below it."""

    image: Image.Image
    text: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a contact sheet: a title, then one group of tiles for each heading."""

    title: str
    groups: Sequence[Sequence[Tile]]


def contact_sheet(title: str, headings: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Draw rows of tiles in columns, as an RGB image: tiles are 112 px wide, small images enlarged without smoothing.

    The `title` above all may have several lines. Each row has one group for each heading, which may have fewer tiles
    than another row's.
    """
    font, bold = ImageFont.load_default(_TEXT), ImageFont.load_default(_TEXT + 5)
    per_group = [max((len(row.groups[g]) for row in rows), default=0) for g in range(len(headings))]
    head = 46 + 22 * (title.count("\n") + 1)
    tops = [head]  # of each row, and of what follows the last
    for row in rows:
        has_text = any(tile.text for group in row.groups for tile in group)
        tops.append(tops[-1] + _TILE + _GAP + (_LINES * (_TEXT + 3) if has_text else 0))
    lefts = [_MARGIN]  # of each group, and of what follows the last
    for count in per_group:
        lefts.append(lefts[-1] + count * (_TILE + _GAP) + 2 * _GAP)
    sheet = Image.new("RGB", (lefts[-1] + _GAP, tops[-1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((_GAP, _GAP), title, fill=_INK, font=bold, spacing=4)
    for heading, left, right in zip(headings, lefts, lefts[1:], strict=False):
        width = max(_TILE, right - left - 2 * _GAP)
        draw.text((left, head - 24), _cut(heading, font, width), fill=_INK, font=font)
    for row, top in zip(rows, tops, strict=False):
        draw.multiline_text((_GAP, top + _TILE // 2 - 10), textwrap.fill(row.title, 14), fill=_INK, font=font)
        for group, left in zip(row.groups, lefts, strict=False):
            for k, tile in enumerate(group):
                x = left + k * (_TILE + _GAP)
                picture = _fit(tile.image)
                sheet.paste(picture, (x + (_TILE - picture.width) // 2, top + (_TILE - picture.height) // 2))
                draw.multiline_text((x, top + _TILE + 2), _wrapped(tile.text, font), fill=_SOFT, font=font, spacing=1)
    return sheet


def _fit(image: Image.Image) -> Image.Image:
    """The image within a tile: enlarged by whole pixels where it is small, reduced smoothly where it is large."""
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _cut(text: str, font: Any, width: float) -> str:
    """The beginning of a text that has at most this width."""
    if font.getlength(text) <= width:
        return text
    most = next(n for n in range(len(text), -1, -1) if font.getlength(f"{text[:n]}…") <= width)
    return f"{text[:most]}…"


def _wrapped(text: str, font: Any) -> str:
    """Text in at most `_LINES` lines of a tile's width."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > _TILE and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], f"{lines[_LINES - 1]} ..."]
    return "\n".join(lines)


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a PNG, atomically."""
    atomic_write(path, lambda temporary: image.save(temporary, "PNG"))
    return path


def compare_runs(
    runs: Sequence[Run], *, title: str, per_class: int = 3, max_classes: int = _MOST_CLASSES
) -> Image.Image:
    """One row per class, at most `max_classes`: `per_class` real images, then what each run made of the same images,
    with captions or prompts below. The runs are finished and over one source; the real images are those of the first.
    """
    rows = []
    for info, samples in shared_samples(runs, per_class=per_class, max_classes=max_classes):
        made = [[_tile(sample.rows[number], runs[number].recipe) for sample in samples] for number in range(len(runs))]
        rows.append(Row(info.name, [[Tile(sample.real) for sample in samples], *made]))
    return contact_sheet(title, ["real images", *(f"{run.recipe.name}: {_strategy(run)}" for run in runs)], rows)


@dataclass(frozen=True)
class Sample:
    """A real image, and the row that each of several runs made of it."""

    real: Image.Image
    rows: Sequence[dict[str, Any]]


def shared_samples(
    runs: Sequence[Run], *, per_class: int, max_classes: int = _MOST_CLASSES
) -> list[tuple[ClassInfo, list[Sample]]]:
    """The first real images of each class for which every run has a row, with these rows.

    Raises HfsynError if there are none.
    """
    stored = [StoredRows(run.folder) for run in runs]
    tables = [rows.table(["source_id", "wnid"]) for rows in stored]
    shared = tables[0]
    for table in tables[1:]:
        shared = shared.filter(pc.is_in(shared["source_id"], value_set=table["source_id"].combine_chunks()))
    if not len(shared):
        raise HfsynError("These runs share no real image.", "Compare runs over one source and split.")
    classes = runs[0].classes
    chosen = {
        wnid: sorted(pc.unique(shared["source_id"].filter(pc.equal(shared["wnid"], wnid))).to_pylist())[:per_class]
        for wnid in sorted(shared["wnid"].unique().to_pylist(), key=lambda wnid: classes[wnid].index)[:max_classes]
    }
    ids = [source_id for of_class in chosen.values() for source_id in of_class]
    real = real_images(runs[0].open_source(), entries_of(runs[0], ids))
    made = [
        dict(zip(ids, rows.read([pc.index(table["source_id"], i).as_py() for i in ids], _COLUMNS), strict=True))
        for rows, table in zip(stored, tables, strict=True)
    ]
    return [
        (classes[wnid], [Sample(real[i], [of_run[i] for of_run in made]) for i in of_class])
        for wnid, of_class in chosen.items()
    ]


def sample_sheet(run: Run) -> Image.Image:
    """Two rows of at most 8 classes: real images above what was made of them, with captions or prompts below.

    Only images that hfsyn draws itself are shown as real ones: the licence of a source may not allow its photographs to
    be passed on with the card. Of other sources there are two synthetic images of each class.
    """
    stored = StoredRows(run.folder)
    column = stored.table(["wnid"])["wnid"]
    wnids = sorted(column.unique().to_pylist(), key=lambda wnid: run.classes[wnid].index)[:_WIDE]
    drawn = get_variant(run.recipe.source.variant).drawn and run.recipe.source.path is None
    made = [
        stored.read(
            pc.indices_nonzero(pc.equal(column, wnid))[: 1 if drawn else 2].to_pylist(), [*_COLUMNS, "source_id"]
        )
        for wnid in wnids
    ]
    if drawn:
        real = real_images(run.open_source(), entries_of(run, [rows[0]["source_id"] for rows in made]))
        above = [[Tile(_fit(real[rows[0]["source_id"]]))] for rows in made]
        lines = [Row("real", above), Row("synthetic", [[_tile(rows[0], run.recipe)] for rows in made])]
    else:
        lines = [
            Row("synthetic", [[_tile(row, run.recipe) for row in rows[n : n + 1]] for rows in made]) for n in range(2)
        ]
    more = f", {len(wnids)} of {len(column.unique())} classes" if len(column.unique()) > len(wnids) else ""
    title = f"{run.recipe.name}: {'real drawings and what was made of them' if drawn else 'synthetic images'}{more}"
    return contact_sheet(title, [run.classes[wnid].name for wnid in wnids], lines)


def peek(
    name: str, split: str, out: str | Path, *, path: str | None = None, revision: str | None = None, per_class: int = 6
) -> Path:
    """A contact sheet of the first images of each class of a variant, at most 20 classes; returns its path."""
    variant, picture = get_variant(name), on_disk(out)
    source = open_source(name, split, path=path, revision=revision, limit_per_class=per_class)
    by_class: dict[str, list[IndexEntry]] = {}
    for entry in source.index():
        by_class.setdefault(entry.wnid, []).append(entry)
    rows = []
    for wnid in sorted(by_class, key=lambda wnid: variant.by_wnid[wnid].index)[:_MOST_CLASSES]:
        tiles = []
        for row in source.read(by_class[wnid][:per_class]):
            try:
                tiles.append(Tile(_fit(decode_rgb(row.image))))
            except ImageRejected as problem:
                tiles.append(Tile(Image.new("RGB", (1, 1), (230, 230, 230)), row.problem or problem.reason))
        rows.append(Row(variant.by_wnid[wnid].name, [tiles]))
    more = f", the first {len(rows)} of {len(by_class)} classes" if len(by_class) > len(rows) else ""
    return save_png(contact_sheet(f"{variant.title} ({split}{more})", [""], rows), picture)


def _strategy(run: Run) -> str:
    """The name of a run's strategy, without folders of this machine."""
    return published_recipe(run.recipe).prompt.strategy


def told(row: Mapping[str, Any], recipe: Recipe) -> str:
    """The words below an image: its caption, or the prompt if there is none or a user's own strategy wrote it."""
    own = is_user_strategy(recipe.prompt.strategy)
    return str(row["prompt"] if own else row["caption"] or row["prompt"])


def _tile(row: dict[str, Any], recipe: Recipe) -> Tile:
    """A stored row's image above its words; reduced at once, so that a sheet holds no large images."""
    return Tile(_fit(image_of(row)), told(row, recipe))


def real_images(source: Source, entries: Sequence[IndexEntry], most: int = _SHOWN) -> dict[str, Image.Image]:
    """Real images by source id, decoded, and reduced to `most` pixels, the largest size that a sheet or page shows."""
    found = {}
    for row in source.read(entries):
        found[row.source_id] = image = decode_rgb(row.image)
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return found


def entries_of(run: Run, source_ids: Sequence[str]) -> list[IndexEntry]:
    """The entries of a run's source index that have these ids."""
    index = pq.read_table(run.checked(layout.SOURCE), filters=pc.field("source_id").isin(list(source_ids)))
    return index_entries(index.to_pylist())
