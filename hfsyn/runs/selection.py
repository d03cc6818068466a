"""A selection: a run folder with those rows of another set that a rule keeps, and all that is needed to check it.

Data shards of which every row stays are linked where the file system can, and others are written again with the same
image bytes. ``selection.parquet`` has every row of the parent with what the rule looks at, so that the rule can be
applied again; ``selection.json`` states the parent, the rule and the hashes of the scores. A row that goes is set aside
with the reason in its shard's sidecar, as images are that could not be made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.errors import plural, quoted
from builders.files import atomic_text, atomic_write, sha256_of
from builders.published import Published, RunFolder, fetch_sidecars, open_reference
from builders.runs import layout, run_files
from builders.stores.copies import on_disk
from hfsyn.errors import HfsynError
from hfsyn.progress import Progress
from hfsyn.rules import order_of
from hfsyn.runs.claims import lock
from hfsyn.runs.finish import finish
from hfsyn.runs.prepare import lock_new
from hfsyn.runs.scores import ID, KINDS, Scored, Scores, data_digest, scores_beside, scores_of, write_table
from hfsyn.runs.selection_rule import IDS, Kept, Rule, apply, by_class, selection_of
from hfsyn.runs.shards import flags_of, is_done, write_groups, write_shard

_GROUP = 100_000  # rows of a row group of the small tables


@dataclass(frozen=True)
class Selection:
    """What a rule keeps of a set."""

    label: str
    rule: Rule
    rows: int
    kept: int
    classes: list[dict[str, Any]]
    """Of each class: ``wnid``, ``class``, ``rows``, ``kept``, and how many of these are ``spare``."""
    removed: dict[str, int]
    """Why rows go -> how many."""
    run: str | None = None
    """The folder that it was written to."""
    linked: int = 0
    """Data shards that were linked or copied whole."""
    shards: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people, below the table of classes."""
        found = [f"removed: {plural(count, 'row')}: {reason}" for reason, count in self.removed.items()]
        spare = sum(entry["spare"] for entry in self.classes)
        if self.rule.per_class and spare:
            found.append(f"{plural(spare, 'kept row')} of real images that keep another one too")
        if self.rule.per_class and (short := [e for e in self.classes if e["kept"] < (self.rule.per_class or 0)]):
            few = (f"{entry['class']} ({entry['kept']})" for entry in short)
            found.append(f"fewer than {self.rule.per_class}: {quoted(few, 5)}")
        return [*found, f"{self.kept:,} of {plural(self.rows, 'row')} stay"]


def select_rows(
    what: str,
    rule: Rule,
    out: str | Path,
    *,
    scores: str | Path | None = None,
    config_name: str | None = None,
    token: str | bool | None = None,
    columns: bool = False,
    dry_run: bool = False,
    tell: Any = None,
    quiet: bool = True,
) -> Selection:
    """See `hfsyn.api.scoring.select`; `tell` is called with the selection before anything is written."""
    if rule.where is None and rule.per_class is None:
        raise HfsynError("Nothing says which rows to keep.", 'Say it: --where "p_label >= 0.5", or --per-class N.')
    if rule.by is not None and rule.per_class is None:
        raise HfsynError(f"--by {rule.by} puts rows in an order, and nothing says how many to keep.", "--per-class N")
    side = open_reference(what, config_name, token=token)
    if isinstance(side, RunFolder) and run_files.finished(side.folder) is None:
        said = f"The run {what} is not finished: its images are not all there."
        raise HfsynError(said, f"`hfsyn status {what}` shows what is missing.")
    scored = Scored(side, Path(out))
    known, given = scores_beside(scored, scores)
    rows = _rows(scored, given)
    kept = apply(rule, rows)
    names = {entry["wnid"]: entry["name"] for entry in side.manifest().raw["classes"]}
    found = Selection(
        side.label,
        rule,
        rows.num_rows,
        sum(reason is None for reason in kept.reasons),
        by_class(rows, kept, names),
        dict(sorted(Counter(reason for reason in kept.reasons if reason is not None).items())),
    )
    _check(found)
    extra = _score_columns(side, given) if columns else {}
    writer = _Writer(side, scored, on_disk(out), rule, rows, kept, known, given, extra)
    if not dry_run:
        writer.check_folder()
    if tell is not None:
        tell(found)
    if dry_run:
        return found
    linked = writer.write(quiet=quiet)
    return replace(found, run=str(writer.folder), linked=linked, shards=len(scored.entries))


def _score_columns(side: Published | RunFolder, given: pa.Table | None) -> dict[str, str]:
    """The columns of the scores, and their kinds."""
    if given is None:
        raise HfsynError(f"{side.label} has no scores to be columns.", f"hfsyn score {side.label} --judge JUDGE")
    kinds = {kind: name for name, kind in KINDS.items()}
    return {field.name: kinds[field.type] for field in given.schema if field.name != ID}


def _rows(scored: Scored, given: pa.Table | None) -> pa.Table:
    """Every row of a set in order, without its image, and its scores."""
    from builders.runs.rows import Shard

    parts = []
    for name in scored.starts:
        entry = scored.starts[name][1]
        with scored.side.open(entry.file) as handle:
            shard = Shard(handle, entry, scored.side.label)
            schema = pa.schema([field for field in shard.schema if field.name != "image"])
            batches = (batch.replace_schema_metadata(None) for batch in shard.portions(schema.names))
            parts.append(pa.Table.from_batches(batches, schema))
    rows = pa.concat_tables(parts).combine_chunks()
    if given is None:
        return rows
    place = {name: number for number, name in enumerate(given[ID].to_pylist())}
    of_row = pa.array([place.get(name) for name in rows[ID].to_pylist()], pa.int64())
    for column in given.column_names:
        if column != ID and column not in rows.column_names:
            rows = rows.append_column(column, given[column].combine_chunks().take(of_row))
    return rows


def _check(found: Selection) -> None:
    """Refuse a rule that keeps nothing, or nothing of a class."""
    why = max(found.removed, key=lambda reason: found.removed[reason], default="")
    if not found.kept:
        raise HfsynError(f"The rule keeps none of the {found.rows:,} rows of {found.label}: {why}.", "Loosen it.")
    if emptied := [entry["class"] for entry in found.classes if not entry["kept"]]:
        raise HfsynError(
            f"The rule keeps no image of {plural(len(emptied), 'class')} of {found.label}: {quoted(emptied, 5)}.",
            "Loosen it; or keep the best of each class instead: --per-class N --by COLUMN.",
        )


@dataclass
class _Writer:
    side: Published | RunFolder
    scored: Scored
    folder: Path
    rule: Rule
    rows: pa.Table
    kept: Kept
    known: Scores | None
    given: pa.Table | None
    extra: Mapping[str, str]
    """Columns of scores that the rows get, and their kinds."""
    linked: int = 0

    def write(self, *, quiet: bool) -> int:
        """Write the run folder, or continue one; returns how many data shards were taken whole."""
        self._claim()
        fetch_sidecars(self.side)
        manifest = self.side.manifest()
        with lock(self.folder, "select"):
            tables = [name for table in (layout.SOURCE, layout.PLAN) for name in (table, layout.sidecar_name(table))]
            for entry in manifest.captions:
                self._take(entry.file)
                self._take(layout.sidecar_name(entry.file))
            for name in (*tables, layout.RECIPE):  # the recipe last: it makes the folder a run
                self._take(name)
            with Progress("selecting", self.rows.num_rows, quiet=quiet) as progress:
                for name, (start, entry) in self.scored.starts.items():
                    self._shard(name, self.kept.reasons[start : start + entry.rows])
                    progress.add(entry.rows)
            self._filter_scores()
        finish(self.folder)
        return self.linked

    def _marker(self) -> dict[str, Any]:
        manifest = self.side.manifest()
        version = f"{self.side.repo_id}@{self.side.revision}" if isinstance(self.side, Published) else None
        judges = {} if self.known is None else self.known.judges
        return {
            "parent": {
                "name": manifest.name,
                "version": version,
                "rows": self.rows.num_rows,
                "manifest": manifest.raw["sha256"],
            },
            "rule": asdict(self.rule),
            "columns": dict(self.extra),
            "scores": None if self.known is None else self.known.sha256,
            "judges": {name: judge["fingerprint"] for name, judge in judges.items()},
        }

    def check_folder(self) -> None:
        """Refuse a folder that holds something else than this selection."""
        marker, again = self._marker(), "Name another --out."
        if self.folder.exists() and not self.folder.is_dir():
            raise HfsynError(f"--out {self.folder} is a file.", again)
        if alien := layout.strangers(self.folder):
            raise HfsynError(f"--out {self.folder} holds {alien[0]}, which is not of a run of hfsyn.", again)
        there = selection_of(self.folder)
        if there is None and layout.is_run_folder(self.folder):
            raise HfsynError(f"--out {self.folder} holds another run.", again)
        if there is not None and {key: there.get(key) for key in marker} != marker:
            raise HfsynError(f"--out {self.folder} holds another selection: {Rule(**there['rule']).text()}.", again)

    def _claim(self) -> None:
        """Make the folder this selection's, if it is not yet."""
        table = self.folder / layout.SELECTION
        if selection_of(self.folder) is not None:
            return
        with lock_new(self.folder):
            columns = list(dict.fromkeys([*IDS, *self.kept.columns]))
            chosen = self.rows.select(columns)
            groups = (chosen.slice(at, _GROUP).to_pydict() for at in range(0, chosen.num_rows, _GROUP))
            write_groups(table, groups, chosen.schema)
            stated = {**self._marker(), "table": sha256_of(table)}
            atomic_text(layout.sidecar_of(table), json.dumps(stated, indent=1, ensure_ascii=False) + "\n")

    def _take(self, name: str) -> None:
        """A file of the parent as it is: linked if the file system can, else copied."""
        target = self.folder / name
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        found = self.side.fetch(name).resolve()
        with suppress(OSError):
            os.link(found, target)
            return
        atomic_write(target, lambda temporary: shutil.copyfile(found, temporary))

    def _shard(self, name: str, reasons: Sequence[str | None]) -> None:
        entry = self.scored.starts[name][1]
        target = self.folder / entry.file
        if not any(reasons) and not self.extra:
            self._take(entry.file)
            self._take(layout.sidecar_name(entry.file))
            self.linked += 1
            return
        if is_done(target):
            return
        mark = layout.sidecar_name(entry.file)
        old = layout.parse_sidecar(self.side.text(mark), mark)
        from datasets import Features, Value

        from builders.runs.rows import SCORES

        with self.side.open(entry.file) as handle:
            whole = pq.read_table(handle)
        start, schema = self.scored.starts[name][0], whole.schema
        if self.extra:
            features = Features.from_arrow_schema(schema)
            schema = Features(features | {c: Value(SCORES[kind]) for c, kind in self.extra.items()}).arrow_schema
            for column in self.extra:
                values = self.rows[column].slice(start, whole.num_rows).combine_chunks()
                whole = whole.append_column(column, values)
        rows = whole.filter(pa.array([reason is None for reason in reasons])).to_pylist()
        columns = {name: [row[name] for row in rows] for name in schema.names}
        gone = [
            {"id": i, "wnid": wnid, "reason": reason, "stage": "select"}
            for i, wnid, reason in zip(whole[ID].to_pylist(), whole["wnid"].to_pylist(), reasons, strict=True)
            if reason is not None
        ]
        aside = tuple(sorted((*old.rejected, *gone), key=lambda line: order_of(line["id"])))

        def sidecar(sha256: str, size: int) -> layout.Sidecar:
            return replace(
                old,
                rows=len(rows),
                sha256=sha256,
                bytes=size,
                rejected=aside,
                counts=dict(sorted(Counter(row["wnid"] for row in rows).items())),
                flags=dict(sorted(Counter(flag for row in rows for flag in flags_of(row)).items())),
            )

        write_shard(target, columns, schema, sidecar)

    def _filter_scores(self) -> None:
        """The scores of the rows that stay."""
        if self.known is None or self.given is None or scores_of(self.folder) is not None:
            return
        stays = {i for i, reason in zip(self.rows[ID].to_pylist(), self.kept.reasons, strict=True) if reason is None}
        kept = self.given.filter(pa.array([i in stays for i in self.given[ID].to_pylist()]))
        marks = [layout.load_sidecar(layout.sidecar_of(self.folder / entry.file)) for entry in self.scored.entries]
        entries = [layout.ShardEntry("", mark.rows, mark.bytes, mark.sha256) for mark in marks]
        write_table(self.folder, kept, data_digest(entries), self.known.judges)
