"""Scores: what judges say of each row of a set, keyed by its sample id, and the stage that writes them down.

A judge writes shards of its own beside those of the set, with the rows of the data shard of the same name, through the
same loop as captions and images. ``scores.parquet`` joins what all judges say; its marker ``scores.json`` names them. A
column has the judge's own name for it, and where two judges have one of the same name, the judge's name before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.files import atomic_text, digest_of, sha256_of
from builders.runs import layout
from hfsyn.errors import HfsynError
from hfsyn.runs.claims import Mark, lock
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.shards import is_done, pending, write_groups
from hfsyn.runs.stage import Stage

if TYPE_CHECKING:
    from builders.published import Published, RunFolder

ID = "sample_id"
KINDS = {"number": pa.float64(), "whole": pa.int64(), "truth": pa.bool_(), "text": pa.string()}
_DIGITS = 6
"""Decimal places of a number: fewer than a last bit moves, which depends on how many images are looked at together."""
_GROUP = 100_000  # rows of a row group of the table
_LIBRARIES = ("hfsyn", "timm", "torch", "transformers")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_TAKEN = frozenset({"rows", layout.DATA, layout.CAPTIONS})


@dataclass(frozen=True)
class Judge:
    """What says something of each row. Whatever yields rows can be one: a network, a function, a file."""

    name: str
    """Of its folder; in a rule it stands before its columns."""
    columns: Mapping[str, str]
    """Column -> one of `KINDS`."""
    facts: Mapping[str, str]
    """What decides the bytes of its scores: which judge, the hash of its weights, its settings."""
    of: Callable[[Sequence[Mapping[str, Any]]], Iterable[Mapping[str, Any] | str]]
    """Of all rows of a shard, with their images: the columns of each in order, or why it has none."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in (self.name, *self.columns):
            if not _NAME.fullmatch(name) or self.name in _TAKEN:
                hint = "Letters, digits and underscores can, beginning with a letter: --judge NAME=JUDGE."
                raise HfsynError(f"{name!r} cannot be the name of a judge or of one of its columns.", hint)

    @cached_property
    def fingerprint(self) -> str:
        """Of what decides the bytes."""
        return _hash({"facts": dict(self.facts), "columns": dict(self.columns)})

    @property
    def schema(self) -> pa.Schema:
        """Of its shards."""
        return pa.schema([(ID, pa.string()), *((name, KINDS[kind]) for name, kind in self.columns.items())])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Scored:
    """A finished set whose rows are scored, and the folder that the scores go to: a run's own, or another."""

    side: Published | RunFolder
    folder: Path
    mark: Mark | None = None

    @cached_property
    def entries(self) -> Sequence[layout.ShardEntry]:
        """The shards of the set."""
        manifest = self.side.manifest()
        if manifest.raw.get("what", "data") != "data":
            raise HfsynError(f"{self.side.label} holds captions, and no images.", "Name a configuration with images.")
        return manifest.shards

    @cached_property
    def starts(self) -> dict[str, tuple[int, layout.ShardEntry]]:
        """Name of each shard -> the number of its first row, and its entry."""
        found, start = {}, 0
        for entry in self.entries:
            found[entry.file.rpartition("/")[2]] = (start, entry)
            start += entry.rows
        return found

    def shards(self, judge: str) -> list[Path]:
        """Paths of a judge's shards, made or not."""
        return [self.folder / layout.SCORES / judge / name for name in self.starts]

    def rows(self, name: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of a data shard by its name, with their images unless columns are named."""
        from builders.runs.rows import Shard

        entry = self.starts[name][1]
        with self.side.open(entry.file) as handle:
            return list(Shard(handle, entry, self.side.label).rows(columns))

    def current(self, shard: Path) -> layout.Sidecar | None:
        """The sidecar of a finished shard of scores; None if there is none, or its rows are no longer those."""
        if not is_done(shard):
            return None
        found = layout.load_sidecar(layout.sidecar_of(shard))
        return found if found.options.get("data") == self.starts[shard.name][1].sha256 else None


@dataclass(frozen=True)
class _Scoring:
    """What a stage of scores works on; see `hfsyn.runs.stage.Workplace`."""

    scored: Scored
    judge: Judge

    @property
    def folder(self) -> Path:
        return self.scored.folder

    @property
    def mark(self) -> Mark | None:
        return self.scored.mark

    @property
    def fingerprint(self) -> str:
        return self.judge.fingerprint

    def span(self, shard: Path) -> tuple[int, int]:
        start, entry = self.scored.starts[shard.name]
        return start, start + entry.rows

    def lines(self, shard: Path) -> list[dict[str, Any]]:
        return self.scored.rows(shard.name)


def check_judge(scored: Scored, judge: Judge, *, overwrite: bool = False) -> None:
    """Make room for a judge's scores: those of rows that are no longer there go, and with `overwrite` all of its own.

    Raises HfsynError if its name has the scores of another judge.
    """
    folder = scored.folder / layout.SCORES / judge.name
    marks = scored.folder / layout.SIDECARS / layout.SCORES / judge.name
    with lock(scored.folder, "score"):
        for shard in layout.finished_shards(folder):
            found = layout.load_sidecar(layout.sidecar_of(shard))
            if shard.name not in scored.starts or scored.current(shard) is None:
                layout.sidecar_of(shard).unlink()
            elif found.fingerprint != judge.fingerprint and not overwrite:
                raise HfsynError(
                    f"{folder} has the scores of another judge: {_difference(found.options, judge.facts)}.",
                    "Give this one another name (--judge NAME=JUDGE), or delete those scores with --overwrite.",
                )
            elif found.fingerprint != judge.fingerprint:
                for path in (marks, folder):
                    shutil.rmtree(path)
                return


def _difference(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    names = [name for name in {**there, **here} if name != "data" and there.get(name) != here.get(name)]
    parts = [f"{name} is {there.get(name, 'not said')} there, {here.get(name, 'not said')} here" for name in names[:2]]
    return "; ".join(parts) or "it has other columns"


def score_by(scored: Scored, judge: Judge, options: WorkOptions) -> bool:
    """Let a judge look at every row, with any number of other processes; whether all of its shards are there then."""
    paths = scored.shards(judge.name)
    work = _Scoring(scored, judge)
    stage = Stage(work, f"score-{judge.name}", options, paths, judge.schema, judge.device)
    with stage.at_work(f"scoring: {judge.name}") as progress:
        for shard in stage.shards(stage.mine()):
            try:
                rows, rejected = [], []
                for line, said in zip(shard.lines, judge.of(shard.lines), strict=True):
                    if isinstance(said, str):
                        rejected.append({"id": line[ID], "wnid": line["wnid"], "reason": said})
                    else:
                        rows.append({ID: line[ID], **{name: _rounded(said[name]) for name in judge.columns}})
                    progress.add(1)
                entry = scored.starts[shard.claim.path.name][1]
                facts = {**judge.facts, "judge": judge.name, "data": entry.sha256}
                stage.write(shard, rows, rejected, (), time.monotonic() - shard.started, options=facts)
            finally:
                shard.claim.release()
    return not pending(paths)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS) + 0.0 if math.isfinite(value) else None  # and no minus zero
    return value


@dataclass(frozen=True)
class Scores:
    """What ``scores.json`` says of ``scores.parquet``."""

    rows: int
    sha256: str
    bytes: int
    data: str
    """Of the shards that were scored, all together."""
    judges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> ``facts``, ``fingerprint``, ``versions``, ``columns`` (of the table -> its own), ``rejected`` rows."""

    @property
    def columns(self) -> list[str]:
        """Of the table, without the id."""
        return [column for judge in self.judges.values() for column in judge["columns"]]


def scores_of(folder: Path) -> Scores | None:
    """What the marker in a folder says of its scores; None if it has none. Raises HfsynError if it is damaged."""
    table = folder / layout.SCORES_TABLE
    mark = layout.sidecar_of(table)
    if not mark.exists() or not table.exists():
        return None
    try:
        found = Scores(**json.loads(mark.read_text(encoding="utf-8")))
        layout.check_kinds(found, int, "rows", "bytes")
        layout.check_kinds(found, str, "sha256", "data")
        for judge in found.judges.values():
            if not all(isinstance(judge[key], dict) for key in ("facts", "columns")):
                raise TypeError("a judge is of the wrong kind")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        said = f"{mark} is not the marker of {table.name} ({error})."
        raise HfsynError(said, "Delete it, and let any judge score the set again: it is written again.") from None
    return found


def gather(scored: Scored) -> Scores:
    """Write ``scores.parquet`` from the shards of all judges that have seen every row, and its marker.

    A selection has the scores of its parent's judges in the table alone: they stay.
    """
    with lock(scored.folder, "score"):
        parts = dict(_inherited(scored))
        for folder in sorted((scored.folder / layout.SCORES).iterdir()):
            paths = scored.shards(folder.name) if folder.is_dir() else []
            if paths and all(map(scored.current, paths)):
                parts[folder.name] = _of_shards(paths)
        often = Counter(name for table, _ in parts.values() for name in table.column_names)
        ids = [row[ID] for name in scored.starts for row in scored.rows(name, [ID])]
        columns, judges = {ID: pa.array(ids, pa.string())}, {}
        for judge, (table, about) in sorted(parts.items()):
            names = {(c if often[c] == 1 else f"{judge}_{c}"): c for c in table.column_names if c != ID}
            place = {name: number for number, name in enumerate(table[ID].to_pylist())}
            of_row = pa.array([place.get(name) for name in ids], pa.int64())
            columns |= {name: table[own].combine_chunks().take(of_row) for name, own in names.items()}
            judges[judge] = {**about, "columns": names}
        return write_table(scored.folder, pa.table(columns), data_digest(scored.entries), judges)


def _of_shards(paths: Sequence[Path]) -> tuple[pa.Table, dict[str, Any]]:
    """What a judge says, and what its sidecars say of it."""
    marks = [layout.load_sidecar(layout.sidecar_of(path)) for path in paths]
    facts = {key: value for key, value in marks[0].options.items() if key not in ("data", "judge")}
    about: dict[str, Any] = {"facts": facts, "fingerprint": marks[0].fingerprint, "versions": _versions(marks)}
    about["rejected"] = sum(len(mark.rejected) for mark in marks)
    return pa.concat_tables(map(pq.read_table, paths)), about


def _inherited(scored: Scored) -> Iterator[tuple[str, tuple[pa.Table, dict[str, Any]]]]:
    """The judges that are in the table, and have no shards here."""
    found = scores_of(scored.folder)
    if found is None or found.data != data_digest(scored.entries):
        return
    table = pq.read_table(scored.folder / layout.SCORES_TABLE)
    for name, about in found.judges.items():
        if not (scored.folder / layout.SCORES / name).is_dir():
            names = about["columns"]
            yield name, (table.select([ID, *names]).rename_columns([ID, *names.values()]), dict(about))


def write_table(folder: Path, table: pa.Table, data: str, judges: Mapping[str, Mapping[str, Any]]) -> Scores:
    """Write the table of the scores and its marker; `data` is the `data_digest` of the set."""
    target = folder / layout.SCORES_TABLE
    groups = (table.slice(at, _GROUP).to_pydict() for at in range(0, table.num_rows, _GROUP))
    write_groups(target, groups, table.schema)
    found = Scores(table.num_rows, sha256_of(target), target.stat().st_size, data, judges)
    atomic_text(layout.sidecar_of(target), json.dumps(vars(found), indent=1, ensure_ascii=False) + "\n")
    return found


def _versions(marks: Sequence[layout.Sidecar]) -> str:
    """Of the libraries that a judge computed with, each one that made a shard."""
    found = sorted({(name, mark.software[name]) for mark in marks for name in _LIBRARIES if name in mark.software})
    return ", ".join(f"{name} {version}" for name, version in found)


def data_digest(entries: Sequence[layout.ShardEntry]) -> str:
    """SHA-256 over those of all shards of a set."""
    return _hash([entry.sha256 for entry in entries])


def read_scores(folder: Path, entries: Sequence[layout.ShardEntry], label: str) -> tuple[Scores, pa.Table]:
    """The scores in a folder and what they say, checked against the shards of the set. Raises HfsynError if there are
    none, they were changed, or they are of other rows.
    """
    again = f"Score it: hfsyn score {label} --judge JUDGE"
    found, table = scores_of(folder), folder / layout.SCORES_TABLE
    if found is None:
        raise HfsynError(f"{folder} has no scores.", again)
    if digest_of(table) != found.sha256:
        raise HfsynError(f"{table} is not as it was written.", "Delete it, and score again: it is written again.")
    if found.data != data_digest(entries):
        raise HfsynError(f"The scores in {folder} are of other rows than {label} has now.", again)
    return found, guarded_table(table, found.rows, label)


def guarded_table(path: Path, rows: int, label: str) -> pa.Table:
    """A small table of `rows` rows, which may be a stranger's. Raises DataError if it has others, or would unpack to
    more than such a table can hold.
    """
    from builders.runs.rows import Shard

    with path.open("rb") as handle:
        shard = Shard(handle, layout.ShardEntry(path.name, rows, path.stat().st_size, ""), label)
        return pa.Table.from_batches(shard.portions(), shard.schema).combine_chunks()


def scores_beside(scored: Scored, elsewhere: str | Path | None = None) -> tuple[Scores | None, pa.Table | None]:
    """The scores of a set and what they say: in its folder, published with it, or in a folder `elsewhere`; None where
    there are none. Raises HfsynError as `read_scores`.
    """
    side = scored.side
    if elsewhere is not None:
        return read_scores(Path(elsewhere).expanduser(), scored.entries, side.label)
    if layout.SCORES_TABLE not in side.manifest().raw["files"]:
        return None, None
    files = [side.fetch(name) for name in (layout.SCORES_TABLE, layout.sidecar_name(layout.SCORES_TABLE))]
    return read_scores(files[0].parent, scored.entries, side.label)
