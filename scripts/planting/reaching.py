"""Which functions of the product each test calls: in its own process, its threads and the processes that it starts.

Only the first call of a function in a test is written down, so that tests run nearly as fast as otherwise. This file
is imported by Python itself in the processes that tests start (as `sitecustomize`), and needs nothing but the standard
library.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FILE, ROOT = "PLANTED_REACHED", "PLANTED_ROOT"
"""Variables for processes that a test starts: where they write what they reach, and whose functions count."""
PACKAGES = ("builders", "hfsyn", "dataset_cards")


class Reach:
    """What is reached goes to a file, a line a function: path and qualified name, with a tab between."""

    def __init__(self, root: str) -> None:
        self._places = tuple(f"{root}/{package}/" for package in PACKAGES)
        self._cut = len(root) + 1
        self._seen: dict[int, Any] = {}
        self._file = -1

    def to(self, path: str) -> None:
        """Write to another file from now on, as if nothing had been reached yet."""
        os.environ[FILE] = path
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        old, self._file, self._seen = self._file, file, {}
        if old >= 0:
            os.close(old)

    def start(self) -> None:
        """In this thread and all that begin later."""
        threading.settrace(self._meet)
        sys.settrace(self._meet)

    def _meet(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if id(code) not in self._seen:
            self._seen[id(code)] = code  # kept, or another piece of code could get its id
            if code.co_filename.startswith(self._places):
                line = f"{code.co_filename[self._cut :]}\t{plain_name(code.co_qualname)}\n"
                os.write(self._file, line.encode())


def plain_name(qualified: str) -> str:
    """The function that a piece of code stands in: lambdas and comprehensions are part of the one around them."""
    parts = [part for part in qualified.split(".<locals>") if not part.lstrip(".").startswith("<")]
    return ".<locals>".join(parts) or "<module>"


def begin_in_child() -> None:
    """Called by `sitecustomize` in a process that a test starts."""
    if FILE in os.environ:
        reach = Reach(os.environ[ROOT])
        reach.to(os.environ[FILE])
        reach.start()


class Recorder:
    """A plug-in of pytest: how each test ends, how long it takes, and what it reaches.

    What is reached while a file is collected counts for all of its tests; what a fixture of a wider scope reaches, for
    all tests that use it.
    """

    def __init__(self, root: str, folder: str) -> None:
        self._folder, self._reach = folder, Reach(root)
        self._names: dict[str, int] = {}
        self._stack: list[str] = []
        self.tests: dict[str, dict[str, Any]] = {}
        os.environ[ROOT] = root
        self._enter("collection")
        self._reach.start()

    def files(self) -> dict[str, str]:
        """Context -> the file of what it reached."""
        return {name: f"{self._folder}/{number}" for name, number in self._names.items()}

    def _enter(self, name: str) -> None:
        self._stack.append(name)
        self._reach.to(f"{self._folder}/{self._names.setdefault(name, len(self._names))}")

    @contextmanager
    def _within(self, name: str) -> Iterator[None]:
        self._enter(name)
        try:
            yield
        finally:
            self._stack.pop()
            self._reach.to(f"{self._folder}/{self._names[self._stack[-1]]}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        found = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0, "contexts": ["collection"]})
        if report.outcome != "passed":
            found["outcome"] = report.outcome


def _worked() -> float:
    """Seconds of processors that this process and those that it has waited for took; others may be at work, too."""
    return sum(os.times()[:4])


def hooks(recorder: Recorder) -> Any:
    """The plug-in with the hooks that need pytest itself, which processes of tests do not import."""
    import pytest

    class Hooks:
        pytest_runtest_logreport = staticmethod(recorder.pytest_runtest_logreport)

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Iterator[None]:
            began = _worked()
            with recorder._within(item.nodeid):
                result = yield
            recorder.tests[item.nodeid]["seconds"] = _worked() - began
            wide = [f"fixture {name}" for name in item.fixturenames]
            recorder.tests[item.nodeid]["contexts"] += [item.nodeid, *wide]
            return result

        @pytest.hookimpl(wrapper=True)
        def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
            if fixturedef.scope == "function":
                return (yield)
            with recorder._within(f"fixture {fixturedef.argname}"):
                return (yield)

    return Hooks()
