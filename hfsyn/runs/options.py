"""Where, how fast and how long the costly stages work, never what they make: the flags of the commands.

A field is named as its flag is. The command collects the fields, `build` and `work` pass them on, in this process or on
the command lines of the processes that `--num-processes` starts, and the stages read them from their `options`.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from hfsyn.errors import HfsynError


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """How the costly stages work. None of these changes more of an image than its last bits.

    Args:
        device: a torch device; None is this process's GPU, or the CPU.
        num_processes: processes on this machine. None is one per GPU or CPU core, but no more than there are shards to
            make; 1 works in this process.
        shards: ``A:B`` works on these shards of the last stage only.
        quiet: show no progress.
        captions: take the captions of this run folder or published dataset instead of making them; see `KnownCaptions`.
        allow_pickle_weights: also read weights that are not safetensors; a pickle can run code when it is read.
        budget_hours: hours, > 0, after which no other shard is begun; None is no limit.
        batch_size: images that the generator draws at once: a number, or ``auto`` for as many as fit; None is the
            recipe's. Another number than the recipe's changes the last bits of an image, and sidecars record it.
        channels_last: ``on`` or ``off``: the memory format of UNets and autoencoders; None is on for NVIDIA GPUs.
        compile: compile the generator with `torch.compile`.
        attention: the kernel of scaled dot product attention; None is torch's own choice.
        started: when the budget began, by `time.monotonic()`; not a flag.
    """

    device: str | None = None
    num_processes: int | None = None
    shards: str | None = None
    quiet: bool = False
    captions: str | None = None
    allow_pickle_weights: bool = False
    budget_hours: float | None = None
    batch_size: str | int | None = None
    channels_last: str | None = None
    compile: bool = False
    attention: str | None = None
    started: float = field(default_factory=time.monotonic, compare=False)

    def arguments(self) -> list[str]:
        """These options as words of the command line of one of several processes."""
        words: list[str] = []
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in ("num_processes", "started") or value == option.default:
                continue
            if option.name == "budget_hours":
                value = max(1e-6, self.seconds_left() / 3600)  # the flag must be above 0
            flag = f"--{option.name.replace('_', '-')}"
            words += [flag] if value is True else [flag, str(value)]
        return words

    def seconds_left(self) -> float:
        """What is left of the budget; negative when it is over, infinite without one."""
        if self.budget_hours is None:
            return math.inf
        return self.started + self.budget_hours * 3600 - time.monotonic()


class Budget:
    """Decides before each shard whether there is time for it.

    A shard is expected to take as long as those between the calls so far took on average. The first one also warms up
    and is left out as soon as there are others; before it is known, nothing is expected of a shard, so that every
    command makes some progress.
    """

    def __init__(self, options: WorkOptions) -> None:
        self._options = options
        self._begun: list[float] = []

    def allows_another(self) -> bool:
        """Whether another shard may begin now; call it once before each, and begin none after it said no."""
        now = time.monotonic()
        steady = self._begun[1:] or self._begun
        expected = (now - steady[0]) / len(steady) if steady else 0.0
        if expected > self._options.seconds_left():
            return False
        self._begun.append(now)
        return True


def shard_bounds(chosen: str) -> tuple[int, int | None]:
    """A and B of ``A:B``; left out, A is 0 and B is None, the end. Raises ValueError if it is not such a range."""
    first, colon, last = chosen.partition(":")
    if not colon or not all(part == "" or (part.isascii() and part.isdigit()) for part in (first, last)):
        raise ValueError(chosen)
    return int(first or 0), int(last) if last else None


def select(shards: Sequence[Path], chosen: str | None) -> list[Path]:
    """The shards of ``A:B``: numbers from A up to but not including B; either may be left out. None is all.

    Raises HfsynError if it is not such a range, or it selects nothing.
    """
    if chosen is None:
        return list(shards)
    try:
        selected = list(shards[slice(*shard_bounds(chosen))])
    except ValueError:
        said = f"--shards {chosen!r} is not a range."
        raise HfsynError(said, "It looks like 0:5 (shards 0 to 4), 5: or :5.") from None
    if not selected:
        raise HfsynError(f"--shards {chosen} selects none of the {len(shards)} shards.", f"They are 0:{len(shards)}.")
    return selected
