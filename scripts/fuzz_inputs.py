#!/usr/bin/env python
"""Give the commands what nobody meant to give them, and count what they say.

    python scripts/fuzz_inputs.py --count 2500
    python scripts/fuzz_inputs.py --seed 7 --only matrix
    python scripts/fuzz_inputs.py --case 7:1234          # one case again, with what it wrote and said

Recipes, training recipes, matrices, class maps, captions files and command lines are made from a seed: sound ones,
broken in their structure, their values or their bytes. Each goes through the real command, in this process, up to its
first costly step. It must be taken, without any number that is not finite; or refused in one line that names the place:
a file, a key or an option. Exit code 1 if anything else happens, with the cases that did it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz_cases import CLASS_MAP, KINDS, MATRIX, RECIPE, TRAINING, Case, case_of

from builders.errors import one_line
from hfsyn.cli import cli, run_command

SECONDS = 20
"""What one case may take."""
OUTCOMES = ("taken", "refused", "not one line", "names no place", "not finite", "traceback", "too slow")


class Reached(BaseException):
    """The first costly step of a command: everything before it has taken the input."""


class TooSlow(BaseException):
    """A case took more than its time."""


# How it is judged ---------------------------------------------------------------------------------------------------

SEEN: list[Any] = []
"""What the loader took for the case at work."""


@contextlib.contextmanager
def stopped_before_the_costly() -> Iterator[None]:
    """While this holds, costly functions end a command as `Reached`, and what is checked is remembered."""
    import importlib

    from hfsyn.judging.bench import cells as benchmarking
    from hfsyn.judging.bench import matrix
    from hfsyn.recipes import loading

    costly = (
        "building:build",
        "building:work",
        "judging.train.loop:train",
        "judging.train.loop:open_training",
        "judging.measures.evaluate:evaluate",
        "judging.measures.evaluate:check_test",
        "judging.measures.fidelity:measure_fidelity",
        "judging.measures.membership:measure_membership",
        "showcase:demo",
        "publishing.publication:publish",
        "publishing.watching:watch",
        "outlook.probe:probe",
        "exporting:export_real",
        "runs.sheets:peek",
        "outlook.doctor:doctor",
        "checks.reproduce:reproduce",
    )

    def reached(*given: Any, **named: Any) -> None:
        SEEN.extend([given, named])
        raise Reached

    def bench(name: str, *_: Any, **__: Any) -> None:
        found = matrix.load_matrix(name)
        for number, cell in enumerate(matrix.cells(found)):
            if number < 20:
                SEEN.append(matrix.cell_config(found, cell))
        raise Reached

    validate = loading.Part.model_validate.__func__  # type: ignore[attr-defined]

    def remembered(cls: Any, *given: Any, **named: Any) -> Any:
        SEEN.append(found := validate(cls, *given, **named))
        return found

    with contextlib.ExitStack() as stack:
        for place in costly:
            module, name = place.split(":")
            stack.enter_context(_instead(importlib.import_module(f"hfsyn.{module}"), name, reached))
        stack.enter_context(_instead(benchmarking, "bench", bench))
        stack.enter_context(_instead(loading.Part, "model_validate", classmethod(remembered)))
        yield


@contextlib.contextmanager
def _instead(owner: Any, name: str, other: Any) -> Iterator[None]:
    was = vars(owner).get(name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        if was is None:
            delattr(owner, name)
        else:
            setattr(owner, name, was)


def infinite(value: Any, depth: int = 0) -> bool:
    """Whether a number in a structure is not finite."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if depth > 12:
        return False
    if isinstance(value, Mapping):
        return any(infinite(of, depth + 1) for of in value.values())
    return isinstance(value, list | tuple) and any(infinite(of, depth + 1) for of in value)


def run(case: Case, folder: Path) -> tuple[str, str]:
    """Outcome of a case, and what it said."""
    for name, data in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    SEEN.clear()
    out, err, code = io.StringIO(), io.StringIO(), -1
    here = Path.cwd()
    os.chdir(folder)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_command(cli, "hfsyn", case.arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except Reached:
        code = 0
    except TooSlow:
        return "too slow", ""
    except BaseException:
        return "traceback", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.chdir(here)
    return judged(case, code, out.getvalue(), err.getvalue())


def judged(case: Case, code: int, out: str, err: str) -> tuple[str, str]:
    """The outcome of a command that ended by itself."""
    if "Traceback (most recent call last)" in err:
        return "traceback", err
    if code == 0 or (case.arguments[0] == "status" and code == 1):
        return ("not finite", repr(SEEN)[:2000]) if infinite(SEEN) else ("taken", "")
    lines = [line for line in err.splitlines() if line.strip()]
    if len(lines) != 1 or not lines[0].startswith("Error: ") or code not in (2, 3, 4):
        return "not one line", f"exit code {code}\n{err}"
    return ("refused", lines[0]) if names_a_place(case, lines[0]) else ("names no place", lines[0])


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, of in value.items():
            yield key
            yield from _keys(of)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


_PLACE = re.compile(
    r"--[a-z]|\b(Invalid value for|No such (option|command)|Missing (option|argument)|class_seeds|token|"
    + "|".join(sorted(set(_keys([RECIPE, TRAINING, MATRIX, CLASS_MAP]))))
    + r")\b"
)
"""What a message says where it names an option, or a key."""


def names_a_place(case: Case, line: str) -> bool:
    """Whether a refusal names a file, a key, an option or the word that was given."""
    said = [*case.files, *(name.rpartition("/")[2] for name in case.files)]
    for word in filter(str.strip, case.arguments[1:]):
        said += [one_line(word)[:40], repr(word)[1:-1][:40]]
    words = (re.escape(word) if len(word) > 1 else rf"(?<!\w){re.escape(word)}(?!\w)" for word in said)
    return any(re.search(word, line) for word in words) or _PLACE.search(line) is not None


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="cases [500]")
    parser.add_argument("--seed", type=int, default=0, help="from which they are made [0]")
    parser.add_argument("--only", choices=list(KINDS), help="one kind of them")
    parser.add_argument("--case", metavar="SEED:NUMBER", help="one case again")
    options = parser.parse_args()
    seed, count, first = options.seed, options.count, 0
    if options.case:
        seed, first = map(int, options.case.split(":"))
        case, count = case_of(seed, first, options.only), 1
        print("hfsyn", *map(repr, case.arguments))
        for name, data in case.files.items():
            print(f"--- {name}\n{data[:3000]!r}")
    sys.exit(1 if fuzz(seed, count, options.only, first) else 0)


def fuzz(seed: int, count: int, only: str | None = None, first: int = 0) -> int:
    """How many of the cases `first` to `first + count` of a seed ended in neither a refusal nor an acceptance."""

    def ring(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    table: dict[str, Counter[str]] = {}
    bad, started = 0, time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as root, stopped_before_the_costly():
            os.environ.update(HOME=root, HF_HOME=f"{root}/hf")
            for number in range(first, first + count):
                case = case_of(seed, number, only)
                with tempfile.TemporaryDirectory(dir=root) as folder:
                    outcome, said = run(case, Path(folder))
                table.setdefault(case.kind, Counter())[outcome] += 1
                if outcome not in ("taken", "refused"):
                    bad += 1
                    words = " ".join(word if len(word) < 60 else f"{word[:60]}..." for word in case.arguments)
                    more = f" --only '{only}'" if only else ""
                    print(f"{outcome}: --case {seed}:{number}{more}   hfsyn {words!r}")
                    print("".join(f"    {line}\n" for line in said[-1500:].splitlines()), end="")
                elif count == 1:
                    print(outcome, said)
    finally:
        signal.signal(signal.SIGALRM, before)
    show(table, time.monotonic() - started)
    return bad


def show(table: Mapping[str, Counter[str]], seconds: float) -> None:
    """Kinds down, outcomes across."""
    columns = [name for name in OUTCOMES if name in ("taken", "refused") or any(row[name] for row in table.values())]
    print(f"{'':10}" + "".join(f"{name:>16}" for name in columns))
    for kind, row in sorted(table.items()):
        print(f"{kind:10}" + "".join(f"{row[name]:>16,}" for name in columns))
    total = sum(sum(row.values()) for row in table.values())
    print(f"{total:,} cases in {seconds:.0f} s")


if __name__ == "__main__":
    main()
