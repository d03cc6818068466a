"""The house, read from the imports: rooms only import downwards, heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

ROOMS: dict[str, set[str]] = {
    "builders.errors": set(),
    "builders.files": set(),
    "builders.yaml": set(),
    "builders.hub": {"huggingface_hub"},
    "builders.stores": set(),
    "builders.variants": set(),
    "builders.images": {"PIL", "numpy"},
    "builders.runs": {"datasets", "fsspec", "pyarrow"},
    "builders.sources": {"PIL", "fsspec", "huggingface_hub", "numpy", "pyarrow"},
    "builders.published": {"huggingface_hub"},
    "builders.imagenet": {"datasets"},
    "builders.shapes": {"datasets"},
    "builders.captioned": {"datasets", "pyarrow"},
    "builders.synthetic": {"datasets"},
    "hfsyn.errors": set(),
    "hfsyn.rules": set(),
    "hfsyn.progress": {"tqdm"},
    "hfsyn.pages": set(),
    "hfsyn.workers": set(),
    "hfsyn.launching": set(),
    "hfsyn.recipes": {"pydantic"},
    "hfsyn.models": set(),
    "hfsyn.judging.preprocessing": set(),
    "hfsyn.judging.weights": set(),
    "hfsyn.judging.zero_shot": {"torch"},
    "hfsyn.judging.classifier": set(),
    "hfsyn.judging.steering": set(),
    "hfsyn.cards": set(),
    "hfsyn.hub": set(),
    "hfsyn.runs": {"PIL", "numpy", "pyarrow"},
    "hfsyn.images": {"PIL", "numpy", "pyarrow"},
    "hfsyn.captions": {"PIL"},
    "hfsyn.exporting": {"pyarrow"},
    "hfsyn.outlook": {"pyarrow"},
    "hfsyn.checks": {"PIL", "numpy", "pyarrow"},
    "hfsyn.gallery": {"PIL"},
    "hfsyn.publishing": {"pyarrow"},
    "hfsyn.building": set(),
    "hfsyn.tuning": set(),
    "hfsyn.judging.sets": {"PIL", "numpy"},
    "hfsyn.judging.starting": set(),
    "hfsyn.judging.measures": {"PIL", "numpy"},
    "hfsyn.judging.train": {"numpy", "torch"},
    "hfsyn.judging.scores": {"PIL", "numpy", "pyarrow"},
    "hfsyn.judging.audit": {"numpy", "pyarrow"},
    "hfsyn.judging.bench": {"PIL", "numpy", "pydantic"},
    "hfsyn.looping": {"numpy", "pyarrow", "pydantic"},
    "hfsyn.showcase": set(),
    "hfsyn.api": set(),
    "hfsyn.commands": {"click"},
    "hfsyn.cli": {"click"},
    "hfsyn.__main__": set(),
}
"""From the ground up: a room imports from those that stand before it, wherever in a file. With each room, what its
files may import from outside when they are loaded; their functions may import what they need."""
FRONTS = {"builders", "hfsyn", "hfsyn.judging", "hfsyn.api"}
"""Packages that belong to no room: docstrings, and names that are loaded when they are first used."""
STDLIB = set(sys.stdlib_module_names)
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in ("builders", "hfsyn"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def room_of(name: str) -> str:
    """The room that a module is, or stands in."""
    while name not in ROOMS:
        name = name.rpartition(".")[0]
        assert name, "give it a room in this file and in the design"
    return name


def imports(path: Path, *, top_only: bool) -> set[str]:
    """Imported module names; `from a.b import c` counts as a.b, and as a.b.c where that is a module of ours."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [n for n in tree.body if not _is_type_checking(n)] if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules())
            found |= deeper or {node.module}
    return found


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def ours(name: str) -> bool:
    return name.partition(".")[0] in ("builders", "hfsyn")


@pytest.mark.parametrize("name", sorted(set(modules()) - FRONTS))
def test_a_module_imports_only_from_its_own_room_and_those_below(name: str) -> None:
    below = list(ROOMS)[: list(ROOMS).index(room_of(name)) + 1]
    used = {other for other in imports(modules()[name], top_only=False) - FRONTS if ours(other)}
    assert not {other for other in used if room_of(other) not in below}


def test_no_two_modules_import_each_other() -> None:
    uses = {
        name: {other for other in imports(path, top_only=False) & set(modules()) - {name} if other not in FRONTS}
        for name, path in modules().items()
        if name not in FRONTS
    }
    sorter = TopologicalSorter(uses)
    sorter.prepare()  # raises CycleError with the modules of a circle


@pytest.mark.parametrize("name", sorted(set(modules()) - FRONTS))
def test_a_module_loads_only_the_outside_libraries_of_its_room(name: str) -> None:
    tops = {other.partition(".")[0] for other in imports(modules()[name], top_only=True) if not ours(other)}
    assert tops - STDLIB - {"__future__", "dataset_cards"} <= ROOMS[room_of(name)]


def test_builders_never_import_hfsyn() -> None:
    for name, path in modules().items():
        if name.startswith("builders"):
            assert not {other for other in imports(path, top_only=False) if other.startswith("hfsyn")}, name


def _read_by(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """``(module, name)`` of what a file imports from modules, or reads of them."""
    places: dict[str, str] = {}
    tree = ast.parse(text, str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                places[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            places |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            whose = ast.unparse(node.value)
            yield places.get(whose, whose), node.attr


def _defined(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Functions, classes and constants of a module, but for commands."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if not any("command" in (how := ast.unparse(d)) or "group" in how for d in node.decorator_list):
                yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))


FOR_OTHERS = {("builders.captioned", "Captioned"), ("builders.imagenet", "ImageNet")}
FOR_OTHERS |= {("builders.synthetic", "Synthetic")}
FOR_OTHERS |= {(f"hfsyn.api.{kind}", name) for kind in ("captioners", "generators") for name in ("ls", "show")}
"""Builders of `datasets`, for readers of what is published, and modules that `hfsyn` exports whole; everything else
that is public is in `hfsyn.__init__`."""


def test_nothing_is_there_for_the_sake_of_its_tests() -> None:
    """All that is defined is used by the product, a script or an example of the README."""
    texts = {path: path.read_text(encoding="utf-8") for path in (*modules().values(), *ROOT.glob("scripts/**/*.py"))}
    examples = re.findall(r"```(?:py|python)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    texts |= {Path(f"example {number}"): text for number, text in enumerate(examples)}
    read = {pair for path, text in texts.items() for pair in _read_by(path, text)}
    attributes = {name for _, name in read}
    templates = "".join(p.read_text(encoding="utf-8") for p in ROOT.glob("dataset_cards/*.jinja"))
    unused = []
    for module, path in modules().items():
        tree = ast.parse(texts[path])
        loaded = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
        for name, node in _defined(tree):
            inside = {id(part) for part in ast.walk(node)}
            here = any(one.id == name and id(one) not in inside for one in loaded)
            if not (here or (module, name) in read or name.startswith("__") or (module, name) in FOR_OTHERS):
                unused.append(f"{module}.{name}")
            methods = node.body if isinstance(node, ast.ClassDef) and not node.bases else ()  # a base may call them
            unused += [
                f"{module}.{name}.{method.name}"
                for method in methods
                if isinstance(method, ast.FunctionDef)
                and not method.name.startswith(("__", "_repr_html_"))  # which Python and notebooks call
                and method.name not in attributes
                and method.name not in templates
            ]
    assert not unused


def test_no_package_imports_a_script_or_a_test() -> None:
    for path in modules().values():
        assert not {other for other in imports(path, top_only=False) if other.partition(".")[0] in ("scripts", "tests")}


def test_every_room_is_there() -> None:
    assert set(ROOMS) <= set(modules())


def test_no_function_is_longer_than_a_screen() -> None:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < MOST_LINES_OF_A_FUNCTION, f"{name}.{node.name}"


def test_the_formatter_decides_everywhere() -> None:
    kept = re.compile(r"#\s*fmt:\s*(?:skip|off)")
    for path in [*modules().values(), *ROOT.glob("scripts/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        assert not kept.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_file_outgrows_its_room(name: str) -> None:
    assert len(modules()[name].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import hfsyn, hfsyn.cli", ("torch", "datasets", "transformers", "diffusers", "pyarrow", "pydantic", "numpy")),
        (
            "import hfsyn.recipes.recipe, hfsyn.runs.specs",
            ("torch", "datasets", "transformers", "diffusers", "pyarrow"),
        ),
        ("import builders.variants, builders.runs.layout", ("torch", "datasets", "pyarrow", "PIL", "numpy")),
        ("import builders.imagenet, builders.synthetic, builders.captioned, builders.shapes", ("hfsyn",)),
        ("import hfsyn.building, hfsyn.showcase", ("torch", "transformers", "diffusers", "matplotlib")),
        ("from hfsyn.judging.measures import fidelity, membership, metrics", ("torch", "timm", "datasets")),
    ],
)
def test_importing_loads_nothing_heavy(statement: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
