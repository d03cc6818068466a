"""Run a matrix: train and test every cell not yet done, record failures, sum up.

OUT/matrix.yaml                                    as resolved
OUT/cells/ARM/MODEL/SETTING/seed-S/training/       the classifier
OUT/cells/ARM/MODEL/SETTING/seed-S/results.json    written last: the cell is done, for the tests it lists
OUT/cells/ARM/MODEL/SETTING/seed-S/error.json      why it failed; the next run retries it
OUT/results.csv                                    a line per cell and test
OUT/summary.json                                   means, intervals, paired differences
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from builders.files import atomic_text, disk_error
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.judging.bench.matrix import Cell, Matrix, cell_config, cell_tests, cells, load_matrix
from hfsyn.judging.bench.summaries import ERROR, RESULTS, read_json, sum_up
from hfsyn.judging.bench.task_pool import Submit, task_pool
from hfsyn.judging.measures.metrics import dump_result
from hfsyn.recipes.loading import dump_part
from hfsyn.workers import check_device

MATRIX, TRAINING = "matrix.yaml", "training"
_EMPTY: dict[str, Any] = {"cell": {"tests": {}}, "training": {}, "tests": {}, "seconds": 0.0}

Trainer = Callable[[Any, Path], dict[str, Any]]
"""``train(config, out)``: trains by a TrainConfig in a folder; returns the result."""
Evaluator = Callable[[Path, str, str | None], dict[str, Any]]
"""``evaluate(model, dataset, split)``: the result of a test."""
Look = Callable[[str, str | None, Sequence[str], int | None], str | None]
"""``look(dataset, split, default splits, limit)``: the images' current fingerprint; None if unknown."""


def bench(
    matrix: str | Path | Matrix | dict[str, Any],
    out: str | Path,
    *,
    train: Trainer | None = None,
    evaluate: Evaluator | None = None,
    look: Look | None = None,
    num_processes: int | None = None,
    num_workers: int = 0,
    device: str | None = None,
    submit: Submit | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a matrix in a folder. A rerun does only what is missing or failed.

    All sets are opened and all networks looked up before the first cell. Of a finished cell, only newly added tests are
    run; results of removed tests stay in its file.

    Args:
        matrix: a YAML file, its fields, or a Matrix.
        out: the folder; it must not hold another matrix's cells.
        train, evaluate, look: replace `hfsyn.judging.train.loop.train`, `hfsyn.judging.measures.evaluate.evaluate`
            and the fingerprint of `hfsyn.judging.sets.image_set.open_images`. With a custom `train` and no `look`,
            fingerprints are not compared.
        num_processes: cells at once, each with one torch thread or GPU; None is one per GPU or core, or with `train` 1.
        num_workers: decoding processes for each of those.
        device: torch device for all.
        submit: an open task pool, used instead of `num_processes`.
        dry_run: open everything, and train nothing.
        quiet: no progress and no table.

    Returns:
        What summary.json holds, see `summarise`; with `dry_run` the ``cells``, each with the ``images`` of its training
        sets (None where they are streams) and its ``state``: to train, to test, or done.

    Raises:
        HfsynError: see `load_matrix`; a set or network is not there; or a cell in `out` has other settings or images.
    """
    matrix, folder = load_matrix(matrix), Path(out).expanduser()
    own, images = train is not None, look or (cache(_look) if train is None else None)
    train = train or partial(_train, device=device, workers=num_workers)
    evaluate = evaluate or partial(_evaluate, device=device, workers=num_workers)
    wanted = list(cells(matrix))
    jobs = _missing(matrix, folder, wanted, images, (train, evaluate))
    sizes: dict[str, int | None] = {}
    if not own:
        check_device(device)
        sizes = _refuse_faults(jobs.values())
    if dry_run:
        return {"cells": [_planned(cell, folder / cell.folder, jobs.get(cell), sizes) for cell in wanted]}
    atomic_text(folder / MATRIX, dump_part(matrix))
    if submit is not None:
        _run(submit, jobs, None if quiet else matrix.name)
    elif jobs:
        with task_pool(num_processes or (1 if own else None), device=device) as pool:
            _run(pool, jobs, None if quiet else matrix.name)
    return sum_up(matrix, folder, quiet=quiet)


def _missing(
    matrix: Matrix, folder: Path, wanted: Sequence[Cell], images: Look | None, how: tuple[Trainer, Evaluator]
) -> dict[Cell, tuple[Any, ...]]:
    """What is left to do of each cell, as arguments of `run_cell`; refuses what was made with another matrix."""
    configs = {cell: cell_config(matrix, cell) for cell in wanted}  # finds every mistake before the first training
    jobs: dict[Cell, tuple[Any, ...]] = {}
    for cell in wanted:
        place, settings = folder / cell.folder, _settings(matrix, cell, configs[cell])
        found = read_json(place / RESULTS)
        if found is not None:
            _refuse_other(place, settings, found["cell"])
            if images is not None:
                _refuse_changed(place, configs[cell], found, images)
        done = (found or _EMPTY)["tests"]
        missing = {name: test for name, test in cell_tests(matrix, cell).items() if name not in done}
        if found is None or missing:
            jobs[cell] = (place, configs[cell], settings, missing, *how)
    return jobs


def _planned(cell: Cell, place: Path, job: Any, sizes: dict[str, int | None]) -> dict[str, Any]:
    """What a dry run says of a cell and of what is left to do of it; `sizes` as of `_refuse_faults`."""
    found = read_json(place / RESULTS)
    if job is not None:
        images = sizes.get(job[1].data.model_dump_json())
    else:
        sets = [facts.get("images") for facts in found["training"].get("training", {}).get("sets", [])] if found else []
        images = sum(sets) if sets and None not in sets else None
    state = "done" if job is None else "to train" if found is None else "to test"
    return {**cell.facts(), "images": images, "state": state}


def failures(summary: dict[str, Any], out: str | Path) -> HfsynError | None:
    """The error that the command ends with if cells failed (exit code 4), else None."""
    failed = summary["failed"]
    if not failed:
        return None
    first, others = failed[0], "The others are done. " if len(failed) < summary["cells"] else ""
    return HfsynError(
        f"{len(failed)} of {summary['cells']} cells failed, the first ({first['cell']}) with: {first['error']}",
        f"{others}Run the same command again to retry these; see each cell's {ERROR} in {out}.",
        code=ExitCode.PARTIAL,
    )


def _run(submit: Submit, jobs: dict[Cell, tuple[Any, ...]], name: str | None) -> None:
    """Run the jobs; progress is reported under the matrix's `name`, or not at all if None."""
    started = time.monotonic()
    futures = [_submitted(submit, job) for job in jobs.values()]
    for number, (cell, future) in enumerate(zip(jobs, futures, strict=True), start=1):
        try:
            line = future.result()
        except BrokenProcessPool:  # the whole pool is gone: what is left waits for the next run
            _write_error(jobs[cell][0], "A pool process died, perhaps out of memory.")
            line = "failed: a pool process died"
        if name is not None:
            where = " ".join(str(part) for part in cell.folder.parts[1:])
            seconds = time.monotonic() - started
            print(f"{name} {number}/{len(jobs)}, {seconds:.0f} s: {where}: {line}", file=sys.stderr, flush=True)


def _submitted(submit: Submit, job: tuple[Any, ...]) -> Future[Any]:
    """The job's future; already failed if the pool is broken."""
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
    train: Trainer,
    evaluate: Evaluator,
) -> str:
    """Train a cell, run its missing tests, write results.json, error.json or both; return a one-line summary."""
    started = time.monotonic()
    old = read_json(folder / RESULTS) or _EMPTY
    trained: dict[str, Any] | None = None
    found: dict[str, Any] = {}
    failure = None
    try:
        trained = train(config, folder / TRAINING)  # does nothing if already trained
        for name, (dataset, split) in tests.items():
            found[name] = evaluate(folder / TRAINING, dataset, split)
    except HfsynError as error:
        failure = error.message
        _write_error(folder, failure, error.hint)
    except Exception as error:  # the other cells go on; this one's traceback is kept
        if disk_error(error) is not None:  # the other cells would hit it too
            raise
        failure = f"{type(error).__name__}: {error}".splitlines()[0]
        _write_error(folder, failure, trace=traceback.format_exc())
    else:
        (folder / ERROR).unlink(missing_ok=True)
    if trained is not None and (found or failure is None):
        # An older matrix's tests and their settings stay; a failed test may be redefined.
        asked = {**old["cell"]["tests"], **{name: settings["tests"][name] for name in found}}
        kept = {key: trained[key] for key in ("training", "software", "device") if trained.get(key)}
        result = {
            "cell": {**settings, "tests": asked},
            "training": old["training"] or kept,
            "tests": {**old["tests"], **found},
            "seconds": round(old["seconds"] + time.monotonic() - started, 1),
        }
        atomic_text(folder / RESULTS, dump_result(result))
    if failure is not None:
        return f"failed: {failure}"
    return ", ".join(f"{name} {test['metrics']['top1']['value']:.3f}" for name, test in found.items())


def _train(config: Any, out: Path, *, device: str | None, workers: int) -> dict[str, Any]:
    from hfsyn.judging.train.loop import RunOptions, train

    return train(config, out, RunOptions(device=device, num_workers=workers, quiet=True))


def _evaluate(model: Path, dataset: str, split: str | None, *, device: str | None, workers: int) -> dict[str, Any]:
    from hfsyn.judging.measures.evaluate import evaluate

    return evaluate(model, dataset, split=split, device=device, num_workers=workers, quiet=True)


def _write_error(folder: Path, message: str, hint: str = "", trace: str = "") -> None:
    text = json.dumps({"error": message, "hint": hint, "traceback": trace}, indent=1, ensure_ascii=False)
    atomic_text(folder / ERROR, text + "\n")


def _settings(matrix: Matrix, cell: Cell, config: Any) -> dict[str, Any]:
    """What decides a cell's numbers, as stored in its results.json."""
    tests = {name: list(test) for name, test in cell_tests(matrix, cell).items()}
    return {**asdict(cell), "config": config.model_dump(mode="json", exclude={"test"}), "tests": tests}


def _refuse_other(folder: Path, settings: dict[str, Any], there: dict[str, Any]) -> None:
    """Refuse a cell made with other settings, ignoring tests that only one side has."""
    shared = sorted(settings["tests"].keys() & there["tests"].keys())
    mine, theirs = (
        dict(_leaves({**one, "tests": {name: one["tests"][name] for name in shared}})) for one in (settings, there)
    )
    if key := next((key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key)), None):
        raise HfsynError(
            f"{folder} was made with another matrix: {key} is {theirs.get(key)!r} there, {mine.get(key)!r} here.",
            "Use another --out, or delete that folder.",
        )


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Values in nested mappings, by dotted key."""
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), value)]


def _refuse_changed(folder: Path, config: Any, result: dict[str, Any], look: Look) -> None:
    """Refuse a finished cell whose images have since changed: its numbers can no longer be checked.

    If a set is gone or the Hub unreachable, nothing can be compared: the numbers stand.
    """
    from hfsyn.judging.sets.image_set import TEST, TRAIN

    data = config.data
    sets = result["training"].get("training", {}).get("sets", [])
    known: list[tuple[str, str | None, Sequence[str], int | None, dict[str, Any]]] = [
        (text, data.train_split, TRAIN, limit, facts)
        for text, limit, facts in zip(data.train, data.limit_of_each, sets, strict=False)
    ]
    for name, test in result["tests"].items():
        known.append((*result["cell"]["tests"][name], TEST, None, test.get("dataset", {})))
    for text, split, default, limit, facts in known:
        if (then := facts.get("fingerprint")) is None:  # a stream
            continue
        if look(text, split, default, limit) not in (None, then):
            raise HfsynError(
                f"The images of {text} have changed since {folder} was finished ({facts.get('images')} images then).",
                "Use another --out, or delete that folder; or restore the files.",
            )


def _refuse_faults(jobs: Iterable[tuple[Any, ...]]) -> dict[str, int | None]:
    """Open every set and look up every network and optimizer; report what is wrong, each fault once. Returned is how
    many images there are to train on, by the data part of the training recipe.

    Raises:
        HfsynError: there are faults.
    """
    from hfsyn.judging.classifier import check_model_name
    from hfsyn.judging.measures.evaluate import check_counts
    from hfsyn.judging.sets.image_set import open_images
    from hfsyn.judging.sets.shared import testable
    from hfsyn.judging.train.feeds import open_feed
    from hfsyn.judging.train.loop import total_steps
    from hfsyn.judging.train.timm_parts import check_optimizer

    faults: dict[str, HfsynError] = {}
    done: dict[tuple[Any, ...], Any] = {}

    def tried(check: Callable[..., Any], key: Any, *arguments: Any) -> Any:
        if (check, key) not in done:
            try:
                done[check, key] = check(*arguments)
            except HfsynError as error:
                done[check, key] = None
                faults[str(error)] = error
        return done[check, key]

    def trained_on(config: Any) -> tuple[int, dict[str, str], int | None]:
        feed = open_feed(config)
        return feed.budget, {wnid: feed.names[wnid] for wnid in feed.classes}, feed.images

    for _, config, _, tests, *_ in jobs:
        data, name, optimizer = config.data.model_dump_json(), config.model.name, config.optimise.optimizer
        tried(check_model_name, name, name)
        tried(check_optimizer, optimizer, optimizer)
        feed = tried(trained_on, data, config)
        tested = {test: tried(open_images, test, *test) for test in tests.values()}
        if feed is None:
            continue
        tried(total_steps, data, config, feed[0])
        for test, images in tested.items():
            if images is not None:
                tried(check_counts, test, images)
                tried(testable, (data, test), feed[1], images, "the training set")
    if len(faults) == 1:
        raise next(iter(faults.values()))
    if faults:
        said = " ".join(f"({number}) {error.message}" for number, error in enumerate(faults.values(), 1))
        raise HfsynError(f"{len(faults)} faults, and nothing was trained: {said}", "Change the matrix.")
    return {key: feed[2] for (check, key), feed in done.items() if check is trained_on}


def _look(dataset: str, split: str | None, default: Sequence[str], limit: int | None) -> str | None:
    from hfsyn.judging.sets.image_set import open_images

    try:
        return open_images(dataset, split, default=default, limit=limit).fingerprint
    except (HfsynError, OSError):
        return None
