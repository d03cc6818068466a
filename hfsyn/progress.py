"""Progress on the error stream: a bar with rate and time left on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

from hfsyn.errors import begin_work

LINE_SECONDS = 5.0


def teller(quiet: bool) -> Callable[[str], None]:
    """A function that prints a line on the error stream, or with `quiet` does nothing."""

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    return say


class Progress:
    """Counts images (`unit`) of one stage; a context manager.

    `done` images were there before: they count, but not toward the rate. `others` is asked now and then for the images
    that other processes have finished since.
    """

    def __init__(
        self,
        what: str,
        total: int,
        done: int = 0,
        *,
        others: Callable[[], int] | None = None,
        quiet: bool = False,
        unit: str = "images",
    ) -> None:
        self._what, self._total, self._initial, self._unit = what, total, done, unit
        self._own = 0
        self._lock = threading.Lock()  # images are counted by one thread and shards by another
        self._others = others or (lambda: 0)
        self._started = self._last = time.monotonic()
        self._quiet, self._say = quiet, teller(quiet)
        self._bar = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", dynamic_ncols=True, smoothing=0.1)

    def add(self, images: int) -> None:
        """Count images that this process made."""
        with self._lock:
            self._own += images
        self.look()

    def shard_done(self, images: int) -> None:
        """Stop counting these images as this process's own: they are now in a shard that `others` counts."""
        with self._lock:
            self._own = max(0, self._own - images)

    def look(self) -> None:
        """Show the state, if it is time to."""
        now = time.monotonic()
        if self._quiet or (now - self._last < (0.5 if self._bar is not None else LINE_SECONDS)):
            return
        self._last = now
        count = self._count()
        if self._bar is not None:
            self._bar.n = count
            self._bar.refresh()
            return
        rate = (count - self._initial) / max(1e-9, time.monotonic() - self._started)
        left = tqdm.format_interval((self._total - count) / rate) if rate > 0 else "?"
        self._say(f"{self._what}: {count}/{self._total} {self._unit}, {rate:.1f}/s, {left} left")

    def _count(self) -> int:
        return min(self._total, self._initial + self._own + self._others())

    def __enter__(self) -> Progress:
        begin_work()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._bar is not None:
            self._bar.n = self._count()
            self._bar.refresh()
            self._bar.close()
        elif error is None and not self._quiet:
            seconds = time.monotonic() - self._started
            self._say(f"{self._what}: {self._count()}/{self._total} {self._unit} in {seconds:.1f} s")
