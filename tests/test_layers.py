"""The architecture, read from the imports: layers only import downwards, heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = (
    {
        "builders.errors", "builders.variants.evaluation_sets", "builders.file_names", "builders.files", "builders.runs.layout",
        "builders.variants.class_maps", "builders.variants.real_labels", "builders.runs.run_files", "builders.variants.variant",
        "builders.variants.facts", "builders.variants.table", "builders.variants", "builders.yaml", "hfsyn.errors",
    },
    {
        "builders.hub.answers", "builders.captioned", "builders.sources.class_names", "builders.images.colours", "builders.sources.drawing",
        "builders.sources.folder_contents", "builders.sources.folder_layouts", "builders.sources.folders", "builders.images.formats", "builders.sources.hub",
        "builders.sources.image_lists", "builders.imagenet", "builders.images.decoding", "builders.sources.labels", "builders.sources.other_layouts",
        "builders.published.ours", "builders.sources.parquet", "builders.published.versions", "builders.hub.resuming", "builders.hub.revisions",
        "builders.sources.rows", "builders.runs.schema", "builders.shapes", "builders.runs.shard", "builders.runs.shard_rows",
        "builders.sources", "builders.sources.cards", "builders.sources.drawn",
        "builders.sources.columns", "builders.sources.on_disk", "builders.sources.table_classes",
        "builders.synthetic", "builders.sources.new_class_map",
    },
    {
        "hfsyn.recipes.prompt_templates", "hfsyn.recipes.prompt_part", "hfsyn.recipes.user_strategies",
        "hfsyn.judging.bench.matrix", "hfsyn.judging.sets.references", "hfsyn.recipes.training_recipe", "hfsyn.recipes.strategies",
        "hfsyn.recipes.fragments", "hfsyn.recipes.recipe", "hfsyn.recipes.parts", "hfsyn.recipes.finding",
        "hfsyn.runs.specs", "hfsyn.cards.front_matter", "hfsyn.recipes.extending",
        "hfsyn.hub.versions", "hfsyn.runs.options", "hfsyn.recipes.idle_fields",
        "hfsyn.recipes.overrides", "hfsyn.recipes.loading",
    },
    {
        "hfsyn.models.batch_sizes", "hfsyn.runs.claims", "hfsyn.runs.budget", "hfsyn.runs.tables",
        "hfsyn.runs.given_texts", "hfsyn.runs.pins",
        "hfsyn.runs.prompt_inputs", "hfsyn.images.encoding", "hfsyn.models.finding",
        "hfsyn.models.loras", "hfsyn.runs.shards", "hfsyn.models", "hfsyn.progress", "hfsyn.hub.repo",
        "hfsyn.software", "hfsyn.workers", "hfsyn.outlook.costs", "hfsyn.outlook.devices",
        "hfsyn.models.single_files", "hfsyn.runs.source_counts", "hfsyn.runs.real_images",
        "hfsyn.models.token_limits", "hfsyn.runs.stored_rows", "hfsyn.gathering", "hfsyn.models.checkpoint_files",
        "hfsyn.models.learned_words",
    },
    {
        "hfsyn.captions.cleaning", "hfsyn.captions.instructions", "hfsyn.captions.text_writer",
        "hfsyn.captions.inputs", "hfsyn.captions.token_drawing", "hfsyn.judging.measures.fidelity",
        "hfsyn.judging.measures.membership", "hfsyn.judging.measures.metrics",
        "hfsyn.captions.captioner", "hfsyn.images.conditioning", "hfsyn.images.decoding", "hfsyn.images.denoising",
        "hfsyn.images.generator", "hfsyn.models.pipelines", "hfsyn.images.tuning", "hfsyn.runs.run",
        "hfsyn.runs.status", "hfsyn.runs.overwriting", "hfsyn.images.noise", "hfsyn.images.trial",
    }
    | {
        "hfsyn.judging.classifier.accelerator", "hfsyn.judging.train.augmentation", "hfsyn.judging.train.checkpoints",
        "hfsyn.judging.classifier.network", "hfsyn.judging.measures.evaluate", "hfsyn.judging.sets.batches", "hfsyn.judging.train.training_sets",
        "hfsyn.judging.sets.hub_sets", "hfsyn.judging.sets.image_set", "hfsyn.judging.sets.labelled", "hfsyn.judging.train.model_card",
        "hfsyn.judging.sets.shared_classes",
        "hfsyn.judging.train.optimizer", "hfsyn.judging.sets.overlaps", "hfsyn.judging.sets.stored_images", "hfsyn.judging.train.streams",
        "hfsyn.judging.train.loop", "hfsyn.judging.train.folders", "hfsyn.judging.train.first_step", "hfsyn.judging.sets.unreadable",
    },
    {
        "hfsyn.outlook.prompt_examples", "hfsyn.captions.providers", "hfsyn.judging.bench.cells",
        "hfsyn.judging.bench.task_pool", "hfsyn.judging.bench.page", "hfsyn.judging.bench.plots", "hfsyn.judging.bench.summaries",
        "hfsyn.building", "hfsyn.outlook.forecast", "hfsyn.captions.reuse", "hfsyn.exporting",
        "hfsyn.runs.finish", "hfsyn.captions.prefetch", "hfsyn.captions.refusals", "hfsyn.images.rows",
        "hfsyn.runs.sheets",
        "hfsyn.images.start_images", "hfsyn.runs.stage", "hfsyn.captions.caption_stage", "hfsyn.images.generate_stage",
        "hfsyn.runs.plan", "hfsyn.outlook.probe", "hfsyn.images.shard_writer", "hfsyn.showcase",
    }
    | {
        "hfsyn.cards.blocks", "hfsyn.cards.facts", "hfsyn.cards.metadata",
        "hfsyn.cards.text", "hfsyn.cards.card", "hfsyn.publishing.changes",
        "hfsyn.outlook.doctor", "hfsyn.publishing.committing", "hfsyn.checks.diff",
        "hfsyn.publishing.contents", "hfsyn.publishing.continuing",
        "hfsyn.publishing.outcomes", "hfsyn.publishing.preflight", "hfsyn.publishing.publication",
        "hfsyn.publishing.pulls", "hfsyn.publishing.reachable", "hfsyn.outlook.checks",
        "hfsyn.publishing.reading_back", "hfsyn.checks.reproduce", "hfsyn.hub.rights",
        "hfsyn.checks.verify", "hfsyn.publishing.watching", "hfsyn.publishing.working",
    },
    {
        "hfsyn.__main__", "hfsyn.cli", "hfsyn.commands.catalogue", "hfsyn.commands.judging", "hfsyn.commands.hub",
        "hfsyn.commands.recipe_options", "hfsyn.commands.training", "hfsyn.commands.outlook",
        "hfsyn.commands.work_options", "hfsyn.commands.values",
    },
)  # fmt: skip
# Package fronts: docstrings and lazy names.
FREE = {
    "builders", "hfsyn", "hfsyn.commands", "hfsyn.judging", "hfsyn.judging.bench.templates", "hfsyn.recipes.training",
    "hfsyn.making", "hfsyn.publishing", "hfsyn.recipes", "dataset_cards",
}  # fmt: skip

# What a layer may import from outside at module level, cumulative; functions may import what they need.
STDLIB = set(sys.stdlib_module_names)
OUTSIDE = (
    set(),
    {"PIL", "numpy", "pyarrow", "datasets", "fsspec", "huggingface_hub"},
    {"pydantic"},
    {"PIL", "numpy", "pyarrow", "tqdm"},
    {"PIL", "numpy", "pyarrow"},
    {"PIL", "numpy", "pyarrow"},
    {"click"},
)
MOST_LINES = 400


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in ("builders", "hfsyn"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def layer_of(name: str) -> int:
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"{name} stands in no layer: give it one in this file and in the design")


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


@pytest.mark.parametrize("name", sorted(set(modules()) - FREE))
def test_a_module_imports_only_from_its_own_layer_or_below(name: str) -> None:
    upward = {
        other
        for other in imports(modules()[name], top_only=False) - FREE
        if ours(other) and layer_of(other) > layer_of(name)
    }
    assert not upward


@pytest.mark.parametrize("name", sorted(set(modules()) - FREE))
def test_a_module_loads_only_the_outside_libraries_of_its_layer(name: str) -> None:
    tops = {other.partition(".")[0] for other in imports(modules()[name], top_only=True) if not ours(other)}
    assert tops - STDLIB - {"__future__"} <= OUTSIDE[layer_of(name)]


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
"""Builders of `datasets`, for readers of what is published; whatever else is for others stands in `hfsyn.__init__`."""


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
                and not method.name.startswith("__")
                and method.name not in attributes
                and method.name not in templates
            ]
    assert not unused


def test_no_package_imports_a_script_or_a_test() -> None:
    for path in modules().values():
        assert not {other for other in imports(path, top_only=False) if other.partition(".")[0] in ("scripts", "tests")}


def test_every_layer_names_modules_that_exist() -> None:
    assert {name for layer in LAYERS for name in layer} <= set(modules())


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
        (
            "import hfsyn.building, hfsyn.showcase",
            ("torch", "transformers", "diffusers", "matplotlib"),
        ),
        (
            "from hfsyn.judging import fidelity, membership, metrics",
            ("torch", "timm", "datasets"),
        ),
    ],
)
def test_importing_loads_nothing_heavy(statement: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
