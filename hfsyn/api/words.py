"""The words that several functions take: written down once, and part of the signature and the docstring of each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from builders.errors import did_you_mean
from hfsyn.recipes.recipe import Recipe, load_recipe

F = TypeVar("F", bound=Callable[..., Any])
_ARGS = re.compile(r"^( *)Args:\n((?:\1 +\S.*\n|\n(?=\1 ))*)", re.MULTILINE)
_FIELDS = {"name": "name", "strategy": "prompt.strategy", "limit": "source.limit_per_class", "seed": "seed"}
"""Words for single fields of a recipe."""


def chosen(
    recipe: str | Path | Recipe,
    *,
    name: str | None = None,
    captioner: str | None = None,
    generator: str | None = None,
    strategy: str | None = None,
    overrides: str | Sequence[str] = (),
    limit: int | None = None,
    seed: int | None = None,
) -> Recipe:
    """A recipe as a command's words change it.

    Args:
        recipe: the name of a shipped recipe, a YAML file, ``hf://datasets/REPO_ID@REVISION``, or a Recipe.
        name: title of the run and its card; None is the variant and the strategy.
        captioner: caption with this model of `captioners.ls`, or the YAML file of one.
        generator: generate with this model of `generators.ls`, or the YAML file of one.
        strategy: write prompts with this one of `strategies.ls`, or ``path/to/file.py:function``.
        overrides: ``key=value`` for any other field, such as ``generate.steps=20``: the command's ``--set``.
        limit: at most this many real images per class.
        seed: the recipe's seed.

    Raises:
        HfsynError: as `load_recipe`.
    """
    given = {"name": name, "strategy": strategy, "limit": limit, "seed": seed}
    changes = [f"{field}={given[word]}" for word, field in _FIELDS.items() if given[word] is not None]
    said = [overrides] if isinstance(overrides, str) else overrides
    return load_recipe(recipe, [*said, *changes], captioner=captioner, generator=generator)


def takes(*sources: Callable[..., Any], but: Collection[str] = ()) -> Callable[[F], F]:
    """The keywords of other callables, with defaults and docstrings, in place of the ``**words`` of a function.

    Args:
        sources: functions, or classes whose docstrings have ``Args``.
        but: keywords that are left out.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [param for param in signature.parameters.values() if param.kind is not param.VAR_KEYWORD]
        more = [param.replace(kind=param.KEYWORD_ONLY) for source in sources for param in _keywords(source, but)]
        signature = signature.replace(parameters=[*own, *more])

        @wraps(function)
        def called(*arguments: Any, **words: Any) -> Any:
            try:
                signature.bind(*arguments, **words)
            except TypeError as error:
                unknown = next((word for word in words if word not in signature.parameters), None)
                guess = "" if unknown is None else did_you_mean(unknown, signature.parameters)
                raise TypeError(f"{function.__name__}(): {error}.{guess}") from None
            return function(*arguments, **words)

        docs = "".join(line for source in sources for line in _documented(source, {param.name for param in more}))
        called.__doc__ = _ARGS.sub(lambda found: found[0].rstrip("\n") + "\n" + docs, function.__doc__ or "", 1)
        called.__signature__ = signature  # type: ignore[attr-defined]
        return called  # type: ignore[return-value]

    return decorate


def take(words: dict[str, Any], source: Callable[..., Any]) -> dict[str, Any]:
    """Those of the words that are keywords of a callable; they are removed from `words`."""
    return {param.name: words.pop(param.name) for param in _keywords(source) if param.name in words}


def _keywords(source: Callable[..., Any], but: Collection[str] = ()) -> list[inspect.Parameter]:
    params = inspect.signature(source).parameters.values()
    return [param for param in params if param.default is not param.empty and param.name not in but]


def _documented(source: Callable[..., Any], names: Collection[str]) -> list[str]:
    """The entries of a docstring's ``Args``, indented as in a function's docstring, for these names."""
    found = _ARGS.search(inspect.cleandoc(source.__doc__ or "") + "\n")
    entries = re.split(r"^    (?=\w+:)", found[2], flags=re.MULTILINE) if found else []
    kept = (entry for entry in entries if entry.partition(":")[0] in names)
    return ["        " + entry.rstrip().replace("\n", "\n    ") + "\n" for entry in kept]
