#!/usr/bin/env python
"""Rewrite the tables and maps of the READMEs that the code knows better; `--check` only says whether any would change.

    python scripts/readme_tables.py --gpu gpu.json --gpu full.json     the figures of a GPU, which are kept, too

A table stands between two comments, `<!-- table: NAME -->` and `<!-- end -->`; what is between them belongs to this
script. To add one: write a function that returns its rows, dicts with the column heads as keys, put it into `TABLES`,
put the two comments into a README, and run this. A map is `<!-- map: FOLDER -->`: each file of a folder with the first
sentence of its docstring.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import gpu_figures

ROOT = Path(__file__).resolve().parent.parent
READMES = (
    "README.md",
    "builders/README.md",
    "hfsyn/recipes/README.md",
    "hfsyn/models/README.md",
    "hfsyn/judging/README.md",
    "hfsyn/publishing/README.md",
    "hfsyn/README.md",
    "scripts/README.md",
)
"""In the order in which they are read, and their commands run."""
Rows = Sequence[Mapping[str, object]]
_MARKED = re.compile(r"(<!-- (table|map): ([a-z/-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def captioners() -> Rows:
    """The fragments of `--captioner`."""
    from hfsyn.recipes.loading import fragments, load_fragment

    found = [load_fragment("captioner", name) for name in fragments("captioner")]
    return [
        {
            "`--captioner`": f"`{f.name}`",
            "model": f"`{f.part['model']}`",
            "what it says": f.about,
            "source": f.facts.get("source", ""),
        }
        for f in found
    ]


def generators() -> Rows:
    """The fragments of `--generator`."""
    from hfsyn.recipes.loading import fragments, load_fragment
    from hfsyn.recipes.recipe import GeneratePart

    found = [load_fragment("generator", name) for name in fragments("generator")]
    parts = [GeneratePart.model_validate(dict(f.part)) for f in found]
    return [
        {
            "`--generator`": f"`{f.name}`",
            "model": f"`{p.model}`" + (f" with `{p.lora}`" if p.lora else ""),
            "size": f"{p.width} px" if p.width else "its own",
            "steps": p.steps,
            "guidance": f"{p.guidance_scale:g}",
            "its card says": f.facts.get("card", ""),
            "text": f.facts.get("text", ""),
        }
        for f, p in zip(found, parts, strict=True)
    ]


def strategies() -> Rows:
    """The built-in strategies."""
    from hfsyn.recipes.strategies import STRATEGIES

    return [
        {"`--strategy`": f"`{s.name}`", "prompt": f"`{s.template}`", "source": s.source} for s in STRATEGIES.values()
    ]


def variants() -> Rows:
    """The variants of the table."""
    from builders.variants import VARIANTS, access

    return [
        {
            "variant": f"`{v.name}`",
            "classes": len(v.classes),
            "images": ", ".join(f"{count:,} {split}" for split, count in v.splits.items()),
            "on the Hub": f"`{v.hub.repo_id}`" if v.hub else "",
            "how": access(v),
        }
        for v in VARIANTS.values()
    ]


def recipes() -> Rows:
    """The shipped recipes, those that differ in guidance alone in one line."""
    from hfsyn.recipes.recipe import RECIPES, load_recipe

    found = [load_recipe(name) for name in RECIPES.names()]
    bases = [r for r in found if "-g" not in r.name]
    return [
        {
            "recipe": f"`{r.name}`",
            "variant": f"`{r.source.variant}`",
            "strategy": f"`{r.prompt.strategy}`",
            "captioner": f"`{r.caption.model}`" if r.caption else "",
            "generator": f"`{r.generate.model}`",
            "guidance": ", ".join(
                [
                    f"{r.generate.guidance_scale:g}",
                    *(
                        f"`{v.name.removeprefix(r.name)}` {v.generate.guidance_scale:g}"
                        for v in found
                        if v.name.startswith(f"{r.name}-g")
                    ),
                ]
            ),
        }
        for r in bases
    ]


def rehearsal() -> Rows:
    """What `rehearse.py` measured: a line for each stage."""
    found = json.loads((ROOT / "scripts" / "figures" / "rehearsal.json").read_text(encoding="utf-8"))
    return [
        {
            f"{found['rows']:,} rows": one["stage"],
            "seconds": f"{one['seconds']:,.0f}",
            "CPU seconds": f"{one['cpu_seconds']:,.0f}",
            "largest process": f"{one['peak_gb']:.2f} GB",
            "files": f"{one['files']:,}" if one["files"] else "",
            "requests": f"{one['requests']:,}" if one["requests"] else "",
            "commits": one["commits"] or "",
            "sent": f"{one['sent_mb']:,.0f} MB" if one["sent_mb"] else "",
        }
        for one in found["stages"]
    ]


TABLES: dict[str, Callable[[], Rows]] = {
    "rehearsal": rehearsal,
    "gpu": gpu_figures.speed,
    "gpu-memory": gpu_figures.memory,
    "variants": variants,
    "recipes": recipes,
    "captioners": captioners,
    "generators": generators,
    "strategies": strategies,
}


def markdown(rows: Rows) -> str:
    """A table of GitHub's Markdown; a vertical bar within a cell is escaped."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([str(row[head]).replace("|", "\\|") for head in heads] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def map_of(folder: str) -> str:
    """The files of a folder, and the rooms in it, each with the first sentence of what it says of itself."""
    files = sorted(path for path in (ROOT / folder).glob("*.py") if not path.name.startswith("__"))
    rooms = sorted(path.parent for path in (ROOT / folder).glob("*/__init__.py"))
    named = {f"`{path.name}`": path for path in files} | {f"`{room.name}/`": room / "__init__.py" for room in rooms}
    return "".join(f"- {name}: {_said(path)}\n" for name, path in named.items())


def _said(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def rewritten(text: str) -> str:
    """The text with every marked table and map written again.

    Raises:
        KeyError: a marker names no table of `TABLES`.
    """
    return _MARKED.sub(lambda m: m[1] + (map_of(m[3]) if m[2] == "map" else markdown(TABLES[m[3]]())) + m[5], text)


def main() -> int:
    """Rewrite the READMEs, or check them; 1 where a check finds a difference or a table or room has no place."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something would change")
    parser.add_argument("--gpu", action="append", type=Path, default=[], metavar="FILE", help="figures to keep")
    options = parser.parse_args()
    check = options.check
    try:
        for path in options.gpu:
            gpu_figures.keep(path)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    texts = {ROOT / name: (ROOT / name).read_text(encoding="utf-8") for name in READMES}
    shown = {(kind, name) for text in texts.values() for _, kind, name, _, _ in _MARKED.findall(text)}
    fronts = (path.parent for package in ("builders", "hfsyn") for path in (ROOT / package).rglob("__init__.py"))
    rooms = {folder.relative_to(ROOT).as_posix() for folder in fronts if len([*folder.glob("*.py")]) > 1}
    for kind, name in sorted({("table", name) for name in TABLES} | {("map", room) for room in rooms}):
        if (kind, name) not in shown:
            sys.stderr.write(f"No README has a place for the {kind} {name}: <!-- {kind}: {name} --> <!-- end -->\n")
            return 1
    changed = {path: after for path, before in texts.items() if (after := rewritten(before)) != before}
    if changed and check:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in changed)
        sys.stderr.write(f"Not what the code says: {names}. Run: python scripts/readme_tables.py\n")
        return 1
    for path, after in changed.items():
        path.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
