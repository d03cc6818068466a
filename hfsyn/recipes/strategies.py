"""Strategies: named ways to write a prompt from a class, a caption and a random number generator.

A strategy's function takes a `ClassInfo`, a text (None if the recipe has none; it may be empty) and a
``random.Random`` that is seeded from the sample's id, and returns the prompt. In most the class comes first, so that
the limit of a text encoder (77 tokens for CLIP) never cuts it off. To add one, write its function and add a row to
`STRATEGIES`.

A user's own strategy is a function in a Python file, named ``path/to/file.py:function``. It must be pure, so that a run
that is continued, or checked later, writes the same prompts: it is called twice with equal arguments for each class
before anything is spent. A run pins the file by its content and refuses another.
"""

import hashlib
import importlib.util
import inspect
import json
import random
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from builders.errors import brief, did_you_mean
from builders.runs import layout
from builders.variants import ClassInfo, get_variant
from hfsyn.errors import HfsynError

PromptFunction = Callable[[ClassInfo, str | None, random.Random], str]


@dataclass(frozen=True, slots=True)
class Strategy:
    """A named way to write a prompt."""

    name: str
    template: str  # the prompt's shape, for people
    source: str  # where the template is from
    text_from: Literal["", "image", "class", "file"]
    """Who writes the text in the prompt: no one; a captioner, which sees the real image; a language model, which is
    told the class; or the author of a file.
    """
    write: PromptFunction
    negative: str | None = None
    """A negative prompt that its source uses with it: a suggestion for the recipe's ``prompt.negative``."""

    @property
    def needs_caption(self) -> bool:
        """Whether there is no prompt without a text."""
        return self.text_from != ""


@cache
def word_lists(name: str) -> dict[str, Any]:
    """A JSON file of `builders/variants/data`, with its provenance."""
    found: dict[str, Any] = json.loads(files("builders.variants").joinpath("data", name).read_text(encoding="utf-8"))
    return found


def with_article(noun: str) -> str:
    """``a tench``, ``an axolotl``: by the first letter, which is right for all but a few of ImageNet's names."""
    first = noun.lower()
    vowel = first.startswith(("a", "e", "i", "o", "u", "hourglass"))
    vowel = vowel and not first.startswith(("unicycle", "uniform", "ukulele", "u-boat", "ewer", "european"))
    return f"{'an' if vowel else 'a'} {noun}"


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _join(*parts: str | None) -> str:
    """The parts with commas between them; an empty part leaves no comma behind."""
    return ", ".join(line for part in parts if (line := _line(part)))


def domain_of(domain: str) -> PromptFunction:
    """``a {domain} photo of a {c}``, for one word of the recipe; without one ``a photo of a {c}``."""

    def domain_photo(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
        return f"{with_article(_join(domain) + ' photo') if domain else 'a photo'} of {with_article(c.name)}"

    return domain_photo


def _verbatim(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """The text alone. An empty prompt would give an unconditional image, so the class name replaces it."""
    return _line(caption) or c.name


def _said(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    """A language model's sentence about the class, preceded by the class if the sentence does not name it."""
    text = _line(caption)
    return text if c.name.casefold() in text.casefold() else _join(c.name, text)


def _background(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    return f"{_join(c.name, c.hypernym)} inside {rng.choice(word_lists('places.json')['places'])}"


def _clip80(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
    return rng.choice(CLIP80).replace("{}", c.name)


def _clip_templates() -> tuple[str, ...]:
    """The 80 templates of CLIP's ImageNet evaluation, built from their regular parts (in another order than there)."""
    qualities = "bad, low resolution, cropped, bright, dark, close-up, black and white, pixelated, jpeg corrupted"
    looks = "hard to see, clean, dirty, nice, weird, cool, small, large"
    media = "sculpture, rendering, tattoo, drawing, painting, doodle, sketch, rendition"
    materials = "embroidered, plastic, origami, toy, cartoon, plushie"
    both = ("a", "the")
    return (
        *(f"a {q} photo of {d} {{}}." for q in f"{qualities}, blurry, good".split(", ") for d in both),
        *(f"a photo of {d} {look} {{}}." for look in looks.split(", ") for d in both),
        *(f"a photo of {d} {{}}." for d in ("a", "the", "many", "my", "one")),
        *(f"a {m} of {d} {{}}." for m in media.split(", ") for d in both),
        *(f"{m} of {d} {{}}." for m in ("graffiti", "art") for d in both),
        *(f"itap of {d} {{}}." for d in ("a", "the", "my")),
        *(f"{d} {m} {{}}." for m in materials.split(", ") for d in both),
        *(f"{d} {{}} in a video game." for d in both),
    )


CLIP80 = _clip_templates()


def _parts(
    name: str, template: str, source: str, text_from: Literal["", "image"] = "", negative: str | None = None
) -> Strategy:
    """A strategy that fills in its template's parts, which commas separate, and leaves out those that stay empty."""
    parts = template.split(", ")

    def write(c: ClassInfo, caption: str | None, rng: random.Random) -> str:
        words = {"c": c.name, "caption": caption or "", "definition": c.definition or "", "hypernym": c.hypernym or ""}
        return _join(*(part.format_map(words) for part in parts))

    return Strategy(name, template, source, text_from, write, negative)


_SARIYILDIZ = "Fake it till you make it (arXiv 2212.08420)"
_CIP = "Image Captions are Natural Prompts (arXiv 2307.08526)"
_DIVERSIFY = "Diversify, Don't Fine-Tune (arXiv 2312.02253)"
_CLIP = "CLIP (arXiv 2103.00020), used in 2302.02503"
_REAL_FAKE = ("Real-Fake (arXiv 2310.10402)", "distorted, unrealistic, blurry, out of frame, cropped, deformed")
STRATEGIES: dict[str, Strategy] = {
    s.name: s
    for s in (
        _parts("classname", "{c}", "Deliberate Practice (arXiv 2502.15588)"),
        _parts("basic", "a photo of {c}", "the baseline of arXiv 2307.08526"),
        Strategy("article", "a photo of a {c}", "Bansal & Grover (arXiv 2302.02503)", "", domain_of("")),
        Strategy("clip80", "one of CLIP's 80 templates", _CLIP, "", _clip80),
        Strategy("domain", "a {domain} photo of a {c}", "DataDream (arXiv 2407.10910)", "", domain_of("")),
        _parts("definition", "{c}, {definition}", _SARIYILDIZ),
        _parts("hypernym", "{c}, {hypernym}", _SARIYILDIZ),
        Strategy("background", "{c}, {hypernym} inside {place}", _SARIYILDIZ, "", _background),
        _parts("cip", "a photo of {c}, {caption}", _CIP, "image"),
        _parts("cip-bare", "{c}, {caption}", "When Pretty Isn't Useful (arXiv 2602.19946)", "image"),
        _parts("cip-quality", "photo of {c}, {caption}, best quality", _REAL_FAKE[0], "image", _REAL_FAKE[1]),
        Strategy("caption-only", "{caption}", "ablation: the label comes from the source alone", "image", _verbatim),
        Strategy("w2s", "{sentence}", "He et al. (arXiv 2210.07574)", "class", _said),
        Strategy("llm", "{sentence}", "SynCLR (arXiv 2312.17742)", "class", _said),
        Strategy("llm-diverse", "{sentence}", _DIVERSIFY, "class", _said),
        Strategy("captions-file", "{text}", "StableRep (arXiv 2306.00984)", "file", _verbatim),
    )
}


def is_user_strategy(name: str) -> bool:
    """Whether a strategy is a function in a file of the user's, ``path/to/file.py:function``."""
    return ".py:" in name or name.endswith(".py")


def get_strategy(name: str) -> Strategy:
    """The strategy of that name, or HfsynError with the nearest. A user's function is not loaded here, but by
    `hfsyn.recipes.parts.strategy_of`.
    """
    if is_user_strategy(name):
        return Strategy(name, "a function of the user's", name.rpartition("/")[2], "", _not_loaded)
    if name not in STRATEGIES:
        raise HfsynError(
            f"Unknown strategy {name[:80]!r}.{did_you_mean(name, STRATEGIES)}",
            f"Strategies: {', '.join(STRATEGIES)}; or a function of yours: path/to/file.py:function.",
        )
    return STRATEGIES[name]


def _not_loaded(*_: object) -> str:
    raise AssertionError("`strategy_of` loads a user's function")


def check_words(classes: Iterable[ClassInfo], strategy: Strategy) -> None:
    """Refuse a strategy that needs words which a class map does not give; ImageNet's classes have all of them."""
    for word in ("definition", "hypernym"):
        lacking = [info for info in classes if not getattr(info, word)] if f"{{{word}}}" in strategy.template else []
        if lacking:
            raise HfsynError(
                f"Strategy {strategy.name!r} writes each class's {word}, and {len(lacking)} classes have none, such as "
                f"{lacking[0].wnid}.",
                f"Give them one in the class map ({word}: ...), or choose another strategy.",
            )


# --- functions of the user's ------------------------------------------------------------------------------------------

_FORM = "A strategy is a function (class_info, caption, rng) -> str: `hfsyn strategies ls` shows the built-in ones."
_COUNT = {2: "two", 3: "three"}
_PLAIN = frozenset({layout.RECIPE, layout.CARD, layout.DATA, layout.CAPTIONS, layout.PREVIEW})
"""Names in a run folder that a user's own folder may well contain too."""
_TRIED = ("a person standing next to it in a field", "", None)
"""Captions that every function must accept: an ordinary one, an empty one, and none."""


def user_function(name: str, sha256: str | None) -> PromptFunction:
    """The function of ``path/to/file.py:function``; when it fails or returns no prompt, it raises HfsynError.

    Raises HfsynError if there is no such file or function, it takes other arguments, it cannot be imported, it came
    with a dataset, or its content is not `sha256` (None takes any).
    """
    path, function = split_name(name)
    check_place(path, f"The strategy {name!r}", "--strategy path/to/file.py:function")
    found = content_of(name)
    from hfsyn.recipes.loading import check_content  # here, so that completion loads no pydantic

    check_content(found, sha256, f"{path} is not the file", "prompt.strategy_sha256")
    return _guarded(loaded_function(path, function, found, 3, _FORM), f"{path.name}:{function}")


def check_place(path: Path, what: str, option: str) -> None:
    """Refuse code that came with a dataset."""
    if where := _untrusted_place(path):
        said = f"{what} {where}, and hfsyn runs no code that comes with a dataset."
        raise HfsynError(said, f"Name a file of yours: {option}")


def content_of(name: str) -> str:
    """SHA-256 of a function's file, 64 hex digits; raises HfsynError if it cannot be read."""
    path, _ = split_name(name)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise HfsynError(f"{path} cannot be read: {error.strerror}.", "Name a path/to/file.py:function.") from None


def absolute(name: str, what: str = "strategy") -> str:
    """The name with an absolute path, so that a run can be continued from anywhere."""
    path, function = split_name(name, what)
    return f"{path.resolve()}:{function}"


def source_of(name: str) -> str:
    """The text of a strategy's file."""
    return split_name(name)[0].read_text(encoding="utf-8")


def check_function(name: str, sha256: str | None, variant: str, *, captions: bool) -> None:
    """Call a function for every class of a variant, twice with equal arguments; its caption is None without `captions`.

    Raises HfsynError as `user_function`, or if the function fails, returns no text, or returns another the second time.
    """
    function = user_function(name, sha256)
    for number, info in enumerate(get_variant(variant).classes):
        for caption in _TRIED if captions else _TRIED[2:]:
            first, second = (function(info, caption, random.Random(number)) for _ in range(2))
            if first != second:
                raise HfsynError(
                    f"{Path(name).name} is not pure: for the class {info.name!r} it wrote {first!r}, then {second!r}.",
                    "It may use nothing but its arguments; chance comes from its third, a random.Random.",
                )


def split_name(name: str, what: str = "strategy") -> tuple[Path, str]:
    """The file and the function, or class, that a name names; raises HfsynError if it names none."""
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py") or not function.isidentifier():
        kind, form = ("function", f" {_FORM}") if what == "strategy" else ("Class", "")
        raise HfsynError(f"The {what} {name!r} names no {kind.lower()}.", f"Write path/to/file.py:{kind}.{form}")
    return Path(path).expanduser(), function


def _untrusted_place(path: Path) -> str:
    """Why a file may not be the user's own; empty if it is.

    A run folder names its strategy, and the folder may come from the Hub or another machine: its recipe must not make a
    file run that came with it.
    """
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    if not path.is_absolute():
        return "has no absolute path"
    for parent in (*path.parents, *path.resolve().parents):
        if str(parent) in (HF_HOME, HF_HUB_CACHE):
            return "lies in the cache of the Hub"
        if (parent / layout.RECIPE).is_file() and any((parent / name).exists() for name in layout.KNOWN - _PLAIN):
            return "lies in a run folder"
    return ""


@lru_cache(maxsize=8)
def loaded_function(path: Path, name: str, sha256: str, arguments: int, form: str) -> Callable[..., Any]:
    """A function of the user's with a number of arguments; `sha256` is part of the cache key, so that an edited file is
    loaded again.
    """
    module = _module(path, sha256)
    found = getattr(module, name, None)
    if not callable(found):
        some = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        hint = f"It has: {', '.join(some)}." if some else f"It has no function. {form}"
        raise HfsynError(f"{path} has no function {name!r}.", hint)
    try:
        inspect.signature(found).bind(*[None] * arguments)
    except TypeError as error:
        raise HfsynError(f"{path}:{name} cannot be called with {_COUNT[arguments]} arguments: {error}.", form) from None
    return found


def _module(path: Path, sha256: str) -> Any:
    label = f"hfsyn_user_strategy_{sha256[:16]}"
    spec = importlib.util.spec_from_file_location(label, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # dataclasses look their module up here
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        del sys.modules[label]
        said = f"{path} cannot be imported: {type(error).__name__}: {brief(error).rstrip('.')}."
        raise HfsynError(said, "Fix it first.") from None
    finally:
        sys.dont_write_bytecode = written
    return module


def _guarded(function: Callable[..., Any], name: str) -> PromptFunction:
    """The function, raising HfsynError if it fails or returns no prompt."""

    def write(info: ClassInfo, caption: str | None, rng: random.Random) -> str:
        given = f"for the class {info.name!r} and the caption {caption!r}"
        try:
            prompt = function(info, caption, rng)
        except (Exception, SystemExit) as error:  # whatever a user's function raises, but not Ctrl-C
            said = f"{name} fails {given}: {type(error).__name__}: {brief(error)}"
            raise HfsynError(said, "Fix it; a caption may be empty, and is None if the recipe has none.") from None
        if not isinstance(prompt, str) or not prompt.strip():
            raise HfsynError(f"{name} returned {prompt!r} {given}.", "A prompt is a text that is not empty.")
        if half := re.search("[\ud800-\udfff]", prompt):
            raise HfsynError(f"{name} returned half of a character, {half[0]!a}, {given}.", "It must be valid Unicode.")
        return prompt

    return write
