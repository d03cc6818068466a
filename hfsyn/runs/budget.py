"""A budget of hours: work ends at a shard's end, before it is spent."""

from __future__ import annotations

import time

from hfsyn.runs.options import WorkOptions


class Budget:
    """Decides before each shard whether there is time for it.

    A shard is taken to last as long as those between the calls so far took on average. The first of them is left out
    once there are others, because it also warmed up; before it is known nothing is expected of a shard, so that every
    command makes some headway.

    Args:
        options: their `budget_hours`, and when it began.
    """

    def __init__(self, options: WorkOptions) -> None:
        self._options = options
        self._begun: list[float] = []
        self.spent = False
        """Whether a shard was refused."""

    def allows_another(self) -> bool:
        """Whether another shard may begin now; call it once before each, and begin none after it said no."""
        now = time.monotonic()
        if self._shard_seconds(now) > self._options.seconds_left():
            self.spent = True
            return False
        self._begun.append(now)
        return True

    def _shard_seconds(self, now: float) -> float:
        """What a shard takes, in seconds, from those that were begun before `now`, when the last of them is over."""
        match self._begun:
            case []:
                return 0.0
            case [first]:
                return now - first
            case [_, second, *later]:
                return (now - second) / (1 + len(later))
        raise AssertionError
