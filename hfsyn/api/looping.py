"""The closed loop, in Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfsyn.looping.loop import Curve
    from hfsyn.looping.outlook import Standing
    from hfsyn.runs.run import Run
    from hfsyn.runs.status import RunStatus


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
        ``curve``: of each policy and round the ``images`` so far, the accuracies on the ``test`` and on the images that
        ``steer``, the hash of the ``weights``, and what it is ``over`` the control on the same test images (``mean``,
        ``low`` and ``high``, None for the control). ``stopped``: ``why`` it ended and after how many ``rounds``.
        ``unions``: of each policy the run with the images of all rounds. ``out``, the folder.

    Raises:
        HfsynError: the file is not a loop file; there is no such recipe, factor file, set or policy; the policy fails,
            is not pure, or plans what there is not; `out` holds another loop, or one that began elsewhere.
    """
    from hfsyn.looping.loop import loop as looped
    from hfsyn.runs.options import WorkOptions

    return looped(str(file), out, WorkOptions(device=device, num_processes=num_processes, quiet=quiet))


def status(run: Run | str | Path) -> RunStatus | Standing:
    """How far a run is, or a loop. Reads its folder alone; any number of processes may be at work meanwhile.

    Args:
        run: the run folder, or the folder of a loop.

    Raises:
        HfsynError: it is neither, or its index, plan or manifest is damaged.
    """
    from hfsyn.looping.loop_file import is_loop
    from hfsyn.runs.run import Run
    from hfsyn.runs.status import status as of_run

    if isinstance(run, Run) or not is_loop(run):
        return of_run(run)
    from hfsyn.looping.outlook import standing

    return standing(run)


def report(
    out: str | Path, *, push_to_hub: str | None = None, private: bool = False, quiet: bool = False
) -> Path | str:
    """One page of a bench, or of several, or of a loop; of a bench with its table as CSV and LaTeX, and its plots.

    Args:
        out: the folder of a bench, one with several beside each other, or that of a loop.
        push_to_hub: show the page of a bench as this static Space, ``USER/NAME``; what is there already is not sent
            again. It shows neither photographs of the source, which may have a licence of their own, nor paths of this
            machine.
        private: only you can see it there, if it is made now.
        quiet: no progress.

    Returns:
        The page; with `push_to_hub` the address of the Space.

    Raises:
        HfsynError: there is no bench and no loop; or the Hub refuses (exit code 3), or does not answer in time (exit
            code 4).
    """
    from hfsyn.errors import HfsynError
    from hfsyn.looping.loop_file import is_loop

    if not is_loop(out):
        from hfsyn.judging.bench.space import report as of_bench

        return of_bench(out, push_to_hub=push_to_hub, private=private, quiet=quiet)
    if push_to_hub is not None:
        raise HfsynError(f"{out} is a loop, whose page is not shown as a Space.", "Leave --push-to-hub out.")
    from hfsyn.looping.page import write_page

    return write_page(out)
