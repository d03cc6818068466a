"""Whether a finished run or a published version is what its recipe says: files, schema, counts, prompts and seeds.

Everything that follows from the recipe and the captions is computed again, and of a selection its rule, except for the
pixels, which are for `hfsyn.checks.reproduce`. Of a published version the hashes are those of the Hub; only footers,
captions and the columns beside the image are downloaded.
"""

import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from builders.errors import DataError, brief, plural
from builders.files import sha256_of
from builders.images.decoding import ImageRejected, decode_rgb
from builders.published import Published, RunFolder, fetch_sidecars, open_reference
from builders.runs import layout, run_files
from builders.runs.rows import SCORES, Shard, captioned_features, synthetic_features
from builders.variants import get_variant
from hfsyn.checks.diff import recipe_of
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.hub.repo import HubRepo
from hfsyn.images.marking import mark_problem
from hfsyn.pages.html import facts
from hfsyn.recipes.parts import strategy_of
from hfsyn.recipes.recipe import Recipe, dump_recipe, fingerprint, published_recipe
from hfsyn.recipes.strategies import is_user_strategy
from hfsyn.rules import order_of, sample_id_of, seed_of
from hfsyn.runs.pairing import Told
from hfsyn.runs.scores import guarded_table
from hfsyn.runs.selection_rule import Rule, apply, checked_selection

_SHOWN = 20
_LONGEST = 400
Captions = dict[str, tuple[str, str | None, str | None]]
"""By source id: wnid, the text in the prompts, and whose text it is if images exchange them."""
_NEVER_NULL = ("sample_id", "source_id", "wnid", "class_name", "label", "prompt", "seed", "retries", "caption_flags")


@dataclass
class Verification:
    """What was checked, and what differs."""

    label: str
    rows: int = 0
    files: int = 0
    captions: int = 0
    problems: list[str] = field(default_factory=list)  # the first ones of each kind
    more: Counter[str] = field(default_factory=Counter)  # all problems by kind
    commit: str | None = None
    unchecked: list[str] = field(default_factory=list)  # what was not checked, and why

    def note(self, kind: str, problem: str) -> None:
        """Note a problem; of each kind the first few are kept in full."""
        self.more[kind] += 1
        if self.more[kind] <= _SHOWN:
            self.problems.append(problem)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "more": dict(self.more)}

    def _repr_html_(self) -> str:
        return facts(line.partition(": ")[::2] for line in self.text().splitlines())

    def text(self) -> str:
        """For people, in lines."""
        lines = [f"differs: {problem}" for problem in self.problems]
        lines += [f"differs: {n - _SHOWN} more of this kind: {kind}" for kind, n in self.more.items() if n > _SHOWN]
        lines += [f"not checked: {what}" for what in self.unchecked]
        verdict = f"{sum(self.more.values())} differences" if self.problems else "verified"
        at = f" (commit {self.commit[:12]})" if self.commit else ""
        counts = f"{plural(self.files, 'file')}, {plural(self.captions, 'caption')}, {plural(self.rows, 'row')}"
        return "\n".join([*lines, f"{verdict}: {self.label}{at}, {counts}"])


def verify(
    what: str,
    *,
    images: bool | None = None,
    config_name: str | None = None,
    token: str | bool | None = None,
    quiet: bool = False,
) -> Verification:
    """Check a finished run folder, or ``USER/NAME[@REVISION]``, and return what differs.

    Args:
        what: the run folder or the dataset.
        images: read every image, for the mark that it must carry; None does so for a run folder, and of a published
            version, whose images would all be downloaded, not.
        config_name: a configuration's name; None is the default one.
        token: as everywhere in huggingface_hub.
        quiet: no progress on the error stream.

    Raises:
        DataError: it is not there, or not finished.
    """
    side = open_reference(what, config_name, token=token)
    found = Verification(side.label)
    if isinstance(side, Published):
        found.commit = side.sha
    checker = _Checker(found, side, side.manifest(), recipe_of(side), images)
    if checker.has_own_strategy:
        found.unchecked.append(f"prompts, which a function of the author's wrote ({checker.recipe.prompt.strategy})")
    if not checker.looks and not checker.is_captions:
        found.unchecked.append("the marks in the images, all of which --images downloads")
    checker.check_recipe()
    checker.check_small_files()
    checker.check_shards()
    captions = checker.captions()
    if not checker.is_captions:
        checker.check_rows(captions, quiet=quiet)
        checker.check_selection()
    return found


@dataclass
class _Checker:
    """The checks of one run or version; each notes what differs in `found`."""

    found: Verification
    side: Published | RunFolder
    manifest: layout.Manifest
    recipe: Recipe
    images: bool | None = None  # see `verify`

    def __post_init__(self) -> None:
        self.ids: set[str] = set()  # of a selection's rows
        self.variant = get_variant(self.recipe.source.variant)
        self.names = [info.name for info in self.variant.classes]
        self.is_captions = self.manifest.raw.get("what", "data") == "captions"
        # What such a function would write cannot be known without running it.
        self.is_paired = self.recipe.prompt.pairing != "own" and not self.is_captions
        self.has_own_strategy = is_user_strategy(self.recipe.prompt.strategy)
        local = isinstance(self.side, RunFolder)
        # A recipe without marks was made so, or before there were any: nothing needs to be read for it.
        self.looks = not self.recipe.store.mark or (local if self.images is None else self.images)

    def check_recipe(self) -> None:
        mine, stated = fingerprint(self.recipe), self.manifest.fingerprint
        if stated != mine:
            self.found.note("recipe", f"the manifest has recipe {stated[:12]}, and recipe.yaml is {mine[:12]}")
        try:
            theirs = fingerprint(Recipe.model_validate(self.manifest.raw.get("recipe")))
        except (ValueError, HfsynError):
            theirs = "no recipe"
        if theirs != mine:
            self.found.note("recipe", f"the recipe in the manifest is {theirs[:12]}, and recipe.yaml is {mine[:12]}")
        split = self.variant.split(self.recipe.source.split)
        if self.manifest.split != split:
            self.found.note("recipe", f"the manifest has split {self.manifest.split!r}, and the recipe {split!r}")

    def check_small_files(self) -> None:
        """Recipe, tables and the list of rejected images are as the manifest states them; card and preview exist."""
        stated: dict[str, str] = self.manifest.raw["files"]
        recipe = dump_recipe(published_recipe(self.recipe)).encode()
        if stated.get(layout.RECIPE) != hashlib.sha256(recipe).hexdigest():
            self.found.note("recipe", f"{layout.RECIPE} is not as the manifest states it")
        names = () if self.is_captions else (layout.SOURCE, layout.PLAN, layout.REJECTED)
        for name in (*names, *(more for more in (layout.SCORES_TABLE, layout.SELECTION) if more in stated)):
            self.found.files += 1
            try:
                if sha256_of(self.side.fetch(name)) != stated.get(name):
                    self.found.note("files", f"{name} has other bytes than the manifest states")
            except DataError as error:
                self._note_unreadable(error, error.message)
        if isinstance(self.side, RunFolder):
            for name in (layout.SOURCE, layout.PLAN):
                try:
                    run_files.table(self.side.folder / name, self.manifest.fingerprint)
                except DataError as error:
                    self.found.note("files", error.message)
            for what in run_files.lost(self.side.folder, self.manifest):
                self.found.note("files", what)

    def _note_unreadable(self, error: Exception, problem: str) -> None:
        """Note a problem with a file; raise if the Hub refuses or does not answer, which is not about the file."""
        if isinstance(self.side, Published) and isinstance(error, DataError) and error.code != ExitCode.USAGE:
            raise error
        self.found.note("files", problem)

    def check_shards(self) -> None:
        fetch_sidecars(self.side)
        there = self._hashes()
        for entry in [*self.manifest.shards, *self.manifest.captions]:
            self.found.files += 1
            size, sha256 = there.pop(entry.file, (None, None))
            if size is None:
                self.found.note("files", f"{entry.file} is missing")
            elif (size, sha256) != (entry.bytes, entry.sha256):
                self.found.note("files", f"{entry.file} has other bytes than the manifest states")
            try:
                name = layout.sidecar_name(entry.file)
                sidecar = layout.parse_sidecar(self.side.text(name), name)
                if (sidecar.sha256, sidecar.rows) != (entry.sha256, entry.rows):
                    self.found.note("files", f"the sidecar of {entry.file} is of another file")
                if sidecar.fingerprint != self.manifest.fingerprint:
                    self.found.note("recipe", f"{entry.file} was made by recipe {sidecar.fingerprint[:12]}")
            except DataError as error:
                self._note_unreadable(error, f"{entry.file}: {error.message}")
        for name in there:
            self.found.note("files", f"{name} is not in the manifest")

    def _hashes(self) -> dict[str, tuple[int, str | None]]:
        side, tops = self.side, (layout.DATA, layout.CAPTIONS)
        if isinstance(side, Published) and not side.offline:
            tree = HubRepo(side.repo_id, token=side.token).tree(side.sha)
            names = {
                path.removeprefix(side.prefix): file for path, file in tree.items() if path.startswith(side.prefix)
            }
            shards = [name for name in names if name.endswith(".parquet") and name.partition("/")[0] in tops]
            return {name: (names[name].size, names[name].sha256) for name in shards}
        if isinstance(side, RunFolder):
            found = sorted(path for top in tops for path in (side.folder / top).glob("*.parquet"))
            paths = {path.relative_to(side.folder).as_posix(): path for path in found}
        else:
            entries = [*self.manifest.shards, *self.manifest.captions]
            paths = {entry.file: side.fetch(entry.file) for entry in entries}
        return {name: (path.stat().st_size, sha256_of(path)) for name, path in paths.items()}

    def captions(self) -> Captions:
        """Class and caption of each real image that was read, by source id."""
        known: Captions = {}
        entries = self.manifest.shards if self.is_captions else self.manifest.captions
        for row in self._table(entries, captioned_features(self.names), None):
            source_id, wnid = row["source_id"], row["wnid"]
            if source_id in known:
                self.found.note("captions", f"{source_id} is captioned twice")
            info = self.variant.by_wnid.get(wnid)
            if info is None or (row["label"], row["class_name"]) != (info.index, info.name):
                problem = f"{source_id} has class {wnid} {row['class_name']!r} ({row['label']})"
                self.found.note("captions", problem)
            known[source_id] = (wnid, row["caption"], None)
        self.found.captions = len(known)
        return self._exchanged(known) if self.is_paired else known

    def _exchanged(self, known: Captions) -> Captions:
        """The captions as the recipe's pairing exchanges them; of images of unknown classes, as they are."""
        ids = [source_id for source_id, (wnid, *_) in known.items() if wnid in self.variant.by_wnid]
        classes = [self.variant.by_wnid[known[source_id][0]] for source_id in ids]
        told = Told(ids, classes, [known[source_id][1] for source_id in ids], {}, self.recipe.seed)
        for number, source_id in enumerate(ids):
            text, _, whose = told.of(number)
            known[source_id] = (known[source_id][0], text, whose)
        return known

    def check_rows(self, captions: Captions, *, quiet: bool) -> None:
        """Every row follows from its caption, in the plan's order; the counts are those of the manifest."""
        found, manifest = self.found, self.manifest
        features = synthetic_features(self.names, paired=self.is_paired, scores=self._score_columns())
        counts: Counter[str] = Counter()
        before = b""
        marked = self.recipe.store.mark and self.looks
        columns = [name for name in features if marked or name != "image"]
        for row in self._table(manifest.shards, features, columns):
            found.rows += 1
            counts[row["wnid"]] += 1
            if "selection" in manifest.raw:
                self.ids.add(str(row["sample_id"]))
            if missing := [name for name in _NEVER_NULL if row[name] is None]:
                found.note("rows", f"row {found.rows} has no {', '.join(missing)}")
                continue
            order = order_of(row["sample_id"], by_class=self.recipe.generate.lora_by_class)
            if order <= before:
                found.note("order", f"{row['sample_id']} is out of order, or twice")
            before = order
            for problem in self._row_problems(row, captions):
                found.note("rows", f"{row['sample_id']}: {problem}")
            if marked and (wrong := mark_problem(bytes((row["image"] or {}).get("bytes") or b""), self.recipe)):
                found.note("marks", f"{row['sample_id']}: {wrong}")
            if not quiet and found.rows % 50_000 == 0:
                print(f"verified {found.rows} of {manifest.rows} rows", file=sys.stderr, flush=True)
        if found.rows != manifest.rows:
            found.note("counts", f"there are {found.rows} rows, and the manifest states {manifest.rows}")
        stated = {entry["wnid"]: entry["rows"] for entry in manifest.raw.get("classes", ())}
        for wnid in sorted(stated.keys() | counts.keys()):
            if (rows := stated.get(wnid, 0)) != counts[wnid]:
                found.note("counts", f"class {wnid} has {counts[wnid]} rows, and the manifest states {rows}")
        rejected = manifest.raw.get("rejected", {})
        aside = sum(count for reason, count in rejected.items() if reason.startswith(("generate: ", "select: ")))
        planned = len(captions) * self.recipe.prompt.images_per_caption
        if found.rows + aside != planned:
            found.note("counts", f"{planned} images were planned: {found.rows} are there and {aside} were set aside")

    def _score_columns(self) -> dict[str, str]:
        """The columns of scores that the rows of a selection have, and their kinds."""
        stated = self.manifest.raw.get("selection")
        columns = stated.get("columns") if isinstance(stated, dict) else None
        known = columns.items() if isinstance(columns, dict) else ()
        return {str(name): kind for name, kind in known if kind in SCORES}

    def check_selection(self) -> None:
        """The rows of a selection are those of its parent that its rule keeps, and it says of each other one why."""
        if (stated := self.manifest.raw.get("selection")) is None:
            return
        try:
            rule = Rule(**checked_selection(stated)["rule"])
            rows = stated["parent"]["rows"]
            table = guarded_table(self.side.fetch(layout.SELECTION), rows, self.side.label)
            reasons = apply(rule, table).reasons
            ids = [str(name) for name in table["sample_id"].to_pylist()]
            lines = [json.loads(line) for line in self.side.text(layout.REJECTED).splitlines()]
            said = {line["id"]: line["reason"] for line in lines if line["stage"] == "select"}
        except (ValueError, TypeError, KeyError, AttributeError, pa.ArrowException, HfsynError) as error:
            self._note_unreadable(error, f"the selection cannot be checked: {brief(error)}")
            return
        for name, reason in zip(ids, reasons, strict=True):
            if (reason is None) != (name in self.ids):
                how = "keeps it, and it is not there" if reason is None else f"does not keep it ({reason})"
                self.found.note("selection", f"{name}: the rule {how}")
            elif reason != said.get(name):
                self.found.note("selection", f"{name}: it went as {said.get(name)}, and the rule says {reason}")
        for name in sorted(self.ids - set(ids)):
            self.found.note("selection", f"{name} is not a row of the parent")

    def _row_problems(self, row: Mapping[str, Any], captions: Captions) -> Iterator[str]:
        """What differs in a synthetic row from its recipe and its caption, by the rules of `hfsyn.rules`."""
        recipe, (source_id, _, k) = self.recipe, row["sample_id"].rpartition("#")
        each = recipe.prompt.images_per_caption
        if source_id != row["source_id"] or not re.fullmatch("[0-9]{1,4}", k) or int(k) >= each:
            yield f"its id does not follow from its source id {_brief(row['source_id'])}"
            return
        if source_id not in captions:
            yield "its source image has no caption row"
            return
        wnid, caption, whose = captions[source_id]
        info = self.variant.by_wnid.get(wnid)
        if info is None or (row["wnid"], row["class_name"], row["label"]) != (wnid, info.name, info.index):
            stated = f"{row['wnid']} {row['class_name']!r} ({row['label']})"
            yield f"its class is {stated}, and that of its source image {wnid}"
            return
        if row.get("caption_source_id") != whose:
            stated = _brief(row["caption_source_id"])
            yield f"its caption is that of {stated}, and the rule of pairing gives that of {_brief(whose)}"
        if row["caption"] != caption:
            of = "the rule of pairing gives" if self.is_paired else "that of its source image"
            yield f"its caption is {_brief(row['caption'])}, and {of} {_brief(caption)}"
        seed = recipe.seed_for(wnid)
        if not self.has_own_strategy:
            chance = random.Random(seed_of(seed, sample_id_of(source_id, int(k)), purpose="prompt"))
            prompt = strategy_of(recipe.prompt).write(info, caption, chance)
            if row["prompt"] != prompt:
                yield f"its prompt is {_brief(row['prompt'])}, and the recipe makes {_brief(prompt)}"
        if row["seed"] != (right := seed_of(seed, row["sample_id"], row["retries"])):
            yield f"its seed is {row['seed']}, and the rule gives {right}"

    def _table(
        self, entries: Iterable[layout.ShardEntry], features: Any, columns: list[str] | None
    ) -> Iterator[dict[str, Any]]:
        """Rows of shards, after a check of each one's schema (of `datasets.Features`) and images."""
        from datasets import Features

        look = isinstance(self.side, RunFolder)
        for entry in entries:
            if isinstance(self.side, RunFolder) and not (self.side.folder / entry.file).is_file():
                continue  # it is missing, which is noted already
            try:
                with self.side.open(entry.file) as handle:
                    shard = Shard(handle, entry, self.side.label)
                    if Features.from_arrow_schema(shard.schema) != features:
                        self.found.note("schema", f"{entry.file} has other columns than hfsyn writes")
                        continue
                    for problem in _image_problems(shard, look=look):
                        self.found.note("images", f"{entry.file} {problem}")
                    yield from shard.rows(columns)
            except (OSError, ValueError, TypeError, KeyError, DataError) as error:  # pyarrow's errors are of these
                said = error.message if isinstance(error, DataError) else str(error)
                self._note_unreadable(error, f"{entry.file} cannot be read: {' '.join(said.split())[:200]}")


def _brief(text: Any) -> str:
    return repr(text) if text is None or len(text) <= _LONGEST else f"{text[:_LONGEST]!r}..."


def _image_problems(shard: Shard, *, look: bool) -> Iterator[str]:
    """Missing images by the counts in the footer; with `look` the first image of each row group is opened too."""
    names = [shard.footer.schema.column(i).path for i in range(shard.footer.num_columns)]
    if "image.bytes" not in names:
        return
    column = names.index("image.bytes")
    for group in (group for group in shard.groups() if shard.footer.row_group(group).num_rows):
        statistics = shard.footer.row_group(group).column(column).statistics
        if statistics is not None and statistics.null_count:
            yield f"has {statistics.null_count} rows without an image"
        elif look:
            first = next(shard.portions(["image"], groups=[group], rows=1)).to_pylist()[0]["image"]
            try:
                decode_rgb((first or {}).get("bytes") or b"")
            except ImageRejected as problem:
                yield f"has an image that cannot be opened ({problem.reason})"
