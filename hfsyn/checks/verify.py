"""Whether a finished run or a published version is what its recipe says: files, schema, counts, prompts and seeds.

Everything that can be computed from the recipe and the captions is computed again. The pixels are not: that is
`hfsyn.checks.reproduce`'s. On the Hub the hashes are those under which the Hub stores the files; only
footers, captions and the columns beside the image are downloaded.
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from builders.errors import DataError
from builders.files import sha256_of
from builders.images.decoding import ImageRejected, decode_rgb
from builders.published.versions import Published, RunFolder, fetch_sidecars, open_reference
from builders.runs import layout, run_files
from builders.runs.layout import Manifest, ShardEntry
from builders.runs.schema import captioned_features, synthetic_features
from builders.runs.shard import Shard
from builders.variants import get_variant
from hfsyn.checks.diff import recipe_of
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub.repo import HubRepo
from hfsyn.recipes.parts import strategy_of
from hfsyn.recipes.recipe import Recipe, dump_recipe, fingerprint, published_recipe
from hfsyn.recipes.strategies import is_user_strategy
from hfsyn.rules import order_of, sample_id_of, seed_of

_SHOWN = 20
_LONGEST = 400
_NEVER_NULL = ("sample_id", "source_id", "wnid", "class_name", "label", "prompt", "seed", "retries", "caption_flags")


@dataclass
class Verification:
    """What was looked at, and what differs."""

    label: str
    rows: int = 0
    files: int = 0
    captions: int = 0
    problems: list[str] = field(default_factory=list)
    """The first ones in full; further ones of a kind are counted in `more`."""
    more: Counter[str] = field(default_factory=Counter)
    commit: str | None = None
    unchecked: str = ""
    """What could not be looked at; empty where all was."""

    def note(self, kind: str, problem: str) -> None:
        """Note a problem; of each kind the first few are kept in full."""
        self.more[kind] += 1
        if self.more[kind] <= _SHOWN:
            self.problems.append(problem)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "more": dict(self.more)}

    def text(self) -> str:
        """For people, in lines."""
        lines = [f"differs: {problem}" for problem in self.problems]
        lines += [f"differs: {n - _SHOWN} more of this kind: {kind}" for kind, n in self.more.items() if n > _SHOWN]
        verdict = f"{sum(self.more.values())} differences" if self.problems else "verified"
        at = f" (commit {self.commit[:12]})" if self.commit else ""
        lines += [f"not checked: {self.unchecked}"] if self.unchecked else []
        return "\n".join(
            [*lines, f"{verdict}: {self.label}{at}, {self.files} files, {self.captions} captions, {self.rows} rows"]
        )


def verify(
    what: str, *, config: str | None = None, token: str | bool | None = None, quiet: bool = False
) -> Verification:
    """Check a finished run folder, or ``USER/NAME[@REVISION]``.

    Args:
        what: the run folder or the dataset.
        config: a configuration's name; None is the default one.
        token: as everywhere in huggingface_hub.
        quiet: no progress on the error stream.

    Returns:
        What differs; nothing where all is as it should be.

    Raises:
        DataError: it is not there, or not finished.
    """
    side = open_reference(what, config, token=token)
    manifest = side.manifest()
    found = Verification(side.label, commit=side.sha if isinstance(side, Published) else None)
    recipe = recipe_of(side)
    if is_user_strategy(recipe.prompt.strategy):
        found.unchecked = f"prompts, which a function of the author's wrote ({recipe.prompt.strategy})"
    _check_recipe(found, manifest, recipe)
    _check_small_files(found, side, manifest, recipe)
    _check_files(found, side, manifest)
    captions = _captions(found, side, manifest, recipe)
    if manifest.raw.get("what", "data") == "data":
        _check_rows(found, side, manifest, recipe, captions, quiet=quiet)
    return found


def _check_recipe(found: Verification, manifest: Manifest, recipe: Recipe) -> None:
    mine = fingerprint(recipe)
    if manifest.fingerprint != mine:
        found.note("recipe", f"the manifest is of recipe {manifest.fingerprint[:12]}, and recipe.yaml is {mine[:12]}")
    try:
        theirs = fingerprint(Recipe.model_validate(manifest.raw.get("recipe")))
    except (ValueError, HfsynError):
        theirs = "no recipe"
    if theirs != mine:
        found.note("recipe", f"the recipe in the manifest is {theirs[:12]}, and recipe.yaml is {mine[:12]}")
    split = get_variant(recipe.source.variant).split(recipe.source.split)
    if manifest.split != split:
        found.note("recipe", f"the manifest is of split {manifest.split!r}, and the recipe of {split!r}")


def _check_small_files(found: Verification, side: Published | RunFolder, manifest: Manifest, recipe: Recipe) -> None:
    """Recipe, tables and list of what was set aside are as the manifest states them; card and preview are there."""
    stated: dict[str, str] = manifest.raw["files"]
    if stated.get(layout.RECIPE) != hashlib.sha256(dump_recipe(published_recipe(recipe)).encode()).hexdigest():
        found.note("recipe", f"{layout.RECIPE} is not as the manifest states it")
    for name in (layout.SOURCE, layout.PLAN, layout.REJECTED) if manifest.raw.get("what", "data") == "data" else ():
        found.files += 1
        try:
            if sha256_of(side.fetch(name)) != stated.get(name):
                found.note("files", f"{name} has other bytes than the manifest states")
        except DataError as error:
            _raise_refusal(side, error)
            found.note("files", error.message)
    if isinstance(side, RunFolder):
        for name in (layout.SOURCE, layout.PLAN):
            try:
                run_files.table(side.folder / name, manifest.fingerprint)
            except DataError as error:
                found.note("files", error.message)
        for what in run_files.lost(side.folder, manifest):
            found.note("files", what)


def _raise_refusal(side: Published | RunFolder, error: Exception) -> None:
    """Raise what the Hub refuses or does not answer, which says nothing of the file."""
    if isinstance(side, Published) and isinstance(error, DataError) and error.code != ExitCode.USAGE:
        raise error


def _check_files(found: Verification, side: Published | RunFolder, manifest: Manifest) -> None:
    """Every shard is there with its content and its sidecar, and there is no other."""
    fetch_sidecars(side)
    there = _hashes(side, manifest)
    for entry in [*manifest.shards, *manifest.captions]:
        found.files += 1
        size, sha256 = there.pop(entry.file, (None, None))
        if size is None:
            found.note("files", f"{entry.file} is missing")
        elif (size, sha256) != (entry.bytes, entry.sha256):
            found.note("files", f"{entry.file} has other bytes than the manifest states")
        try:
            name = layout.sidecar_name(entry.file)
            sidecar = layout.parse_sidecar(side.text(name), name)
            if (sidecar.sha256, sidecar.rows) != (entry.sha256, entry.rows):
                found.note("files", f"the sidecar of {entry.file} is of another file")
            if sidecar.fingerprint != manifest.fingerprint:
                found.note("recipe", f"{entry.file} was made by recipe {sidecar.fingerprint[:12]}")
        except DataError as error:
            _raise_refusal(side, error)
            found.note("files", f"{entry.file}: {error.message}")
    for name in there:
        found.note("files", f"{name} is not in the manifest")


def _hashes(side: Published | RunFolder, manifest: Manifest) -> dict[str, tuple[int, str | None]]:
    """Size and SHA-256 of every shard that is there."""
    if isinstance(side, RunFolder):
        paths = [path for top in (layout.DATA, layout.CAPTIONS) for path in (side.folder / top).glob("*.parquet")]
        names = {path.relative_to(side.folder).as_posix(): path for path in sorted(paths)}
        return {name: (path.stat().st_size, sha256_of(path)) for name, path in names.items()}
    if side.offline:
        paths = [side.fetch(entry.file) for entry in [*manifest.shards, *manifest.captions]]
        entries = zip([*manifest.shards, *manifest.captions], paths, strict=True)
        return {entry.file: (path.stat().st_size, sha256_of(path)) for entry, path in entries}
    tree = HubRepo(side.repo_id, token=side.token).tree(side.sha)
    tops = tuple(f"{side.prefix}{top}/" for top in (layout.DATA, layout.CAPTIONS))
    return {
        path.removeprefix(side.prefix): (file.size, file.sha256)
        for path, file in tree.items()
        if path.startswith(tops) and path.endswith(".parquet")
    }


def _captions(
    found: Verification, side: Published | RunFolder, manifest: Manifest, recipe: Recipe
) -> dict[str, tuple[str, str | None]]:
    """Class and caption of each real image that was read, by source id."""
    names = [info.name for info in get_variant(recipe.source.variant).classes]
    classes = get_variant(recipe.source.variant).by_wnid
    known: dict[str, tuple[str, str | None]] = {}
    entries = manifest.captions if manifest.raw.get("what", "data") == "data" else manifest.shards
    for row in _table(found, side, entries, captioned_features(names), None):
        if row["source_id"] in known:
            found.note("captions", f"{row['source_id']} is captioned twice")
        info = classes.get(row["wnid"])
        if info is None or (row["label"], row["class_name"]) != (info.index, info.name):
            found.note("captions", f"{row['source_id']} has class {row['wnid']} {row['class_name']!r} ({row['label']})")
        known[row["source_id"]] = (row["wnid"], row["caption"])
    found.captions = len(known)
    return known


def _check_rows(
    found: Verification,
    side: Published | RunFolder,
    manifest: Manifest,
    recipe: Recipe,
    captions: Mapping[str, tuple[str, str | None]],
    *,
    quiet: bool,
) -> None:
    names = [info.name for info in get_variant(recipe.source.variant).classes]
    columns = [name for name in synthetic_features(names) if name != "image"]
    counts: Counter[str] = Counter()
    before = b""
    for row in _table(found, side, manifest.shards, synthetic_features(names), columns):
        found.rows += 1
        counts[row["wnid"]] += 1
        if missing := [name for name in _NEVER_NULL if row[name] is None]:
            found.note("rows", f"row {found.rows} has no {', '.join(missing)}")
            continue
        order = order_of(row["sample_id"])
        if order <= before:
            found.note("order", f"{row['sample_id']} stands out of order, or twice")
        before = order
        for problem in row_problems(row, recipe, captions):
            found.note("rows", f"{row['sample_id']}: {problem}")
        if not quiet and found.rows % 50_000 == 0:
            print(f"verified {found.rows} of {manifest.rows} rows", file=sys.stderr, flush=True)
    if found.rows != manifest.rows:
        found.note("counts", f"there are {found.rows} rows, and the manifest states {manifest.rows}")
    stated = {entry["wnid"]: entry["rows"] for entry in manifest.raw.get("classes", ())}
    for wnid in sorted(stated.keys() | counts.keys()):
        if stated.get(wnid, 0) != counts[wnid]:
            found.note("counts", f"class {wnid} has {counts[wnid]} rows, and the manifest states {stated.get(wnid, 0)}")
    aside = sum(n for reason, n in manifest.raw.get("rejected", {}).items() if reason.startswith("generate: "))
    planned = len(captions) * recipe.prompt.images_per_caption
    if found.rows + aside != planned:
        found.note("counts", f"{planned} images were planned: {found.rows} are there and {aside} were set aside")


def row_problems(
    row: Mapping[str, Any], recipe: Recipe, captions: Mapping[str, tuple[str, str | None]]
) -> Iterator[str]:
    """What of a synthetic row is not as its recipe and its caption say; each rule is that of `hfsyn.rules`."""
    source_id, _, k = row["sample_id"].rpartition("#")
    if source_id != row["source_id"] or not re.fullmatch("[0-9]{1,4}", k) or int(k) >= recipe.prompt.images_per_caption:
        yield f"its id does not follow from its source id {_brief(row['source_id'])}"
        return
    if source_id not in captions:
        yield "its source image has no caption row"
        return
    wnid, caption = captions[source_id]
    info = get_variant(recipe.source.variant).by_wnid.get(wnid)
    if info is None or (row["wnid"], row["class_name"], row["label"]) != (wnid, info.name, info.index):
        yield f"its class is {row['wnid']} {row['class_name']!r} ({row['label']}), and that of its source image {wnid}"
        return
    if row["caption"] != caption:
        yield f"its caption is {_brief(row['caption'])}, and that of its source image {_brief(caption)}"
    seed = recipe.seed_for(wnid)
    rng = random.Random(seed_of(seed, sample_id_of(source_id, int(k)), purpose="prompt"))
    # What a function of its author's would write cannot be known without running it.
    own = is_user_strategy(recipe.prompt.strategy)
    prompt = row["prompt"] if own else strategy_of(recipe.prompt).write(info, caption, rng)
    if row["prompt"] != prompt:
        yield f"its prompt is {_brief(row['prompt'])}, and the recipe makes {_brief(prompt)}"
    if row["seed"] != seed_of(seed, row["sample_id"], row["retries"]):
        yield f"its seed is {row['seed']}, and the rule gives {seed_of(seed, row['sample_id'], row['retries'])}"


def _brief(text: Any) -> str:
    """A text of somebody's as it is told, which may be of any length."""
    return repr(text) if text is None or len(text) <= _LONGEST else f"{text[:_LONGEST]!r}..."


def _table(
    found: Verification,
    side: Published | RunFolder,
    entries: tuple[ShardEntry, ...],
    features: Any,
    columns: list[str] | None,
) -> Iterator[dict[str, Any]]:
    """Rows of shards, after a look at each one's schema (of `datasets.Features`) and number of rows."""
    from datasets import Features

    for entry in entries:
        if isinstance(side, RunFolder) and not (side.folder / entry.file).is_file():
            continue  # it is missing, which is said already
        try:
            with side.open(entry.file) as handle:
                shard = Shard(handle, entry, side.label)
                if Features.from_arrow_schema(shard.schema) != features:
                    found.note("schema", f"{entry.file} has other columns than hfsyn writes")
                    continue
                for problem in _image_problems(shard, look=isinstance(side, RunFolder)):
                    found.note("images", f"{entry.file} {problem}")
                yield from shard.rows(columns)
        except (OSError, ValueError, TypeError, KeyError, DataError) as error:  # pyarrow's errors are of these
            _raise_refusal(side, error)
            said = error.message if isinstance(error, DataError) else str(error)
            found.note("files", f"{entry.file} cannot be read: {' '.join(said.split())[:200]}")


def _image_problems(shard: Shard, *, look: bool) -> Iterator[str]:
    """Missing images by the footer's counts; with `look` the first image of each row group is opened too."""
    names = [shard.footer.schema.column(i).path for i in range(shard.footer.num_columns)]
    if "image.bytes" not in names:
        return
    column = names.index("image.bytes")
    for group in shard.groups():
        statistics = shard.footer.row_group(group).column(column).statistics
        if statistics is not None and statistics.null_count:
            yield f"has {statistics.null_count} rows without an image"
        elif look:
            first = next(shard.portions(["image"], groups=[group], rows=1)).to_pylist()[0]["image"]
            try:
                decode_rgb((first or {}).get("bytes") or b"")
            except ImageRejected as problem:
                yield f"has an image that cannot be opened ({problem.reason})"
