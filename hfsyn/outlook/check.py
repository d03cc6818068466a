"""One thing that was looked at before anything is spent or sent, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hfsyn.errors import ExitCode


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    state: Literal["ok", "warning", "failed"]
    text: str
    hint: str = ""
    code: int = ExitCode.PREFLIGHT

    def line(self) -> str:
        """For people."""
        mark = {"ok": "ok      ", "warning": "warning ", "failed": "FAILED  "}[self.state]
        return f"{mark}{self.text} {self.hint}".rstrip()
