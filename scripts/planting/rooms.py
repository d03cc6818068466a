"""Which tests are a file's own: those of its room, and others that import it.

A bug must be noticed by the tests beside it. That some other part of the suite fails too, an hour later and three rooms
away, helps nobody to find it.
"""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

ROOMS = (
    (
        "sources",
        "builders/sources/* builders/files.py builders/errors.py",
        "sources folders_people_bring tables_* names_people_give class_maps streaming variant_rows evaluation_sets",
    ),
    (
        "variants",
        "builders/variants/*",
        "variants own_variants class_maps real_labels evaluation_sets names_people_give",
    ),
    (
        "builders",
        """
        builders/imagenet.py builders/shapes.py builders/sources/draw*.py builders/captioned.py builders/synthetic.py
        builders/sources/rows.py builders/runs/rows.py
        """,
        "imagenet_builder shapes verification publication",
    ),
    ("decoding", "builders/images/*", "images image_files_* unreadable_images"),
    (
        "runs",
        """
        builders/runs/* builders/stores/* builders/files.py builders/errors.py hfsyn/runs/* hfsyn/building.py
        hfsyn/exporting.py
        """,
        """
        object_storage layout shards claims overwriting damaged_runs disk_errors kills_* status tables stored_rows
        stages budget
        source_going_away unreadable_images file_traces from_source production selections conditions scores
        """,
    ),
    (
        "the Hub's answers",
        "builders/hub.py builders/published.py",
        "what_the_hub_answers publication publication_faults streaming verification judging_hub access",
    ),
    (
        "recipes",
        """
        builders/yaml.py hfsyn/rules.py hfsyn/recipes/* hfsyn/runs/options.py hfsyn/runs/pins.py
        hfsyn/runs/inputs.py hfsyn/runs/specs.py hfsyn/runs/pairing.py hfsyn/models/token_limits.py
        hfsyn/outlook/prompt_examples.py
        """,
        """
        recipe recipe_grid specs pairing prompts fragments pins user_strategies captions_file what_people_write stages
        """,
    ),
    (
        "captions",
        "hfsyn/captions/*",
        "captioner own_captioner text_writer reading captions_file known_captions stages fragments",
    ),
    (
        "images",
        "hfsyn/images/* hfsyn/models/*",
        """
        generator generator_* guidance entropy_guidance marking loras hub_models from_source production encode probing
        trust stages small_models checkpoints_* exactness
        """,
    ),
    (
        "outlook",
        "hfsyn/outlook/* hfsyn/runs/sheets.py hfsyn/showcase.py hfsyn/gallery/* hfsyn/pages/*",
        "forecast doctor probing informativeness sheets showcase looking notebook pages cli",
    ),
    (
        "publishing",
        "hfsyn/publishing/* hfsyn/cards/* hfsyn/checks/* hfsyn/hub/* dataset_cards/*",
        """
        publication* cards verification reproduction hf_jobs hub_* publish* clients* judging_hub
        reading_back rights versions
        """,
    ),
    (
        "judging",
        "hfsyn/judging/* hfsyn/recipes/training* hfsyn/recipes/factor*",
        """
        training evaluation metrics fidelity membership benchmarking exchange verdict pages references streaming
        judging_hub train_script unreadable_images tables_people_bring names_people_give recording scores keeping probes
        starting streams few_classes versions_of_a_test columns the_table zero_shot weights_people_bring
        where_people_look judging_by_command published_scores audit entropy_guidance
        """,
    ),
    ("looping", "hfsyn/looping/*", "loops loop_files looping_kills policies audit"),
    ("tuning", "hfsyn/tuning/* hfsyn/recipes/tune_part.py", "tuning tuned_on informativeness"),
    (
        "commands",
        "hfsyn/cli.py hfsyn/__* hfsyn/commands/* hfsyn/api/* hfsyn/errors.py",
        """
        cli in_the_hand train_script what_people_write fragments doctor forecast class_maps publication verification
        stages benchmarking budget
        """,
    ),
    (
        "processes",
        "hfsyn/workers.py hfsyn/launching.py hfsyn/progress.py",
        "workers gathering leftover_launchers machines budget end_to_end",
    ),
)
"""Name, files of the product, and names of test files (without ``test_`` and ``.py``) of each room."""


FAR = "bench_* end_to_end faults fragments full_size hf_jobs machines resume showcase slurm small_models"
"""Tests of scripts and of the whole path: beside nothing, though they import this and that; a room may name them."""


def tests_of(path: str, root: Path) -> list[str]:
    """The test files of a product file's room, as paths below the repository, sorted.

    Raises:
        LookupError: no room has the file: give it one in `ROOMS`.
    """
    module = module_of(path)
    rooms = _rooms(path)
    if not rooms:  # that of the files which use it
        product = (file for package in ("builders", "hfsyn") for file in (root / package).rglob("*.py"))
        users = [file.relative_to(root).as_posix() for file in product if module in imported_by(file)]
        rooms = list(dict.fromkeys(tests for user in users for tests in _rooms(user)))
    if not rooms:
        raise LookupError(f"{path} is in no room: name it in scripts/planting/rooms.py")
    patterns = [f"test_{name}.py" for tests in rooms for name in tests.split()]
    far = [f"test_{name}.py" for name in FAR.split()]
    return sorted(
        file.relative_to(root).as_posix()
        for file in (root / "tests").rglob("test_*.py")
        if any(fnmatchcase(file.name, pattern) for pattern in patterns)
        or (module in imported_by(file) and not any(fnmatchcase(file.name, pattern) for pattern in far))
    )


def test_file(name: str, root: Path) -> str:
    """The path of ``test_NAME.py``, whichever folder of the tests it lies in."""
    found = next((root / "tests").rglob(f"test_{name}.py"), root / "tests" / f"test_{name}.py")
    return found.relative_to(root).as_posix()


def _rooms(path: str) -> list[str]:
    return [tests for _, product, tests in ROOMS if any(fnmatchcase(path, pattern) for pattern in product.split())]


def module_of(path: str) -> str:
    """The name under which a file is imported."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def imported_by(file: Path) -> frozenset[str]:
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)
