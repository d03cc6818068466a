"""Completion in the shell: which words an argument may be, without loading what costs time, and how it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builders.errors import HfsynError
from builders.files import atomic_text

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_SHELLS = ("bash", "zsh", "fish")
_DEEPEST, _MOST_FOLDERS = 4, 3000  # of the search for run folders: it must answer while a person waits
Source = Callable[[str], Iterator[tuple[str, str | None]]]
"""From what is typed so far to words, each with an explanation or None."""


def _shipped(folder: str) -> Source:
    """The names of shipped YAML files, as `hfsyn.recipes.loading.Shelf` has them, whose import takes too long."""

    def names(typed: str) -> Iterator[tuple[str, str | None]]:
        place = Path(__file__).parent.parent / "recipes" / folder
        yield from ((name, None) for name in sorted(path.stem for path in place.glob("*.yaml")))

    return names


def _variants(typed: str) -> Iterator[tuple[str, str | None]]:
    from builders.variants import VARIANTS

    yield from ((name, variant.title) for name, variant in VARIANTS.items())


def _strategies(typed: str) -> Iterator[tuple[str, str | None]]:
    from hfsyn.recipes.strategies import STRATEGIES

    yield from ((name, strategy.template) for name, strategy in STRATEGIES.items())


def _devices(typed: str) -> Iterator[tuple[str, str | None]]:
    yield from (("cpu", None), ("cuda", None), ("mps", None))


def _runs(typed: str) -> Iterator[tuple[str, str | None]]:
    """The run folders below the folder that is typed so far, or below this one."""
    from builders.runs.layout import is_run_folder

    top = os.path.dirname(typed)  # noqa: PTH120  # Path would drop a leading ./ that the shell compares
    waiting, seen = [(top, 0)], 0
    while waiting and seen < _MOST_FOLDERS:
        folder, depth = waiting.pop(0)
        seen += 1
        if folder != top and is_run_folder(Path(folder)):
            yield folder, None
        elif depth < _DEEPEST and os.access(folder or ".", os.R_OK | os.X_OK) and Path(folder or ".").is_dir():
            with os.scandir(folder or ".") as entries:
                below = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] not in "._")
            waiting += [(os.path.join(folder, name), depth + 1) for name in below]  # noqa: PTH118  # see above


_RECIPES = _shipped("")
_DATASETS = (_variants, _runs)
SOURCES: dict[str, tuple[Source, ...]] = {
    "recipe": (_RECIPES,),
    "base": (_RECIPES,),
    "recipes show name": (_RECIPES, _shipped("training")),
    "captioner": (_shipped("captioners"),),
    "captioners show name": (_shipped("captioners"),),
    "generator": (_shipped("generators"),),
    "generators show name": (_shipped("generators"),),
    "audit factors": (_shipped("factors"),),
    "audit reader": (_shipped("captioners"),),
    "train config": (_shipped("training"),),
    "strategy": (_strategies,),
    "strategies show name": (_strategies,),
    "variant": (_variants,),
    "variants info name": (_variants,),
    "variants peek name": (_variants,),
    "run": (_runs,),
    "what": (_runs,),
    "a": (_runs,),
    "b": (_runs,),
    "captions": (_runs,),
    "build out": (_runs,),
    "plan out": (_runs,),
    "doctor out": (_runs,),
    **dict.fromkeys(("train_dataset", "eval_dataset", "dataset", "synthetic", "real"), _DATASETS),
    **dict.fromkeys(("members", "others"), _DATASETS),
    "device": (_devices,),
}
"""What completes a parameter, by its name, or where that differs by its command and its name."""
_FILES = ("matrix", "model", "features", "path", "source", "out", "judge", "scores")
"""Parameters that are completed with files alone."""


def source_of(command: str, param: str) -> tuple[Source, ...] | None:
    """What completes a parameter: words and files, files alone (empty), or nothing (None)."""
    found = SOURCES.get(f"{command} {param}".strip(), SOURCES.get(param))
    return () if found is None and param in _FILES else found


def completed(sources: tuple[Source, ...], typed: str) -> list[CompletionItem]:
    """The words that begin with what is typed; the shell adds files if there is none."""
    from click.shell_completion import CompletionItem

    found = [CompletionItem(typed, type="file")]  # first: bash drops what came before it
    for source in sources:
        found += [CompletionItem(name, help=about) for name, about in source(typed) if name.startswith(typed)]
    return found


# --- installing -------------------------------------------------------------------------------------------------------


def _script(name: str) -> tuple[str, str]:
    """The shell that is meant, and its script."""
    shell = Path(os.environ.get("SHELL", "")).name if name == "auto" else name
    if shell not in _SHELLS:
        raise HfsynError(f"There is no completion for the shell {shell!r}.", f"Name one: {', '.join(_SHELLS)}.")
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    return shell, kind(click.Command("hfsyn"), {}, "hfsyn", "_HFSYN_COMPLETE").source()


def _show(context: click.Context, option: click.Parameter, name: str | None) -> None:
    if name is not None and not context.resilient_parsing:
        click.echo(_script(name)[1])
        context.exit()


def _install(context: click.Context, option: click.Parameter, name: str | None) -> None:
    """Write the script where the shell finds it; bash and zsh are told by a line in their startup file."""
    if name is None or context.resilient_parsing:
        return
    shell, script = _script(name)
    home = Path.home()
    if shell == "fish":
        place = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "fish/completions/hfsyn.fish"
    else:
        place = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share") / f"hfsyn/completion.{shell}"
    atomic_text(place, script)
    if shell != "fish":
        start = home / ".bashrc" if shell == "bash" else Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
        before = "" if shell == "bash" else "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }; "
        line = f"{before}[ -f '{place}' ] && . '{place}'  # completion of hfsyn"
        text = start.read_text(encoding="utf-8") if start.exists() else ""
        if line not in text.splitlines():
            with start.open("a", encoding="utf-8") as opened:
                opened.write(("" if text.endswith("\n") or not text else "\n") + line + "\n")
            click.echo(f"Added a line to {start}.", err=True)
    click.echo(f"Completion for {shell} is installed; open a new shell.", err=True)
    click.echo(place)
    context.exit()


def completion_options(command: Any) -> Any:
    """The options --install-completion and --show-completion."""
    kind = click.Choice([*_SHELLS, "auto"])
    for flag, callback, meaning in (
        ("--show-completion", _show, "Print its script."),
        ("--install-completion", _install, "Complete words in bash, zsh or fish."),
    ):
        how: dict[str, Any] = {"is_flag": False, "flag_value": "auto", "expose_value": False, "is_eager": True}
        command = click.option(flag, type=kind, metavar="[SHELL]", callback=callback, help=meaning, **how)(command)
    return command
