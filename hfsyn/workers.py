"""Who works here: one process alone or rank r of w under accelerate or torchrun, on which device, with which software.

A rank only decides where a process starts looking for work; what it makes never depends on it. No collective operation
is used: stages end when all sidecars are there (see `hfsyn.runs.claims`).

Launchers tell each process its place in environment variables, which may outlive them: exported in a shell, or
inherited from a job that has ended. A process that believed them would wait for processes that never come.
"""

import contextlib
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from builders.errors import first_line
from hfsyn import __version__
from hfsyn.errors import ExitCode, HfsynError, leave_at_once

T = TypeVar("T")

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")
_AGENT = "TORCHELASTIC_USE_AGENT_STORE"
"""Set to ``True`` by a launcher whose processes meet at the launcher itself, which is there before they are."""
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""From these accelerate would conclude that a process is one of several; hfsyn is not started by MPI."""
PARENT = "HFSYN_LAUNCHED"  # set by `hfsyn.launching.launch` to the number of its own process
LAUNCHER_VARIABLES = frozenset({PARENT, "RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_DYNAMO_BACKEND"})
"""What torchrun, accelerate and `launch` tell a process about its place among several."""

PATIENCE = 10.0  # seconds of waiting for the other processes before a message says so
LIMIT_HERE, LIMIT = 60.0, 900.0
"""Seconds after which the process gives up: where the meeting place is on this machine, and elsewhere."""

_CONTROL = Path("/dev/nvidiactl")  # there where NVIDIA's driver is loaded
_LIBRARIES = ["hfsyn", "torch", "diffusers", "transformers", "timm", "accelerate", "datasets"]
_LIBRARIES += ["numpy", "pillow", "pyarrow"]


@dataclass(frozen=True, slots=True)
class Worker:
    """Rank `rank` of `world` processes."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that talks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """All items, this process's own share (every world-th from rank) first, then the others' from the end.

        The others' come too, so that a slow or dead process delays only the shard that it holds.
        """
        own = list(items[self.rank :: self.world])
        others = [item for i, item in enumerate(items) if i % self.world != self.rank]
        return own + others[::-1]


def current_worker() -> Worker:
    """The worker that this process is, from the variables that torchrun and accelerate set; HfsynError (exit code 3)
    if they do not fit each other.
    """
    given = {name: os.environ[name] for name in _NUMBERS if name in os.environ}
    for name, value in given.items():
        if not value.isascii() or not value.isdigit():
            raise _left_over(f"{name}={value!r} is not a number.")
    rank, world = int(given.get("RANK", 0)), int(given.get("WORLD_SIZE", 1))
    if world > 1 and "RANK" not in given:
        raise _left_over(f"WORLD_SIZE={world} is set, and RANK is not.")
    if rank >= world:
        raise _left_over(f"RANK={rank} does not fit WORLD_SIZE={given.get('WORLD_SIZE', '1, which is not set')}.")
    if not int(given.get("LOCAL_WORLD_SIZE", 1)):
        raise _left_over("LOCAL_WORLD_SIZE=0 is set.")
    return Worker(rank, world)


def is_launched() -> bool:
    """Whether torchrun or accelerate started this process, alone or as one of several."""
    return bool({"WORLD_SIZE", "ACCELERATE_DYNAMO_BACKEND"} & set(os.environ))


def is_child() -> bool:
    """Whether `hfsyn.launching.launch` started this process, so that its parent says what there is to say."""
    return bool(os.environ.get(PARENT)) and is_launched()


def _left_over(what: str) -> HfsynError:
    """The error of variables that no launcher can have set for this process."""
    names = [name for name in (*_NUMBERS, *_MEETING_PLACE, _AGENT) if name in os.environ]
    return HfsynError(
        what,
        f"Launchers set this. If none has started this command, it is left over from another job: unset "
        f"{' '.join(names)}. To start several processes: hfsyn ... --num-processes N, or accelerate launch.",
        code=ExitCode.PREFLIGHT,
    )


def check_launcher() -> None:
    """Refuse to be one of several processes that have no place to meet, or whose launcher is gone (exit code 3)."""
    worker = current_worker()
    if worker.world == 1:
        return
    said = f"RANK={worker.rank} and WORLD_SIZE={worker.world} say that this is one of {worker.world} processes"
    if missing := [name for name in _MEETING_PLACE if not os.environ.get(name)]:
        raise _left_over(f"{said}, and {' and '.join(missing)}, where they would meet, is not set.")
    host, port = (os.environ[name] for name in _MEETING_PLACE)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise _left_over(f"MASTER_PORT={port!r} is not a port.")
    if os.environ.get(_AGENT) == "True" and not _answers(host, int(port)):
        raise _left_over(f"{said}, and their launcher at MASTER_ADDR={host} MASTER_PORT={port} does not answer.")


def _answers(host: str, port: int) -> bool:
    for pause in (0.5, 0.5, 0):
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
            return True
        time.sleep(pause)
    return False


@contextlib.contextmanager
def waiting_for_others(world: int) -> Iterator[None]:
    """While the processes meet: say after a while that some are missing, and end this one if they never come. Their
    meeting is a call outside Python that cannot be interrupted, so another thread watches.
    """
    met = threading.Event()
    host, port = (os.environ.get(name, "") for name in _MEETING_PLACE)
    limit = LIMIT_HERE if os.environ.get(_AGENT) != "True" and _is_here(host) else LIMIT

    def watch() -> None:
        if met.wait(PATIENCE):
            return
        missing = _left_over(
            f"Waiting for the other {world - 1} processes at MASTER_ADDR={host} MASTER_PORT={port}: some do not come."
        )
        print(f"hfsyn: {missing}", file=sys.stderr, flush=True)
        if not met.wait(limit - PATIENCE):
            print(f"Error: After {limit:.0f} s they have not come. {missing.hint}", file=sys.stderr, flush=True)
            leave_at_once(ExitCode.PREFLIGHT)

    threading.Thread(target=watch, name="gathering", daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _is_here(host: str) -> bool:
    with contextlib.suppress(OSError), socket.socket() as listener:
        listener.bind((host, 0))
        return True
    return False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hide the variables of MPI and a local rank from accelerate, which would take this process for one of several."""
    before = {name: os.environ.pop(name) for name in (*_MPI_SIZES, "LOCAL_RANK") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def leave_group() -> None:
    """Leave the process group, if there is one, so that no rank complains about the others."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def pick_device(device: str | None) -> str:
    """The torch device of this process: the one asked for, or this rank's own GPU, or the CPU.

    Under a launcher, accelerate's `PartialState` knows the local rank. It must be told when there is no GPU: otherwise
    each rank believes itself alone. On a CPU one thread is used, whatever the number of processes: the last bits of a
    result depend on the thread count, and several processes with many threads each slow each other down. Raises
    HfsynError if the device is not there, or accelerate sees another world than the launcher.
    """
    import torch

    worker = current_worker()
    has_gpu = torch.cuda.is_available()
    if device is None and not has_gpu and visible_gpus() and _CONTROL.exists():
        said = f"This machine has NVIDIA GPUs, and torch {torch.__version__} cannot use them."
        raise HfsynError(said, "Update the driver or install the torch that fits it; or say --device cpu.")
    wants_cpu = device == "cpu" or (device is None and not has_gpu)
    if not wants_cpu and not (has_gpu and (device or "cuda").startswith("cuda")):
        _made_current(device or "cuda")
    if worker.world > 1:
        _meet(worker.world, on_cpu=wants_cpu)
    if wants_cpu:
        torch.set_num_threads(1)
        return "cpu"
    # Only now: before, each of several processes would have taken memory on the first GPU.
    return _made_current(device or "cuda")


def _meet(world: int, *, on_cpu: bool) -> None:
    from accelerate import PartialState

    check_launcher()
    try:
        with waiting_for_others(world):
            # The others wait for the main process while it fetches data sets and weights, which may take hours; NCCL
            # would take it for dead after ten minutes.
            state = PartialState(cpu=on_cpu, timeout=timedelta(hours=12))
    except (RuntimeError, ValueError) as error:
        raise HfsynError(
            f"The {world} processes do not find each other: {first_line(error)}.",
            "Between machines, name the network interface that leads to the others: GLOO_SOCKET_IFNAME=eth0 (on "
            "GPUs NCCL_SOCKET_IFNAME). Or run `hfsyn generate RUN` on each machine, without a launcher over both.",
            code=ExitCode.PREFLIGHT,
        ) from None
    if state.num_processes != world:
        said = f"The launcher started {world} processes, but accelerate counts {state.num_processes}."
        raise HfsynError(said, "Start with `hfsyn ... --num-processes N`, or see the README on accelerate launch.")


def _made_current(device: str) -> str:
    """The device, tried; a GPU with its number, and as this thread's current one, on which torch records events and
    allocates memory, wherever the tensors are.
    """
    import torch

    try:
        if device.startswith("cuda"):
            index = torch.device(device).index
            index = torch.cuda.current_device() if index is None else index  # under accelerate the rank's own
            torch.cuda.set_device(index)
            device = f"cuda:{index}"
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = f"Device {device!r} is not usable: {first_line(error)}"
        raise HfsynError(said, "Use --device cpu, or leave it out.") from None
    return device


def begin_thread_on(device: str) -> None:
    """Make a GPU the current one of this thread: in torch each thread begins with the first GPU."""
    if device.startswith("cuda:"):  # without a number it is the first one
        import torch

        torch.cuda.set_device(device)


def check_device(device: str | None) -> None:
    """Refuse a device that is not there, before anything is written and, where that can be avoided, without torch."""
    if device is None or device == "cpu":
        return
    kind, _, number = device.partition(":")
    if kind not in ("cuda", "mps", "xpu") or (number and not number.isdigit()):
        said = f"{device!r} is not a device."
        raise HfsynError(said, "Devices are cpu, cuda, cuda:N, mps and xpu; or leave --device out.")
    if kind == "cuda" and not visible_gpus():
        import torch

        if not torch.cuda.is_available():
            raise HfsynError(f"Device {device!r} is not here: no GPU is visible.", "Use --device cpu, or leave it out.")


def default_processes() -> int:
    """One process for each GPU that is visible, or one for each core that this process may use."""
    return visible_gpus() or cores()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def visible_gpus() -> int:
    """How many NVIDIA GPUs are visible, without loading torch (which takes seconds)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name.removeprefix("nvidia").isdigit()])


def software() -> dict[str, str]:
    """Versions of Python and of the libraries that decide an image's or a weight's last bits."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = __version__ if name == "hfsyn" else version(name)
    return found


def describe_device(device: str) -> str:
    """A torch device in words: ``cuda:0 (NVIDIA H100)``, ``cpu (x86_64, 2 cores)``."""
    if device.startswith("cuda") and "torch" in sys.modules:
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {os.cpu_count()} cores)" if device == "cpu" else device


def pool_threads() -> int:
    """Threads that decode or encode in this process: its share of the cores less one, 2 to 16."""
    share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(2, min(16, share - 1))
