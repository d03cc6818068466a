"""Running tests in copies of the repository: as it is, to learn what each test reaches; and with a bug in it.

Everything heavy is imported once, and each run of pytest is a fork with the copy's own `builders` and `hfsyn`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planting import reaching

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("builders", "hfsyn", "dataset_cards", "scripts", "tests", "README.md", "pyproject.toml", "constraints.txt")
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc")
SECONDS_A_FILE = 1800
"""After which a test file counts as stuck, unchanged as it is."""


def prepare_process(*, imports: bool) -> None:
    """Set what libraries look at when they are imported; and import what tests need, but nothing of ours.

    Nothing here starts a thread.
    """
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        TOKENIZERS_PARALLELISM="false",
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    )
    if not imports:
        return
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import diffusers.pipelines.auto_pipeline  # noqa: F401
    import matplotlib
    import peft  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torchvision.transforms.v2  # noqa: F401
    import transformers.pipelines  # noqa: F401

    torch.set_num_threads(1)
    matplotlib.use("agg")


class Copy:
    """A copy of the repository in which a file may be changed."""

    def __init__(self, folder: Path) -> None:
        self.root, self._folder = folder / "copy", folder
        self._changes = 0
        self.root.mkdir(parents=True)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, ignore=NOT_COPIED)
            elif source.is_file():
                shutil.copy2(source, self.root / name)

    @contextlib.contextmanager
    def changed(self, path: str, content: bytes) -> Iterator[None]:
        """The file has this content while the block lasts."""
        file = self.root / path
        before, stamp = file.read_bytes(), file.stat().st_mtime_ns
        self._changes += 1
        file.write_bytes(content)
        # Python compares whole seconds and sizes to know whether what it compiled is still of this file.
        os.utime(file, (self._changes, self._changes))
        try:
            yield
        finally:
            file.write_bytes(before)
            os.utime(file, ns=(stamp, stamp))

    def start(self, job: Callable[[Path], None], name: str) -> Running:
        """Do something in a fork that stands in this copy and imports from it; what it says goes to a file."""
        said = self._folder / f"{name}.said"
        pid = os.fork()
        if pid == 0:
            _live(job, self.root, said)
        return Running(pid, said)


@dataclass
class Running:
    """A fork at work."""

    pid: int
    said: Path
    began: float = field(default_factory=time.monotonic)

    def code(self) -> int | None:
        """How it ended, negative for a signal; None while it has not. What it started ends with it."""
        gone, status = os.waitpid(self.pid, os.WNOHANG)
        if not gone:
            return None
        self._end_group()
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End it and all that it started."""
        self._end_group()
        os.waitpid(self.pid, 0)

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def _live(job: Callable[[Path], None], root: Path, said: Path) -> None:
    code = 70
    try:
        os.setsid()
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(root)
        os.environ["PYTHONPATH"] = str(root)
        ours = {str(ROOT), str(ROOT / "scripts"), ""}
        sys.path[:] = [str(root), *(place for place in sys.path if place not in ours)]
        for name in [name for name in sys.modules if name.partition(".")[0] in (*reaching.PACKAGES, "scripts")]:
            del sys.modules[name]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        job(root)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _pytest(files: Sequence[str], plugin: Any, *more: str) -> int:
    import pytest

    given = ["-q", "-p", "no:cacheprovider", "--tb=short", "--timeout=300", *more, *files]
    return int(pytest.main(given, plugins=[plugin]))


# What each test reaches, unchanged ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    """A test that passes on the code as it is."""

    id: str
    file: str
    seconds: float
    reached: frozenset[tuple[str, str]]
    """(path, qualified name) of product functions."""


class Suite:
    """What each test reaches, kept in a file from one call to the next; learnt again for a test file that has changed.

    Where product code has changed since, this still says which tests to try, but for a function that was not there;
    that the one which notices a bug passes without it is looked at then (`needs_proof`).
    """

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._files: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            self._files = json.loads(kept.read_text(encoding="utf-8"))

    def unknown(self, files: Sequence[str], path: str, function: str) -> list[str]:
        """Those of the test files of which it is not known whether they reach a function, the quickest first."""
        now = _hash(path)
        found = []
        for file in files:
            known = self._files.get(file, {})
            reached = any((path, function) in test.reached for test in self.tests([file]))
            changed = function != "<module>" and known.get("product", {}).get(path) != now and not reached
            if known.get("content") != _hash(file) or changed:
                found.append(file)
        return sorted(found, key=lambda file: (self._files.get(file, {}).get("seconds", 0.0), file))

    def needs_proof(self, test: Test) -> bool:
        """Whether a test has not yet passed on the product as it is now."""
        proof = _hash(test.file, *sorted({path for path, _ in test.reached}))
        return self._files[test.file]["tests"][test.id]["proof"] != proof

    def proven(self, test: Test) -> None:
        """It has passed on the product as it is now."""
        proof = _hash(test.file, *sorted({path for path, _ in test.reached}))
        self._files[test.file]["tests"][test.id]["proof"] = proof
        self._keep()

    def tests(self, files: Sequence[str]) -> list[Test]:
        """The tests of these files that pass as the code is."""
        return [
            Test(name, file, test["seconds"], frozenset((path, function) for path, function in test["reached"]))
            for file in files
            for name, test in self._files.get(file, {}).get("tests", {}).items()
            if test["outcome"] == "passed"
        ]

    def failed(self, files: Sequence[str]) -> list[str]:
        """Tests that fail on the code as it is, and prove nothing."""
        known = [(file, self._files.get(file, {})) for file in files]
        broken = [f"{file} ({found['error']})" for file, found in known if found.get("error")]
        return broken + [n for _, f in known for n, t in f.get("tests", {}).items() if t["outcome"] == "failed"]

    def learn(self, file: str, report: Path, seconds: float, error: str) -> None:
        """Take what a run of a test file has written."""
        tests: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
        for test in tests.values():
            test["proof"] = _hash(file, *sorted({path for path, _ in test["reached"]}))
        paths = [path for package in reaching.PACKAGES for path in (ROOT / package).rglob("*.py")]
        names = [path.relative_to(ROOT).as_posix() for path in paths]
        product = {name: _hash(name) for name in names}
        self._files[file] = {
            "content": _hash(file),
            "product": product,
            "seconds": seconds,
            "tests": tests,
            "error": error,
        }
        self._keep()

    def _keep(self) -> None:
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._kept.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._files) + "\n", encoding="utf-8")
        temporary.replace(self._kept)


def _hash(*names: str) -> str:
    """Of the names and contents of some files of the repository."""
    found = hashlib.sha256()
    for name in names:
        path = ROOT / name
        found.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()[:16]


def recording(file: str, report: Path) -> Callable[[Path], None]:
    """A job for `Copy.start`: run a test file, and write what each test reaches."""

    def job(root: Path) -> None:
        folder = report.with_suffix(".reached")
        folder.mkdir(parents=True)
        # In the copy itself, which is on every path that a test gives a process.
        hook, tracer = root / "sitecustomize.py", root / "planted_reaching.py"
        shutil.copy(Path(reaching.__file__), tracer)
        hook.write_text("import planted_reaching\nplanted_reaching.begin_in_child()\n")
        recorder = reaching.Recorder(str(root), str(folder))
        code = _pytest([file], reaching.hooks(recorder))
        sys.settrace(None)
        hook.unlink()
        tracer.unlink()
        reached = {name: _lines(Path(path)) for name, path in recorder.files().items()}
        for test in recorder.tests.values():
            names = test.pop("contexts")
            test["reached"] = sorted({line for name in names for line in reached.get(name, ())})
        report.write_text(json.dumps(recorder.tests) + "\n", encoding="utf-8")
        sys.exit(code)

    return job


def _lines(path: Path) -> set[tuple[str, str]]:
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines()
    return {(parts[0], parts[1]) for line in lines if len(parts := line.split("\t")) == 2}


# A bug, and the tests that meet it ------------------------------------------------------------------------------------


def chosen(tests: Sequence[Test], path: str, function: str, most_seconds: float) -> list[Test]:
    """The tests that reach a function, the quickest first, as many as take some time together.

    For what is outside functions (a constant, a class body), those that call any function of the file.
    """
    found, taken = [], 0.0
    for test in sorted(tests, key=lambda test: (test.seconds, test.id)):
        if not _meets(test, path, function):
            continue
        taken += test.seconds
        if found and taken > most_seconds:
            break
        found.append(test)
    return found


def _meets(test: Test, path: str, function: str) -> bool:
    if function != "<module>":
        return (path, function) in test.reached
    return any(place == path and _is_called(name) for place, name in test.reached)


def _is_called(name: str) -> bool:
    """Whether what was reached is a function rather than the body of a class or a module, run by its import."""
    return name != "<module>" and not name.rpartition(".")[2][:1].isupper()


class _Chosen:
    """A plug-in of pytest: these tests alone, in this order; who failed first goes to a file."""

    def __init__(self, ids: Sequence[str], report: Path) -> None:
        self._order = {name: number for number, name in enumerate(ids)}
        self._report = report

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._order), key=lambda item: self._order[item.nodeid]
        )

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._failed(report.nodeid, report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._failed(report.nodeid, report)

    def _failed(self, name: str, report: Any) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = " ".join((crash.message if crash else str(report.longrepr)).split())[:200]
        if not self._report.exists():
            self._report.write_text(json.dumps({"test": name, "why": why}) + "\n", encoding="utf-8")


def meeting(tests: Sequence[Test], report: Path) -> Callable[[Path], None]:
    """A job for `Copy.start`: run some tests until the first fails."""

    def job(root: Path) -> None:
        files = list(dict.fromkeys(test.file for test in tests))
        sys.exit(_pytest(files, _Chosen([test.id for test in tests], report), "-x"))

    return job


def verdict(code: int | None, report: Path) -> Mapping[str, Any]:
    """What became of a bug: ``killed`` with the test that failed, or ``survived``; without a code its time ran out."""
    if code is None:
        return {"state": "killed", "test": "", "why": "it does not end"}
    if code in (0, 5):
        return {"state": "survived"}
    found = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {"test": "", "why": f"code {code}"}
    return {"state": "killed", **found}
