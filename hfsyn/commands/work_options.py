"""The options that say how the costly stages work: where, in how many processes, how fast, for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from hfsyn.commands.values import MOST, Finite
from hfsyn.runs.options import shard_bounds

F = TypeVar("F", bound=Callable[..., Any])


def _shards(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """``A:B`` with A below B, either left out."""
    if value is None:
        return None
    try:
        first, last = shard_bounds(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a range. It looks like 0:5 (shards 0 to 4), 5: or :5.") from None
    if last is not None and first >= last:
        raise click.BadParameter(f"{value!r} selects none: 0:5 is shards 0 to 4.")
    return value


def _batch_size(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A number of at least 1, or ``auto``."""
    if value is None or value == "auto" or (value.isascii() and value.isdigit() and 0 < int(value[:10]) <= MOST):
        return value
    raise click.BadParameter(f"{value!r} is neither a number from 1 to 1,000,000,000 nor auto.")


_PROCESSES = click.option(
    "--num-processes",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Processes on this machine, started by accelerate. Default: one a GPU or CPU core, no more than shards.",
)
_DEVICE = click.option(
    "--device", metavar="DEVICE", help="cpu, cuda, mps. Default: each process's own GPU, or the CPU."
)
_SHARDS = click.option("--shards", metavar="A:B", callback=_shards, help="Only shards A up to but not including B.")
_SPEED = (
    click.option(
        "--allow-pickle-weights",
        is_flag=True,
        help="Read models that have no safetensors too. A pickle can run code: only for models that you trust.",
    ),
    click.option(
        "--batch-size",
        metavar="N|auto",
        callback=_batch_size,
        help="Images that the generator draws at once; auto: as many as fit. Default: the recipe's number. "
        "Another changes the last bits of an image, and sidecars record it.",
    ),
    click.option(
        "--compile",
        "compile",
        is_flag=True,
        help="Compile the generator first: minutes, then faster. Worth it from some thousand images on.",
    ),
    click.option(
        "--channels-last", type=click.Choice(["on", "off"]), help="Memory format of UNets.  [default: on for GPUs]"
    ),
    click.option(
        "--attention",
        type=click.Choice(["auto", "cudnn", "flash", "efficient", "math"]),
        help="Kernel of attention, where it fits a layer.  [default: auto]",
    ),
)
_BUDGET = click.option(
    "--budget-hours",
    type=Finite(min=0, min_open=True, max=1e6),
    metavar="H",
    help="Begin no shard that would end after so many hours. Exit code 4 when some are left.",
)


def _together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in reading order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


stage_options = _together(_PROCESSES, _DEVICE, _SHARDS, *_SPEED, _BUDGET)
"""Of the commands that carry out the costly stages; those of `WorkOptions` among them."""

speed_options = _together(_DEVICE, *_SPEED)
"""Of a command that tries the stages out."""
