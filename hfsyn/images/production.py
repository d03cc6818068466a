"""Shards on their way through a process: drawn by the device, encoded by a pool, written by a thread.

The main thread only gives the device its next batch. It waits for the disk or for an encoder only if these are
slower than the device: then the number of batches and shards on their way, and so the memory, stays bounded.

What is made does not depend on any of this: a batch is cut from its shard's lines alone, and so is a batch of retries.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any

from hfsyn.images.encoding import encode, stored_name
from hfsyn.images.generator import Generated, ImageGenerator, Pending
from hfsyn.images.marking import mark_of
from hfsyn.images.tuning import BatchSize
from hfsyn.recipes.recipe import Recipe
from hfsyn.rules import seed_of
from hfsyn.runs.specs import SampleSpec
from hfsyn.runs.stage import Shard
from hfsyn.workers import begin_thread_on, pool_threads

BATCHES_AHEAD = 2  # batches that the device has been given and that are not settled: one at work, one behind it
SHARDS_OPEN = 2  # shards that are drawn or wait for their last images and retries
SHARDS_TO_WRITE = 1  # finished shards that are written or wait for it
_PROBLEMS = {
    "safety": "the safety checker flagged it",
    "nan": "the model produced NaN values",
    "flat": "the image is flat: nothing is in it",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one spec: its stored bytes (as a future, while they are encoded) or the problem that remained."""

    image: Future[bytes] | None
    seed: int
    retries: int
    safety: bool
    problem: str | None


@dataclass(eq=False)
class Work:
    """One shard on its way."""

    shard: Shard
    specs: Sequence[SampleSpec]
    seconds: float = 0.0  # from its first batch to its last image
    tokens: list[int] = field(default_factory=list)  # of each prompt, in the order of `specs`
    results: dict[str, Result] = field(default_factory=dict)  # by sample id
    grid: list[tuple[int, int, int]] = field(default_factory=list)  # see `Sidecar.grid`
    attempt: int = 0
    launched: int = 0  # batches of this attempt that the device was given
    settled: int = 0  # how many of these are back
    drawing: bool = False  # whether this attempt has batches that the device was not yet given

    def rows(self, max_tokens: int, recipe: Recipe) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
        """The rows in the plan's order, with the columns of `builders.runs.rows`; and what was set aside, why."""
        rows, rejected = [], []
        for spec, count in zip(self.specs, self.tokens, strict=True):
            result = self.results[spec.sample_id]
            if result.image is None:
                reason = f"{_PROBLEMS[result.problem or 'flat']}, {result.retries + 1} attempts"
                rejected.append({"id": spec.sample_id, "wnid": spec.wnid, "reason": reason})
                continue
            row = {
                "image": {"bytes": result.image.result(), "path": stored_name(spec.sample_id, recipe.store)},
                "seed": result.seed,
                "prompt_tokens": count,
                "truncated": count > max_tokens,
                "safety": result.safety,
                "retries": result.retries,
            }
            rows.append(asdict(spec) | row)
        return rows, rejected


class Production:
    """Draws, encodes and writes shards, several at once; a context manager, whose end waits for all of them.

    `write` is called in the writer's thread with a shard whose images are all settled, before its claim is released;
    `tick`, from a thread of its own, with the number of images that were kept. `pictures` gives the real images behind
    some specs if the recipe starts from them.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        recipe: Recipe,
        size: BatchSize,
        write: Callable[[Work], None],
        tick: Callable[[int], None],
        pictures: Callable[[Sequence[SampleSpec]], Sequence[Any]] | None = None,
    ) -> None:
        self._generator, self._recipe, self._size, self._write, self._tick = generator, recipe, size, write, tick
        self._pictures, self._mark = pictures, mark_of(recipe)
        threads = pool_threads()
        self._encoders = ThreadPoolExecutor(threads, "encode")
        device = str(getattr(generator, "device", "cpu"))
        self._settler = ThreadPoolExecutor(1, "settle", initializer=begin_thread_on, initargs=(device,))
        self._writer = ThreadPoolExecutor(1, "write")
        # An image on its way to its bytes is 0.8 MB at 512 px.
        self._room = threading.Semaphore(4 * threads + 64)
        self._lock = threading.Lock()
        self._ahead: deque[Future[None]] = deque()
        self._open: deque[Work] = deque()
        self._writing: deque[Future[None]] = deque()
        self._advancing = False

    def add(self, work: Work) -> None:
        """Draw a shard. Returns when the device has been given all of it, not when it is done."""
        self._open.append(work)
        self._draw(work, work.specs)
        while len(self._open) >= SHARDS_OPEN:
            self._finish_oldest()

    def finish(self) -> None:
        """Wait until every shard that was added is written."""
        while self._open:
            self._finish_oldest()
        _wait(self._writing)

    def __enter__(self) -> Production:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            # After an error what was begun is dropped, except for the shards that only need to be written.
            self._settler.shutdown(wait=False, cancel_futures=True)
            self._writer.shutdown(wait=True)
            self._encoders.shutdown(wait=True, cancel_futures=True)
            for work in self._open:
                work.shard.claim.release()

    def _draw(self, work: Work, specs: Sequence[SampleSpec]) -> None:
        """Give the device one attempt at these specs, in batches from the first on."""
        work.launched = work.settled = 0
        work.drawing = True
        first = 0
        while first < len(specs):
            outcome = self._size.run(
                lambda size, first=first: self._start(work, self._batch(specs, first, size), size),  # type: ignore[misc]
                settle=lambda: _wait(self._ahead),
            )
            if outcome is None:
                continue
            (batch, seeds, pending), size = outcome
            if not work.grid or (work.grid[-1][0], work.grid[-1][2]) != (work.attempt, size):
                work.grid.append((work.attempt, first, size))
            if work.attempt == 0:
                work.tokens += self._generator.count_tokens([spec.prompt for spec in batch])
            work.launched += 1
            self._ahead.append(self._settler.submit(self._settle, work, batch, seeds, pending))
            _wait(self._ahead, BATCHES_AHEAD - 1)
            first += len(batch)
            self._advance_open()
        work.drawing = False

    def _batch(self, specs: Sequence[SampleSpec], first: int, size: int) -> Sequence[SampleSpec]:
        """The next specs that are drawn together: all of one class, if each class is drawn with a LoRA of its own."""
        some = specs[first : first + size]
        if not self._recipe.generate.lora_by_class:
            return some
        return list(takewhile(lambda spec: spec.wnid == some[0].wnid, some))

    def _start(
        self, work: Work, batch: Sequence[SampleSpec], size: int
    ) -> tuple[Sequence[SampleSpec], list[int], Pending]:
        attempt = work.attempt
        seeds = [spec.seed for spec in batch]
        if attempt:
            seeds = [seed_of(self._recipe.seed_for(spec.wnid), spec.sample_id, attempt) for spec in batch]
        more = {} if self._pictures is None else {"images": self._pictures(batch)}
        if self._recipe.generate.lora_by_class:
            getattr(self._generator, "for_class", lambda wnid: None)(batch[0].wnid)
        return batch, seeds, self._generator.start([spec.prompt for spec in batch], seeds, size, **more)

    def _settle(self, work: Work, batch: Sequence[SampleSpec], seeds: Sequence[int], pending: Pending) -> None:
        """In the settler's thread: wait for a batch and hand its images to the encoders."""
        images = pending()
        for spec, seed, image in zip(batch, seeds, images, strict=True):
            before = work.results.get(spec.sample_id)
            safety = image.problem == "safety" or (before is not None and before.safety)
            encoded = None if image.problem else self._encoded(image)
            work.results[spec.sample_id] = Result(encoded, seed, work.attempt, safety, image.problem)
        self._tick(sum(not image.problem for image in images))
        with self._lock:
            work.settled += 1

    def _encoded(self, image: Generated) -> Future[bytes]:
        self._room.acquire()
        future = self._encoders.submit(encode, image.pixels, self._recipe.store, self._mark)
        future.add_done_callback(lambda done: self._room.release())
        return future

    def _advance_open(self) -> None:
        """After each batch: an earlier shard that is complete must not wait for this one."""
        if self._advancing:
            return
        self._advancing = True
        try:
            for work in list(self._open):
                self._advance(work)
        finally:
            self._advancing = False

    def _advance(self, work: Work) -> bool:
        """Take a shard whose attempt is back one step further: to its retries, or to the writer (True)."""
        with self._lock:
            # Batches may come back faster than the next one is begun: that is not the end of the attempt.
            if work.drawing or work.settled < work.launched:
                return False
        failed = [spec for spec in work.specs if work.results[spec.sample_id].problem]
        if failed and work.attempt < self._recipe.generate.max_retries:
            work.attempt += 1
            self._draw(work, failed)
            return False
        self._open.remove(work)
        work.seconds = time.monotonic() - work.shard.started
        _wait(self._writing, SHARDS_TO_WRITE - 1)
        self._writing.append(self._writer.submit(self._written, work))
        return True

    def _written(self, work: Work) -> None:
        """In the writer's thread."""
        try:
            self._write(work)
        finally:
            work.shard.claim.release()

    def _finish_oldest(self) -> None:
        work = self._open[0]
        while not self._advance(work):
            _wait(self._ahead)


def _wait(begun: deque[Future[None]], most: int = 0) -> None:
    """Wait for the oldest of these until at most `most` are left; raises the first one's error."""
    while len(begun) > most:
        begun.popleft().result()
