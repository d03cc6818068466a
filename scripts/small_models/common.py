"""What every training stage shares: where things lie, the learning rate, checkpoints, progress, averaged weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Job:
    """What the command line decides. `steps` overrides a stage's own number of steps."""

    work_dir: Path
    out_dir: Path
    seed: int = 0
    processes: int = 1
    steps: int | None = None
    device: str = "cpu"

    def path(self, name: str) -> Path:
        """A file of the work folder."""
        return self.work_dir / name


def pick_device() -> str:
    """The fastest device there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def cosine(step: int, steps: int, *, warm_up: int = 60, hold: float = 0.0, floor: float = 0.01) -> float:
    """The factor of the learning rate: a linear warm-up, 1 for the share `hold`, half a cosine to `floor`."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step / steps - hold) / (1 - hold)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a kill leaves either the old one or the new one."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU."""
    return torch.load(path, map_location="cpu", weights_only=False)


def progress(
    name: str, start: int, stop: int, batch: int, *, every: float = 20.0
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (step, figures) for start..stop; what the loop puts into `figures` is averaged and printed."""
    figures: dict[str, float] = {}
    sums: dict[str, float] = {}
    count, began, last = 0, time.monotonic(), time.monotonic()
    for step in range(start, stop):
        figures.clear()
        yield step, figures
        count += 1
        for key, value in figures.items():
            sums[key] = sums.get(key, 0.0) + float(value)
        now = time.monotonic()
        if now - last >= every or step + 1 == stop:
            rate = (step + 1 - start) / (now - began)
            text = "  ".join(f"{key} {total / count:.4f}" for key, total in sums.items())
            left = (stop - step - 1) / rate / 60
            print(
                f"[{name}] step {step + 1}/{stop}  {text}  {rate * batch:.0f} samples/s  {left:.1f} min left",
                flush=True,
            )
            sums, count, last = {}, 0, now


class Average:
    """An exponential moving average of parameters; the decay grows from 0, so that early steps do not linger."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.shadow = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the current parameters."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in model.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite a model's parameters with the averages."""
        for parameter, value in zip(model.parameters(), self.shadow, strict=True):
            parameter.copy_(value)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self.steps, "shadow": self.shadow}

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.steps = state["steps"]
        for mine, saved in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(saved)
