"""Run a matrix: train and test every cell that is not there yet, keep what failed, sum up.

OUT/matrix.yaml                                    as it was resolved
OUT/cells/ARM/MODEL/SETTING/seed-S/training/       the classifier
OUT/cells/ARM/MODEL/SETTING/seed-S/results.json    written last: the cell is done, as far as it has the tests asked for
OUT/cells/ARM/MODEL/SETTING/seed-S/error.json      why it failed; it is tried again the next time
OUT/results.csv                                    one line a cell and test
OUT/summary.json                                   means, intervals, paired differences
"""

from __future__ import annotations

import functools
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builders.files import atomic_text, disk_error
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.bench.matrix import Cell, Matrix, cell_config, cell_tests, cells, dump_matrix, load_matrix
from hfsyn.judging.bench.summaries import CSV, SUMMARY, csv_text, read_cells, summarise, table_text
from hfsyn.judging.bench.task_pool import Submit, crew
from hfsyn.judging.measures.metrics import dump_result

MATRIX, RESULTS, ERROR, TRAINING = "matrix.yaml", "results.json", "error.json", "training"
_EMPTY: dict[str, Any] = {"cell": {"tests": {}}, "training": {}, "tests": {}, "seconds": 0.0}

Trainer = Callable[[Any, Path], dict[str, Any]]
"""``train(config, out)``: trains a TrainConfig in a folder and returns its result."""
Evaluator = Callable[[Path, str, str | None], dict[str, Any]]
"""``evaluate(model, dataset, split)``: the result of a test."""
Look = Callable[[str, str | None, Sequence[str], int | None], str | None]
"""``look(dataset, split, default splits, limit)``: the fingerprint of the images there now; None where nobody can tell.
"""


def bench(
    matrix: str | Path | Matrix | dict[str, Any],
    out: str | Path,
    *,
    train: Trainer | None = None,
    evaluate: Evaluator | None = None,
    look: Look | None = None,
    num_processes: int | None = 1,
    num_workers: int = 0,
    device: str | None = None,
    submit: Submit | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Carry out a matrix in a folder. Running it again does what is missing and what failed.

    A test that a matrix has more than the last time is run alone; one that it has no more stays in the cell's file.

    Args:
        matrix: a YAML file, its fields, or a Matrix.
        out: the folder; another matrix's cells in it are refused.
        train, evaluate, look: in place of `hfsyn.judging.train.loop.train`, `hfsyn.judging.measures.evaluate.evaluate`
            and             `hfsyn.judging.sets.image_set.open_images`. With a `train` of its own nothing is looked at.
        num_processes: cells at once; None is one a GPU, or one a core. Each then uses one torch thread or one GPU.
        num_workers: processes that decode, beside each of those.
        device: a torch device for all.
        submit: an open crew to use, instead of `num_processes`.
        quiet: no progress.

    Returns:
        What summary.json holds: ``rows`` (mean and interval of each arm), ``differences`` (paired), ``failed``.

    Raises:
        HfsynError: see `load_matrix`; or a cell in `out` was made with other settings, or of images that have changed.
    """
    matrix, folder = load_matrix(matrix), Path(out).expanduser()
    wanted = list(cells(matrix))
    configs = {cell: cell_config(matrix, cell) for cell in wanted}  # every mistake is said before the first training
    settings = {cell: _settings(matrix, cell, configs[cell]) for cell in wanted}
    there = {cell: _result(folder / cell.folder) for cell in wanted}
    images = look or (functools.cache(_look) if train is None else None)
    for cell in wanted:
        if (found := there[cell]) is not None:
            _refuse_other(folder / cell.folder, settings[cell], found["cell"])
            if images is not None:
                _refuse_changed(folder / cell.folder, configs[cell], found, images)
    atomic_text(folder / MATRIX, dump_matrix(matrix))
    missing = {}
    for cell in wanted:
        done = (there[cell] or _EMPTY)["tests"]
        missing[cell] = {name: test for name, test in cell_tests(matrix, cell).items() if name not in done}
    todo = [cell for cell in wanted if there[cell] is None or missing[cell]]
    work = Work(train or _Train(device, num_workers), evaluate or _Evaluate(device, num_workers))
    jobs = [(folder / cell.folder, configs[cell], settings[cell], missing[cell], work) for cell in todo]
    told = None if quiet else matrix.name
    if submit is not None:
        _run(submit, todo, jobs, told)
    elif jobs:
        with crew(num_processes, device=device) as opened:
            _run(opened, todo, jobs, told)
    outcomes = read_cells(matrix, folder)
    summary = summarise(matrix, outcomes)
    atomic_text(folder / CSV, csv_text(matrix, outcomes))
    atomic_text(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    if not quiet:
        print(table_text(summary), file=sys.stderr)
    return summary


def failures(summary: dict[str, Any], out: str | Path) -> HfsynError | None:
    """The error with which the command ends where cells failed (exit code 4); None where none did."""
    failed = summary["failed"]
    if not failed:
        return None
    first = failed[0]
    return HfsynError(
        f"{len(failed)} of {summary['cells']} cells failed, the first one ({first['cell']}) with: {first['error']}",
        f"The others are done. Run the same command again to try these again; see {ERROR} in {out}.",
        code=ExitCode.PARTIAL,
    )


def _run(submit: Submit, todo: Sequence[Cell], jobs: Sequence[tuple[Any, ...]], told: str | None) -> None:
    """Do the jobs; `told` is the name under which progress is told."""
    started = time.monotonic()
    futures = [_submitted(submit, job) for job in jobs]
    for number, (cell, job, future) in enumerate(zip(todo, jobs, futures, strict=True), start=1):
        try:
            line = future.result()
        except BrokenProcessPool:  # which takes down the whole crew: what is left is for the next time
            _write_error(job[0], "A process of the crew died, perhaps for want of memory.", "", "")
            line = "failed: a process of the crew died"
        if told is not None:
            where = " ".join(str(part) for part in cell.folder.parts[1:])
            seconds = time.monotonic() - started
            print(f"{told} {number}/{len(todo)}, {seconds:.0f} s: {where}: {line}", file=sys.stderr, flush=True)


def _submitted(submit: Submit, job: tuple[Any, ...]) -> Future[Any]:
    """The job's future; a failed one where the crew is broken already."""
    try:
        return submit(run_cell, *job)
    except BrokenProcessPool as error:
        broken: Future[Any] = Future()
        broken.set_exception(error)
        return broken


@dataclass(frozen=True)
class Work:
    """Who trains and who tests; it goes to other processes."""

    train: Trainer
    evaluate: Evaluator


def run_cell(
    folder: Path, config: Any, settings: dict[str, Any], tests: dict[str, tuple[str, str | None]], work: Work
) -> str:
    """Train one cell and run those tests that it lacks, write its results.json or error.json, and say in a few words
    how it went. A test that fails leaves those before it.
    """
    started = time.monotonic()
    before = _result(folder)
    trained: dict[str, Any] | None = None
    found: dict[str, Any] = {}
    said = None
    try:
        trained = work.train(config, folder / TRAINING)  # which does nothing where it is done
        for name, (dataset, split) in tests.items():
            found[name] = work.evaluate(folder / TRAINING, dataset, split)
    except HfsynError as error:
        said = error.message
        _write_error(folder, said, error.hint, "")
    except Exception as error:  # the others go on; a fault of ours keeps its traceback in the cell
        if disk_error(error) is not None:  # which would meet them too
            raise
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        _write_error(folder, said, "", traceback.format_exc())
    else:
        (folder / ERROR).unlink(missing_ok=True)
    if trained is not None and (found or said is None):
        old = before or _EMPTY
        # Tests of an older matrix stay, with what they were; one that failed may be changed.
        asked = {**old["cell"]["tests"], **{name: settings["tests"][name] for name in found}}
        result = {
            "cell": {**settings, "tests": asked},
            "training": old["training"]
            or {key: trained.get(key) for key in ("training", "software", "device") if trained.get(key)},
            "tests": {**old["tests"], **found},
            "seconds": round(old["seconds"] + time.monotonic() - started, 1),
        }
        atomic_text(folder / RESULTS, dump_result(result))
    if said is not None:
        return f"failed: {said}"
    return ", ".join(f"{name} {test['metrics']['top1']['value']:.3f}" for name, test in found.items())


@dataclass(frozen=True)
class _Train:
    """The real trainer; a class, so that it can be sent to another process."""

    device: str | None
    workers: int

    def __call__(self, config: Any, out: Path) -> dict[str, Any]:
        from hfsyn.judging.train.loop import RunOptions, train

        return train(config, out, RunOptions(device=self.device, num_workers=self.workers, quiet=True))


@dataclass(frozen=True)
class _Evaluate:
    device: str | None
    workers: int

    def __call__(self, model: Path, dataset: str, split: str | None) -> dict[str, Any]:
        from hfsyn.judging.measures.evaluate import evaluate

        return evaluate(model, dataset, split=split, device=self.device, num_workers=self.workers, quiet=True)


# --- what is there already ---------------------------------------------------------------------------------------


def _result(folder: Path) -> dict[str, Any] | None:
    """A cell's results.json."""
    path = folder / RESULTS
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def _settings(matrix: Matrix, cell: Cell, config: Any) -> dict[str, Any]:
    """All that decides a cell's numbers, as its results.json keeps it."""
    tests = {name: list(test) for name, test in cell_tests(matrix, cell).items()}
    return {**asdict(cell), "config": config.model_dump(mode="json", exclude={"test"}), "tests": tests}


def _refuse_other(folder: Path, settings: dict[str, Any], there: dict[str, Any]) -> None:
    """Refuse a cell of other settings. A test that only one of the two has is none of them."""
    shared = settings["tests"].keys() & there["tests"].keys()
    mine, theirs = (
        dict(_leaves({**one, "tests": {name: one["tests"][name] for name in sorted(shared)}}))
        for one in (settings, there)
    )
    if other := [key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key)]:
        key = other[0]
        raise HfsynError(
            f"{folder} was made with another matrix: {key} is {theirs.get(key)!r} there, {mine.get(key)!r} here.",
            "Name another --out, or delete that folder.",
        )


def _refuse_changed(folder: Path, config: Any, result: dict[str, Any], look: Look) -> None:
    """Refuse a finished cell whose images are others now: its numbers are of images that nobody has any more.

    Only labels are read. A set that has gone, or that is on a Hub out of reach, cannot be compared: its numbers stand.
    """
    from hfsyn.judging.sets.image_set import TEST, TRAIN

    data = config.data
    sets = result["training"].get("training", {}).get("sets", [])
    known: list[tuple[str, str | None, Sequence[str], int | None, dict[str, Any]]] = [
        (text, data.train_split, TRAIN, data.limit_per_class, facts)
        for text, facts in zip(data.train, sets, strict=False)
    ]
    for name, test in result["tests"].items():
        dataset, split = result["cell"]["tests"][name]
        known.append((dataset, split, TEST, None, test.get("dataset", {})))
    for text, split, default, limit, facts in known:
        if (then := facts.get("fingerprint")) is None:  # a stream
            continue
        now = look(text, split, tuple(default), limit)
        if now not in (None, then):
            raise HfsynError(
                f"The images of {text} have changed since {folder} was finished ({facts.get('images')} images then).",
                "Name another --out, or delete that folder; or name a fixed @REVISION and restore the files.",
            )


def _look(dataset: str, split: str | None, default: Sequence[str], limit: int | None) -> str | None:
    from hfsyn.judging.sets.image_set import open_images

    try:
        return open_images(dataset, split, default=default, limit=limit).fingerprint
    except (HfsynError, OSError):
        return None


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), value)]


def _write_error(folder: Path, message: str, hint: str, trace: str) -> None:
    text = json.dumps({"error": message, "hint": hint, "traceback": trace}, indent=1, ensure_ascii=False)
    atomic_text(folder / ERROR, text + "\n")
