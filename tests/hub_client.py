"""A client of the Hub on loopback: a process whose Hugging Face libraries know no other, and that waits for orders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from conftest import ROOT
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


class Client:
    """Runs commands of hfsyn, or Python, against a Hub. `home` keeps the client's cache."""

    def __init__(self, hub: Hub, home: Path, *, token: str = "hf_alice_write", **environment: str) -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        env = hub.env(token=token, home=home) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | environment
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "drive_cli.py")],
            env=env, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def _order(self, order: dict[str, Any]) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))

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
        self._process.wait()
