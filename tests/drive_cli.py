"""Runs commands of hfsyn in one process after another's orders, so that many of them cost one import.

Each line of the input is JSON: ``{"arguments": [...], "environment": {...}, "cwd": ...}``; ``{"python": "..."}`` runs
code instead, which leaves its result in ``result``. Each answer is a line of JSON: exit code, output, error output.
The clients take the address of the Hub from the environment of this process, when they are first imported.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from typing import Any


def answer(order: dict[str, Any]) -> dict[str, Any]:
    from hfsyn.cli import main

    out, err = io.StringIO(), io.StringIO()
    found: dict[str, Any] = {"result": None}
    before = dict(os.environ)
    os.environ.update(order.get("environment", {}))
    for name in [name for name, value in order.get("environment", {}).items() if value == ""]:
        del os.environ[name]
    if order.get("cwd"):
        os.chdir(order["cwd"])
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if "python" in order:
                exec(compile(order["python"], "<test>", "exec"), found)
            else:
                main(order["arguments"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 1
    os.environ.clear()
    os.environ.update(before)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "result": found["result"]}


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints past us must not be taken for an answer
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)
