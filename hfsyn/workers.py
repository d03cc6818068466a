"""Who works here: one process alone, or rank r of w under accelerate or torchrun.

A rank decides only where a process starts looking for work; what it makes never depends on it. No collective
operation is used: stages end when all sidecars stand (see `hfsyn.runs.claims`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TypeVar

from builders.wording import first_line
from hfsyn.errors import ExitCode, HfsynError
from hfsyn.gathering import check_launcher, place, processes_asked_for, waiting_for_others

T = TypeVar("T")
_CONTROL = Path("/dev/nvidiactl")
"""Of NVIDIA's driver: there where it is loaded."""
GRACE = 7.0
"""Seconds that a process takes at most to end by itself after SIGTERM; schedulers give 10 to 30 before they kill."""
_LAUNCHED = "HFSYN_LAUNCHED"
_TOLD = "HFSYN_TOLD"
LAUNCHER_VARIABLES = frozenset({_LAUNCHED, "RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_DYNAMO_BACKEND"})
"""What torchrun, accelerate and `launch` tell a process about its place among several."""
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


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

        The others' come too, so that a slow or dead process delays nothing but the shard in its hands.
        """
        own = list(items[self.rank :: self.world])
        others = [item for i, item in enumerate(items) if i % self.world != self.rank]
        return own + others[::-1]


def current_worker() -> Worker:
    """The worker that this process is, from the variables that torchrun and accelerate set; loads nothing."""
    return Worker(*place())


def pick_device(device: str | None) -> str:
    """The torch device of this process: the one asked for, or this rank's own GPU, or the CPU.

    Under a launcher accelerate's `PartialState` knows the local rank. It must be told when there is no GPU: otherwise
    each rank believes itself alone. On a CPU one thread is used, whatever the number of processes: with the thread
    count the last bits of a result change, and several processes with many threads each slow each other down.

    Raises:
        HfsynError: the device is not there, or accelerate sees another world than the launcher.
    """
    import torch

    worker = current_worker()
    has_gpu = torch.cuda.is_available()
    if device is None and not has_gpu and visible_gpus() and _CONTROL.exists():
        raise HfsynError(
            f"This machine has NVIDIA GPUs, and torch {torch.__version__} cannot use them.",
            "Update the driver or install the torch that fits it; or say --device cpu.",
        )
    wants_cpu = device == "cpu" or (device is None and not has_gpu)
    on_gpu = not wants_cpu and (device or "cuda").startswith("cuda") and has_gpu
    if not wants_cpu and not on_gpu:
        _made_current(device or "cuda")
    if worker.world > 1:
        from accelerate import PartialState

        # The others wait for the main process while it fetches data sets and weights, which may take hours; NCCL would
        # take it for dead after ten minutes.
        check_launcher()
        try:
            with waiting_for_others(worker.world):
                state = PartialState(cpu=wants_cpu, timeout=timedelta(hours=12))
        except (RuntimeError, ValueError) as error:
            raise HfsynError(
                f"The {worker.world} processes do not find each other: {first_line(error)}.",
                "Between machines, name the network interface that leads to the others: GLOO_SOCKET_IFNAME=eth0 (on "
                "GPUs NCCL_SOCKET_IFNAME). Or run `hfsyn generate RUN` on each machine, without a launcher over both.",
                code=ExitCode.PREFLIGHT,
            ) from None
        if state.num_processes != worker.world:
            raise HfsynError(
                f"The launcher started {worker.world} processes, but accelerate counts {state.num_processes}.",
                "Start with `hfsyn ... --num-processes N`, or see the README on accelerate launch.",
            )
    if wants_cpu:
        torch.set_num_threads(1)
        return "cpu"
    # Only now: before, each of several processes would have taken room on the first GPU.
    return _made_current(device or "cuda")


def _made_current(device: str) -> str:
    """The device, tried; a GPU with its number, and as the one that this thread means where it names none.

    torch records events and opens memory on the current device of a thread, whichever the tensors are on.

    Raises:
        HfsynError: it cannot be used.
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
        reason = str(error).splitlines()[0]
        raise HfsynError(f"Device {device!r} is not usable: {reason}", "Use --device cpu, or leave it out.") from None
    return device


def begin_thread_on(device: str) -> None:
    """For a thread that gives orders to a device: in torch each thread begins with the first GPU as its current one."""
    if device.startswith("cuda:"):  # without a number it is the first one, as here
        import torch

        torch.cuda.set_device(device)


def check_device(device: str | None) -> None:
    """Refuse a device that is not there, before anything is written and, where that can be avoided, without torch.

    Raises:
        HfsynError: it is no device's name, or there is no such device.
    """
    if device is None or device == "cpu":
        return
    kind, _, number = device.partition(":")
    if kind not in ("cuda", "mps", "xpu") or (number and not number.isdigit()):
        raise HfsynError(
            f"{device!r} is no device.", "Devices are cpu, cuda, cuda:N, mps and xpu; or leave --device out."
        )
    if kind == "cuda" and not visible_gpus():
        import torch

        if not torch.cuda.is_available():
            raise HfsynError(f"Device {device!r} is not here: no GPU is visible.", "Use --device cpu, or leave it out.")


def leave_group() -> None:
    """Take leave of the process group, if there is one, so that no rank complains about the others."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def default_processes() -> int:
    """One process for each GPU that is visible, or one for each core that this process may use."""
    return visible_gpus() or len(os.sched_getaffinity(0))


def visible_gpus() -> int:
    """How many NVIDIA GPUs are visible, without loading torch (which takes seconds)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name.removeprefix("nvidia").isdigit()])


def is_launched() -> bool:
    """Whether torchrun or accelerate started this process, alone or as one of several."""
    return bool({"WORLD_SIZE", "ACCELERATE_DYNAMO_BACKEND"} & set(os.environ))


def launch(
    arguments: Sequence[str], processes: int, *, device: str | None = None, progress: Callable[[], object] | None = None
) -> int:
    """Run ``hfsyn ARGUMENTS`` in several processes on this machine through ``accelerate launch``; return its exit code.

    On a CPU ``--cpu --num_processes N`` would start one process; what starts N is the multi-GPU launcher with
    ``ACCELERATE_USE_CPU``. All processes end when this one does, however it ends.

    Args:
        arguments: of the command.
        processes: how many.
        device: a torch device, or None.
        progress: how far the work is. The launcher ends all processes when one of them dies; they are started again as
            long as this changes in between. None: never.

    Returns:
        The launcher's exit code; where that is 0, the code of the first error that a process has told.
    """
    with tempfile.TemporaryDirectory(prefix="hfsyn-") as folder:
        told = Path(folder) / "told"
        while True:
            before = progress() if progress is not None else None
            code = _launch_once(arguments, processes, device, told)
            if code == 0 or progress is None or progress() == before:
                return code or (json.loads(told.read_text().splitlines()[0])[0] if told.exists() else 0)
            print("hfsyn: a process died (see above); all are started again", file=sys.stderr, flush=True)


def tell(text: str, code: int) -> int:
    """Say how this process ends, once for all that `launch` has started; returns its exit code.

    A child's own code would make the launcher print more: the parent learns it from a file.
    """
    if not is_child():
        print(f"Error: {text}", file=sys.stderr, flush=True)
        return code
    line = json.dumps([code, text]) + "\n"
    with contextlib.suppress(OSError, KeyError), Path(os.environ[_TOLD]).open("a+") as told:
        told.seek(0)
        known = line in told.readlines()
        told.write("" if known else line)
        if known:
            return ExitCode.OK
    print(f"Error: {text}", file=sys.stderr, flush=True)
    return ExitCode.OK


def stopped(what: str, hint: str, code: int) -> HfsynError:
    """The error of a command whose processes, which have told why, have ended too early with this code of `launch`."""
    refused = code == ExitCode.PREFLIGHT
    return HfsynError(what, hint, code=ExitCode.PREFLIGHT if refused else ExitCode.PARTIAL)


def _launch_once(arguments: Sequence[str], processes: int, device: str | None, told: Path) -> int:
    on_cpu = device == "cpu" or (device is None and not visible_gpus())
    # A scheduler sends SIGTERM to every process at once. This one answers for all of them; torch's launcher, which
    # would answer with a traceback, is told to listen to SIGINT alone, which nobody sends to it.
    environment = dict(os.environ) | {_LAUNCHED: str(os.getpid()), "PET_SIGNALS_TO_HANDLE": "SIGINT", _TOLD: str(told)}
    if on_cpu:
        environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
        "--main_process_port",
        "0",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "-m",
        "hfsyn",
        *arguments,
    ]

    def prepare() -> None:
        die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    # A session of its own: Ctrl-C comes to this process alone, which then ends the others without their tracebacks.
    child = subprocess.Popen(command, env=environment, preexec_fn=prepare, start_new_session=True)
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            # Every process here may be killed at any moment and loses one shard at most.
            child.kill()
            child.wait()


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, so that a killed run leaves nobody at work."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


class Terminated(BaseException):
    """SIGTERM came: a preemption, a time limit, a shutdown. Like Ctrl-C, no error of the work and none to be caught."""


@contextlib.contextmanager
def heeding_termination() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the main thread, so that what is under way is given up in good order.

    Python looks at signals between two steps of the main thread only, and a step may be long (a kernel, a slow disk),
    or the exception may be lost in a library's callback. So a thread sees to it that the process is gone `GRACE`
    seconds after the signal, whatever it is doing: nothing is lost by that but the shards in hand.

    Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    bell, rope = socket.socketpair()
    rope.setblocking(False)
    heard = False

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one must not break the ending off
        raise Terminated

    def watch() -> None:
        while number := bell.recv(1):
            if number[0] == signal.SIGTERM:
                time.sleep(GRACE)
                say_terminated()
                os._exit(ExitCode.TERMINATED)

    watcher = threading.Thread(target=watch, daemon=True, name="termination")
    handler = signal.signal(signal.SIGTERM, raise_terminated)
    wakeup = signal.set_wakeup_fd(rope.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        if not heard:
            signal.signal(signal.SIGTERM, handler)
        rope.close()  # the watcher ends, unless it has begun to count


_terminated_is_said = threading.Event()


def say_terminated() -> None:
    """Say once, in the process that talks to the user, what SIGTERM has done."""
    if os.environ.get("RANK", "0") == "0" and not is_child() and not _terminated_is_said.is_set():
        _terminated_is_said.set()
        print("Terminated. The work so far is kept; the same command continues it.", file=sys.stderr, flush=True)


def join_launcher() -> None:
    """Called first by every command: end with the launcher, and refuse one that started less than it was asked for.

    Raises:
        HfsynError: ``accelerate launch --cpu --num_processes N`` starts one process, whatever N is, and says nothing.
    """
    if is_child():
        die_with_parent()
        if _is_orphaned():  # the parent was gone before the line above
            os._exit(1)
    if is_launched() and "WORLD_SIZE" not in os.environ and (asked := processes_asked_for()) > 1:
        raise HfsynError(
            f"accelerate launch was asked for {asked} processes and started one: on a CPU it does so without a word.",
            f"Use `hfsyn ... --num-processes {asked}`, or "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {asked} -m hfsyn ...",
        )


def _is_orphaned() -> bool:
    """Whether this process, which `launch` started through accelerate, has lost its parent.

    Orphans go to process 1 or to whoever collects them (a container's or a scheduler's own process), so it is asked
    whether the parent is still a child of the process that called `launch`.
    """
    try:
        fields = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return os.getppid() == 1
    return fields[1] != os.environ[_LAUNCHED]


def is_child() -> bool:
    """Whether `launch` started this process, so that its parent says what there is to say."""
    return bool(os.environ.get(_LAUNCHED)) and is_launched()
