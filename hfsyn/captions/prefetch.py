"""Real images on their way to the captioner: read, decoded and prepared ahead of the device, across shards."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from builders.images.decoding import ImageRejected, decoded
from builders.runs import layout
from builders.sources import Source, SourceRow
from hfsyn.captions.providers import Answer, Seen, TextSource
from hfsyn.captions.refusals import Tally, is_refusal
from hfsyn.images.shard_writer import encoders
from hfsyn.runs.budget import Budget
from hfsyn.runs.claims import Claim, Claims, Patience
from hfsyn.runs.run import Run, index_entries

T = TypeVar("T")

BATCHES_AHEAD = 2
"""Batches that are ready or being prepared while the device works; one of 256 images of 384 px takes 450 MB
in float32."""
_ROWS_AHEAD = 64
_BYTES_AHEAD = 8 << 20
"""Images that wait to be decoded: so many, or of so many bytes, whichever is reached first."""


@dataclass
class Reading:
    """One shard on its way."""

    claim: Claim
    start: int
    """First line of the source index that it covers."""
    stop: int
    started: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """Of the images that it covers, in order."""
    rejected: list[dict[str, str]] = field(default_factory=list)
    asked: int = 0
    """Images that a text was asked for."""
    grid: list[tuple[int, int, int]] = field(default_factory=list)
    """See `Sidecar.grid`; counted among the images that a text was asked for."""

    def set_aside(self) -> list[dict[str, str]]:
        """The rejected lines in the order of the source: some were set aside by one thread, and some by another."""
        places = {source_id: place for place, source_id in enumerate(self.ids)}
        return sorted(self.rejected, key=lambda line: places[line["id"]])


@dataclass(frozen=True)
class Batch:
    """Some images of a shard; after its last ones comes a batch without any."""

    reading: Reading
    seen: list[Seen]
    answer: Future[Answer] | None = None
    """Ready to be asked of the device."""
    size: int = 0
    """For which it was prepared."""


def batches(
    run: Run,
    source: Source,
    claims: Claims,
    patience: Patience,
    budget: Budget,
    texts: TextSource,
    size: int,
    tally: Tally,
) -> Generator[Batch, None, None]:
    """The batches of each shard that can be had, until every shard is finished by somebody or the budget is spent.

    Reading happens in a thread of its own, decoding and preparing in a pool; both are ahead of whoever takes the
    batches. What cannot be read, or looked at by the model, goes into its shard's `rejected`.
    """
    pool = ThreadPoolExecutor(encoders(), "prepare")
    in_hand: set[Claim] = set()

    def read() -> Iterator[Batch]:
        while True:
            claim = claims.take()
            if claim is None:
                if not claims.in_other_hands:
                    return
                patience.wait()
                continue
            if not budget.allows_another():
                claim.release()
                return
            start, stop, lines = run.shard_lines(claim.path, layout.SOURCE, run.source_rows)
            reading = Reading(claim, start, stop, ids=[line["source_id"] for line in lines])
            in_hand.add(claim)
            rows = source.read(index_entries(lines))
            for seen in _chunks(_seen(run, rows, reading.rejected, texts, pool, tally), size):
                yield Batch(reading, seen, pool.submit(texts.answer, seen, size), size)
            yield Batch(reading, [])

    try:
        for batch in ahead(read(), BATCHES_AHEAD):
            if batch.answer is None:
                in_hand.discard(batch.reading.claim)  # now it is whoever writes the shard that must release it
            yield batch
    finally:
        for claim in in_hand:
            claim.release()
        pool.shutdown(wait=False, cancel_futures=True)


def ahead(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """The items, taken from their iterable by another thread, at most so many ahead; its error comes in its turn."""
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
        except BaseException as error:  # whatever it is, it belongs to the one who asked for the items
            put("error", error)
        else:
            put("end", None)

    # A daemon, because whoever is interrupted must not wait for a slow disk or network.
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


class _NotLookedAt(Exception):  # noqa: N818 (a verdict on the data, not an error of the program)
    """The model's processor has something against an image: the error that it is made of."""


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
    for source_id, wnid, future in in_order(rows, lambda row: pool.submit(_look, run, row, texts)):
        try:
            seen = future.result()
        except ImageRejected as problem:
            rejected.append({"id": source_id, "wnid": wnid, "reason": problem.reason})
        except _NotLookedAt as problem:
            reason = tally.refuse(problem.args[0], asked=False)
            rejected.append({"id": source_id, "wnid": wnid, "reason": reason})
        else:
            tally.looked += 1
            yield seen


def in_order(
    rows: Iterable[SourceRow], begin: Callable[[SourceRow], Future[T]]
) -> Iterator[tuple[str, str, Future[T]]]:
    """Source id, wnid and what was begun for each row, in order.

    Rows are read a little ahead: no more bytes of files wait than photographs of a camera have, and none is kept longer
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


def _look(run: Run, row: SourceRow, texts: TextSource) -> Seen:
    if row.problem:
        raise ImageRejected(row.problem)
    with decoded(row.image) as image:
        try:
            view = texts.view(image, run.classes[row.wnid])
        except Exception as error:  # each processor has its own exception for what it does not take
            if not is_refusal(error):
                raise
            raise _NotLookedAt(error) from error
        digest = hashlib.sha256(row.image).hexdigest()
        return Seen(row.source_id, row.wnid, digest, image.width, image.height, view)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
