"""accelerate's Accelerator, started with the right number of processes, and checks of what it is asked to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builders.errors import first_line
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.workers import alone, cores, current_worker, pick_device

TRACKERS = ("tensorboard", "trackio", "wandb")


def start_accelerator(
    device: str | None,
    mixed_precision: str = "no",
    accumulation: int = 1,
    log_with: str | None = None,
    log_folder: Path | None = None,
) -> Any:
    """An Accelerator for this process, alone or one of a launch; on a CPU it computes with one thread."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    check_tracker(log_with)
    picked = pick_device(device)
    if device is not None and ":" in device:
        raise HfsynError(
            f"--device {device} names one of several.", "Set CUDA_VISIBLE_DEVICES=1, and use --device cuda."
        )
    # These are global, and an earlier training in this process may have used another precision.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    try:
        with alone() if current_worker().world == 1 else contextlib.nullcontext():
            return Accelerator(
                cpu=picked == "cpu",
                mixed_precision=mixed_precision,
                gradient_accumulation_steps=accumulation,
                log_with=log_with,
                project_dir=str(log_folder) if log_with else None,
                step_scheduler_with_optimizer=False,
            )
    except (ValueError, RuntimeError) as error:
        raise HfsynError(f"accelerate cannot start: {first_line(error)}", "Try --mixed-precision no.") from None


def default_workers(accelerator: Any) -> int:
    """Decoding processes beside each process if the user gives no number.

    A GPU waits for the decoders, so its processes share the machine's cores; a CPU would only take turns with them.
    """
    if accelerator.device.type != "cuda":
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return min(16, max(1, cores() // here))


def check_tracker(log_with: str | None) -> None:
    """Refuse a tracker that is not installed; accelerate would only warn and log nothing."""
    from accelerate import utils

    if log_with is None:
        return
    if log_with not in TRACKERS:
        raise HfsynError(f"Unknown tracker {log_with!r}.", f"Known: {', '.join(TRACKERS)}.")
    if not getattr(utils, f"is_{log_with}_available")():
        hint = f"pip install 'hfsyn[{log_with}]'" if log_with != "wandb" else "pip install wandb"
        raise HfsynError(f"The tracker {log_with} is not installed.", hint, code=ExitCode.PREFLIGHT)


def check_division(batch_size: int, accumulation: int, processes: int, *, pairs: bool = False) -> None:
    """Refuse a batch that cannot be divided into equal parts, or with `pairs` not into even ones; name one that can."""
    parts = accumulation * processes
    if batch_size % parts:
        fits = max(1, round(batch_size / parts)) * parts
        raise HfsynError(
            f"A batch of {batch_size} images cannot be divided into {processes} processes times {accumulation} parts.",
            f"The batch size is that of a whole step over all processes; {fits} can be: --batch-size {fits}.",
        )
    if pairs and (each := batch_size // parts) % 2:
        fits = max(1, round(batch_size / parts / 2)) * 2 * parts
        raise HfsynError(
            f"Mixup pairs images, and a batch of {batch_size} in {parts} part{'s' * (parts > 1)} has {each} in each.",
            f"Make --batch-size even for it: {fits} can be.",
        )


def total(accelerator: Any, value: float) -> float:
    """The sum of a number over all processes."""
    import torch

    return float(accelerator.reduce(torch.tensor(float(value), device=accelerator.device), "sum").item())


def union(accelerator: Any, values: Mapping[str, str]) -> dict[str, str]:
    """The entries of all processes together, sorted."""
    from accelerate.utils import gather_object

    found = list(values.items())
    return dict(sorted(found if accelerator.num_processes == 1 else gather_object(found)))
