"""What differs between two versions: rows by class and by column, and the fields of their recipes.

Both sides are sorted by the hash of the sample id (see `hfsyn.runs.specs`) and compared as two streams, so memory does
not grow with the number of images. (Captions published alone have no such order and are held in memory.) Shards with
the same content on both sides are not read.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from builders.errors import brief, plural
from builders.published import Published, RunFolder, open_reference
from builders.runs import layout
from builders.runs.rows import Shard
from hfsyn.errors import HfsynError
from hfsyn.hub.repo import HubRepo
from hfsyn.hub.versions import Version
from hfsyn.pages.html import facts
from hfsyn.progress import Progress
from hfsyn.recipes.recipe import Recipe, difference, parse_recipe, published_recipe
from hfsyn.rules import order_of
from hfsyn.runs.run import Run

_SHOWN = 5


@dataclass(frozen=True)
class Comparison:
    """How `b` differs from `a`."""

    a: str
    b: str
    recipe: list[tuple[str, Any, Any]]  # `(field, value in a, value in b)`
    rows_a: int
    rows_b: int
    shards_equal: int
    shards_a: int
    shards_b: int
    added: Counter[str] = field(default_factory=Counter)  # rows by class name
    removed: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    """Changed rows by the column that differs; a row counts once for each."""
    examples: list[str] = field(default_factory=list)  # ids of the first changed, added or removed rows
    why: dict[str, str] = field(default_factory=dict)
    """Id of each row that a selection of one of the sides has removed -> the part of its rule that it fails."""

    @property
    def is_equal(self) -> bool:
        """Whether all rows are equal."""
        return not (self.added or self.removed or self.changed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}
        return {**fields, "is_equal": self.is_equal}

    def sentence(self) -> str:
        """In one sentence, for a changelog."""
        kinds = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        parts = [
            f"{plural(sum(counts.values()), 'row')} of {_classes(counts)} {what}" for what, counts in kinds if counts
        ]
        if self.columns:
            parts[-1] += f" in {', '.join(sorted(self.columns))}"
        if not parts:
            same = self.shards_equal == self.shards_a == self.shards_b
            parts = ["No row changed" + ("" if same else ", the files did")]
        if self.why:
            parts.append(f"selected by: {', '.join(f'{reason} ({count})' for reason, count in self._reasons())}")
        if self.recipe:
            fields = ", ".join(f"{key} from {_short(a)} to {_short(b)}" for key, a, b in self.recipe[:4])
            more = f" and {len(self.recipe) - 4} more fields" if self.recipe[4:] else ""
            parts.append(f"recipe: {fields}{more}")
        return "; ".join(parts) + "."

    def _reasons(self) -> list[tuple[str, int]]:
        """Why rows went -> how many."""
        return sorted(Counter(self.why.values()).items())

    def _repr_html_(self) -> str:
        return facts((line[:9], line[9:]) for line in self.text().splitlines())

    def text(self) -> str:
        """For people, in lines."""
        lines = [
            f"a        {self.a}: {plural(self.rows_a, 'row')} in {plural(self.shards_a, 'shard')}",
            f"b        {self.b}: {plural(self.rows_b, 'row')} in {plural(self.shards_b, 'shard')}, "
            f"{self.shards_equal} of them as in a",
        ]
        lines += [f"recipe   {key}: {_short(a)} -> {_short(b)}" for key, a, b in self.recipe] or ["recipe   the same"]
        for what, counts in (("added", self.added), ("removed", self.removed), ("changed", self.changed)):
            lines.append(f"{what:8} {plural(sum(counts.values()), 'row')}")
            lines += [f"           {name}: {count}" for name, count in sorted(counts.items())]
        lines += [f"column   {name}: {plural(count, 'row')}" for name, count in sorted(self.columns.items())]
        lines += [f"rule     {reason}: {plural(count, 'row')}" for reason, count in self._reasons()]
        lines += [f"example  {name}{f' ({self.why[name]})' if name in self.why else ''}" for name in self.examples]
        return "\n".join([*lines, self.sentence()])


def diff(
    a: str, b: str, *, config_name: str | None = None, token: str | bool | None = None, quiet: bool = False
) -> Comparison:
    """Compare two versions, row by row.

    Args:
        a, b: run folders, or ``USER/NAME@VERSION``.
        config_name: a configuration's name; None is the default one of each.
        token: as everywhere in huggingface_hub.
        quiet: no progress on the error stream.

    Raises:
        DataError: one of them is not there, or not finished.
    """
    left, right = (open_reference(side, config_name, token=token) for side in (a, b))
    return compare(left, right, quiet=quiet)


def compare(
    a: Published | RunFolder, b: Published | RunFolder, *, images: bool = True, quiet: bool = True
) -> Comparison:
    """Compare two opened versions; without `images` the images are not read."""
    left, right = a.manifest(), b.manifest()
    if left.raw.get("what", "data") != right.raw.get("what", "data"):
        problem = f"One of {a.label} and {b.label} has captions, and the other one images."
        raise HfsynError(problem, "Compare two versions of the same kind.")
    files_a, files_b = ({(entry.file, entry.sha256) for entry in side.shards} for side in (left, right))
    equal = files_a & files_b
    found = Comparison(
        a=a.label,
        b=b.label,
        recipe=_fields(a, b),
        rows_a=left.rows,
        rows_b=right.rows,
        shards_equal=len(equal),
        shards_a=len(left.shards),
        shards_b=len(right.shards),
    )
    key = "source_id" if left.raw.get("what") == "captions" else "sample_id"
    gone = {**_selected_out(a, left), **_selected_out(b, right)}
    # Images that are not read count as changed if the recipe makes them in another way.
    remade = not images and any(_makes_images(key) for key, _, _ in found.recipe)
    ordered = key == "sample_id" and not any(recipe_of(side).generate.lora_by_class for side in (a, b))
    total = sum(entry.rows for entry in right.shards if (entry.file, entry.sha256) not in equal)
    with Progress("compare", total, quiet=quiet, unit="rows") as progress:
        rows_a = _rows(a, left, equal, images=images)
        rows_b = _rows(b, right, equal, images=images, progress=progress)
        _compare_rows(found, _paired(rows_a, rows_b, key, ordered=ordered), key, gone, remade=remade, images=images)
    return found


def _compare_rows(
    found: Comparison,
    pairs: Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]],
    key: str,
    gone: Mapping[str, str],
    *,
    remade: bool,
    images: bool,
) -> None:
    """Count what pairs of rows differ in."""
    for old, new in pairs:
        if old == new and not remade:
            continue
        kind = found.added if old is None else found.removed if new is None else found.changed
        row = new or old or {}
        kind[str(row["class_name"])] += 1
        if (old is None or new is None) and str(row[key]) in gone:
            found.why[str(row[key])] = gone[str(row[key])]
        if old is not None and new is not None:
            names = {name for name in {**old, **new} if old.get(name) != new.get(name)}
            if remade or (not images and names & {"seed", "prompt"}):
                names.add("image")  # which is made from these
            found.columns.update(names)
        if len(found.examples) < _SHOWN:
            found.examples.append(str(row[key]))


def _selected_out(side: Published | RunFolder, manifest: layout.Manifest) -> dict[str, str]:
    """Id of each row that a selection has removed -> why; empty for what is not a selection."""
    if "selection" not in manifest.raw:
        return {}
    try:
        lines = [json.loads(line) for line in side.text(layout.REJECTED).splitlines()]
        return {str(line["id"]): str(line["reason"]) for line in lines if line["stage"] == "select"}
    except (ValueError, TypeError, KeyError) as error:
        said = f"{layout.REJECTED} of {side.label} cannot be read: {brief(error)}"
        raise HfsynError(said, f"See: hfsyn verify {side.label}") from None


def recipe_of(side: Published | RunFolder) -> Recipe:
    """The recipe of a side, checked as a user's own is."""
    return parse_recipe(side.text(layout.RECIPE), f"{layout.RECIPE} of {side.label}")


def _fields(a: Published | RunFolder, b: Published | RunFolder) -> list[tuple[str, Any, Any]]:
    """What differs in the recipes as they are published, that is without paths of a machine."""
    return difference(published_recipe(recipe_of(a)), published_recipe(recipe_of(b)))


def change_sentence(repo: HubRepo, commit: str, version: Version, run: Run, config_name: str, what: str) -> str:
    """What the changelog says of a run against a version that is on the Hub; no image is downloaded for it."""
    old = Published(repo.repo_id, version.tag, commit, config_name, offline=False, token=repo.token)

    def sentence() -> str:
        if what != "captions":
            return compare(old, RunFolder(run.folder), images=False).sentence()
        fields = ", ".join(key for key, _, _ in _fields(old, RunFolder(run.folder)))
        return f"Captions made again: {fields}." if fields else "Captions made again."

    return repo.call(f"compare with {version.tag}", sentence)


def _rows(
    side: Published | RunFolder,
    manifest: layout.Manifest,
    skip: set[tuple[str, str]],
    *,
    images: bool,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of the shards that are not to be skipped, with the hash of each image in its place."""
    for entry in manifest.shards:
        if (entry.file, entry.sha256) in skip:
            continue
        with readable(side, entry), side.open(entry.file) as handle:
            shard = Shard(handle, entry, side.label)
            for row in shard.rows([name for name in shard.schema.names if images or name != "image"]):
                if isinstance(row.get("image"), Mapping):
                    row["image"] = hashlib.sha256(row["image"].get("bytes") or b"").hexdigest()
                yield row
        if progress is not None:
            progress.add(entry.rows)


@contextmanager
def readable(side: Published | RunFolder, entry: layout.ShardEntry) -> Iterator[None]:
    """Turn the errors of a shard that hfsyn did not write into one line."""
    try:
        yield
    except (pa.ArrowException, AttributeError, KeyError, TypeError) as error:
        said = f"{entry.file} of {side.label} cannot be read: {brief(error, 120)}"
        raise HfsynError(said, f"See: hfsyn verify {side.label}") from None


def _paired(
    left: Iterator[dict[str, Any]], right: Iterator[dict[str, Any]], key: str, *, ordered: bool
) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """Rows of one id side by side; None if one side lacks it."""
    if not ordered:  # captions are in the order of the source, whatever that is: they are held in memory
        known = {row[key]: row for row in left}
        for row in right:
            yield known.pop(row[key], None), row
        yield from ((row, None) for row in known.values())
        return
    old, new = next(left, None), next(right, None)
    while old is not None or new is not None:
        a = order_of(old[key]) if old is not None else None
        b = order_of(new[key]) if new is not None else None
        if a == b:
            yield old, new
            old, new = next(left, None), next(right, None)
        elif b is None or (a is not None and a < b):
            yield old, None
            old = next(left, None)
        else:
            yield None, new
            new = next(right, None)


def _makes_images(field: str) -> bool:
    """Whether a field of a recipe decides what images look like, apart from prompts and seeds."""
    return (field.startswith(("generate.", "store.")) and field != "store.shard_rows") or field == "prompt.negative"


def _classes(counts: Mapping[str, int]) -> str:
    return f"{len(counts)} classes" if len(counts) > 3 else ", ".join(sorted(counts))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
