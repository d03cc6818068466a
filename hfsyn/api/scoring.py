"""Scores, selections and audits: what judges say of each image, the rows that a rule keeps, what a classifier lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfsyn.errors import HfsynError

if TYPE_CHECKING:
    from hfsyn.judging.audit.audit import Audit
    from hfsyn.judging.scores.scoring import Scoring
    from hfsyn.recipes.recipe import Recipe
    from hfsyn.runs.selection import Selection


def score(
    run: str | Path,
    judge: str | Sequence[str] = (),
    *,
    training: str | Path | None = None,
    out: str | Path | None = None,
    config_name: str | None = None,
    overwrite: bool = False,
    device: str | None = None,
    num_processes: int | None = None,
    budget_hours: float | None = None,
    quiet: bool = False,
) -> Scoring | None:
    """Let judges say something of each image of a set, and keep that by sample id. Running it again continues.

    Args:
        run: a finished run folder, or ``USER/NAME@VERSION``.
        judge: one or several, ``[NAME=]JUDGE``; see `hfsyn.judging.scores.judges`.
        training: the folder of a recorded training on this set, which says what it has shown of each image: the judge
            ``record:TRAINING``, called ``worth``.
        out: the folder for the scores of a published set; those of a run are in its folder.
        config_name: a configuration of a published set; None is the default one.
        overwrite: delete the scores that a judge of this name has left.
        device: cpu or cuda; None is each process's own GPU, or the CPU.
        num_processes: processes on this machine; None is one per GPU or CPU core, but no more than there are shards.
        budget_hours: hours after which no other shard is begun; None is no limit.
        quiet: no progress.

    Returns:
        Where the scores are and who gave them; None in the other processes of a launch.

    Raises:
        HfsynError: there is no such set or judge; a judge does not have the classes of the set; the name of a judge
            has the scores of another one; with exit code 4, some shards are still missing.
    """
    from hfsyn.judging.scores.scoring import score_set
    from hfsyn.runs.options import WorkOptions

    judges = [judge] if isinstance(judge, str) else list(judge)
    judges += [] if training is None else [f"worth=record:{training}"]
    if not judges:
        raise HfsynError("Nobody judges.", "--judge JUDGE, or --from TRAINING of a recorded training.")
    options = WorkOptions(device=device, num_processes=num_processes, budget_hours=budget_hours, quiet=quiet)
    how: dict[str, Any] = {"out": out, "config_name": config_name, "overwrite": overwrite, "options": options}
    return score_set(str(run), judges, **how)


def select(
    run: str | Path,
    out: str | Path | None = None,
    *,
    where: str | None = None,
    per_class: int | None = None,
    by: str | None = None,
    scores: str | Path | None = None,
    columns: bool = False,
    dry_run: bool = False,
    config_name: str | None = None,
    token: str | bool | None = None,
    quiet: bool = False,
    tell: Callable[[Selection], object] | None = None,
) -> Selection:
    """Keep the rows of a set that a rule on scores and columns keeps, as a run folder of its own. Continues.

    Args:
        run: a finished run folder, or ``USER/NAME@VERSION``.
        out: the new run folder; not needed with `dry_run`.
        where: what is true for the rows to keep, as after SQL's WHERE: ``p_label >= 0.5 and not copy``. It may name the
            columns of the set and of its scores, and use DuckDB's functions whose result follows from their arguments.
        per_class: of these at most this many of each class: first the best of each real image, then second ones.
        by: the column whose largest values go first; with a minus before it, the smallest. None takes them in the
            order of the set, which is random.
        scores: the folder of the scores of a published set, as ``score --out`` wrote it.
        columns: give each row its scores as columns; then no shard can be linked, and all are written again.
        dry_run: write nothing.
        config_name: a configuration of a published set; None is the default one.
        token: of the Hub; None is the stored one.
        quiet: no progress.
        tell: called with what the rule keeps, before anything is written.

    Returns:
        How many rows of each class stay, and why the others go.

    Raises:
        HfsynError: there is no such set or column; the condition is not one; the rule keeps nothing, or nothing of a
            class; `out` holds something else.
    """
    from hfsyn.errors import HfsynError
    from hfsyn.runs.selection import select_rows
    from hfsyn.runs.selection_rule import Rule

    if out is None and not dry_run:
        raise HfsynError("Nothing says where the rows go.", "Say it: --out RUN; or --dry-run to write nothing.")
    how: dict[str, Any] = {
        "scores": scores,
        "columns": columns,
        "config_name": config_name,
        "token": token,
        "dry_run": dry_run,
    }
    return select_rows(str(run), Rule(where, per_class, by), out or ".", **how, tell=tell, quiet=quiet)


def audit(
    model: str | Path,
    factors: str | Path,
    out: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    generator: str | None = None,
    overrides: str | Sequence[str] = (),
    images: int = 1600,
    confirm: int | None = None,
    repair: int = 300,
    classes: str | Sequence[str] | None = None,
    reader: str | None = None,
    seed: int = 0,
    device: str | None = None,
    num_processes: int | None = None,
    budget_hours: float | None = None,
    quiet: bool = False,
) -> Audit | None:
    """Say in words what a classifier lacks, by images of all classes with all levels of some factors.

    Args:
        model: any classifier of `hfsyn.evaluate`, by its name or folder.
        factors: what varies: a shipped factor file (``shapes``, ``photo-basics``), or a YAML file.
        out: the folder of the audit, where the same call continues; its images are run folders in it.
        recipe: who draws, and of which classes: as for `hfsyn.build`. None is the one that the factor file names.
        generator: generate with this model of `generators.ls`, or the YAML file of one.
        overrides: ``key=value`` for a field of the recipe, such as ``generate.steps=20``.
        images: images in which each level and each pair of levels occurs about equally often.
        confirm: at most that many new images of what seems wrong in those, which alone decide; None is half as many.
        repair: images of the repair recipe; 0 writes none.
        classes: names or wnids, as a list or separated by commas; None is all that the classifier has.
        reader: reads back what an image shows: a captioner of `captioners.ls`, ``vlm:`` and one that is asked, or
            ``none``. None is the recipe's captioner, or the small one where the small one draws.
        seed: of the design.
        device: cpu or cuda; None is each process's own GPU, or the CPU.
        num_processes: processes on this machine; None is one per GPU or CPU core, but no more than there are shards.
        budget_hours, quiet: hours after which no other shard is begun, None is no limit; no progress.

    Returns:
        ``findings``, the most costly first, each with its ``sentence``, ``cost`` (of the accuracy over all images, 0 to
        1), ``levels`` and the accuracies ``here`` and ``elsewhere``; ``suspects`` with theirs ``first`` and ``again``;
        ``right``, the accuracy; ``effects`` with the ``share`` of the variance that each explains and ``q``, the rate
        of false discoveries; ``levels`` and ``pairs`` with their accuracies; ``left_out`` and ``remarks``; ``repair``
        and ``page``, the paths of the recipe and the page. None in the other processes of a launch.

    Raises:
        HfsynError: there is no such classifier, factor file, recipe, class or reader; the classifier has fewer than two
            of the classes; there are fewer images than levels; `out` holds something else; with exit code 4, some
            images are still missing.
    """
    from hfsyn.judging.audit.audit import audit as audited
    from hfsyn.runs.options import WorkOptions

    names = classes.split(",") if isinstance(classes, str) else classes or ()
    how: dict[str, Any] = {"recipe": recipe, "images": images, "confirm": confirm, "repair": repair, "reader": reader}
    how |= {"seed": seed, "classes": [name.strip() for name in names if name.strip()], "generator": generator}
    how |= {"overrides": [overrides] if isinstance(overrides, str) else overrides}
    options = WorkOptions(device=device, num_processes=num_processes, budget_hours=budget_hours, quiet=quiet)
    return audited(str(model), str(factors), out, options=options, **how)
