"""The YAML front matter of a card, changed key by key: the rest keeps its spelling and its comments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from builders.errors import DataError
from builders.yaml import compose, dump, load
from hfsyn.errors import HfsynError

# The line ends of YAML, which are more than those of Markdown.
_LINE = re.compile("[^\r\n\x85\u2028\u2029]*(?:\r\n|[\r\n\x85\u2028\u2029])|[^\r\n\x85\u2028\u2029]+")
_BOM = "\ufeff"
_WHERE = "The front matter of the dataset's README.md"
_HINT = (
    "Correct it in the repository, or remove the front matter (the lines between the two ---): hfsyn writes its own."
)


class FrontMatter:
    """A card (the whole README.md) cut into front matter and body.

    Raises:
        HfsynError: the front matter is not a YAML mapping; the message names the line.
    """

    def __init__(self, card: str) -> None:
        from huggingface_hub.repocard import REGEX_YAML_BLOCK

        self.bom = _BOM if card.startswith(_BOM) else ""
        card = card.removeprefix(_BOM)
        first = re.search(r"\r\n|\n", card)
        self.newline = first[0] if first else "\n"
        # The Hub's own rule for what is front matter.
        found = REGEX_YAML_BLOCK.search(card)
        if found is None and re.match(r"\s*---[ \t]*(\r\n|\n)[ \t]*[\w-]+:(\s|$)", card):
            raise _broken(1, "it is opened by --- and never closed")
        self.opening, self.text, self.closing = (
            (found[1], found[2], found[3]) if found else (f"---{self.newline}", "", f"{self.newline}---{self.newline}")
        )
        self.body = card[found.end() :] if found else card
        above = len(_LINE.findall(self.opening))
        try:
            values = load(self.text, _WHERE, above=above, finite=False)
        except DataError as error:
            raise HfsynError(error.message, _HINT) from None
        if values is not None and not isinstance(values, dict):
            raise _broken(above + 1, "`key: value` is expected there")
        self.values: dict[str, Any] = values or {}

    def updated(self, new: Mapping[str, Any]) -> str:
        """The front matter (marks included) with other values for some keys; None removes a key."""
        changed = {key: value for key, value in new.items() if value != self.values.get(key)}
        wanted = {
            key: value for key, value in {**self.values, **changed}.items() if value is not None or key not in new
        }
        text = self._spliced(changed) if self.text.strip() else None
        try:
            sound = text is not None and load(text, _WHERE, finite=False) == wanted
        except DataError:
            sound = False  # an anchor in what was replaced, or some other rarity
        if text is None or not sound:
            text = dump(wanted).removesuffix("\n").replace("\n", self.newline)
        return f"{self.bom}{self.opening}{text}{self.closing}"

    def _spliced(self, changed: Mapping[str, Any]) -> str | None:
        """The text with the changed keys' lines replaced; None where keys do not have lines of their own."""
        root = compose(self.text)
        if root is not None and root.flow_style:
            return None
        lines = _LINE.findall(self.text)
        entries = root.value if root else []  # nothing but comments
        starts = [*(key.start_mark.line for key, _ in entries), len(lines)]
        indent = " " * root.start_mark.column if root else ""
        result = ["".join(lines[: starts[0]])]
        for (key, node), start, stop in zip(entries, starts[:-1], starts[1:], strict=True):
            chunk = lines[start:stop]
            if key.value in changed:
                value = changed[key.value]
                chunk = [] if value is None else self._rewritten(key.value, value, node, chunk, start, indent)
            result.append("".join(chunk))
        text = "".join(result)
        for key, value in changed.items():
            if key not in self.values and value is not None:
                text = text.rstrip("\r\n") + (self.newline if text.strip() else "")
                text += self._lines(dump({key: value}), indent)
        return text.removesuffix(self.newline) if text.endswith(self.newline) and not self.text.endswith("\n") else text

    def _rewritten(self, key: str, value: Any, node: Any, chunk: list[str], start: int, indent: str) -> list[str]:
        """The lines of one key with another value; comments after it stay, and so do a list's unchanged items."""
        tail = len(chunk)
        while tail > 1 and (not chunk[tail - 1].strip() or chunk[tail - 1].lstrip().startswith("#")):
            tail -= 1
        rest = chunk[tail:]
        is_list = isinstance(value, list) and value and node.id == "sequence" and not node.flow_style
        firsts = [item.start_mark.line - start for item in node.value] if is_list else []
        if not firsts or any(not chunk[first].lstrip().startswith("- ") for first in firsts):
            return [self._lines(dump({key: value}), indent), *rest]
        old = self.values[key]
        spelt = ["".join(chunk[a:b]) for a, b in zip(firsts, [*firsts[1:], tail], strict=True)]
        margin = chunk[firsts[0]][: len(chunk[firsts[0]]) - len(chunk[firsts[0]].lstrip())]
        result = ["".join(chunk[: firsts[0]])]
        for item in value:
            known = spelt[old.index(item)] if item in old else self._lines(dump([item]), margin)
            result.append(known if known.endswith(("\n", "\r")) else known + self.newline)
        return [*result, *rest]

    def _lines(self, text: str, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True)).replace("\n", self.newline)


def _broken(line: int, problem: str) -> HfsynError:
    return HfsynError(f"{_WHERE}, line {line}: {problem}.", _HINT)
