"""Ways of doing the same work (arms), timed in turns side by side; what the device and the networks did meanwhile.

Only figures of one run of one process are compared: turns go A B C C' then C' C B A, and a ratio pairs two turns of the
same round. C' is C again: how far its ratio is from 1 says how much all ratios are worth.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.budget import Budget

CONTROL = "again"
"""The arm that is judged, a second time."""
CONTROL_RANGE = (0.97, 1.03)
"""Where the control's median ratio must lie, or the others are void."""
KERNELS_TOLD, KERNEL_NAME = 15, 80
"""How many of the costliest kernels are told, and with how many characters of their names."""


class Arm(Protocol):
    """One way of doing the work."""

    name: str
    unit: int
    """Images come in multiples of this."""

    def prepare(self, images: int) -> None:
        """Get ready for `images` images in all; no clock runs."""

    def work(self, images: int) -> int:
        """Make the next so many. Returns, when their files are written, how many there are."""

    def clear(self) -> None:
        """Delete what the last turn wrote."""

    def watched(self) -> Sequence[Watched]:
        """Calls that are counted."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of work."""

    images: int
    seconds: float
    cpu_seconds: float
    """Of all threads of this process."""

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


@dataclass(frozen=True, slots=True)
class Watched:
    """A callable attribute whose calls are counted by the rows of its first tensor."""

    name: str
    owner: Any
    attribute: str


def module(name: str, network: torch.nn.Module) -> Watched:
    """A network's call, compiled or not.

    Hooks would be compiled with the network; this is the place from which either kind of call starts.
    """
    return Watched(name, network, "_compiled_call_impl")


@dataclass
class Calls:
    """What was called: how often, for how many rows, and when."""

    calls: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end in seconds. On a CPU that is the work itself; on a GPU only the giving of orders."""

    @contextmanager
    def watching(self, watched: Iterable[Watched]) -> Iterator[Calls]:
        """Count the calls within the block."""
        before = []
        for what in watched:
            before.append((what, what.attribute in vars(what.owner), getattr(what.owner, what.attribute)))
            setattr(what.owner, what.attribute, self._counted(what.name, what.owner, before[-1][2]))
        try:
            yield self
        finally:
            for what, own, original in reversed(before):
                if own:
                    setattr(what.owner, what.attribute, original)
                else:
                    delattr(what.owner, what.attribute)

    def _counted(self, name: str, owner: Any, original: Callable[..., Any] | None) -> Callable[..., Any]:
        call = original or owner._call_impl

        def counted(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.ndim]
            self.calls[name] += 1
            self.rows[name] += tensors[0].shape[0]
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.spans.append((began, time.perf_counter()))

        return counted


@dataclass(frozen=True, slots=True)
class Look:
    """One turn, looked at closely."""

    turn: Turn
    busy: float
    """Share of its time in which the device computed."""
    calls: dict[str, float]
    """By name and per image."""
    rows: dict[str, float]
    """By name and per image."""
    kernels: dict[str, float] = field(default_factory=dict)
    """The costliest kernels of a GPU, and their shares of the time in which kernels ran."""

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {
            "busy": round(self.busy, 4),
            "calls_per_image": {part: round(n, 4) for part, n in self.calls.items()},
            "rows_per_image": {part: round(n, 4) for part, n in self.rows.items()},
            **({"kernels": {name: round(share, 4) for name, share in self.kernels.items()}} if self.kernels else {}),
        }


def say(line: str) -> None:
    """A line of progress, at once."""
    print(line, flush=True)


def roomy() -> str | None:
    """Memory where there is enough, so that nothing waits for a disk; else the usual place."""
    shm = Path("/dev/shm")  # noqa: S108
    return str(shm) if shm.is_dir() and shutil.disk_usage(shm).free > 20e9 else None


def synchronise(device: str) -> None:
    """Wait until the device has nothing left to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def timed(arm: Arm, images: int, device: str) -> Turn:
    """One turn.

    Raises:
        RuntimeError: the arm did not write as many images.
    """
    synchronise(device)
    used, began = _cpu_seconds(), time.perf_counter()
    written = arm.work(images)
    synchronise(device)
    seconds, used = time.perf_counter() - began, _cpu_seconds() - used
    arm.clear()
    if written != images:
        raise RuntimeError(f"{arm.name} wrote {written} of {images} images: its time would be compared to other work")
    return Turn(images, seconds, used)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def warm(arm: Arm, seconds: float, device: str) -> int:
    """Let an arm do what it does only once (compile, choose kernels); how many images it makes in that many seconds."""
    arm.prepare(2 * arm.unit)
    timed(arm, arm.unit, device)
    rate = timed(arm, arm.unit, device).rate
    return max(1, round(rate * seconds / arm.unit)) * arm.unit


def looked_at(arm: Arm, images: int, device: str) -> Look:
    """One turn with counters, under torch's profiler on a GPU; not for comparing times."""
    calls, kernels = Calls(), Counter[str]()
    with calls.watching(arm.watched()):
        if device.startswith("cuda"):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                turn = timed(arm, images, device)
            spans = kernel_spans(raw_events(profile), kernels)
        else:
            turn = timed(arm, images, device)
            spans = calls.spans
    each = {name: count / images for name, count in calls.calls.items()}
    rows = {name: n / images for name, n in calls.rows.items()}
    whole = sum(kernels.values())
    costly = {name: seconds / whole for name, seconds in kernels.most_common(KERNELS_TOLD)}
    return Look(turn, covered(spans) / turn.seconds, each, rows, costly)


def raw_events(profile: torch.profiler.profile) -> Iterable[Any]:
    """What Kineto recorded. `profile.events()` makes an object of 3 kB of each in 64 us, and there are millions."""
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    return results.events() if results is not None else ()


def kernel_spans(events: Iterable[Any], by_name: Counter[str] | None = None) -> list[tuple[float, float]]:
    """When kernels ran, in seconds, of Kineto's events. Copies, fills and named ranges do not count as work.

    `by_name` gets the seconds of each kernel, by the beginning of its name.
    """
    spans = []
    for event in events:
        if event.device_type() == torch.autograd.DeviceType.CPU or event.is_user_annotation():
            continue
        name = event.name()
        if name.startswith(("Memcpy", "Memset")):
            continue
        spans.append((event.start_ns() / 1e9, event.end_ns() / 1e9))
        if by_name is not None:
            by_name[name[:KERNEL_NAME]] += spans[-1][1] - spans[-1][0]
    return spans


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def order(arms: Sequence[str], rounds: int) -> list[list[str]]:
    """Whose turn it is, round by round: the last arm is the one that is judged, and has another turn as control."""
    forth = [*arms, CONTROL]
    return [forth if number % 2 == 0 else forth[::-1] for number in range(rounds)]


def ratio(pairs: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Median, lowest and highest of first over second."""
    ratios = sorted(first / second for first, second in pairs)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "low": round(ratios[0], 3),
        "high": round(ratios[-1], 3),
        "pairs": len(ratios),
    }


@dataclass
class Comparison:
    """Arms beside each other, as far as they came."""

    turns: dict[str, list[Turn]]
    """By arm, and `CONTROL`; one a round."""
    looks: dict[str, Look] = field(default_factory=dict)

    @property
    def judged(self) -> str:
        """The arm that is compared to the others: the last one."""
        return [name for name in self.turns if name != CONTROL][-1]

    def ratios(self) -> dict[str, dict[str, float]]:
        """Of the judged arm over each other arm and over itself, paired by rounds; a round that was cut off is left out
        for the arms that had no turn in it.
        """
        mine = [turn.rate for turn in self.turns[self.judged]]
        return {
            f"{self.judged} / {name}": ratio(zip(mine, (turn.rate for turn in turns), strict=False))
            for name, turns in self.turns.items()
            if name != self.judged and mine and turns
        }

    @property
    def void(self) -> bool:
        """Whether the judged arm was too unlike itself, or was not compared to itself."""
        found = self.ratios().get(f"{self.judged} / {CONTROL}", {"ratio": 0.0})["ratio"]
        return not CONTROL_RANGE[0] <= found <= CONTROL_RANGE[1]

    def figures(self) -> dict[str, dict[str, Any]]:
        """By arm, without the control."""
        return {
            name: {
                "images_per_second": round(statistics.median(turn.rate for turn in turns), 3),
                "cpu_seconds_per_image": round(statistics.median(turn.cpu_seconds / turn.images for turn in turns), 4),
                "images_a_turn": turns[0].images,
                "rates": [round(turn.rate, 3) for turn in turns],
                **(self.looks[name].figures() if name in self.looks else {}),
            }
            for name, turns in self.turns.items()
            if name != CONTROL and turns
        }


class Race:
    """Turns of arms side by side, then a close look at some of them.

    Args:
        arms: the last one is judged.
        rounds: turns of each at most; a budget may end before.
        seconds: that each arm works in all its turns together, about.
        window: that the judged arm is looked at, at least.
        device: a torch device.
        say: gets lines of progress.
        told: called after every turn.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        *,
        rounds: int,
        seconds: float,
        window: float,
        device: str,
        say: Callable[[str], None],
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._arms = {arm.name: arm for arm in arms}
        self._rounds, self._seconds, self._window = rounds, seconds, window
        self._device, self._say, self._told = device, say, told
        self._judged = arms[-1].name
        self._count: dict[str, int] = {}
        self.found = Comparison({name: [] for name in (*self._arms, CONTROL)})

    def warm(self) -> None:
        """Each arm's first work, and how many images it makes in a turn."""
        for name, arm in self._arms.items():
            began = time.perf_counter()
            self._count[name] = warm(arm, self._seconds / self._rounds, self._device)
            self._say(f"{name}: ready after {time.perf_counter() - began:.0f} s, {self._count[name]} images a turn")
        for name, arm in self._arms.items():
            # Twice for all: the judged one has two turns a round, and a larger run folder costs more a turn.
            arm.prepare(self._count[name] * self._rounds * 2 + self._looked_at(name))

    def run(self, budget: Budget, least: int = 1) -> None:
        """Rounds while the budget has time for another one, but at least so many."""
        for number, names in enumerate(order(list(self._arms), self._rounds), 1):
            began = time.perf_counter()
            for name in names:
                arm = self._arms.get(name, self._arms[self._judged])
                self.found.turns[name].append(timed(arm, self._count[arm.name], self._device))
                self._told()
            rates = (f"{name} {self.found.turns[name][-1].rate:.2f} images/s" for name in names)
            self._say(f"round {number}: {', '.join(rates)}")
            if number >= least and budget.left() < time.perf_counter() - began:
                break

    def look(self, name: str) -> None:
        """A close look at an arm."""
        self.found.looks[name] = looked_at(self._arms[name], self._looked_at(name), self._device)
        self._told()

    def _looked_at(self, name: str) -> int:
        """How many images."""
        unit, count = self._arms[name].unit, self._count[name]
        if name == self._judged:
            count = max(count, round(count * self._window * self._rounds / self._seconds))
        return -(-count // unit) * unit


def compare(arms: Sequence[Arm], **how: Any) -> Comparison:
    """A whole race, without a budget, and a close look at each arm; `how` as `Race` takes it."""
    race = Race(arms, **how)
    race.warm()
    race.run(Budget(None))
    for arm in arms:
        race.look(arm.name)
    return race.found


def matmul_ceiling(device: str) -> tuple[float, str]:
    """FLOP/s of a large matrix product on random data (median), and what was multiplied."""
    cuda = device.startswith("cuda")
    side, dtype, products = (8192, torch.bfloat16, 10) if cuda else (512, torch.float32, 1)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    taken = []
    for _ in range(12):
        synchronise(device)
        began = time.perf_counter()
        for _ in range(products):  # so many, that waiting for the device does not count
            a @ b
        synchronise(device)
        taken.append((time.perf_counter() - began) / products)
    return 2 * side**3 / statistics.median(taken[2:]), f"{side}^3 {str(dtype).removeprefix('torch.')}"
