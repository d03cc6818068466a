"""A pool of processes on this machine, each with one torch thread and one GPU if there are any, that run tasks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from hfsyn.launching import die_with_parent
from hfsyn.workers import default_processes, visible_gpus

Submit = Callable[..., Future[Any]]
"""``submit(function, *arguments)``; the function must be importable by name if there are several processes."""


@contextlib.contextmanager
def task_pool(processes: int | None = None, *, device: str | None = None) -> Iterator[Submit]:
    """Yield a `Submit`. What a task makes must not depend on which process runs it.

    Args:
        processes: 1 is this process, which runs a task when its result is asked for; None is one per GPU, or
            per core.
        device: what the tasks will compute on; for None and cuda each process sees a single GPU, if there are any.
    """
    count = processes or default_processes()
    if count == 1:
        with _one_thread():
            yield _Here
        return
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    gpus = gpu_names() if device in (None, "cuda") else ()
    places = context.Queue()
    for number in range(count):
        places.put(gpus[number % len(gpus)] if gpus else None)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(places,))
    try:
        yield pool.submit
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    pool.shutdown()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As in the processes of a pool: with more threads sums are rounded otherwise, and trainings go other ways."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Here(Future[Any]):
    """A task of this process, run when its result is asked for, so that progress is reported between the tasks."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__()
        self._task = function, arguments

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            function, arguments = self._task
            try:
                self.set_result(function(*arguments))
            except Exception as error:
                self.set_exception(error)
        return super().result(timeout)


def gpu_names() -> tuple[str, ...]:
    """The GPUs that this process sees, as numbers or UUIDs of its own list: one that is given 2 and 3 has no 0."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(str(number) for number in range(visible_gpus()))
    names = [name.strip() for name in listed.split(",")]
    return tuple(name for name in names if name not in ("", "-1"))


def _begin(places: Any) -> None:
    """Set up a process of the pool, before its first task."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the others
    if gpu := places.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # read when torch is loaded
    import torch

    torch.set_num_threads(1)
