"""Real images on their way to the captioner: read, decoded and prepared ahead of the device, across shards."""

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from builders.images.decoding import ImageRejected, decoded
from builders.sources import SourceRow
from builders.variants import ClassInfo
from hfsyn.captions.providers import Answer, Seen, TextSource
from hfsyn.captions.refusals import Tally, is_refusal
from hfsyn.runs.claims import Claim
from hfsyn.runs.run import Run, index_entries
from hfsyn.runs.stage import Shard
from hfsyn.workers import pool_threads

T = TypeVar("T")

BATCHES_AHEAD = 2
"""Batches that are ready or being prepared while the device works; one of 256 images of 384 px takes 450 MB
in float32."""
_ROWS_AHEAD = 64
_BYTES_AHEAD = 8 << 20  # images that wait to be decoded: at most this many, or this many bytes


@dataclass
class Reading:
    """One shard on its way."""

    shard: Shard
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    asked: int = 0  # images that a text was asked for
    grid: list[tuple[int, int, int]] = field(default_factory=list)
    """See `Sidecar.grid`; counted among the images that a text was asked for."""


@dataclass(frozen=True)
class Batch:
    """Some images of a shard; after its last ones comes a batch without any."""

    reading: Reading
    seen: list[Seen]
    answer: Future[Answer] | None = None  # ready to be asked of the device
    size: int = 0  # for which it was prepared


def batches(
    shards: Iterable[Shard], run: Run, texts: TextSource, size: int, tally: Tally
) -> Generator[Batch, None, None]:
    """The batches of each shard.

    Reading happens in a thread of its own, decoding and preparing in a pool, both ahead of the batches that are asked
    for. What cannot be read, or looked at by the model, goes into its shard's `rejected`.
    """
    pool = ThreadPoolExecutor(pool_threads(), "prepare")
    source = run.open_source()
    unfinished: set[Claim] = set()
    lock, ended = threading.Lock(), threading.Event()  # the reading thread may claim a shard while this one gives up

    def read() -> Iterator[Batch]:
        for shard in shards:
            with lock:
                if ended.is_set():
                    shard.claim.release()
                    return
                unfinished.add(shard.claim)
            reading = Reading(shard)
            readable = _seen(run, source.read(index_entries(shard.lines)), reading.rejected, texts, pool, tally)
            while seen := list(islice(readable, size)):
                yield Batch(reading, seen, pool.submit(texts.answer, seen, size), size)
            yield Batch(reading, [])

    try:
        for batch in ahead(read(), BATCHES_AHEAD):
            if batch.answer is None:
                unfinished.discard(batch.reading.shard.claim)  # now the writer of the shard must release it
            yield batch
    finally:
        with lock:
            ended.set()
            left = list(unfinished)
        for claim in left:
            claim.release()
        pool.shutdown(wait=False, cancel_futures=True)


def ahead(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """The items, taken from their iterable by another thread, at most `most` ahead; its error comes in its turn."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(most)
    left = threading.Event()

    def put(kind: str, item: Any) -> bool:
        while not left.is_set():
            try:
                ready.put((kind, item), timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
        except BaseException as error:  # of any kind: it belongs to the caller
            put("error", error)
        else:
            put("end", None)

    # A daemon, because an interrupted process must not wait for a slow disk or network.
    threading.Thread(target=work, name="read", daemon=True).start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        left.set()


def _seen(
    run: Run,
    rows: Iterable[SourceRow],
    rejected: list[dict[str, str]],
    texts: TextSource,
    pool: ThreadPoolExecutor,
    tally: Tally,
) -> Iterator[Seen]:
    """What is kept of the readable rows, in order; the others go into `rejected`.

    They are decoded, hashed and reduced to what the model sees by the pool, a little ahead.
    """
    classes = run.classes
    for source_id, wnid, future in in_order(rows, lambda row: pool.submit(_look, row, classes[row.wnid], texts)):
        try:
            seen = future.result()
        except Exception as error:  # each processor has its own exception for what it does not take
            if isinstance(error, ImageRejected):
                reason = error.reason
            elif is_refusal(error):
                reason = tally.refuse(error, asked=False)
            else:
                raise
            rejected.append({"id": source_id, "wnid": wnid, "reason": reason})
        else:
            tally.looked += 1
            yield seen


def in_order(
    rows: Iterable[SourceRow], begin: Callable[[SourceRow], Future[T]]
) -> Iterator[tuple[str, str, Future[T]]]:
    """Source id, wnid and what was begun for each row, in order.

    Rows are read a little ahead, within bounds on their number and the bytes of their files. No file is kept longer
    than what was begun for it needs it.
    """
    begun: deque[tuple[str, str, Future[T], int]] = deque()
    waiting = 0
    for row in rows:
        begun.append((row.source_id, row.wnid, begin(row), len(row.image)))
        waiting += len(row.image)
        while len(begun) > _ROWS_AHEAD or (waiting > _BYTES_AHEAD and len(begun) > 1):
            waiting -= begun[0][3]
            yield begun.popleft()[:3]
    for source_id, wnid, future, _ in begun:
        yield source_id, wnid, future


def _look(row: SourceRow, info: ClassInfo, texts: TextSource) -> Seen:
    if row.problem:
        raise ImageRejected(row.problem)
    with decoded(row.image) as image:
        view = texts.view(image, info)
        digest = hashlib.sha256(row.image).hexdigest()
        return Seen(row.source_id, row.wnid, digest, image.width, image.height, view)
