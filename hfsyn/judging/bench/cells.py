"""Run a matrix: train and test every cell not yet done, record failures, sum up.

OUT/matrix.yaml                                    as resolved
OUT/cells/ARM/MODEL/SETTING/seed-S/training/       the classifier
OUT/cells/ARM/MODEL/SETTING/seed-S/results.json    written last: the cell is done, for the tests it lists
OUT/cells/ARM/MODEL/SETTING/seed-S/error.json      why it or a column of it failed; the next run retries that
OUT/sets/                                          comparisons of the arms' sets, see `hfsyn.judging.bench.columns`
OUT/baselines/                                     tests of published weights, see `hfsyn.judging.bench.baselines`
OUT/results.csv                                    a line per cell and test
OUT/summary.json                                   means, intervals, paired differences
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from builders.files import atomic_text, disk_error
from builders.stores.copies import on_disk
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.bench import columns
from hfsyn.judging.bench.baselines import Baseline, missing_baselines, run_baseline
from hfsyn.judging.bench.columns import Attacker, Comparer, Comparison, cell_attacks, missing_comparisons
from hfsyn.judging.bench.costs import costs
from hfsyn.judging.bench.matrix import Cell, Matrix, cell_config, cell_tests, cells, load_matrix
from hfsyn.judging.bench.outcomes import ERROR, RESULTS, read_json
from hfsyn.judging.bench.preflight import Look, look_at, refuse_changed, refuse_faults, refuse_other
from hfsyn.judging.bench.summaries import sum_up
from hfsyn.judging.bench.task_pool import Submit, task_pool
from hfsyn.judging.measures.metrics import dump_result
from hfsyn.recipes.loading import dump_part
from hfsyn.workers import check_device

MATRIX, TRAINING = "matrix.yaml", "training"
_EMPTY: dict[str, Any] = {"cell": {}, "training": {}, "tests": {}, "seconds": 0.0}

Trainer = Callable[[Any, Path], dict[str, Any]]
"""``train(config, out)``: trains by a TrainConfig in a folder; returns the result."""
Evaluator = Callable[[Any, str, str | None], dict[str, Any]]
"""``evaluate(model, dataset, split)``: the result of a test of a training's folder, or of a network of timm."""


@dataclass(frozen=True)
class How:
    """What does the work."""

    train: Trainer
    evaluate: Evaluator
    attack: Attacker
    compare: Comparer


@dataclass(frozen=True)
class Job:
    """What is left to do of a cell."""

    folder: Path
    config: Any  # its TrainConfig
    settings: dict[str, Any]  # what decides its numbers
    tests: dict[str, tuple[str, str | None]]
    attacks: dict[str, dict[str, Any]]
    how: How


def bench(
    matrix: str | Path | Matrix | dict[str, Any],
    out: str | Path,
    *,
    train: Trainer | None = None,
    evaluate: Evaluator | None = None,
    attack: Attacker | None = None,
    compare: Comparer | None = None,
    look: Look | None = None,
    num_processes: int | None = None,
    num_workers: int = 0,
    gradient_accumulation_steps: int = 1,
    device: str | None = None,
    submit: Submit | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a matrix in a folder. A rerun does only what is missing or failed.

    All sets are opened and all networks looked up before the first cell. Of a finished cell, only newly added columns
    are run; results of removed ones stay in its file. A column that fails leaves the others of its cell.

    Args:
        matrix: a YAML file, its fields, or a Matrix.
        out: the folder; it must not hold another matrix's cells.
        train, evaluate, attack, compare, look: replace what trains, tests, measures membership and fidelity, and the
            fingerprint of `open_images`. With a custom `train` and no `look`, fingerprints are not compared.
        num_processes: cells at once, each with one thread or GPU; None is one per GPU or core, or with `train` 1.
        num_workers: decoding processes for each of those.
        gradient_accumulation_steps: parts in which each step is computed.
        device: torch device for all.
        submit: an open task pool, used instead of `num_processes`.
        dry_run: open everything, and train nothing.
        quiet: no progress and no table.

    Returns:
        What summary.json holds, see `summarise`; with `dry_run` the ``cells``, each with the ``images`` of its training
        sets (None where they are streams) and its ``state``: to train, to test, or done; and the ``costs``.

    Raises:
        HfsynError: see `load_matrix`; a set or network is not there; or a cell in `out` has other settings or images.
    """
    folder, matrix = on_disk(out), load_matrix(matrix)
    own, images = train is not None, look or (cache(look_at) if train is None else None)
    train = train or partial(_train, device=device, workers=num_workers, accumulation=gradient_accumulation_steps)
    how = _how(train, evaluate, attack, compare, device, num_workers)
    wanted = list(cells(matrix))
    jobs = _missing(matrix, folder, wanted, images, how)
    sets, published = missing_comparisons(matrix, folder, images), missing_baselines(matrix, folder)
    if not own:
        check_device(device)
    sizes = {} if own else refuse_faults(matrix, jobs, sets, unbuilt=dry_run)
    if dry_run:
        planned = [_planned(cell, folder / cell.folder, jobs.get(cell), sizes) for cell in wanted]
        return {"cells": planned, "costs": costs(matrix, jobs, sizes)}
    atomic_text(folder / MATRIX, dump_part(matrix))
    run = partial(_run, jobs, sets, published, how, folder, None if quiet else matrix.name)
    if jobs or sets or published:
        _in_pool(run, submit, num_processes or (1 if own else None), device)
    return sum_up(matrix, folder, quiet=quiet)


def _in_pool(run: Callable[[Submit], None], submit: Submit | None, processes: int | None, device: str | None) -> None:
    if submit is not None:
        run(submit)
        return
    with task_pool(processes, device=device) as pool:
        run(pool)


def _how(train: Any, evaluate: Any, attack: Any, compare: Any, device: str | None, workers: int) -> How:
    return How(
        train,
        evaluate or partial(_evaluate, device=device, workers=workers),
        attack or partial(columns.attack, device=device),
        compare or partial(columns.compare, device=device),
    )


def _missing(matrix: Matrix, folder: Path, wanted: Sequence[Cell], images: Look | None, how: How) -> dict[Cell, Job]:
    """What is left to do of each cell; refuses what was made with another matrix."""
    configs = {cell: cell_config(matrix, cell) for cell in wanted}  # finds every mistake before the first training
    jobs: dict[Cell, Job] = {}
    for cell in wanted:
        place, settings = folder / cell.folder, _settings(matrix, cell, configs[cell])
        found = read_json(place / RESULTS)
        if found is not None:
            refuse_other(place, settings, found["cell"])
            if images is not None:
                refuse_changed(place, configs[cell], found, images)
        done = found or _EMPTY
        tests = {name: test for name, test in cell_tests(matrix, cell).items() if name not in done["tests"]}
        there = done.get("membership", {})
        attacks = {name: words for name, words in cell_attacks(matrix, cell).items() if name not in there}
        if found is None or tests or attacks:
            jobs[cell] = Job(place, configs[cell], settings, tests, attacks, how)
    return jobs


def _planned(cell: Cell, place: Path, job: Job | None, sizes: dict[Any, int | None]) -> dict[str, Any]:
    """What a dry run says of a cell and of what is left to do of it; `sizes` as of `refuse_faults`."""
    found = read_json(place / RESULTS)
    if job is not None:
        images = sizes.get(job.config.data.model_dump_json())
    else:
        sets = [facts.get("images") for facts in found["training"].get("training", {}).get("sets", [])] if found else []
        images = sum(sets) if sets and None not in sets else None
    state = "done" if job is None else "to train" if found is None else "to test"
    return {**cell.facts(), "images": images, "state": state}


def failures(summary: dict[str, Any], out: str | Path) -> HfsynError | None:
    """The error that the command ends with if cells or columns failed (exit code 4), else None."""
    failed, sets = summary["failed"], summary["failed_sets"]
    if not (failed or sets):
        return None
    first = (failed or sets)[0]
    what = f"{len(failed)} of {summary['cells']} cells failed or lack a column" if failed else ""
    what += f"{' and ' * bool(failed)}{len(sets)} of sets or published networks" if sets else ""
    others = "The others are done. " if len(failed) < summary["cells"] else ""
    return HfsynError(
        f"{what}, the first ({first['cell']}) with: {first['error']}",
        f"{others}Run the same command again to retry these; see each one's {ERROR} in {out}.",
        code=ExitCode.PARTIAL,
    )


def _run(
    jobs: dict[Cell, Job],
    sets: Sequence[Comparison],
    published: Sequence[Baseline],
    how: How,
    folder: Path,
    name: str | None,
    submit: Submit,
) -> None:
    """Run the jobs; progress is reported under the matrix's `name`, or not at all if None."""
    started = time.monotonic()
    tasks: list[tuple[str, Path | None, Future[Any]]] = [
        (f"{one.column} of {one.arm}", None, _submitted(submit, columns.run_comparison, folder, one, how.compare))
        for one in sets
    ]
    tasks += [
        (f"{one.model} on {one.dataset}", None, _submitted(submit, run_baseline, folder, one, how.evaluate))
        for one in published
    ]
    tasks += [
        (" ".join(cell.folder.parts[1:]), job.folder, _submitted(submit, run_cell, job)) for cell, job in jobs.items()
    ]
    for number, (what, place, future) in enumerate(tasks, start=1):
        try:
            line = future.result()
        except BrokenProcessPool:  # the whole pool is gone: what is left waits for the next run
            if place is not None:
                _write_error(place, "A pool process died, perhaps out of memory.")
            line = "failed: a pool process died"
        if name is not None:
            seconds = time.monotonic() - started
            print(f"{name} {number}/{len(tasks)}, {seconds:.0f} s: {what}: {line}", file=sys.stderr, flush=True)


def _submitted(submit: Submit, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """The task's future; already failed if the pool is broken."""
    try:
        return submit(function, *arguments)
    except BrokenProcessPool as error:
        broken: Future[Any] = Future()
        broken.set_exception(error)
        return broken


def run_cell(job: Job) -> str:
    """Train a cell and fill its missing columns, each failing on its own; write results.json, error.json or both.

    Returns a one-line summary.
    """
    started = time.monotonic()
    old = read_json(job.folder / RESULTS) or _EMPTY
    model, faults = job.folder / TRAINING, Faults(job.folder)
    tested: dict[str, Any] = {}
    attacked: dict[str, Any] = {}
    trained = faults.kept(None, job.how.train, job.config, model)  # does nothing if already trained
    if trained is not None:
        for name, (dataset, split) in job.tests.items():
            if (found := faults.kept(name, job.how.evaluate, model, dataset, split)) is not None:
                tested[name] = found
        for name, words in job.attacks.items():
            if (found := faults.kept(name, job.how.attack, model, **words)) is not None:
                attacked[name] = found
    faults.write()
    if trained is not None and (tested or attacked or not faults.found):
        # An older matrix's columns and their settings stay; a failed one may be redefined.
        there, mine = old["cell"], job.settings
        asked = {
            kind: {**there.get(kind, {}), **{name: mine[kind][name] for name in found}}
            for kind, found in (("tests", tested), ("membership", attacked))
        }
        facts = {key: trained[key] for key in ("training", "model", "software", "device") if trained.get(key)}
        result = {
            "cell": {**mine, **asked},
            "training": old["training"] or facts,
            "tests": {**old["tests"], **tested},
            "membership": {**old.get("membership", {}), **attacked},
            "seconds": round(old["seconds"] + time.monotonic() - started, 1),
        }
        atomic_text(job.folder / RESULTS, dump_result(result))
    said = [f"{name} {test['metrics']['top1']['value']:.3f}" for name, test in tested.items()]
    said += [f"{name} {found['loss']['auc']['value']:.3f}" for name, found in attacked.items()]
    said += [f"{name + ' ' if name else ''}failed: {error.message}" for name, error in faults.found.items()]
    return ", ".join(said)


class Faults:
    """What failed in a cell: under the name of the column, or under None if it is the training."""

    def __init__(self, folder: Path) -> None:
        self.found: dict[str | None, HfsynError] = {}
        self._folder, self._trace = folder, ""

    def kept(self, name: str | None, work: Callable[..., Any], *arguments: Any, **words: Any) -> Any:
        """What the work returns; None if it failed, which is kept: the other columns and cells go on."""
        try:
            return work(*arguments, **words)
        except HfsynError as error:
            self.found[name] = error
        except Exception as error:
            if disk_error(error) is not None:  # the others would hit it too
                raise
            self.found[name] = HfsynError(f"{type(error).__name__}: {error}".splitlines()[0])
            self._trace = self._trace or traceback.format_exc()
        return None

    def write(self) -> None:
        """Write error.json, or remove that of an earlier time."""
        if not self.found:
            (self._folder / ERROR).unlink(missing_ok=True)
            return
        first = next(iter(self.found.values()))
        named = {name: error.message for name, error in self.found.items() if name is not None}
        _write_error(self._folder, first.message, first.hint, self._trace, named)


def _train(config: Any, out: Path, *, device: str | None, workers: int, accumulation: int) -> dict[str, Any]:
    from hfsyn.judging.train.loop import RunOptions, train

    return train(config, out, RunOptions(device=device, num_workers=workers, accumulation=accumulation, quiet=True))


def _evaluate(
    model: Path | str, dataset: str, split: str | None, *, device: str | None, workers: int
) -> dict[str, Any]:
    from hfsyn.judging.measures.evaluate import evaluate

    return evaluate(model, dataset, split=split, device=device, num_workers=workers, quiet=True)


def _write_error(
    folder: Path, message: str, hint: str = "", trace: str = "", named: dict[str, str] | None = None
) -> None:
    found = {"error": message, "hint": hint, "traceback": trace, "columns": named or {}}
    atomic_text(folder / ERROR, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _settings(matrix: Matrix, cell: Cell, config: Any) -> dict[str, Any]:
    """What decides a cell's numbers, as stored in its results.json."""
    tests = {name: list(test) for name, test in cell_tests(matrix, cell).items()}
    asked = {"tests": tests, "membership": cell_attacks(matrix, cell)}
    return {**asdict(cell), "config": config.model_dump(mode="json", exclude={"test"}), **asked}
