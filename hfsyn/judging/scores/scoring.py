"""Score a set: let judges say something of each of its images, in any number of processes, and keep what they say."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builders.errors import plural, quoted
from builders.published import RunFolder, open_reference
from builders.runs import layout, run_files
from builders.stores.copies import on_disk
from hfsyn.errors import ExitCode, HfsynError, make_out
from hfsyn.judging.scores.judges import Place, Spec, open_judge, parse_judge
from hfsyn.launching import launch, stopped
from hfsyn.recipes.factor_file import ASKED, read_asked
from hfsyn.runs.claims import mark_of, working_in
from hfsyn.runs.finish import reseal
from hfsyn.runs.options import WorkOptions
from hfsyn.runs.run import load_run
from hfsyn.runs.scores import Judge, Scored, Scores, check_judge, gather, score_by
from hfsyn.workers import (
    check_device,
    check_launcher,
    current_worker,
    default_processes,
    is_child,
    is_launched,
    leave_group,
    pick_device,
)


@dataclass(frozen=True)
class Scoring:
    """What was scored."""

    label: str
    table: str  # path of the scores
    scores: Scores

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"set": self.label, "table": self.table, **asdict(self.scores)}

    def lines(self) -> list[str]:
        """For people: what each judge says, and of how many rows."""
        found = []
        for name, judge in self.scores.judges.items():
            without = f", {plural(judge['rejected'], 'row')} without" if judge["rejected"] else ""
            found.append(f"{name}: {', '.join(judge['columns'])}{without}")
        return [*found, f"{plural(self.scores.rows, 'row')} scored"]


def score_set(
    what: str,
    judges: Sequence[str],
    *,
    out: str | Path | None,
    config_name: str | None,
    overwrite: bool,
    options: WorkOptions,
) -> Scoring | None:
    """See `hfsyn.api.scoring.score`, whose arguments and errors these are; None in all but one process."""
    check_device(options.device)
    check_launcher()
    specs = [parse_judge(text) for text in judges]
    if twice := sorted({one.name for one in specs if [s.name for s in specs].count(one.name) > 1}):
        raise HfsynError(f"Two judges are called {quoted(twice)}.", "Name one of them: --judge NAME=JUDGE.")
    scored = opened(what, out, config_name)
    processes = options.num_processes or min(default_processes(), max(1, len(scored.starts)))
    several = processes > 1 and not is_launched()
    # Where others will work, this process only looks whether they can, and leaves the GPUs to them.
    opened_here = _opened(specs, scored, "cpu" if several else pick_device(options.device), overwrite=overwrite)
    left = [judge for judge in opened_here if not all(map(scored.current, scored.shards(judge.name)))]
    if left and several:
        _in_several(what, judges, out, config_name, options, processes, scored, left)
    else:
        short = [judge for judge in left if not score_by(scored, judge, options)]
        if short and not is_child() and current_worker().is_main:
            raise _out_of_time(scored, short[0], options)
    leave_group()
    if is_child() or not current_worker().is_main:
        return None
    return Scoring(scored.side.label, str(scored.folder / layout.SCORES_TABLE), finish_scores(scored))


def opened(what: str, out: str | Path | None, config_name: str | None) -> Scored:
    """A finished set, and the folder for its scores. Raises HfsynError if there is none, or nowhere to write to."""
    folder = None if out is None else on_disk(out)
    side = open_reference(what, config_name)
    if isinstance(side, RunFolder):
        if folder is not None:
            raise HfsynError(f"{what} is a run folder, which keeps its scores itself.", "Leave --out out.")
        if run_files.finished(side.folder) is None:
            said = f"The run {what} is not finished: its images are not all there."
            raise HfsynError(said, f"`hfsyn status {what}` shows what is missing.")
        return Scored(side, side.folder, mark_of(side.folder))
    if folder is None:
        raise HfsynError(f"{what} is on the Hub.", "Say where its scores go: --out FOLDER")
    if layout.is_run_folder(folder):
        raise HfsynError(f"--out {out} is a run folder, which keeps its own scores.", "Name another --out.")
    make_out(folder)
    return Scored(side, folder)


def _opened(specs: Sequence[Spec], scored: Scored, device: str, *, overwrite: bool) -> list[Judge]:
    """The judges, opened before any of them looks at an image, and room for their scores."""
    side = scored.side
    classes = {entry["wnid"]: entry["name"] for entry in side.manifest().raw.get("classes", ())}
    if isinstance(side, RunFolder) and (run := load_run(side.folder)).recipe.of_prompts:
        # A class that these prompts do not draw is not out of the question: in an audit none that it asks about.
        asked = read_asked(side.folder.parent).classes if (side.folder.parent / ASKED).exists() else run.classes
        classes = {wnid: run.classes[wnid].name for wnid in asked}
    named = str(side.folder) if isinstance(side, RunFolder) else f"{side.repo_id}@{side.sha}#{side.config_name}"
    place = Place(scored, classes, device, named)
    found = [open_judge(spec, place) for spec in specs]
    for judge in found:
        check_judge(scored, judge, overwrite=overwrite)
    return found


def _in_several(
    what: str,
    judges: Sequence[str],
    out: str | Path | None,
    config_name: str | None,
    options: WorkOptions,
    processes: int,
    scored: Scored,
    left: Sequence[Judge],
) -> None:
    """The same command in several processes, which leave the joining to this one."""
    words = [word for text in judges for word in ("--judge", text)]
    words += [] if out is None else ["--out", str(out)]
    words += [] if config_name is None else ["--config-name", config_name]
    marks = scored.folder / layout.SIDECARS / layout.SCORES
    code = launch(
        ["score", what, *words, *options.arguments()],
        processes,
        device=options.device,
        progress=lambda: len(list(marks.glob("*/*.json"))),
    )
    for judge in left:
        if not all(map(scored.current, scored.shards(judge.name))):
            if not code and options.budget_hours is not None:
                raise _out_of_time(scored, judge, options)
            raise stopped(
                "The processes stopped before all scores were there; what they finished is kept.",
                "The cause stands above. Run the same command again to continue.",
                code,
            )


def _out_of_time(scored: Scored, judge: Judge, options: WorkOptions) -> HfsynError:
    paths = scored.shards(judge.name)
    done = sum(scored.current(path) is not None for path in paths)
    return HfsynError(
        f"The budget of {options.budget_hours:g} hours has no room for another shard: {done} of {len(paths)} shards of "
        f"{judge.name} are done and kept.",
        "Run the same command again to continue.",
        code=ExitCode.PARTIAL,
    )


def finish_scores(scored: Scored) -> Scores:
    """Join what all judges say, and say so in the manifest and the card of a run."""
    with working_in(scored.folder, scored.mark):
        found = gather(scored)
        if isinstance(scored.side, RunFolder):
            reseal(scored.side.folder)
    return found
