"""Strategies of the user's own: a function in a Python file, named as ``path/to/file.py:function``.

The function is ``(ClassInfo, caption, rng) -> prompt``: pure, so that a run that is killed and continued, or checked
later, writes the same prompts. It is called twice with equal arguments for each class of the variant before anything
is spent. A run pins the file by its content and refuses another.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import random
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from builders.runs import layout
from builders.variants import ClassInfo, get_variant
from hfsyn.errors import HfsynError
from hfsyn.recipes.prompt_templates import PromptFunction

_FORM = "A strategy is a function (class_info, caption, rng) -> str: `hfsyn strategies ls` shows those that come along."
_PLAIN = frozenset({layout.RECIPE, layout.CARD, layout.DATA, layout.CAPTIONS, layout.PREVIEW})
"""Names of a run folder that a user's own folder may well hold too."""
_TRIED = ("a person standing next to it in a field", "", None)
"""Captions that every function must take: an ordinary one, that of a captioner that said nothing, and none."""


def user_function(name: str, sha256: str | None = None) -> PromptFunction:
    """The function of a file, its faults told in one line.

    Args:
        name: ``path/to/file.py:function``.
        sha256: of the file as the recipe means it; None takes what is there.

    Raises:
        HfsynError: there is no such file or function, it takes other arguments, it cannot be imported, or it is
            another than the recipe means.
    """
    path, function = _split(name)
    if where := _place_of_others(path):
        raise HfsynError(
            f"The strategy {name!r} {where}, and hfsyn runs no code that comes with a dataset.",
            "Name a file of yours: --strategy path/to/file.py:function",
        )
    found = content_of(name)
    if sha256 is not None and found != sha256:
        raise HfsynError(
            f"{path} is not the file that the recipe means: its content is {found[:12]}..., and "
            f"prompt.strategy_sha256 is {sha256[:12]}...",
            "Bring the file back, or name another --out and --set prompt.strategy_sha256=null.",
        )
    return _function(str(path), function, found)


def content_of(name: str) -> str:
    """SHA-256 of the file of a strategy, 64 hex digits.

    Raises:
        HfsynError: it cannot be read.
    """
    path, _ = _split(name)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise HfsynError(
            f"The strategy's file {path} cannot be read: {error.strerror}.", "Name it as path/to/file.py:function"
        ) from None


def absolute(name: str) -> str:
    """The strategy's name with an absolute path, so that a run can be continued from anywhere."""
    path, function = _split(name)
    return f"{path.resolve()}:{function}"


def source_of(name: str) -> str:
    """The text of a strategy's file."""
    return _split(name)[0].read_text(encoding="utf-8")


def check_function(name: str, sha256: str | None, variant: str, *, captions: bool) -> None:
    """Call a function for every class of a variant, twice with equal arguments.

    Args:
        name: ``path/to/file.py:function``.
        sha256: of the file as the recipe means it; None takes what is there.
        variant: whose classes are tried.
        captions: whether the recipe has captions; without them the function is given None.

    Raises:
        HfsynError: it fails, or returns no text, an empty one, or another the second time.
    """
    function = user_function(name, sha256)
    for number, info in enumerate(get_variant(variant).classes):
        for caption in _TRIED if captions else _TRIED[2:]:
            first, second = (function(info, caption, random.Random(number)) for _ in range(2))
            if first != second:
                raise HfsynError(
                    f"{_short(name)} is not pure: for the class {info.name!r} it wrote {first!r}, and with equal "
                    f"arguments {second!r}.",
                    "It may use nothing but its arguments; chance comes from its third, a random.Random.",
                )


def _split(name: str) -> tuple[Path, str]:
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py") or not function.isidentifier():
        raise HfsynError(
            f"The strategy {name!r} names no function.", "It looks like path/to/file.py:function. " + _FORM
        )
    return Path(path).expanduser(), function


def _place_of_others(path: Path) -> str:
    """Why a file may be somebody else's; empty where it is the user's.

    A run folder names its strategy, and may have come from the Hub or from a stranger's disk: its words must not make
    a file run that came with it.
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


def _short(name: str) -> str:
    path, function = _split(name)
    return f"{path.name}:{function}"


@lru_cache(maxsize=8)
def _function(path: str, name: str, sha256: str) -> PromptFunction:
    """The checked function; `sha256` is part of the cache's key, so that an edited file is loaded again."""
    module = _module(path, sha256)
    found = getattr(module, name, None)
    if not callable(found):
        some = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise HfsynError(
            f"{path} has no function {name!r}.",
            f"It has: {', '.join(some)}." if some else "It has no function. " + _FORM,
        )
    try:
        inspect.signature(found).bind(None, None, None)
    except TypeError as error:
        raise HfsynError(f"{path}:{name} cannot be called with three arguments: {error}.", _FORM) from None
    return _told(found, f"{Path(path).name}:{name}")


def _module(path: str, sha256: str) -> Any:
    label = f"hfsyn_user_strategy_{sha256[:16]}"
    spec = importlib.util.spec_from_file_location(label, path)
    if spec is None or spec.loader is None:
        raise HfsynError(f"{path} cannot be imported.", "Name a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # dataclasses look their module up here
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        del sys.modules[label]
        raise HfsynError(
            f"{path} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}", "Mend it first."
        ) from None
    finally:
        sys.dont_write_bytecode = written
    return module


def _told(function: Callable[..., Any], name: str) -> PromptFunction:
    """The function with its faults said in one line."""

    def write(info: ClassInfo, caption: str | None, rng: random.Random) -> str:
        try:
            prompt = function(info, caption, rng)
        except (Exception, SystemExit) as error:  # whatever a user's function raises; Ctrl-C is no fault of it
            raise HfsynError(
                f"{name} fails for the class {info.name!r} and the caption {caption!r}: {type(error).__name__}: "
                f"{' '.join(str(error).split())}",
                "Mend it; a caption may be empty, and is None where the recipe has none.",
            ) from None
        if not isinstance(prompt, str) or not prompt.strip():
            raise HfsynError(
                f"{name} returned {prompt!r} for the class {info.name!r} and the caption {caption!r}.",
                "A prompt is a text, and an empty one would make an image of anything.",
            )
        if half := re.search("[\ud800-\udfff]", prompt):
            raise HfsynError(
                f"{name} returned half of a character, {half[0]!a}, for the class {info.name!r} and the caption "
                f"{caption!r}.",
                "A prompt is a text that UTF-8 can write.",
            )
        return prompt

    return write
