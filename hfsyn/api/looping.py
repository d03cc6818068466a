"""The closed loop, in Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfsyn.looping.loop import Curve


def loop(
    file: str | Path,
    out: str | Path,
    *,
    device: str | None = None,
    num_processes: int | None = None,
    quiet: bool = False,
) -> Curve:
    """Rounds of images that are planned by what the last classifier got wrong; ``uniform`` runs beside, as the control.

    Running it again continues, in the middle of any round.

    Args:
        file: a loop file, see `hfsyn.looping.loop_file`.
        out: the folder of the loop.
        device: cpu or cuda; None is each process's own GPU, or the CPU.
        num_processes: processes that draw and judge on this machine; None is one per GPU or CPU core.
        quiet: no progress.

    Returns:
        ``curve``: of each policy and round the ``images`` so far, the accuracy on the ``test``, and the hash of the
        ``weights``.

    Raises:
        HfsynError: the file is not a loop file; there is no such recipe, factor file, set or policy; the policy fails,
            is not pure, or plans what there is not; `out` holds another loop.
    """
    from hfsyn.looping.loop import loop as looped
    from hfsyn.runs.options import WorkOptions

    return looped(str(file), out, WorkOptions(device=device, num_processes=num_processes, quiet=quiet))
