"""Runs commands of hfsyn in one process after another's orders, so that many of them cost one import.

An order is ``{"arguments": [...], "environment": {...}, "cwd": ...}``; ``{"python": "..."}`` runs code instead, which
leaves its result in ``result``. An answer has the exit code, the output and the error output.
The Hugging Face libraries take the address of the Hub from the environment of this process when first imported.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from multiprocessing.connection import Connection
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


def serve(orders: Connection, environment: dict[str, str], home: str) -> None:
    """The life of a client: one answer per order, until it is killed or nobody is left to give orders."""
    assert "huggingface_hub" not in sys.modules, "it would ask another Hub"
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(home)
    for number in (1, 2):  # what a library prints past us
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    with contextlib.suppress(EOFError):
        while True:
            orders.send(json.dumps(answer(orders.recv())))
