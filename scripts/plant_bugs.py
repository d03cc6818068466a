"""Plant bugs, one at a time, and see whether the tests beside them notice.

    python scripts/plant_bugs.py --jobs 2                      both parts: 40 written, 100 drawn; an hour of two cores
    python scripts/plant_bugs.py written --only retries        those whose name or file holds a word
    python scripts/plant_bugs.py drawn --count 30 --seed 7     other mutants
    python scripts/plant_bugs.py --list                        what would be planted; nothing is run

*Written* bugs (`planting/written.py`) are mistakes that somebody could make in the places that matter most; every one of
them must be noticed. *Drawn* ones (`planting/drawing.py`) are small changes of any line of the product, drawn by seed;
four of five must be noticed.

Each is planted in a copy of the repository and met by the tests of its own room (`planting/rooms.py`) that call the
function in which it stands, the quickest first, until one fails. Which those are is learnt by running the test files
once on the code as it is. What is learnt, and what became of each bug, is kept in --keep: a call that was stopped is
taken up, and after a change only what it touches is tried again. A test that fails without the bug, too, does not count.

Exit code 1 if a written bug is not noticed or no longer applies, or if fewer than 80 % of the drawn ones are noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from planting import trying
from planting.drawing import draw
from planting.rooms import tests_of
from planting.trying import ROOT, Copy, Suite, Test
from planting.written import BUGS

SEED = 20261127
ENOUGH = 0.8
"""Of the drawn ones."""
MOST_SECONDS = 100.0
"""Of tests that meet one bug, as long as these take on the code as it is."""


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


class Forks:
    """Runs jobs side by side, each in one of a few copies."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self._folder, self._jobs = folder, jobs
        self._copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            self._copies.put(Copy(folder / f"{number}"))

    def run(self, works: Sequence[Callable[[Copy], Any]]) -> Iterator[Any]:
        """What the works give, each with a copy to itself, as they come to their ends."""
        done: SimpleQueue[Any] = SimpleQueue()

        def one(work: Callable[[Copy], Any]) -> None:
            copy = self._copies.get()
            try:
                done.put(work(copy))
            except BaseException as error:
                done.put(error)
            finally:
                self._copies.put(copy)

        with ThreadPoolExecutor(self._jobs) as pool:
            for work in works:
                pool.submit(one, work)
            for _ in works:
                result = done.get()
                if isinstance(result, BaseException):
                    pool.shutdown(cancel_futures=True)
                    raise result
                yield result


def ended(running: trying.Running, seconds: float) -> int | None:
    """The exit code of a fork, None where it took too long and was ended."""
    try:
        while time.monotonic() - running.began < seconds:
            if (code := running.code()) is not None:
                return code
            time.sleep(0.05)
    except BaseException:
        running.kill()
        raise
    running.kill()
    return None


def learn(suite: Suite, files: Sequence[str], forks: Forks, folder: Path) -> None:
    """Run the test files that changed, or that reach what has."""
    unknown = suite.unknown(files)

    def work(file: str) -> Callable[[Copy], Any]:
        def run(copy: Copy) -> tuple[str, Path, float, int | None]:
            report = folder / f"{Path(file).stem}.json"
            running = copy.start(trying.recording(file, report), Path(file).stem)
            code = ended(running, trying.SECONDS_A_FILE)
            return file, report, time.monotonic() - running.began, code

        return run

    for number, (file, report, seconds, code) in enumerate(forks.run([work(file) for file in unknown]), 1):
        error = "" if code in (0, 1, 5) and report.is_file() else f"exit code {code}"
        suite.learn(file, report, seconds, error)
        say(f"learnt {number}/{len(unknown)}: {file}, {len(suite.tests([file]))} tests in {seconds:.0f} s {error}")


def meet(bug: Bug, tests: Sequence[Test], suite: Suite, folder: Path, copy: Copy) -> dict[str, Any]:
    """Plant one bug in a copy, and let the tests meet it; one that fails without the bug too does not count."""
    began = time.monotonic()
    found: dict[str, Any] = {"state": "survived", "why": "" if tests else "no test of its room reaches it"}
    report = folder / f"{bug.key[:16]}.met"
    left = list(tests)
    while left:
        report.unlink(missing_ok=True)
        with copy.changed(bug.path, bug.content):
            code = ended(copy.start(trying.meeting(left, report), bug.key[:16]), _patience(left))
        found = trying.verdict(code, report)
        noticed = [test for test in left if test.id == found.get("test")]
        if not noticed or not suite.needs_proof(noticed[0]):
            break
        if ended(copy.start(trying.meeting(noticed, report), f"{bug.key[:16]}-proof"), _patience(noticed)) == 0:
            suite.proven(noticed[0])
            break
        left = left[left.index(noticed[0]) + 1 :]
        found = {"state": "survived", "why": f"{noticed[0].id} fails without it, too"}
    by = [str(found["test"]).partition("::")[0]] if found.get("test") else []
    return {
        **found, "tests": len(tests), "seconds": round(time.monotonic() - began, 1), "by": by,
        "tests_were": _contents(by or bug.files),
    }  # fmt: skip


def _patience(tests: Sequence[Test]) -> float:
    """Seconds after which tests count as stuck, on a machine that others use, too."""
    return 120 + 10 * sum(test.seconds for test in tests)


def say(line: str) -> None:
    """To whoever waits."""
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
    trying.prepare_process()
    temporary = Path(tempfile.mkdtemp(prefix="planted-"))
    try:
        suite, forks = Suite(keep / "suite.json"), Forks(temporary, jobs)
        files = sorted({file for bug in left for file in bug.files})
        learn(suite, files, forks, temporary)
        for failed in suite.failed(files):
            say(f"fails as it is, and counts for nothing: {failed}")

        def work(bug: Bug) -> Callable[[Copy], Any]:
            tests = trying.chosen(suite.tests(bug.files), bug.path, bug.function, MOST_SECONDS)
            return lambda copy: (bug, meet(bug, tests, suite, temporary, copy))

        for number, (bug, result) in enumerate(forks.run([work(bug) for bug in left]), 1):
            results[bug.key] = {"name": bug.name, **result}
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
