"""A crew: a few processes of this machine, each with one torch thread or one GPU, that take tasks as they come.

What a task makes does not depend on which process takes it, so that any number of them gives the same result.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from hfsyn.launching import die_with_parent
from hfsyn.workers import default_processes, visible_gpus

Submit = Callable[..., Future[Any]]
"""``submit(function, *arguments)``; the function must be importable by name when there are several processes."""


@contextlib.contextmanager
def crew(processes: int | None = None, *, device: str | None = None) -> Iterator[Submit]:
    """Yield a `Submit`. One process means this one: a task is done when its result is asked for.

    Args:
        processes: None is one a GPU, or one a CPU core.
        device: what the tasks will compute on; for None and cuda each process sees one GPU alone, where there are any.
    """
    count = processes or default_processes()
    if count == 1:
        yield _Here
        return
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    places = context.Queue()
    for number in range(count):
        places.put(number)
    gpus = gpu_names() if device in (None, "cuda") else ()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(places, gpus))
    try:
        # Threads are counted when torch is loaded, which the import of a task's module may do before `_begin`.
        with _environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"):
            yield pool.submit
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    pool.shutdown()


class _Here(Future[Any]):
    """A task of this process, done when somebody asks for its result: so whoever waits can tell how far it is."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__()
        self._task = function, arguments

    def result(self, timeout: float | None = None) -> Any:
        self._do()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._do()
        return super().exception(timeout)

    def _do(self) -> None:
        if self.done():
            return
        function, arguments = self._task
        try:
            self.set_result(function(*arguments))
        except Exception as error:
            self.set_exception(error)


def gpu_names() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that this process sees: numbers or UUIDs of its own list, where it has
    one, as a process that is given 2 and 3 must not hand out 0 and 1.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(str(number) for number in range(visible_gpus()))
    names = [name.strip() for name in listed.split(",")]
    return tuple(name for name in names if name not in ("", "-1"))


def _begin(places: Any, gpus: Sequence[str]) -> None:
    """The first thing that a process of the crew does."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the others
    number = places.get()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
