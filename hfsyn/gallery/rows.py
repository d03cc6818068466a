"""Which rows are looked at: by class, flag, words and score, read a portion at a time, each with its real image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from builders.errors import DataError, did_you_mean, first_line, quoted
from builders.images.decoding import ImageRejected, decode_rgb
from builders.published import Published, RunFolder
from builders.runs import layout
from builders.runs.layout import ShardEntry
from builders.runs.rows import Shard
from builders.runs.run_files import shards
from builders.sources import open_source
from builders.variants import ClassInfo, get_variant
from hfsyn.cards.card import FLAGS
from hfsyn.checks.diff import readable
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import Recipe
from hfsyn.runs.run import load_run
from hfsyn.runs.scores import ID, Scored, scores_beside
from hfsyn.runs.selection_rule import check_number
from hfsyn.runs.shards import flags_of
from hfsyn.runs.sheets import entries_of, real_images

SIZE = 160  # pixels of the longer side of what is held and shown
_TEXTS = ["wnid", "class_name", "prompt", "caption", "seed", "sample_id", "source_id"]
_FLAGS = ["truncated", "safety", "retries", "caption_flags"]
_PORTION = 16  # images decoded at a time


@dataclass(frozen=True)
class Choice:
    """Which rows are wanted."""

    wnids: Sequence[str]
    flag: str | None = None
    words: Sequence[str] = ()
    """In small letters; each is in the prompt or in the caption."""
    per_class: int | None = None
    most: int = 500
    values: Mapping[str, float | None] | None = None
    """Id -> score of those rows that alone are wanted, whatever their number in a class."""
    every: Sequence[float] = ()
    """The scores of all rows that fit, whether wanted or not."""

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is one of them, whatever their number."""
        text = f"{row['prompt']}\n{row['caption'] or ''}".lower()
        flagged = self.flag is None or self.flag in flags_of(row)
        wanted = self.values is None or row["sample_id"] in self.values
        return wanted and row["wnid"] in self.wnids and flagged and all(word in text for word in self.words)


@dataclass
class Seen:
    """A row with its pictures, reduced to `SIZE` pixels."""

    row: dict[str, Any]
    """Its texts, without the image; and ``flags``."""
    made: Image.Image
    real: Image.Image | None = None


def chosen_classes(recipe: Recipe, wanted: Sequence[str]) -> dict[str, ClassInfo]:
    """The classes of a recipe by wnid, or those that are wanted by wnid or name.

    Raises:
        HfsynError: one of them is not a class of the recipe's variant.
    """
    infos = get_variant(recipe.source.variant).classes
    by_word = {word: info for info in infos for word in (info.name.lower(), info.wnid)}
    for word in wanted:
        if word.lower() not in by_word:
            near = did_you_mean(word, [info.name for info in infos])
            said = f"{recipe.source.variant.partition('@')[0]} has no class {word!r}.{near}"
            raise HfsynError(said, f"Its classes: {quoted(info.name for info in infos)}.")
    found = [by_word[word.lower()] for word in wanted] if wanted else infos
    return {info.wnid: info for info in sorted(found, key=lambda info: info.index)}


def check_flag(flag: str | None) -> None:
    """Raise HfsynError for what is not the name of a flag."""
    if flag is not None and flag not in FLAGS:
        raise HfsynError(f"{flag!r} is not a flag.{did_you_mean(flag, FLAGS)}", f"Flags: {', '.join(FLAGS)}.")


def chosen_rows(side: Published | RunFolder, choice: Choice) -> tuple[list[Seen], bool]:
    """The rows that are wanted, in their order, and whether the search ended before the last row of the set.

    Only these images are decoded. The search ends when nothing more can be wanted, so that of a published set no more
    is read than what is shown.
    """
    found: list[Seen] = []
    taken: Counter[str] = Counter()
    full = _rows_by_class(side)
    for entry, name in _shards(side):
        with readable(side, entry), side.open(name) as handle:
            shard = Shard(handle, None if isinstance(side, RunFolder) else entry, side.label)
            for group in shard.groups():
                if len(found) >= choice.most or (full and _enough(taken, full, choice)):
                    return found, True
                wanted: dict[int, dict[str, Any]] = {}
                for number, row in enumerate(shard.rows([*_TEXTS, *_FLAGS], groups=[group])):
                    free = choice.per_class is None or taken[row["wnid"]] < choice.per_class
                    if free and len(found) + len(wanted) < choice.most and choice.fits(row):
                        taken[row["wnid"]] += 1
                        wanted[number] = row
                found += _with_images(shard, group, wanted)
    return found, False


def best_and_worst(side: Published | RunFolder, choice: Choice, column: str, each: int) -> Choice:
    """The choice of those rows of each class that have the largest and the smallest values of a column of the scores,
    `each` of both, among all that fit.

    Raises HfsynError if there are no scores, or no such column of numbers.
    """
    scored = Scored(side, Path())
    known, table = scores_beside(scored)
    if known is None or table is None:
        raise HfsynError(f"{side.label} has no scores.", f"Score it: hfsyn score {side.label} --judge JUDGE")
    check_number(column, table, "--by")
    value = dict(zip(table[ID].to_pylist(), table[column].to_pylist(), strict=True))
    of_class: dict[str, list[tuple[float, str]]] = {}
    for name in scored.starts:
        for row in scored.rows(name, [*_TEXTS, *_FLAGS]):
            if choice.fits(row) and value.get(row["sample_id"]) is not None:
                of_class.setdefault(row["wnid"], []).append((float(value[row["sample_id"]]), row["sample_id"]))
    found: dict[str, float | None] = {}
    for pairs in of_class.values():
        pairs.sort(reverse=True)
        found |= {name: score for score, name in [*pairs[:each], *pairs[each:][-each:]]}
    every = [score for pairs in of_class.values() for score, _ in pairs]
    return replace(choice, values=found, per_class=None, every=every)


def _shards(side: Published | RunFolder) -> Iterator[tuple[ShardEntry, str]]:
    """The shards of a set that hold images, with their names; of a run at work, those that are finished."""
    if isinstance(side, RunFolder):
        for path in shards(side.folder, layout.DATA):
            name = f"{layout.DATA}/{path.name}"
            yield ShardEntry(name, 0, path.stat().st_size, ""), name
        return
    manifest = side.manifest()
    if manifest.raw.get("what") == "captions":
        raise HfsynError(f"{side.label} holds captions, and no images.", "Name a configuration with images.")
    for entry in manifest.shards:
        yield entry, entry.file


def rows_in_all(side: Published | RunFolder, wnids: Sequence[str]) -> int | None:
    """How many rows a finished set has of these classes; None for a run at work."""
    full = _rows_by_class(side)
    return sum(full[wnid] for wnid in wnids if wnid in full) if full else None


def _rows_by_class(side: Published | RunFolder) -> dict[str, int]:
    if isinstance(side, RunFolder) and not (side.folder / layout.MANIFEST).is_file():
        return {}
    return {entry["wnid"]: entry["rows"] for entry in side.manifest().raw.get("classes", ())}


def _enough(taken: Mapping[str, int], full: Mapping[str, int], choice: Choice) -> bool:
    most = choice.per_class
    return all(taken.get(wnid, 0) >= min(full.get(wnid, 0), most or full.get(wnid, 0)) for wnid in choice.wnids)


def _with_images(shard: Shard, group: int, wanted: Mapping[int, dict[str, Any]]) -> Iterator[Seen]:
    """Rows of a row group by their number in it, with their images."""
    start, last = 0, max(wanted, default=-1)
    for batch in shard.portions(["image"], groups=[group], rows=_PORTION) if wanted else ():
        for number in range(start, start + batch.num_rows):
            if number in wanted:
                row = wanted[number]
                stored = (batch.column(0)[number - start].as_py() or {}).get("bytes") or b""
                texts = {name: row[name] for name in _TEXTS}
                yield Seen({**texts, "flags": flags_of(row)}, _reduced(bytes(stored)))
        start += batch.num_rows
        if start > last:
            return


def _reduced(stored: bytes) -> Image.Image:
    """An image at the size that is shown; a grey square if it cannot be opened."""
    try:
        image = decode_rgb(stored)
    except ImageRejected:
        return Image.new("RGB", (SIZE, SIZE), (160, 160, 160))
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return image


def add_real_images(
    seen: Sequence[Seen], side: Published | RunFolder, recipe: Recipe, path: str | None, token: str | bool | None
) -> str | None:
    """Give each row its real image, by source id. Returns why there are none, in one line; None if all were found."""
    if recipe.of_prompts:
        return "its prompts are of no real image"
    ids = {one.row["source_id"] for one in seen}
    part = recipe.source
    try:
        if isinstance(side, RunFolder) and path is None:
            run = load_run(side.folder)
            source, entries = run.open_source(), entries_of(run, sorted(ids))
        else:
            where = path or part.path
            source = open_source(part.variant, part.split, path=where, revision=part.revision, token=token)
            entries = [entry for entry in source.index() if entry.source_id in ids]
        found = real_images(source, entries, SIZE)
    except ImageRejected as problem:
        return f"a real image cannot be opened: {problem.reason}"
    except (HfsynError, DataError, OSError) as error:
        return getattr(error, "message", None) or first_line(error)
    for one in seen:
        one.real = found.get(one.row["source_id"])
    missing = len(ids - set(found))
    return f"{missing} of {len(ids)} real images are not in {source.layout}" if missing else None
