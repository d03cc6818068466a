"""How far a run is, read from its sidecars alone, while any number of processes are at work in it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders.runs import layout
from builders.runs.run_files import lost, manifest_in
from hfsyn.pages.html import table
from hfsyn.runs.leases import made_again
from hfsyn.runs.run import Run, load_run, unreadable_classes, unused_weights
from hfsyn.runs.scores import scores_of
from hfsyn.runs.selection_rule import Rule, selection_of
from hfsyn.runs.shards import sidecars


@dataclass(frozen=True, slots=True)
class StageStatus:
    """How far one stage is."""

    stage: str
    shards_done: int
    shards: int | None  # None until it is known
    rows: int
    rejected: int
    seconds: float  # sum over the finished shards, over all processes


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is, read from its folder alone."""

    folder: str
    name: str
    fingerprint: str
    finished: bool
    stages: tuple[StageStatus, ...]
    source_rows: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What lies in the source and is not in its index: how many by reason."""
    unreadable_classes: tuple[Mapping[str, Any], ...] = ()
    """The classes of which no image could be read; see `hfsyn.runs.run.unreadable_classes`."""
    unused_weights: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Weights of the models that are not used: how many by stage and kind."""
    scores: tuple[StageStatus, ...] = ()
    """Of each judge, by its name."""
    selection: str | None = None
    """The rule that has chosen the rows of a selection."""
    made_again: int = 0
    """Shards in object storage that two jobs have made, with the same bytes."""
    lost: tuple[str, ...] = ()  # what the run had when it was finished and has no longer, each in a few words

    def _repr_html_(self) -> str:
        stages = (
            {
                "stage": stage.stage,
                "shards": f"{stage.shards_done} of {'?' if stage.shards is None else stage.shards}",
                "rows": stage.rows,
                "set aside": stage.rejected,
                "images/s per process": stage.rows / stage.seconds if stage.seconds else None,
            }
            for stage in self.stages
        )
        return table(stages, f"{self.name}: {self.folder}, {'finished' if self.finished else 'unfinished'}")


def status(run: Run | str | Path) -> RunStatus:
    """How far a run is. Reads sidecars only; any number of processes may be at work meanwhile.

    Args:
        run: the run folder.

    Raises:
        HfsynError: it is not a run folder, or its index, plan or manifest is damaged.
    """
    opened = run if isinstance(run, Run) else load_run(run)
    manifest = manifest_in(opened.folder)
    data_shards = None if opened.planned_rows is None else opened.data_shards()
    read, made = sidecars(opened.caption_shards()), sidecars(data_shards or [])
    stages = (
        _stage_status("caption", read, len(opened.caption_shards())),
        _stage_status("generate", made, None if data_shards is None else len(data_shards)),
    )
    unread = unreadable_classes(opened, (line for sidecar in read for line in sidecar.rejected))
    gone = () if manifest is None else tuple(lost(opened.folder, manifest))
    return RunStatus(
        f"{opened.folder}",
        opened.recipe.name,
        opened.fingerprint,
        manifest is not None and not gone,
        stages,
        opened.source_rows,
        opened.left_out,
        tuple(unread),
        unused_weights([*read, *made]),
        tuple(_of_judges(opened, data_shards or [])),
        None if (chosen := selection_of(opened.folder)) is None else Rule(**chosen["rule"]).text(),
        made_again(opened.folder),
        gone,
    )


def _of_judges(run: Run, data: Sequence[Path]) -> Iterator[StageStatus]:
    """How far each judge is; of those whose scores a selection has taken over, what its table says."""
    scores, known = run.folder / layout.SCORES, scores_of(run.folder)
    there = sorted(path.name for path in scores.iterdir() if path.is_dir()) if scores.is_dir() else []
    for name in there:
        yield _stage_status(name, sidecars([scores / name / shard.name for shard in data]), len(data))
    for name in sorted(set(known.judges if known else ()) - set(there)):
        yield StageStatus(name, len(data), len(data), known.rows if known else 0, 0, 0.0)


def _stage_status(stage: str, done: Sequence[layout.Sidecar], shards: int | None) -> StageStatus:
    rows, rejected = sum(sidecar.rows for sidecar in done), sum(len(sidecar.rejected) for sidecar in done)
    rejected -= sum(line.get("stage") == "select" for sidecar in done for line in sidecar.rejected)
    return StageStatus(stage, len(done), shards, rows, rejected, round(sum(sidecar.seconds for sidecar in done), 3))
