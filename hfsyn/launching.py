"""Several processes of one command: started through accelerate, ended together, and their errors said once."""

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
from pathlib import Path
from types import FrameType

from hfsyn.errors import ExitCode, HfsynError
from hfsyn.workers import PARENT, is_child, is_launched, visible_gpus

GRACE = 7.0
"""Seconds that a process takes at most to end by itself after SIGTERM; schedulers give 10 to 30 before they kill."""
_TOLD = "HFSYN_TOLD"
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
_terminated_is_said = threading.Event()


def launch(
    arguments: Sequence[str], processes: int, *, device: str | None = None, progress: Callable[[], object] | None = None
) -> int:
    """Run ``hfsyn ARGUMENTS`` in several processes on this machine through ``accelerate launch``; return the launcher's
    exit code or, if that is 0, the code of the first error that a process has told.

    On a CPU ``--cpu --num_processes N`` would start one process; what starts N is the multi-GPU launcher with
    ``ACCELERATE_USE_CPU``. All processes end when this one does, however it ends. The launcher ends all of them when
    one dies; they are started again as long as `progress`, how far the work is, changes in between (None: never).
    """
    with tempfile.TemporaryDirectory(prefix="hfsyn-") as folder:
        told = Path(folder) / "told"
        while True:
            before = progress() if progress is not None else None
            code = _launch_once(arguments, processes, device, told)
            if code == 0 or progress is None or progress() == before:
                return code or (json.loads(told.read_text().splitlines()[0])[0] if told.exists() else 0)
            print("hfsyn: a process died (see above); all are started again", file=sys.stderr, flush=True)


def written_by(arguments: Sequence[str], processes: int, *, device: str | None = None) -> str:
    """What ``hfsyn ARGUMENTS --out FILE`` writes into the file, run as by `launch`.

    Raises HfsynError if the processes stopped before that.
    """
    with tempfile.TemporaryDirectory(prefix="hfsyn-") as folder:
        result = Path(folder) / "result.json"
        code = launch([*arguments, "--out", str(result)], processes, device=device)
        if code or not result.is_file():
            raise stopped("The processes stopped before the end.", "See the error above.", code)
        return result.read_text(encoding="utf-8")


def _launch_once(arguments: Sequence[str], processes: int, device: str | None, told: Path) -> int:
    # A scheduler sends SIGTERM to every process at once. This one answers for all of them; torch's launcher, which
    # would answer with a traceback, is told to listen to SIGINT alone, which is not sent to it.
    environment = dict(os.environ) | {PARENT: str(os.getpid()), "PET_SIGNALS_TO_HANDLE": "SIGINT", _TOLD: str(told)}
    if device == "cpu" or (device is None and not visible_gpus()):
        environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    launcher = (
        f"-m accelerate.commands.launch --multi_gpu --num_processes {processes} --num_machines 1 "
        "--main_process_port 0 --mixed_precision no --dynamo_backend no -m hfsyn"
    )

    def prepare() -> None:
        die_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    # A session of its own: Ctrl-C comes to this process alone, which then ends the others without their tracebacks.
    child = subprocess.Popen(
        [sys.executable, *launcher.split(), *arguments], env=environment, preexec_fn=prepare, start_new_session=True
    )
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            # Every process may be killed at any moment and loses one shard at most.
            child.kill()
            child.wait()


def tell(text: str, code: int) -> int:
    """Say how this process ends, once for all that `launch` has started; returns its exit code. A child's own code
    would make the launcher print more: the parent learns it from a file.
    """
    known = False
    if is_child():
        line = json.dumps([code, text]) + "\n"
        with contextlib.suppress(OSError, KeyError), Path(os.environ[_TOLD]).open("a+") as told:
            told.seek(0)
            known = line in told.readlines()
            told.write("" if known else line)
        code = ExitCode.OK
    if not known:
        print(f"Error: {text}", file=sys.stderr, flush=True)
    return code


def stopped(what: str, hint: str, code: int) -> HfsynError:
    """The error of a command whose processes, which have said why, ended too early with this code of `launch`."""
    refused = code == ExitCode.PREFLIGHT
    return HfsynError(what, hint, code=ExitCode.PREFLIGHT if refused else ExitCode.PARTIAL)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, so that a killed run leaves no process at work."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def join_launcher() -> None:
    """Called first by every command: end with the launcher, and refuse one that started less than it was asked for.

    Raises HfsynError for ``accelerate launch --cpu --num_processes N``, which starts one process, whatever N is, and
    says nothing.
    """
    if is_child():
        die_with_parent()
        if _is_orphaned():  # the parent was gone before the line above
            os._exit(1)
    if is_launched() and "WORLD_SIZE" not in os.environ and (asked := _processes_asked_for()) > 1:
        raise HfsynError(
            f"accelerate launch was asked for {asked} processes and started one, which is what it does on a CPU.",
            f"Use `hfsyn ... --num-processes {asked}`, or "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {asked} -m hfsyn ...",
        )


def _is_orphaned() -> bool:
    """Whether this process, which `launch` started through accelerate, has lost its parent.

    Orphans go to process 1 or to another process that collects them (a container's, a scheduler's), so the question is
    whether the parent is still a child of the process that called `launch`.
    """
    try:
        fields = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return os.getppid() == 1
    return fields[1] != os.environ[PARENT]


def _processes_asked_for() -> int:
    """The ``--num_processes`` of the command that started this process; 1 if that cannot be read."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return 1
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, sign, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            value = value if sign else following
            return int(value) if value.isdigit() else 1
    return 1


class Terminated(BaseException):
    """SIGTERM came: a preemption, a time limit, a shutdown. Like Ctrl-C, it is not an error of the work."""


@contextlib.contextmanager
def heeding_termination() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the main thread, so that the work is given up in good order.

    Python handles signals between two steps of the main thread only, and a step may be long (a kernel, a slow disk),
    or the exception may be lost in a library's callback. So a thread makes sure that the process is gone `GRACE`
    seconds after the signal, whatever it is doing: only the shards that it holds are lost.

    Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    heard = False

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one must not interrupt the ending
        raise Terminated

    def watch() -> None:
        while number := reader.recv(1):
            if number[0] == signal.SIGTERM:
                time.sleep(GRACE)
                say_terminated()
                os._exit(ExitCode.TERMINATED)

    watcher = threading.Thread(target=watch, daemon=True, name="termination")
    handler = signal.signal(signal.SIGTERM, raise_terminated)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        if not heard:
            signal.signal(signal.SIGTERM, handler)
        writer.close()  # the watcher ends, unless it has begun to count


def say_terminated() -> None:
    """Say once, in the process that talks to the user, what SIGTERM has done."""
    if os.environ.get("RANK", "0") == "0" and not is_child() and not _terminated_is_said.is_set():
        _terminated_is_said.set()
        print("Terminated. The work so far is kept; the same command continues it.", file=sys.stderr, flush=True)
