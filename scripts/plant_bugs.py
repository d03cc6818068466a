"""Plant bugs, one at a time, and see whether the tests beside them notice.

    python scripts/plant_bugs.py --jobs 2                      both parts: 40 written, 100 drawn; an hour of two cores
    python scripts/plant_bugs.py written --only retries        those whose name or file holds a word
    python scripts/plant_bugs.py drawn --count 30 --seed 7     other mutants
    python scripts/plant_bugs.py --list                        what would be planted; nothing is run

*Written* bugs (`planting/written.py`) are mistakes that somebody could make in the places that matter most; every one
must be noticed. *Drawn* ones (`planting/drawing.py`) are small changes of any line of the product, drawn by seed; four
of five must be noticed.

Each is planted in a copy of the repository and met by the tests of its own room (`planting/rooms.py`) that call the
function in which it stands, the quickest first, until one fails. Which those are is learnt by running each test file
once on the code as it is. What is learnt, and what became of each bug, is kept in --keep: a call that was stopped is
taken up, and after a change only what it touches is tried again. A test that fails without the bug does not count.

Exit code 1 if a written bug is not noticed or no longer applies, or if fewer than 80 % of the drawn ones are noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from planting import trying
from planting.drawing import draw
from planting.rooms import tests_of
from planting.trying import ROOT, Copy, Running, Suite, Test
from planting.written import BUGS

SEED = 20261127
ENOUGH = 0.8
"""Of the drawn ones."""
FEW = 10
"""So few bugs that each run may import what it needs by itself."""
MOST_SECONDS = 100.0
"""Of a processor, which the tests that meet one bug may take on the code as it is."""


@dataclass(frozen=True)
class Bug:
    """One change of one file, and the test files that should notice it."""

    part: str
    name: str
    path: str
    function: str
    content: bytes
    """The whole file with the bug in it."""
    files: tuple[str, ...]

    @property
    def key(self) -> str:
        """Changes with the file and the bug."""
        return hashlib.sha256(self.name.encode() + self.content).hexdigest()

    def known(self, results: Mapping[str, Any]) -> bool:
        """Whether what became of it still holds: the test that noticed it is as it was, or all that did not are."""
        found = results.get(self.key)
        return found is not None and found["tests_were"] == _contents(found["by"] or self.files)


def _contents(files: Sequence[str]) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update((ROOT / file).read_bytes() if (ROOT / file).is_file() else b"")
    return found.hexdigest()


def written_bugs() -> tuple[list[Bug], list[str]]:
    """The written bugs, and what is wrong with those that no longer apply."""
    found, wrong = [], []
    for bug in BUGS:
        if problem := bug.problem(ROOT):
            wrong.append(problem)
        else:
            found.append(Bug("written", bug.name, bug.path, bug.function(ROOT), bug.applied(ROOT), bug.tests))
    return found, wrong


def drawn_bugs(count: int, seed: int) -> list[Bug]:
    """Mutants of all product code."""
    return [
        Bug("drawn", m.name, m.path, m.function, m.applied((ROOT / m.path).read_bytes()), tuple(tests_of(m.path, ROOT)))
        for m in draw(ROOT, count, seed)
    ]


Step = Generator[tuple[Running, float], int | None, Any]
"""Yields each fork that it has begun, with the seconds that this may take, and is sent the fork's exit code, or None
where it was ended."""
Work = Callable[[Copy], Step]


def side_by_side(works: Sequence[Work], folder: Path, jobs: int) -> Generator[Any, None, None]:
    """What the works give, as they come to their ends; each has a copy to itself while it lasts."""
    copies = [Copy(folder / f"{number}") for number in range(min(jobs, len(works)))]
    left = deque(works)
    active: list[tuple[Any, Running, float, Copy]] = []

    def onward(work: Any, code: int | None, copy: Copy) -> Iterator[Any]:
        try:
            running, seconds = work.send(code)
        except StopIteration as stop:
            copies.append(copy)
            yield stop.value
        else:
            active.append((work, running, seconds, copy))

    try:
        while left or active:
            while left and copies:
                copy = copies.pop()
                yield from onward(left.popleft()(copy), None, copy)
            time.sleep(0.05)
            for entry in list(active):
                work, running, seconds, copy = entry
                code = running.code()
                late = time.monotonic() - running.began > seconds
                if code is None and not late:
                    continue
                if code is None:
                    running.kill()
                active.remove(entry)
                yield from onward(work, code, copy)
    finally:
        for work, running, _, _ in active:
            running.kill()
            work.close()  # the file is as it was


def learning(suite: Suite, file: str, folder: Path, copy: Copy) -> Step:
    """Run a test file that is new or has changed, as it is."""
    report = folder / f"{Path(file).stem}-{time.monotonic_ns()}.json"
    running = copy.start(trying.recording(file, report), report.stem)
    code = yield running, trying.SECONDS_A_FILE
    seconds = time.monotonic() - running.began
    error = "" if code in (0, 1, 5) and report.is_file() else f"exit code {code}"
    suite.learn(file, report, seconds, error)
    say(f"learnt: {file}, {len(suite.tests([file]))} tests in {seconds:.0f} s {error}")
    for failed in suite.failed([file]):
        say(f"fails as it is, and counts for nothing: {failed}")


def planted(bug: Bug, tests: Sequence[Test], suite: Suite, folder: Path, copy: Copy) -> Step:
    """Let some tests meet a bug; one that fails without the bug, too, does not count."""
    found: Mapping[str, Any] = {"state": "survived"}
    report = folder / f"{bug.key[:16]}.met"
    left = tests
    while left:
        report.unlink(missing_ok=True)
        with copy.changed(bug.path, bug.content):
            code = yield copy.start(trying.meeting(left, report), bug.key[:16]), _patience(left)
        found = trying.verdict(code, report)
        noticed = [test for test in left if test.id == found.get("test")]
        if not noticed or not suite.needs_proof(noticed[0]):
            break
        code = yield copy.start(trying.meeting(noticed, report), f"{bug.key[:16]}-proof"), _patience(noticed)
        if code == 0:
            suite.proven(noticed[0])
            break
        left = left[left.index(noticed[0]) + 1 :]
        found = {"state": "survived"}
    return found


def meeting(bug: Bug, suite: Suite, folder: Path) -> Work:
    """Plant a bug, and let its room's tests meet it: those that are known first, then those that must be learnt."""

    def run(copy: Copy) -> Step:
        began, tried, left = time.monotonic(), 0, MOST_SECONDS
        unknown = suite.unknown(bug.files, bug.path, bug.function)
        for files in ([file for file in bug.files if file not in unknown], *([file] for file in unknown)):
            if files and files[0] in unknown:
                yield from learning(suite, files[0], folder, copy)
            tests = trying.chosen(suite.tests(files), bug.path, bug.function, left)
            found = yield from planted(bug, tests, suite, folder, copy)
            tried, left = tried + len(tests), left - sum(test.seconds for test in tests)
            if found["state"] == "killed" or left <= 0:
                break
        by = [str(found["test"]).partition("::")[0]] if found.get("test") else []
        why = {} if tried else {"why": "no test of its room reaches it"}
        more = {"tests": tried, "seconds": round(time.monotonic() - began, 1), "by": by}
        return bug, {**found, **why, **more, "tests_were": _contents(by or bug.files)}

    return run


def _patience(tests: Sequence[Test]) -> float:
    """Seconds after which tests count as stuck, on a machine that others use, too."""
    return 300 + 20 * sum(test.seconds for test in tests)


def say(line: str) -> None:
    """Progress, on the error stream."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    given = _given()
    written, wrong = written_bugs() if given.part in ("written", "both") else ([], [])
    bugs = [*written, *(drawn_bugs(given.count, given.seed) if given.part in ("drawn", "both") else [])]
    if given.only:
        bugs = [bug for bug in bugs if any(word in bug.name or word in bug.path for word in given.only)]
    if given.list:
        print("\n".join(f"{bug.part:8} {bug.name}" for bug in bugs))
        print("".join(f"no longer applies: {problem}\n" for problem in wrong), end="")
        sys.exit(bool(wrong))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is at work ends, too
    results = try_all(bugs, given.keep, given.jobs)
    report = _report(bugs, wrong, results, complete=not given.only)
    print(json.dumps(report, indent=1) if given.json else _text(report))
    sys.exit(not report["good"])


def try_all(bugs: Sequence[Bug], keep: Path, jobs: int) -> dict[str, Any]:
    """What becomes of each bug, by its key; what is known of earlier is taken."""
    kept = keep / "results.json"
    results: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        results = json.loads(kept.read_text(encoding="utf-8"))
    left = [bug for bug in bugs if not bug.known(results)]
    say(f"{len(bugs)} bugs, {len(bugs) - len(left)} known")
    if not left:
        return results
    trying.prepare_process(imports=len(left) > FEW)
    temporary = Path(tempfile.mkdtemp(prefix="planted-"))
    try:
        suite = Suite(keep / "suite.json")
        left.sort(key=lambda bug: len(suite.unknown(bug.files, bug.path, bug.function)))  # what costs least comes first
        works = [meeting(bug, suite, temporary) for bug in left]
        with contextlib.closing(side_by_side(works, temporary, jobs)) as met:
            for number, (bug, result) in enumerate(met, 1):
                results[bug.key] = {"name": bug.name, **result}
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                by = result.get("test") or result.get("why") or f"{result['tests']} tests"
                say(f"{number}/{len(left)} {result['state']:8} {result['seconds']:5.0f} s  {bug.name}  [{by}]")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return results


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="both", choices=("written", "drawn", "both"))
    parser.add_argument("--count", type=int, default=100, help="How many are drawn. Default: 100.")
    parser.add_argument("--seed", type=int, default=SEED, help=f"Of the drawn ones. Default: {SEED}.")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="Bugs whose name or file holds one of the words.")
    parser.add_argument("--jobs", type=int, default=1, help="How many at a time. Default: 1.")
    parser.add_argument("--keep", type=Path, default=Path("runs/planted"), help="Folder of what is known.")
    parser.add_argument("--list", action="store_true", help="Name the bugs, and run nothing.")
    parser.add_argument("--json", action="store_true", help="The result as JSON.")
    return parser.parse_args()


def _report(bugs: Sequence[Bug], wrong: Sequence[str], results: dict[str, Any], *, complete: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"no_longer_apply": list(wrong), "good": not wrong}
    for part in ("written", "drawn"):
        mine = [{"bug": bug.name, **results[bug.key]} for bug in bugs if bug.part == part]
        alive = [result for result in mine if result["state"] == "survived"]
        need = len(mine) if part == "written" or not complete else ENOUGH * len(mine)
        found[part] = {"bugs": len(mine), "killed": len(mine) - len(alive), "survived": alive}
        found["good"] &= len(mine) - len(alive) >= need
    return found


def _text(report: dict[str, Any]) -> str:
    lines = [f"no longer applies: {problem}" for problem in report["no_longer_apply"]]
    for part in ("written", "drawn"):
        found = report[part]
        lines += [f"survived ({part}): {one['bug']}  [{one.get('why') or one['tests']}]" for one in found["survived"]]
        if found["bugs"]:
            lines.append(f"{part}: {found['killed']} of {found['bugs']} noticed")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
