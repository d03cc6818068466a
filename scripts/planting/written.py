"""Bugs written by hand."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from planting.drawing import function_at


@dataclass(frozen=True)
class WrittenBug:
    """A mistake: what it breaks, where, and which test files must notice it."""

    name: str
    path: str
    old: str
    """Stands in the file exactly once."""
    new: str
    tests: tuple[str, ...]

    def problem(self, root: Path) -> str | None:
        """Why it cannot be planted any more; None where it can."""
        file = root / self.path
        if not file.is_file():
            return f"{self.name}: {self.path} is not there"
        times = file.read_text(encoding="utf-8").count(self.old)
        if times != 1:
            return f"{self.name}: its text occurs {times} times in {self.path}"
        if lost := [test for test in self.tests if not (root / test).is_file()]:
            return f"{self.name}: {lost[0]} is not there"
        return None

    def applied(self, root: Path) -> bytes:
        """The file's content with the bug in it."""
        return (root / self.path).read_text(encoding="utf-8").replace(self.old, self.new).encode()

    def function(self, root: Path) -> str:
        """The function that it stands in."""
        text = (root / self.path).read_text(encoding="utf-8")
        place = text.index(self.old)
        return function_at(ast.parse(text), text.count("\n", 0, place) + 1 + _same(self.old, self.new).count("\n"))


def _same(old: str, new: str) -> str:
    """What the two begin with."""
    length = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return old[:length]


BUGS: tuple[WrittenBug, ...] = ()
