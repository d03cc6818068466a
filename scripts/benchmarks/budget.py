"""A budget of minutes that a script keeps, whatever it is busy with; what was found by then is on the disk.

A GPU is lent by the minute. A compilation or a first kernel may take long and cannot be asked to stop, so a thread
watches the clock and ends the process.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import psutil


class Budget:
    """Minutes from the start of this process on, or from `began` (of `time.monotonic`); None is no limit."""

    def __init__(self, minutes: float | None, began: float | None = None) -> None:
        if began is None:
            began = time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())
        self._end = math.inf if minutes is None else began + 60 * minutes
        self._timer: threading.Timer | None = None

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return math.isfinite(self._end)

    def left(self) -> float:
        """Seconds; at least 0, infinite without a limit."""
        return max(0.0, self._end - time.monotonic())

    def part(self, share: float) -> Budget:
        """A budget that ends after this share of what is left, 0 to 1."""
        return Budget(self.left() * share / 60 if self.limited else None, time.monotonic())

    def watch(self, leave: Callable[[], None], early: float = 1.0) -> None:
        """Call `leave` in a thread of its own, that many seconds before the end, unless `close` was called."""
        if self.limited:
            self._timer = threading.Timer(max(0.0, self.left() - early), leave)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """The work is done."""
        if self._timer is not None:
            self._timer.cancel()
