"""What changes how fast, where and how long the costly stages work, and never what they make: flags of the command.

A new flag is a field here, named as the keyword of its click option in `hfsyn.cli`, with the flag in its metadata. The
command gathers it, `build` and `work` pass it on, in this process or on the command lines of the processes that
`--num-processes` starts, and the stages read it from their `options`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


def _flag(name: str) -> dict[str, str]:
    return {"flag": name}


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """How the costly stages work. Every field has a default; none changes more of an image than its last bits."""

    allow_pickle: bool = field(default=False, metadata=_flag("--allow-pickle-weights"))
    """Read weights that are no safetensors too; a pickle can run code when it is read."""
    budget_hours: float | None = field(default=None, metadata=_flag("--budget-hours"))
    """Hours, > 0, after which no other shard is begun; None is no limit."""
    batch_size: str | None = field(default=None, metadata=_flag("--batch-size"))
    """Images that the generator draws at once: a number, or ``auto`` for as many as fit; None is the recipe's. Another
    number than the recipe's changes the last bits of an image, and sidecars record it.
    """
    channels_last: str | None = field(default=None, metadata=_flag("--channels-last"))
    """``on`` or ``off``: the memory format of UNets and autoencoders; None is on for NVIDIA GPUs."""
    compile: bool = field(default=False, metadata=_flag("--compile"))
    """Compile the generator with `torch.compile`."""
    attention: str | None = field(default=None, metadata=_flag("--attention"))
    """The kernel of scaled dot product attention; None is torch's own choice."""
    started: float = field(default_factory=time.monotonic, compare=False)
    """When the budget began, by `time.monotonic()`; no flag."""

    def arguments(self) -> list[str]:
        """These options as words of a command line, for another process of the same work."""
        words: list[str] = []
        for option in fields(self):
            value = getattr(self, option.name)
            if (flag := option.metadata.get("flag")) is None or value == option.default:
                continue
            if option.name == "budget_hours":
                value = max(1e-6, self.seconds_left() / 3600)  # the flag must be above 0
            words += [flag] if value is True else [flag, str(value)]
        return words

    def seconds_left(self) -> float:
        """What is left of the budget; negative when it is over, infinite without one."""
        if self.budget_hours is None:
            return math.inf
        return self.started + self.budget_hours * 3600 - time.monotonic()

    @classmethod
    def taken_from(cls, given: Mapping[str, Any]) -> tuple[WorkOptions, dict[str, Any]]:
        """The options among a command's keywords, and the keywords that are left."""
        names = {option.name for option in fields(cls) if "flag" in option.metadata}
        mine = {name: value for name, value in given.items() if name in names}
        return replace(cls(), **mine), {name: value for name, value in given.items() if name not in names}


DEFAULTS = WorkOptions()
"""Where nobody says anything."""


def shard_bounds(chosen: str) -> tuple[int, int | None]:
    """A and B of ``A:B``; left out, A is 0 and B is None, the end.

    Raises:
        ValueError: it is no such range.
    """
    first, colon, last = chosen.partition(":")
    if not colon or not all(part == "" or (part.isascii() and part.isdigit()) for part in (first, last)):
        raise ValueError(chosen)
    return int(first or 0), int(last) if last else None
