"""Data as Markdown: filters that make it harmless, and the templates of the blocks."""

from __future__ import annotations

import html
import json
import re
import shlex
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from builders.runs import layout
from hfsyn.recipes.recipe import Recipe, dump_recipe

if TYPE_CHECKING:
    import jinja2

MOST_CHARACTERS = 300  # of a text in a cell
_MOST_CLASSES = 100  # of a class map that a card shows in full

_SPECIAL = re.compile(r"[&<>|`*\[\]~\\$@^]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.")
_REFERENCES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_KEY = re.compile(r"[a-z_]+: ")
_PLAIN = re.compile(r"[^`|<>&\\$\s]+(?: [^`|<>&\\$\s]+)*")
_JOINERS = "\u200c\u200d"  # they hold emoji and some scripts together, and change nothing around them


def clean(value: object) -> str:
    """Text on one line with single blanks; control and direction characters are spelt out as ``[U+202E]``."""
    text = " ".join(str(value).split())
    acting = {c for c in set(text) - set(_JOINERS) if unicodedata.category(c) in ("Cc", "Cf", "Cs")}
    return "".join(f"[U+{ord(c):04X}]" if c in acting else c for c in text)


def cell(value: object) -> str:
    """A text for a table's cell or the middle of a line: one line, at most `MOST_CHARACTERS`.

    Markdown, HTML, mathematics, links and mentions become character references, which are shown but not interpreted.
    `uncell` is the inverse.
    """
    text = "" if value is None else clean(value)
    if not text:
        return "–"
    if len(text) > MOST_CHARACTERS:
        text = text[: MOST_CHARACTERS - 1].rstrip() + "…"
    return _SPECIAL.sub(lambda found: _REFERENCES.get(found[0], f"&#{ord(found[0])};"), text)


def uncell(text: str) -> str:
    """The text that was given to `cell`, as far as it was shown."""
    return html.unescape(text.strip())


def code(value: object) -> str:
    """A text as code within a line or a cell: in backticks where it can be, else escaped between `<code>` tags."""
    text = clean(value)
    return f"`{text}`" if len(text) <= MOST_CHARACTERS and _PLAIN.fullmatch(text) else f"<code>{cell(text)}</code>"


def literal(value: object) -> str:
    """A text as a Python string within a fenced block."""
    return json.dumps(clean(value), ensure_ascii=False).replace("`", "\\u0060")


def shell(value: object) -> str:
    """A text as one word of a bash command within a fenced block; special characters are spelt out in bytes."""
    text = str(value)
    if clean(text) == text and not set(text) & set("<>`"):
        return shlex.quote(text)
    spelt = (
        c if c.isascii() and c.isalnum() else "".join(f"\\x{b:02x}" for b in c.encode("utf-8", "replace")) for c in text
    )
    return f"$'{''.join(spelt)}'"


def number(value: int) -> str:
    """``1,281,167``."""
    return f"{value:,}"


def recipe_block(recipe: Recipe) -> str:
    """The recipe as a fenced block of YAML that `load_recipe` takes, without the local path of its source."""
    source = recipe.source.model_copy(update={"path": None})
    note = ""
    if source.definition is not None and len(source.definition["classes"]) > _MOST_CLASSES:
        note = f"# its {len(source.definition['classes'])} classes are in recipe.yaml, under source.definition\n"
        source = source.model_copy(update={"definition": None})
    recipe = recipe.model_copy(update={"source": source})
    text = dump_recipe(recipe)
    if set(text) & set("<>`") or any(clean(line) != line or not _KEY.match(line) for line in text.splitlines()):
        # JSON is YAML, and has an escape for everything that could end the block or the comment of a mark.
        text = json.dumps({"format": layout.FORMAT, **recipe.model_dump()}, indent=1)
        text = re.sub("[<>`]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"
    return f"```yaml\n{note}{text}```"


def render(block: str, values: Mapping[str, Any]) -> str:
    """The text of a block from its template; values are never taken for templates."""
    text = _environment().get_template(f"{block}.md.jinja").render(**values)
    return re.sub(r"\n{3,}", "\n\n", text)


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    def read(name: str) -> str:
        return (resources.files("dataset_cards") / name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (Markdown, not HTML: each value passes one of the filters below)
    )
    environment.filters |= {"cell": cell, "code": code, "literal": literal, "number": number, "shell": shell}
    return environment
