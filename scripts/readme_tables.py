#!/usr/bin/env python
"""Rewrite the tables of README.md that the code knows better; `--check` only says whether any would change.

A table stands between two comments, `<!-- table: NAME -->` and `<!-- end -->`; what is between them belongs to this
script. To add one: write a function that returns its rows, dicts with the column heads as keys, put it into `TABLES`,
put the two comments into README.md, and run this.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
Rows = Sequence[Mapping[str, object]]
_MARKED = re.compile(r"(<!-- table: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def captioners() -> Rows:
    """The fragments of `--captioner`."""
    from hfsyn.recipes.fragments import fragments, load_fragment

    found = [load_fragment("captioner", name) for name in fragments("captioner")]
    return [
        {"`--captioner`": f"`{f.name}`", "model": f"`{f.part['model']}`", "what it says": f.about,
         "source": f.facts.get("source", "")}
        for f in found
    ]  # fmt: skip


def generators() -> Rows:
    """The fragments of `--generator`."""
    from hfsyn.recipes.fragments import fragments, load_fragment
    from hfsyn.recipes.recipe import GeneratePart

    found = [load_fragment("generator", name) for name in fragments("generator")]
    parts = [GeneratePart.model_validate(dict(f.part)) for f in found]
    return [
        {"`--generator`": f"`{f.name}`",
         "model": f"`{p.model}`" + (f" with `{p.lora}`" if p.lora else ""),
         "size": f"{p.width} px" if p.width else "its own",
         "steps": p.steps, "guidance": f"{p.guidance_scale:g}", "its card says": f.facts.get("card", ""),
         "text": f.facts.get("text", "")}
        for f, p in zip(found, parts, strict=True)
    ]  # fmt: skip


def strategies() -> Rows:
    """The built-in strategies."""
    from hfsyn.recipes.strategies import STRATEGIES

    return [
        {"`--strategy`": f"`{s.name}`", "prompt": f"`{s.template}`", "source": s.source} for s in STRATEGIES.values()
    ]


def variants() -> Rows:
    """The variants of the table."""
    from builders.variants import VARIANTS
    from builders.variants.facts import access

    return [
        {"variant": f"`{v.name}`", "classes": len(v.classes),
         "images": ", ".join(f"{count:,} {split}" for split, count in v.splits.items()),
         "on the Hub": f"`{v.hub.repo_id}`" if v.hub else "",
         "how": access(v)}
        for v in VARIANTS.values()
    ]  # fmt: skip


def recipes() -> Rows:
    """The shipped recipes, those that differ in guidance alone in one line."""
    from hfsyn.recipes.finding import shipped_recipes
    from hfsyn.recipes.recipe import load_recipe

    found = [load_recipe(name) for name in shipped_recipes()]
    bases = [r for r in found if "-g" not in r.name]
    return [
        {"recipe": f"`{r.name}`", "variant": f"`{r.source.variant}`", "strategy": f"`{r.prompt.strategy}`",
         "captioner": f"`{r.caption.model}`" if r.caption else "", "generator": f"`{r.generate.model}`",
         "guidance": ", ".join([f"{r.generate.guidance_scale:g}",
                                *(f"`{v.name.removeprefix(r.name)}` {v.generate.guidance_scale:g}"
                                  for v in found if v.name.startswith(f"{r.name}-g"))])}
        for r in bases
    ]  # fmt: skip


TABLES: dict[str, Callable[[], Rows]] = {
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


def rewritten(text: str) -> str:
    """The text with every marked table made anew.

    Raises:
        KeyError: a marker names no table of `TABLES`.
    """
    return _MARKED.sub(lambda found: found[1] + markdown(TABLES[found[2]]()) + found[4], text)


def main() -> int:
    """Rewrite README.md, or check it; 1 where a check finds a difference or a table has no place."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something would change")
    check = parser.parse_args().check
    before = README.read_text(encoding="utf-8")
    if missing := sorted(set(TABLES) - {name for _, name, _, _ in _MARKED.findall(before)}):
        sys.stderr.write(
            f"README.md has no place for the table {missing[0]}: <!-- table: {missing[0]} --> <!-- end -->\n"
        )
        return 1
    after = rewritten(before)
    if after != before and check:
        sys.stderr.write("README.md is not what the code says. Run: python scripts/readme_tables.py\n")
        return 1
    if after != before:
        README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
