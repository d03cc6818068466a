"""Factor files: what an audit varies from image to image, as words of a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from builders.errors import did_you_mean, quoted
from builders.variants import ClassInfo
from builders.yaml import load_file
from hfsyn.errors import HfsynError
from hfsyn.recipes.loading import Part, Shelf, Text, Words, checked
from hfsyn.recipes.strategies import with_article

FACTORS = Shelf("factor file", "factors", otherwise="A file is named with its .yaml.")
"""The shipped ones."""
CLASS, _C = "class", "c"
"""The class among the factors, and its placeholder."""
_PLACE = re.compile(r"\{(\w*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}")
_ARTICLE = re.compile(r"\ba (\w+)")


def _by_level(value: Any) -> Any:
    """A list of levels as a mapping: a level is its own words."""
    return {one: one for one in value} if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


def listed(value: Any) -> Any:
    """A text as a list of one."""
    return [value] if isinstance(value, str) else value


_Levels = Annotated[dict[Text, Words], BeforeValidator(_by_level)]
_Some = Annotated[tuple[Text, ...], Field(min_length=1, strict=False), BeforeValidator(listed)]


class Factors(Part):
    """What an audit varies: each factor has levels, and each level the words that it puts into the prompt."""

    prompt: Text
    """`{c}` is the class, `{NAME}` the words of a factor's level. A part between commas that stays empty is left out,
    and `a` becomes `an` where it should.
    """
    factors: Annotated[dict[str, _Levels], Field(min_length=1)]
    """NAME -> its levels: a list of words, or level -> its words, which may be empty."""
    never: Annotated[tuple[dict[str, _Some], ...], Field(strict=False)] = ()
    """Levels that no image shows together, such as `{colour: white, background: [white, yellow]}`; `class` is a factor
    here too, its levels names or wnids.
    """
    reads: Text | None = None
    """How a caption says what it sees, with the same placeholders; null looks for the words of the level anywhere."""
    said: dict[str, dict[str, _Some]] = Field(default_factory=dict)
    """NAME -> level -> other words for it in captions, any of which says that the image shows it."""
    recipe: Text | None = None
    """The recipe that draws, if no other is named."""

    @model_validator(mode="after")
    def _consistent(self) -> Factors:
        for name, levels in self.factors.items():
            if not _NAME.fullmatch(name) or name in (CLASS, _C):
                said = f"A factor is called {name[:60]!r}."
                raise HfsynError(
                    said, f"Letters, digits and underscores, beginning with a letter; not {_C} or {CLASS}."
                )
            if len(levels) < 2:
                said = f"The factor {name!r} has {len(levels)} level{'s' * (not levels)}: there is nothing to compare."
                raise HfsynError(said, "Give it a second one, or write its words into the prompt.")
            if len({words.casefold() for words in levels.values()}) < len(levels):
                raise HfsynError(f"Two levels of the factor {name!r} have the same words.", "Leave one of them out.")
        for field, text in (("prompt", self.prompt), ("reads", self.reads)):
            if text is not None:
                self._check_places(field, text)
        for pair in self.never:
            if len(pair) != 2:
                raise HfsynError(f"never holds {dict(pair)}.", "Each entry names levels of two factors.")
        for where, named in (("never", self.never), ("said", (self.said,))):
            for one in named:
                self._check_levels(where, one)
        return self

    def _check_places(self, field: str, text: str) -> None:
        places, known = _PLACE.findall(text), [_C, *self.factors]
        if unknown := [place for place in places if place not in known]:
            said = f"{field} has {{{unknown[0]}}}, which is not a factor.{did_you_mean(unknown[0], known)}"
            raise HfsynError(said, f"Its placeholders: {', '.join(f'{{{name}}}' for name in known)}.")
        needed = known if field == "prompt" else []
        if missing := [name for name in needed if name not in places]:
            raise HfsynError(f"prompt has no {{{missing[0]}}}: {self.prompt[:80]!r}.", "Every factor has its place.")

    def _check_levels(self, where: str, one: Mapping[str, Any]) -> None:
        for name, levels in one.items():
            if name == CLASS:
                continue
            if name not in self.factors:
                said = f"{where} names the factor {name[:60]!r}.{did_you_mean(name, self.factors)}"
                raise HfsynError(said, f"There are: {', '.join(self.factors)}.")
            if unknown := [level for level in levels if level not in self.factors[name]]:
                said = f"{where} names the level {unknown[0][:60]!r} of {name}, which has none of that name."
                raise HfsynError(said, f"Its levels: {quoted(self.factors[name])}.")

    def prompt_of(self, info: ClassInfo, levels: Mapping[str, str]) -> str:
        """The prompt of a class with a level of each factor."""
        words = {_C: info.name, **self.asked(info, levels)}
        # In one pass, so that braces in the words stay what they are.
        parts = (_PLACE.sub(lambda found: words[found[1]], part) for part in self.prompt.split(","))
        text = ", ".join(line for part in parts if (line := " ".join(part.split())))
        return _ARTICLE.sub(lambda found: with_article(found[1]), text)

    def asked(self, info: ClassInfo, levels: Mapping[str, str]) -> dict[str, str]:
        """Factor (and `CLASS`) -> the words of what an image should show."""
        return {CLASS: info.name, **{name: self.factors[name][level] for name, level in levels.items()}}

    def without(self, dropped: Mapping[str, Sequence[str]]) -> Factors:
        """Without some levels, wherever they are named. Raises HfsynError if a factor is left with one."""
        fields = self.model_dump()
        for name, levels in dropped.items():
            fields["factors"][name] = {k: v for k, v in fields["factors"][name].items() if k not in levels}
            fields["said"] = {
                **fields["said"],
                name: {k: v for k, v in self.said.get(name, {}).items() if k not in levels},
            }
        kept = [
            {n: [v for v in some if v not in dropped.get(n, ())] for n, some in pair.items()} for pair in self.never
        ]
        fields["never"] = [pair for pair in kept if all(pair.values())]
        return checked(Factors, fields, "the factor file")


def load_factors(name: str) -> Factors:
    """A shipped factor file, or one of the user's. Raises HfsynError, naming the key, if it is not one."""
    fields, where = FACTORS.fields(name)
    return checked(Factors, fields, where)


def naming_classes(factors: Factors, classes: Sequence[ClassInfo]) -> dict[str, dict[str, str]]:
    """Factor -> level -> the class whose name its words hold: with them an image would show two classes."""
    found: dict[str, dict[str, str]] = {}
    for name, levels in factors.factors.items():
        for level, words in levels.items():
            hit = next((info.name for info in classes if has_words(words, info.name)), None)
            if hit is not None:
                found.setdefault(name, {})[level] = hit
    return found


def has_words(text: str, words: str) -> bool:
    """Whether a text holds some words as whole words, whatever their capitals."""
    return re.search(rf"(?<!\w){re.escape(words.strip())}s?(?!\w)", text, re.IGNORECASE) is not None


class Asked(Part):
    """What an audit was asked for: ``audit.yaml`` in its folder, by which the same command continues and another is
    refused.
    """

    factors: Factors
    classes: Annotated[tuple[str, ...], Field(strict=False)]
    """Their wnids, in the order of the variant."""
    images: int
    seed: int
    reader: str
    """Who reads back what the images show: a captioner, or `vlm:` and one that is asked; `none` is no one."""
    revision: str | None = None
    """That the recipe says of its captioner, if that one reads."""


ASKED, PROMPTS = "audit.yaml", "prompts.parquet"


def read_asked(folder: Path) -> Asked:
    """What the audit in a folder was asked for. Raises HfsynError if there is none."""
    return checked(Asked, load_file(folder / ASKED, "audit", "`hfsyn audit` writes one."), str(folder / ASKED))


class Reader:
    """Says of a caption which levels it names, and compares them with those that were asked for."""

    def __init__(self, factors: Factors, classes: Sequence[ClassInfo]) -> None:
        self._factors, self._known = factors, {_C: [info.name for info in classes]}
        self._known |= {name: list(levels.values()) for name, levels in factors.factors.items()}
        self._pattern = None if factors.reads is None else self._compiled(factors.reads)

    def _compiled(self, reads: str) -> re.Pattern[str]:
        parts, seen = [], set[str]()
        for number, part in enumerate(_PLACE.split(reads)):
            if number % 2 == 0:
                parts.append(re.sub(r"\ba\\ ", r"an?\\ ", re.escape(part)))
            elif part in seen:
                parts.append(f"(?P={part})")
            else:
                seen.add(part)
                words = sorted(filter(None, self._known[part]), key=len, reverse=True)
                parts.append(f"(?P<{part}>{'|'.join(map(re.escape, words))})")
        return re.compile(rf"(?<!\w){''.join(parts)}(?!\w)", re.IGNORECASE)

    def shown(self, caption: str, info: ClassInfo, levels: Mapping[str, str]) -> dict[str, bool | None]:
        """Factor (and `CLASS`) -> whether the caption says the level that was asked for; None if it cannot tell."""
        asked = self._factors.asked(info, levels)
        text = " ".join(caption.split())
        if self._pattern is None:
            said = self._factors.said
            found: dict[str, bool | None] = {CLASS: None}
            for name, level in levels.items():
                words = (asked[name], *said.get(name, {}).get(level, ()))
                found[name] = any(has_words(text, one) for one in words) if asked[name] else None
            return found
        hit, places = self._pattern.search(text), self._pattern.groupindex
        read: dict[str, bool | None] = {}
        for name, word in asked.items():
            place = _C if name == CLASS else name
            known = place in places and word
            read[name] = (hit is not None and hit[place].casefold() == word.casefold()) if known else None
        return read
