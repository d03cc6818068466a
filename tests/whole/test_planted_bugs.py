"""Bugs that are planted on purpose: they still apply, the same ones are drawn, and one that a test sees is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from planting import rooms
from planting.drawing import draw, every_mutant, function_at, mutants_of
from planting.written import BUGS

TOY = b'''"""A toy."""
from __future__ import annotations

_BLOCK = 7
LIMIT = 3


def larger(a: int, b: int = 2) -> int:
    """The larger one."""
    print("larger", a + 1)
    if a > b and b != LIMIT:
        return a
    assert b == b
    if a == 99:
        raise ValueError(f"{a + 1} is too large")
    return b


class Box:
    def full(self) -> bool:
        self.look()
        return [x for x in self.things if x is not None] == []
'''


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_written_bug_still_applies_and_its_tests_are_those_of_its_room(bug) -> None:
    assert bug.problem(ROOT) is None
    assert compile(bug.applied(ROOT), bug.path, "exec")
    assert set(bug.tests) <= set(rooms.tests_of(bug.path, ROOT))


def test_there_are_forty_or_more_and_no_two_are_the_same() -> None:
    assert len({(bug.path, bug.old, bug.new) for bug in BUGS}) == len({bug.name for bug in BUGS}) == len(BUGS) >= 40


@pytest.mark.slow
def test_mutants_are_drawn_from_the_seed_alone_and_stay_where_other_code_changes() -> None:
    some = draw(ROOT, 30, seed=1)
    assert [m.name for m in draw(ROOT, 60, seed=1)[:30]] == [m.name for m in some]
    assert {m.name for m in draw(ROOT, 30, seed=2)} != {m.name for m in some}
    for mutant in some:
        assert rooms.tests_of(mutant.path, ROOT)
        assert mutant.old != mutant.new
        content = (ROOT / mutant.path).read_bytes()
        assert content[mutant.start : mutant.stop].decode() == mutant.old


def test_every_file_of_the_product_that_can_have_a_bug_is_in_a_room() -> None:
    for path in {mutant.path for mutant in every_mutant(ROOT)}:
        assert rooms.tests_of(path, ROOT), path


def test_a_mutant_changes_what_code_does_and_neither_its_messages_nor_its_pace() -> None:
    found = [(m.line, m.kind, m.old, m.new, m.function) for m in mutants_of(TOY, "builders/toy.py")]
    assert found == [
        (5, "constant", "3", "4", "<module>"),
        (8, "constant", "2", "3", "larger"),
        (11, "condition", "a > b and b != LIMIT", "not (a > b and b != LIMIT)", "larger"),
        (11, "and/or", "and", "or", "larger"),
        (11, "comparison", ">", ">=", "larger"),
        (11, "comparison", "!=", "==", "larger"),
        (12, "value", "a", "None", "larger"),
        (14, "condition", "a == 99", "not (a == 99)", "larger"),
        (14, "comparison", "==", "!=", "larger"),
        (14, "constant", "99", "100", "larger"),
        (16, "value", "b", "None", "larger"),
        (21, "call left out", "self.look()", "pass", "Box.full"),
        (22, "value", *_changed("[x for x in self.things if x is not None] == []"), "Box.full"),
        (22, "comparison", "==", "!=", "Box.full"),
        (22, "condition", *_changed("x is not None"), "Box.full"),
        (22, "comparison", "is not", "is", "Box.full"),
    ]
    import ast

    assert function_at(ast.parse(TOY), 22) == "Box.full"
    assert function_at(ast.parse(TOY), 5) == "<module>"


def _changed(text: str) -> tuple[str, str]:
    return text, f"not ({text})"


@pytest.mark.slow
def test_a_bug_that_a_test_sees_is_killed_and_one_that_none_sees_survives(tmp_path: Path) -> None:
    toy = tmp_path / "toy"
    (toy / "tests").mkdir(parents=True)
    shutil.copytree(ROOT / "scripts" / "planting", toy / "scripts" / "planting")
    shutil.copy(ROOT / "scripts" / "plant_bugs.py", toy / "scripts")
    for package in ("builders", "hfsyn"):
        (toy / package).mkdir()
        (toy / package / "__init__.py").touch()
    (toy / "builders" / "files.py").write_text(
        "def larger(a, b):\n    return a if a > b else b\n\n\ndef unseen(a):\n    return a + 1\n"
    )
    test = toy / "tests" / "test_sources.py"
    test.write_text(
        "import subprocess, sys\n\n"
        "def test_larger():\n    from builders.files import larger\n    assert larger(2, 1) == 2 == larger(1, 2)\n\n"
        "def test_broken():\n    from builders.files import larger, unseen\n    assert unseen(larger(1, 1)) == 5\n"
    )
    command = [sys.executable, str(toy / "scripts" / "plant_bugs.py"), "drawn", "--count", "9", "--json"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, cwd=toy)
    found = json.loads(tried.stdout)["drawn"]
    survived = {one["bug"].partition(" ")[2] for one in found["survived"]}
    # Of two equal numbers it does not matter which one is given; and what fails anyway has noticed nothing.
    assert survived == {"comparison: > -> >=", "arithmetic: + -> -", "constant: 1 -> 2", "value: a + 1 -> None"}
    assert (found["bugs"], found["killed"], tried.returncode) == (6, 2, 1), tried.stderr
    assert "fails as it is, and counts for nothing: tests/test_sources.py::test_broken" in tried.stderr
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=toy)
    assert "6 bugs, 6 known" in again.stderr
    assert json.loads(again.stdout) == json.loads(tried.stdout)
    # A test that changed is asked again.
    test.write_text(
        test.read_text() + "\ndef test_unseen():\n    from builders.files import unseen\n    assert unseen(4) == 5\n"
    )
    third = subprocess.run([*command, "--only", "arithmetic"], capture_output=True, text=True, check=False, cwd=toy)
    assert json.loads(third.stdout)["drawn"]["killed"] == 1, third.stderr
