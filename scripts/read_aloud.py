#!/usr/bin/env python
"""Find phrases that no native engineer would write, in messages, docstrings, comments, cards and READMEs.

    python scripts/read_aloud.py                      everything; exit code 1 where a phrase is found
    python scripts/read_aloud.py builders/sources     some files or folders
    python scripts/read_aloud.py --json

Each finding is a line `FILE:LINE: the phrase: what to write`. Names in code are not text and are not looked at; what
stands between backquotes in a text is code too. To add a phrase: one row in `PHRASES`.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = ("README.md", "builders", "hfsyn", "dataset_cards", "scripts", "tests")
# "There is no folder" is plain; "it is no folder" is not.
_FINE_AFTER_NO = "longer|more|way|need|reason|point|use|different|better|worse|good|limit|help|doubt|one"
PHRASES: tuple[tuple[str, str], ...] = (
    (rf"(?<![Tt]here )\b(?:is|was|are|were) no (?!(?:{_FINE_AFTER_NO})\b)[a-z]+", "is not a ..."),
    (r"\b(?:that|which) (?:are|is) none\b|(?<![Tt]here )\bis none (?:of|to|in|at)\b", "is not ..."),
    (r"\banew\b", "again"),
    (r"\bmend(?:s|ed|ing)?\b", "fix"),
    (r"\b[Ss]o many [a-z]+", "that many"),
    (r"\bcompare with nobody\b", "would not be comparable"),
    (r"\bNobody may\b", "... must not"),
    (r"\bWhat this thing is\b", "What it is"),
    (r"\bby heart\b", "memorised"),
    (r"\b(?:at|of|by|from) whom\b", "say who, plainly"),
    (r"\bputs? it right\b", "fix it"),
    (r"\b[Ww]hoever\b", "anyone who, or the name"),
    (r"\b[Ww]hatever else\b", "everything else"),
    (r"\bha(?:s|ve) made already\b", "already made"),
)
"""Each a regular expression, and what to write in its place."""
_CODE = re.compile(r"`[^`\n]*`")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Each line of text in a file with its number: of Python its strings and comments, of anything else all of it."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(content.splitlines(), 1)
        return
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type in kinds:
            yield from enumerate(token.string.split("\n"), token.start[0])


def files(places: Sequence[str]) -> Iterator[Path]:
    """The files that are looked at, below these places."""
    for place in places:
        path = ROOT / place
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in found:
            if file.suffix in (".py", ".md", ".jinja", ".yaml", ".sh") and file.resolve() != Path(__file__).resolve():
                yield file


def findings(places: Sequence[str]) -> Iterator[dict[str, object]]:
    """What was found, in the order of files and lines."""
    for file in files(places):
        for number, line in texts(file):
            for phrase, better in PHRASES:
                for match in re.finditer(phrase, _CODE.sub("`code`", line)):
                    yield {
                        "file": file.relative_to(ROOT).as_posix(),
                        "line": number,
                        "phrase": match[0],
                        "better": better,
                    }


def main() -> int:
    """Print what is found; 1 where there is anything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("places", nargs="*", default=EVERYTHING, help="files or folders; all by default")
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    given = parser.parse_args()
    found = list(findings(given.places))
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        for one in found:
            print(f"{one['file']}:{one['line']}: {one['phrase']!r}: {one['better']}")
        print(f"{len(found)} phrases", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
