"""Clients of the Hub on loopback: processes whose Hugging Face libraries know no other, and that wait for orders."""

from __future__ import annotations

import json
import multiprocessing.context
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from conftest import ROOT, TEST_FOLDERS
from drive_cli import serve
from hub_server import Hub


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str
    result: Any

    @property
    def last(self) -> str:
        """The last line of the output: the useful one."""
        return self.out.splitlines()[-1] if self.out else ""


@cache
def _ready() -> multiprocessing.context.ForkServerContext:
    """Starts clients from a process that has imported what takes long and asks for no address of the Hub."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pandas", "PIL.Image", "pyarrow.parquet", "torch._dynamo"])
    return context


class Client:
    """Runs commands of hfsyn, or Python, against a Hub. `home` keeps the client's cache."""

    def __init__(self, hub: Hub, home: Path, *, token: str = "hf_alice_write", **environment: str) -> None:
        paths = os.pathsep.join(map(str, (ROOT, *TEST_FOLDERS)))
        env = hub.env(token=token, home=home) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | environment
        self._orders, theirs = _ready().Pipe()
        self._process = _ready().Process(target=serve, args=(theirs, env, str(home)))
        self._process.start()
        theirs.close()

    def _order(self, order: dict[str, Any]) -> Done:
        self._orders.send(order)
        return Done(**json.loads(self._orders.recv()))

    def hfsyn(self, *arguments: str | Path, cwd: Path | None = None, **environment: str) -> Done:
        """A command; `environment` holds for it alone, and an empty value removes a variable."""
        return self._order({"arguments": [*map(str, arguments)], "cwd": cwd and str(cwd), "environment": environment})

    def python(self, code: str, **environment: str) -> Any:
        """Code that leaves something JSON can say in `result`; returns that."""
        done = self._order({"python": code, "environment": environment})
        assert done.code == 0, done.err
        return done.result

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._orders.close()


@dataclass(frozen=True)
class Ended:
    """What came of a process."""

    code: int
    out: str
    err: str
    kilobytes: int
    """Its peak memory."""


class Forks:
    """Processes that run commands, against a Hub where one is given; see `drive_forks.py`."""

    def __init__(self, hub: Hub | None, home: Path, *imported: str) -> None:
        paths = os.pathsep.join(map(str, (ROOT, *TEST_FOLDERS)))
        around = hub.env(home=home) if hub else {**os.environ, "HOME": str(home), "HF_HOME": str(home / "hf")}
        self.environment = around | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "drive_forks.py"), *imported],
            env=self.environment,
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *arguments: str | Path) -> int:
        return self._order(arguments=[*map(str, arguments)])["pid"]

    def start_python(self, code: str) -> int:
        return self._order(python=code)["pid"]

    def is_over(self, pid: int) -> bool:
        """Whether a process has ended; it is waited for all the same."""
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def wait(self, pid: int) -> Ended:
        return Ended(**self._order(wait=pid))

    def hfsyn(self, *arguments: str | Path) -> Ended:
        return self.wait(self.start(*arguments))

    def run(
        self, arguments: Sequence[str | Path], cwd: Path, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """A command as `subprocess.run` runs it, in a folder and an environment of its own."""
        words = [*map(str, arguments)]
        pid = self._order(arguments=words, cwd=str(cwd), environment=dict(environment))["pid"]
        stopped = threading.Event()
        late = threading.Timer(timeout, lambda: (stopped.set(), os.kill(pid, signal.SIGKILL)))
        late.start()
        done = self.wait(pid)
        late.cancel()
        if stopped.is_set():
            raise subprocess.TimeoutExpired(words, timeout, done.out, done.err)
        return subprocess.CompletedProcess(words, done.code, done.out, done.err)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
