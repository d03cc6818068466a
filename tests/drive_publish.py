"""Publishes again and again against a Hub in the same process, with one fault each time, and judges what came of it.

    python drive_publish.py FOLDER RUN                    each position, kinds by turns; every kind where refs change
    python drive_publish.py FOLDER RUN --over OLDER_RUN   1.1.0 over a published 1.0.0; each kind of request, by turns
    python drive_publish.py FOLDER RUN --for-ever         from each kind of request on, 401, 403 or 503
    python drive_publish.py FOLDER RUN --whole            every kind of fault at each position: minutes

The clients read the endpoint when they are imported, so this is a process of its own, and the Hub starts first. No time
passes in it: pauses are noted, not slept, and a silent connection counts as lost after a moment.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hub_server import Entry, Hub
from hub_store import Store

REPO = "alice/shapes"
KINDS: tuple[int | str, ...] = (409, 412, 429, 500, 503, "timeout", "cut-before", "cut-after")
LASTING = (401, 403, 503)
CHANGES = re.compile(r"POST .*/(repos/create|commit/|tag/)")
SILENCE = 0.4
"""Seconds after which the client gives up a silent connection."""
ASKED = 77
"""Seconds that a 429 asks for in Retry-After."""


@dataclass
class Case:
    """One publish with a fault, and the same publish again without."""

    position: int
    kind: int | str
    times: int | None = 1
    request: str = ""
    stopped: str = ""
    """The line of the error that the first publish ended with; empty where it ended well."""
    code: int = 0
    waited: float = 0
    """Seconds that the first publish would have paused in all."""
    problems: list[str] = field(default_factory=list)


class Driver:
    """A Hub, a client in the same process, and runs that are published from one to the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pauses: list[float] = []
        self.lines = ""
        self.hub = Hub(folder / "hub-0")
        self._home = folder / "home"
        os.environ.update(dict.fromkeys([name for name in os.environ if name.startswith("HF_")], ""))
        for name in [name for name in os.environ if name.startswith("HF_")]:
            del os.environ[name]
        os.environ.update(self.hub.env(home=self._home))
        self._stores = 0
        # Before anything that pauses is imported: some take the function as a default argument.
        time.sleep = self._note  # type: ignore[assignment]

    def _note(self, seconds: float) -> None:
        self.pauses.append(seconds)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """With the Hub up and the client's patience short."""
        from huggingface_hub import constants

        import hfsyn.hub.repo
        import hfsyn.publishing.reading_back

        hfsyn.hub.repo.CALL_TIMEOUT = SILENCE
        # Each reader asks for the listing, and their number is left to chance.
        hfsyn.publishing.reading_back._READERS = 1
        constants.HF_HUB_ETAG_TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT = SILENCE  # type: ignore[assignment]
        with self.hub:
            yield

    def fresh(self, base: Path | None = None) -> None:
        """An empty Hub, or a copy of one, and a client that remembers nothing."""
        self._stores += 1
        root = self.folder / f"hub-{self._stores}"
        if base is not None:
            shutil.copytree(base, root)
        old, self.hub.store = self.hub.store.root, Store(root)
        shutil.rmtree(old, ignore_errors=True) if old.name != "hub-base" else None
        self.hub.faults.clear()
        self.forget()

    def forget(self) -> None:
        """As a new process would begin: no cache, an empty log."""
        from huggingface_hub import HfFileSystem

        HfFileSystem.clear_instance_cache()
        shutil.rmtree(self._home, ignore_errors=True)
        self.hub.reset()
        self.pauses.clear()

    def publish(self, run: str, version: str, **options: Any) -> Exception | None:
        """Publish, and what it ended with. Anything but an HfsynError is shown in full."""
        from hfsyn.errors import HfsynError
        from hfsyn.publishing.publication import publish

        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                publish(run, REPO, version, **options)
        except HfsynError as error:
            return error
        except Exception as error:
            return error
        finally:
            self.lines = said.getvalue()
        return None

    def state(self) -> dict[str, Any]:
        """Every file of every tag and of main, and what each tag is of main's history."""
        if ("dataset", REPO) not in self.hub.store.repos:
            return {}
        refs = self.hub.refs("dataset", REPO)
        return {name: self.hub.files("dataset", REPO, name) for name in refs}


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Where two states differ, in a few words each."""
    found = [f"ref {name} is in one only" for name in sorted(mine.keys() ^ theirs.keys())]
    for name in sorted(mine.keys() & theirs.keys()):
        a, b = mine[name], theirs[name]
        found += [f"{name}: {path} differs" for path in sorted(a.keys() | b.keys()) if a.get(path) != b.get(path)]
    return found


def error_problems(error: Exception) -> list[str]:
    """What is wrong with the way in which a publish stopped."""
    from hfsyn.errors import HfsynError

    if not isinstance(error, HfsynError):
        return [f"no HfsynError: {type(error).__name__}: {error}"]
    text = str(error)
    found = [f"several lines: {text!r}"] if "\n" in text else []
    found += [f"the token is in it: {text}"] if "hf_alice" in text else []
    found += [f"no way out: {text}"] if not error.hint else []
    return found + ([] if int(error.code) in (3, 4) else [f"exit code {int(error.code)}: {text}"])


def lasting_problems(case: Case, error: Exception | None, driver: Driver) -> list[str]:
    """What is wrong with the end of a publish that could not succeed."""
    found = [] if error is not None else ["it ended well"]
    found += [f"{name} is there" for name in driver.state() if name.startswith("refs/tags/")]
    code = 4 if case.kind == 503 else 3
    if error is not None and getattr(error, "code", None) != code:
        found.append(f"exit code {getattr(error, 'code', None)}, not {code}: {error}")
    if case.kind != 503 and case.waited:
        found.append(f"it waited for {case.waited} s")
    return found


def judge(driver: Driver, case: Case, run: str, version: str, base: Path | None, undisturbed: dict[str, Any]) -> Case:
    """One publish with its fault, then the same without."""
    driver.fresh(base)
    seconds = 4 * SILENCE if case.kind == "timeout" else None
    retry_after = ASKED if case.kind == 429 else None
    fault = driver.hub.faults.add(
        case.kind, after=case.position, times=case.times, seconds=seconds, retry_after=retry_after
    )
    error = driver.publish(run, version)
    case.waited = round(sum(driver.pauses), 1)
    entry = next((entry for entry in driver.hub.log if entry.fault is not None), None)
    case.request = f"{entry.method} {entry.path}" if entry else ""
    if not fault.hits:
        case.problems.append("the fault was not met")
    if case.times is None:
        case.problems += lasting_problems(case, error, driver)
    # Not for HEAD: by these the libraries look for files that need not be there, or try again at once.
    waited = max(driver.pauses, default=0) >= ASKED
    if case.kind == 429 and entry and entry.method != "HEAD" and error is None and not waited:
        case.problems.append(f"Retry-After: {ASKED} was not waited for: {driver.pauses}")
    if "hf_alice" in driver.lines:
        case.problems.append("the token is in what was said")
    if error is not None:
        case.stopped, case.code = str(error), int(getattr(error, "code", -1))
        case.problems += error_problems(error)
    elif found := differences(driver.state(), undisturbed):
        case.problems.append(f"ended well, and yet: {found[:3]}")
    driver.hub.faults.clear()
    driver.forget()
    if again := driver.publish(run, version):
        case.problems.append(f"the second time: {type(again).__name__}: {again}")
    elif found := differences(driver.state(), undisturbed):
        case.problems.append(f"after the second time: {found[:3]}")
    return case


def chosen(log: list[Entry], *, whole: bool, lasting: bool, base: Path | None) -> Iterator[Case]:
    """The positions and kinds to try."""
    seen: set[str] = set()
    for position, entry in enumerate(log):
        kind_of_request = re.sub(r"[0-9a-f]{40,}|size=\d+|-\d{5}-", "*", f"{entry.method} {entry.path}")
        first = kind_of_request not in seen
        seen.add(kind_of_request)
        if lasting:
            yield from (Case(position, kind, None) for kind in LASTING if whole)
            if first and not whole:
                yield Case(position, LASTING[len(seen) % len(LASTING)], None)
            if "/tag/" in entry.path:  # the version stands: tidying up after it is tried, and may fail
                return
        elif whole or (first and CHANGES.match(kind_of_request) and (base is None or "/commit/" in entry.path)):
            yield from (Case(position, kind) for kind in KINDS)
        elif first or base is None:
            yield Case(position, KINDS[position % len(KINDS)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("run")
    parser.add_argument("--over", metavar="RUN")
    parser.add_argument("--for-ever", action="store_true", dest="lasting")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--only", metavar="POSITION:KIND")
    asked = parser.parse_args()
    driver = Driver(asked.folder)
    version, base = ("1.1.0", asked.folder / "hub-base") if asked.over else ("1.0.0", None)
    cases: list[Case] = []
    with driver.running():
        driver.fresh()
        if base is not None:
            assert driver.publish(asked.over, "1.0.0") is None
            shutil.copytree(driver.hub.store.root, base)
            driver.fresh(base)
        if error := driver.publish(asked.run, version):
            raise error
        undisturbed, log = driver.state(), list(driver.hub.log)
        started = time.monotonic()
        for case in chosen(log, whole=asked.whole, lasting=asked.lasting, base=base):
            if asked.only in (None, f"{case.position}:{case.kind}"):
                cases.append(judge(driver, case, asked.run, version, base, undisturbed))
                if asked.whole or asked.only or case.problems:
                    print(json.dumps(asdict(cases[-1])), file=sys.stderr, flush=True)
    outcome = Counter("stopped" if case.stopped else "well" for case in cases)
    kinds = Counter(str(case.kind) for case in cases if case.stopped)
    report = {
        "requests": [f"{entry.method} {entry.path}" for entry in log],
        "seconds": round(time.monotonic() - started, 1),
        "outcome": outcome,
        "stopped": kinds,
        "longest": max(case.waited for case in cases),
        "cases": [asdict(case) for case in cases],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
