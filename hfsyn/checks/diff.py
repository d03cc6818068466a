"""What differs between two versions: rows by class and by column, and the fields of their recipes.

Both sides are sorted by the hash of the sample id (see `hfsyn.rules`), so that they are compared as two streams:
memory does not grow with the number of images. (Captions published alone have no such order and are held in memory.)
Shards whose content is equal on both sides are not read at all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from builders.published.versions import Published, RunFolder, open_reference
from builders.runs import layout
from builders.runs.layout import Manifest, ShardEntry
from builders.runs.shard import Shard
from hfsyn.errors import HfsynError
from hfsyn.hub.repo import HubRepo
from hfsyn.hub.versions import Version
from hfsyn.recipes.recipe import Recipe, difference, parse_recipe, published_recipe
from hfsyn.rules import order_of
from hfsyn.runs.run import Run

_SHOWN = 5


@dataclass(frozen=True)
class Comparison:
    """How `b` differs from `a`."""

    a: str
    b: str
    recipe: list[tuple[str, Any, Any]]
    """``(field, value in a, value in b)``."""
    rows_a: int
    rows_b: int
    shards_equal: int
    shards_a: int
    shards_b: int
    added: Counter[str] = field(default_factory=Counter)
    """Rows by class name."""
    removed: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    """Changed rows by the column that differs; a row counts once for each."""
    examples: list[str] = field(default_factory=list)
    """Ids of the first changed, added or removed rows."""

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs that a user of the rows would see."""
        return not (self.added or self.removed or self.changed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}
        return {**fields, "is_equal": self.is_equal}

    def sentence(self) -> str:
        """In one sentence, for a changelog."""
        parts = [
            f"{sum(counts.values())} rows of {_classes(counts)} {what}"
            for what, counts in (("added", self.added), ("removed", self.removed), ("changed", self.changed))
            if counts
        ]
        if self.columns:
            parts[-1] += f" in {', '.join(sorted(self.columns))}"
        if not parts:
            same = self.shards_equal == self.shards_a == self.shards_b
            parts = ["No row changed" + ("" if same else ", the files did")]
        if self.recipe:
            parts.append(
                "recipe: " + ", ".join(f"{key} from {_short(a)} to {_short(b)}" for key, a, b in self.recipe[:4])
            )
            parts[-1] += f" and {len(self.recipe) - 4} more fields" if self.recipe[4:] else ""
        return "; ".join(parts) + "."

    def text(self) -> str:
        """For people, in lines."""
        lines = [
            f"a        {self.a}: {self.rows_a} rows in {self.shards_a} shards",
            f"b        {self.b}: {self.rows_b} rows in {self.shards_b} shards, {self.shards_equal} of them as in a",
        ]
        lines += [f"recipe   {key}: {_short(a)} -> {_short(b)}" for key, a, b in self.recipe] or ["recipe   the same"]
        for what, counts in (("added", self.added), ("removed", self.removed), ("changed", self.changed)):
            lines.append(f"{what:8} {sum(counts.values())} rows")
            lines += [f"           {name}: {count}" for name, count in sorted(counts.items())]
        lines += [f"column   {name}: {count} rows" for name, count in sorted(self.columns.items())]
        lines += [f"for instance {name}" for name in self.examples]
        return "\n".join(lines)


def diff(a: str, b: str, *, config: str | None = None, token: str | bool | None = None) -> Comparison:
    """Compare two versions, row by row.

    Args:
        a, b: run folders, or ``USER/NAME@VERSION``.
        config: a configuration's name; None is the default one of each.
        token: as everywhere in huggingface_hub.

    Raises:
        DataError: one of them is not there, or not finished.
    """
    return compare(open_reference(a, config, token=token), open_reference(b, config, token=token))


def compare(a: Published | RunFolder, b: Published | RunFolder, *, images: bool = True) -> Comparison:
    """Compare two opened versions; without `images` their bytes are not read, and only what is told of them counts."""
    left, right = a.manifest(), b.manifest()
    if left.raw.get("what", "data") != right.raw.get("what", "data"):
        raise HfsynError(f"{a.label} and {b.label} are not alike: captions, and images.", "Compare like with like.")
    equal = {(entry.file, entry.sha256) for entry in left.shards} & {
        (entry.file, entry.sha256) for entry in right.shards
    }
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
    # Without looking at images, they count as changed where the recipe makes them in another way.
    remade = not images and any(_makes_images(key) for key, _, _ in found.recipe)
    for old, new in _paired(_rows(a, left, equal, images=images), _rows(b, right, equal, images=images), key):
        if old == new and not remade:
            continue
        kind = found.added if old is None else found.removed if new is None else found.changed
        row = new or old or {}
        kind[str(row["class_name"])] += 1
        if old is not None and new is not None:
            names = {name for name in {**old, **new} if old.get(name) != new.get(name)}
            if remade or (not images and names & {"seed", "prompt"}):
                names.add("image")  # not read, but made from these
            found.columns.update(names)
        if len(found.examples) < _SHOWN:
            found.examples.append(str(row[key]))
    return found


def recipe_of(side: Published | RunFolder) -> Recipe:
    """The recipe of a side, checked as a user's own is."""
    return parse_recipe(side.text(layout.RECIPE), f"{layout.RECIPE} of {side.label}")


def _fields(a: Published | RunFolder, b: Published | RunFolder) -> list[tuple[str, Any, Any]]:
    """What differs in the recipes as others may see them: where something lies on a machine is nobody's business, and
    a version has forgotten it.
    """
    return difference(published_recipe(recipe_of(a)), published_recipe(recipe_of(b)))


def change_sentence(repo: HubRepo, commit: str, version: Version, run: Run, config_name: str, what: str) -> str:
    """What the changelog says of a run against a version that is on the Hub; no image is downloaded for it."""
    old = Published(repo.repo_id, version.tag, commit, config_name, offline=False, token=repo.token)
    return repo.call(f"compare with {version.tag}", lambda: _sentence(old, run, what))


def _sentence(old: Published, run: Run, what: str) -> str:
    if what == "captions":
        fields = _fields(old, RunFolder(run.folder))
        return "Captions made again" + (f": {', '.join(key for key, _, _ in fields)}." if fields else ".")
    return compare(old, RunFolder(run.folder), images=False).sentence()


def _rows(
    side: Published | RunFolder, manifest: Manifest, skip: set[tuple[str, str]], *, images: bool
) -> Iterator[dict[str, Any]]:
    for entry in manifest.shards:
        if (entry.file, entry.sha256) not in skip:
            yield from _shard_rows(side, entry, images=images)


def _shard_rows(side: Published | RunFolder, entry: ShardEntry, *, images: bool) -> Iterator[dict[str, Any]]:
    with readable(side, entry), side.open(entry.file) as handle:
        shard = Shard(handle, entry, side.label)
        for row in shard.rows([name for name in shard.schema.names if images or name != "image"]):
            if isinstance(row.get("image"), Mapping):
                row["image"] = hashlib.sha256(row["image"].get("bytes") or b"").hexdigest()
            yield row


@contextmanager
def readable(side: Published | RunFolder, entry: ShardEntry) -> Iterator[None]:
    """Say in one line that a shard is no Parquet file of ours."""
    try:
        yield
    except (pa.ArrowException, AttributeError, KeyError, TypeError) as error:
        raise HfsynError(
            f"{entry.file} of {side.label} cannot be read: {' '.join(str(error).split())[:120]}",
            f"See: hfsyn verify {side.label}",
        ) from None


def _paired(
    left: Iterator[dict[str, Any]], right: Iterator[dict[str, Any]], key: str
) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """Rows of one id side by side; None where one side lacks it. Both are in the plan's order, or in the source's."""
    if key != "sample_id":  # captions are in the source's order, which no rule gives: they are few bytes each
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
    """Whether a recipe's field decides what images look like, their prompts and seeds left alone."""
    return (field.startswith(("generate.", "store.")) and field != "store.shard_rows") or field == "prompt.negative"


def _classes(counts: Mapping[str, int]) -> str:
    names: Sequence[str] = sorted(counts)
    shown = ", ".join(names[:3])
    return f"{len(names)} classes" if names[3:] else shown


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
