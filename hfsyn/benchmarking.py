"""Run a matrix: train and test every cell that is not there yet, keep what failed, sum up.

OUT/matrix.yaml                                    as it was resolved
OUT/cells/ARM/MODEL/SETTING/seed-S/training/       the classifier
OUT/cells/ARM/MODEL/SETTING/seed-S/results.json    written last: the cell is done
OUT/cells/ARM/MODEL/SETTING/seed-S/error.json      why it failed; it is tried again the next time
OUT/results.csv                                    one line a cell and test
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from builders.errors import DataError
from hfsyn.crews import Submit, crew
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.matrix import Cell, Matrix, cell_config, cells, dump_matrix, load_matrix, place
from hfsyn.shards import atomic_text
from hfsyn.summaries import CSV, SUMMARY, csv_text, read_cells, summarise, table_text

MATRIX, RESULTS, ERROR, TRAINING = "matrix.yaml", "results.json", "error.json", "training"

Trainer = Callable[[Any, Path], dict[str, Any]]
"""``train(config, out)``: trains a TrainConfig in a folder and returns its result."""
Evaluator = Callable[[Path, str, str | None], dict[str, Any]]
"""``evaluate(model, dataset, split)``: the result of a test."""


def bench(
    matrix: str | Path | Matrix | dict[str, Any],
    out: str | Path,
    *,
    train: Trainer | None = None,
    evaluate: Evaluator | None = None,
    num_processes: int | None = 1,
    device: str | None = None,
    submit: Submit | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Carry out a matrix in a folder. Running it again does what is missing and what failed.

    Args:
        matrix: a YAML file, its fields, or a Matrix.
        out: the folder; another matrix's cells in it are refused.
        train, evaluate: in place of `hfsyn.training.train` and `hfsyn.evaluation.evaluate`.
        num_processes: cells at once; None is one a GPU, or one a core. Each then uses one torch thread or one GPU.
        device: a torch device for all.
        submit: an open crew to use, instead of `num_processes`.
        quiet: no progress.

    Returns:
        What summary.json holds: ``rows`` (mean and interval of each arm), ``differences`` (paired), ``failed``.

    Raises:
        HfsynError: see `load_matrix`; or a cell in `out` was made with other settings.
    """
    matrix, folder = load_matrix(matrix), Path(out).expanduser()
    wanted = list(cells(matrix))
    configs = {cell: cell_config(matrix, cell) for cell in wanted}  # every mistake is said before the first training
    settings = {cell: _settings(matrix, cell, configs[cell]) for cell in wanted}
    for cell in wanted:
        _refuse_other(folder / cell.folder, settings[cell])
    atomic_text(folder / MATRIX, dump_matrix(matrix))
    todo = [cell for cell in wanted if not (folder / cell.folder / RESULTS).exists()]
    jobs = [
        (folder / cell.folder, configs[cell], settings[cell], _tests(matrix, cell), train, evaluate, device)
        for cell in todo
    ]
    told = None if quiet else matrix.name
    if submit is not None:
        _run(submit, todo, jobs, told)
    elif jobs:
        with crew(num_processes, device=device) as opened:
            _run(opened, todo, jobs, told)
    summary = summarise(matrix, read_cells(matrix, folder))
    atomic_text(folder / CSV, csv_text(matrix, read_cells(matrix, folder)))
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


def run_cell(
    folder: Path,
    config: Any,
    settings: dict[str, Any],
    tests: dict[str, tuple[str, str | None]],
    train: Trainer | None = None,
    evaluate: Evaluator | None = None,
    device: str | None = None,
) -> str:
    """Train and test one cell, write its results.json or error.json, and say in a few words how it went."""
    train, evaluate = train or _Train(device), evaluate or _Evaluate(device)
    started = time.monotonic()
    try:
        trained = train(config, folder / TRAINING)
        found = {name: evaluate(folder / TRAINING, dataset, split) for name, (dataset, split) in tests.items()}
    except (HfsynError, DataError) as error:
        _write_error(folder, error.message, error.hint, "")
        return f"failed: {error.message}"
    except Exception as error:  # the others go on; a fault of ours keeps its traceback in the cell
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        _write_error(folder, said, "", traceback.format_exc())
        return f"failed: {said}"
    result = {
        "cell": settings,
        "training": {key: trained.get(key) for key in ("training", "software", "device") if trained.get(key)},
        "tests": found,
        "seconds": round(time.monotonic() - started, 1),
    }
    (folder / ERROR).unlink(missing_ok=True)
    atomic_text(folder / RESULTS, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return ", ".join(f"{name} {test['metrics']['top1']['value']:.3f}" for name, test in found.items())


class _Train:
    """The real trainer; a class, so that it can be sent to another process."""

    def __init__(self, device: str | None) -> None:
        self.device = device

    def __call__(self, config: Any, out: Path) -> dict[str, Any]:
        from hfsyn.training import RunOptions, train

        return train(config, out, RunOptions(device=self.device, quiet=True))


class _Evaluate:
    def __init__(self, device: str | None) -> None:
        self.device = device

    def __call__(self, model: Path, dataset: str, split: str | None) -> dict[str, Any]:
        from hfsyn.evaluation import evaluate

        return evaluate(model, dataset, split=split, device=self.device, quiet=True)


def _tests(matrix: Matrix, cell: Cell) -> dict[str, tuple[str, str | None]]:
    """The cell's tests: dataset and split of each."""
    return {
        name: (place(test.dataset, cell.seed), test.split)
        for name, test in matrix.tests.items()
        if test.arms is None or cell.arm in test.arms
    }


def _settings(matrix: Matrix, cell: Cell, config: Any) -> dict[str, Any]:
    """All that decides a cell's numbers, as its results.json keeps it."""
    tests = {name: list(test) for name, test in _tests(matrix, cell).items()}
    return {**asdict(cell), "config": config.model_dump(mode="json", exclude={"test"}), "tests": tests}


def _refuse_other(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / RESULTS
    if not path.exists():
        return
    there = json.loads(path.read_text(encoding="utf-8"))["cell"]
    mine, theirs = dict(_leaves(settings)), dict(_leaves(there))
    if other := [key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key)]:
        key = other[0]
        raise HfsynError(
            f"{folder} was made with another matrix: {key} is {theirs.get(key)!r} there, {mine.get(key)!r} here.",
            "Name another --out, or delete that folder.",
        )


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), value)]


def _write_error(folder: Path, message: str, hint: str, trace: str) -> None:
    text = json.dumps({"error": message, "hint": hint, "traceback": trace}, indent=1, ensure_ascii=False)
    atomic_text(folder / ERROR, text + "\n")
