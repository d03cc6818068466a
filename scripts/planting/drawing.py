"""Mutants: small changes of the product's code, drawn by seed, each of which changes what the code does.

Kinds: a comparison is turned (``<`` to ``<=``, ``==`` to ``!=``, ``in`` to ``not in``), a number is another, True is
False, a condition is its opposite, ``and`` is ``or``, ``+`` is ``-`` and ``*`` is ``/``, a call whose value nobody
takes is left out, and a function gives None (a bool: the opposite).

Not drawn, since no test could notice or nobody would care: annotations, decorators, what stands under
``TYPE_CHECKING`` or in an ``assert`` (for the type checker), texts, messages (what is raised, printed, logged, shown as
progress), and arguments that only lay out, guard or pace: see `_QUIET_KEYWORDS`. Numbers in `KNOBS` decide how fast
something is or how much memory it takes, and are right within a wide range.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

PACKAGES = ("builders", "hfsyn")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMPARE = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
}
_ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "|"),
}
_TELLING = _words(
    """
    print say _say echo warning tell _tell set_description add_note filterwarnings
    """
)
"""Calls that only tell somebody something; what they are given is not changed, nor are they left out."""
_MESSAGES = {"Check", "note"}
"""Calls whose message is not changed, but that may be left out."""
_QUIET_KEYWORDS = _words(
    """
    strict indent ensure_ascii flush timeout stacklevel quiet repr compare max_workers thread_name_prefix help
    hint metavar description
    """
)
KNOBS = _words(
    """
    ABANDONED_AFTER ATTEMPTS BATCH BATCHES_AHEAD CACHED_PROMPTS CALL_TIMEOUT CANDIDATES FIRST_PAUSE LONGEST_ASKED
    LONGEST_PAUSE MICRO_BATCH ROW_GROUP_BYTES SHARDS_OPEN SHARDS_TO_WRITE SILENCE WAIT _BATCH _BLOCK
    _BYTES_AT_ONCE _BYTES_A_PIXEL _CHUNKING _COLUMNS _LARGE _READERS _ROOM _ROWS _SENT_AT_ONCE _SHOWN _SLICE
    """
)
"""Names of numbers that pace, bound memory or shorten a message."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    path: str
    """Relative to the repository."""
    line: int
    kind: str
    function: str
    """Qualified name of the function that it stands in; ``<module>`` outside of any."""
    start: int
    stop: int
    """Bytes of the file that are replaced."""
    old: str
    new: str

    @property
    def name(self) -> str:
        """For people, and in the file of results."""
        old, new = (" ".join(text.split())[:60] for text in (self.old, self.new))
        return f"{self.path}:{self.line} {self.kind}: {old} -> {new}"

    def applied(self, source: bytes) -> bytes:
        """The file's content with the change."""
        return source[: self.start] + self.new.encode() + source[self.stop :]


def draw(root: Path, count: int, seed: int) -> list[Mutant]:
    """`count` different mutants of all product code, each as likely as another; the same for the same code and seed.

    Each has a rank by the hash of what it is: where some functions change, the draw among all others stays.
    """
    ranked, times = [], Counter[str]()
    for mutant in every_mutant(root):
        what = f"{seed}\n{mutant.path}\n{mutant.function}\n{mutant.kind}\n{mutant.old}\n{mutant.new}"
        times[what] += 1
        ranked.append((hashlib.sha256(f"{what}\n{times[what]}".encode()).digest(), mutant))
    ranked.sort(key=lambda pair: pair[0])
    sources = {path: (root / path).read_bytes() for path in {mutant.path for _, mutant in ranked}}
    return list(islice((m for _, m in ranked if _parses(m.applied(sources[m.path]))), count))


@cache
def every_mutant(root: Path) -> list[Mutant]:
    """All that can be drawn, in the order of the files and lines; read once a process."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return [mutant for path in paths for mutant in mutants_of(path.read_bytes(), path.relative_to(root).as_posix())]


def mutants_of(source: bytes, path: str) -> list[Mutant]:
    """All mutants of one file; of a few the text around is such that they are no Python."""
    walk = _Walk(source, path)
    walk.visit(ast.parse(source))
    return walk.found


def _parses(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


class _Walk(ast.NodeVisitor):
    """Collects mutants; knows in which function it is."""

    def __init__(self, source: bytes, path: str) -> None:
        self.found: list[Mutant] = []
        self._source, self._path = source, path
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._function, self._is_function, self._gives = "", False, ""

    # Where things stand ---------------------------------------------------------------------------------------------

    def _span(self, node: Any) -> tuple[int, int]:
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _note(self, node: Any, kind: str, start: int, stop: int, new: str) -> None:
        old = self._source[start:stop].decode()
        where = self._function if self._is_function else "<module>"
        self.found.append(Mutant(self._path, node.lineno, kind, where, start, stop, old, new))

    def _replace(self, node: Any, kind: str, make: Any) -> None:
        start, stop = self._span(node)
        self._note(node, kind, start, stop, make(self._source[start:stop].decode()))

    def _operator(self, left: Any, right: Any, kind: str, old: str, new: str) -> None:
        """Replace an operator that stands between two nodes, perhaps with brackets and comments."""
        start, stop = self._span(left)[1], self._span(right)[0]
        pattern = r"\s+".join(map(re.escape, old.split()))
        pattern = rf"\b{pattern}\b" if old[0].isalpha() else pattern
        between = re.sub(r"#[^\n]*", lambda found: " " * len(found[0]), self._source[start:stop].decode())
        if place := re.search(pattern, between):
            self._note(left, kind, start + place.start(), start + place.end(), new)

    # What is left out -----------------------------------------------------------------------------------------------

    def _enter(self, node: Any, *, function: bool) -> None:
        before = self._function, self._is_function, self._gives
        joint = ".<locals>." if self._is_function else "."
        self._function = f"{self._function}{joint}{node.name}" if self._function else node.name
        self._is_function = function
        if function:
            self._gives = ast.unparse(node.returns) if node.returns is not None else ""
            for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self._function, self._is_function, self._gives = before

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node, function=False)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._enter(node, function=True)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]  # noqa: N815

    def visit_Raise(self, node: ast.Raise) -> None:
        """A message, and how it is put together."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """For the type checker."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and not _is_knob(node.target):
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(_is_knob(target) or ast.unparse(target) == "__all__" for target in node.targets):
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            return
        self._condition(node.test)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _called(node)
        if name in _TELLING or name in _MESSAGES or name.endswith(("Error", "Progress")):
            return
        self.visit(node.func)
        for argument in node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg not in _QUIET_KEYWORDS:
                self.visit(keyword.value)

    # What is changed ------------------------------------------------------------------------------------------------

    def _condition(self, test: ast.expr) -> None:
        self._replace(test, "condition", lambda text: f"not ({text})")

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.generic_visit(node)  # the opposite of `while True` is not a mistake that anybody makes

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._condition(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self._operator(left, right, "comparison", *_COMPARE[type(operator)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._operator(left, right, "and/or", old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = any(isinstance(side, ast.JoinedStr | ast.List | ast.Tuple) for side in (node.left, node.right))
        if type(node.op) in _ARITHMETIC and not texts:
            self._operator(node.left, node.right, "arithmetic", *_ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, "constant", lambda text: str(not node.value))
        elif isinstance(node.value, int | float):
            new = {0: "1", 1: "2"}.get(node.value, repr(node.value + 1))  # type: ignore[arg-type]
            self._replace(node, "constant", lambda text: new)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and _called(node.value) not in _TELLING:
            self._replace(node, "call left out", lambda text: "pass")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            return
        if self._gives == "bool":
            self._replace(node.value, "value", lambda text: f"not ({text})")
        elif not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._replace(node.value, "value", lambda text: "None")
        self.visit(node.value)


def _is_knob(target: ast.expr) -> bool:
    names = target.elts if isinstance(target, ast.Tuple) else [target]
    return any(isinstance(name, ast.Name) and name.id in KNOBS for name in names)


def _called(node: ast.Call) -> str:
    """The last word of what is called."""
    found = node.func
    return found.attr if isinstance(found, ast.Attribute) else found.id if isinstance(found, ast.Name) else ""


def function_at(tree: ast.AST, line: int) -> str:
    """The qualified name of the innermost function that holds a line; ``<module>`` outside of any."""
    found, joint, node = "", "", tree
    while True:
        inner = _innermost(node, line)
        if inner is None:
            return found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else "<module>"
        found = f"{found}{joint}{inner.name}"
        joint = "." if isinstance(inner, ast.ClassDef) else ".<locals>."
        node = inner


def _innermost(node: ast.AST, line: int) -> Any:
    """The outermost definition below a node that holds a line."""
    for child in ast.iter_child_nodes(node):
        if line < getattr(child, "lineno", line) or line > getattr(child, "end_lineno", line):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return child
        if (found := _innermost(child, line)) is not None:
            return found
    return None
