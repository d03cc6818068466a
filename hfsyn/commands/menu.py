"""Groups of commands: whole descriptions under headings, and hints for the commands of other tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from builders.errors import did_you_mean

_PAPER = "https://arxiv.org/abs/2307.08526"
SECTIONS: Mapping[str, str] = {
    "Make a dataset": "plan informativeness tune build caption generate finish status look export-real",
    "Judge each image": "score select",
    "Choose": "variants strategies captioners generators recipes",
    "Publish and check": "publish verify diff reproduce",
    "Train and compare": "train evaluate audit loop fidelity membership bench report demo",
    "Help": "doctor env",
}
"""The commands of the root by heading, in the order of the help."""
_PUBLISH = "`hfsyn publish RUN USER/NAME --version 1.0.0` publishes a run"
_LOAD = "`load_dataset('USER/NAME', revision='v1.0.0')` in Python loads a published set"
_BUILD = "`hfsyn build RECIPE --out RUN` makes a dataset, or continues it"
_NEW = "`hfsyn recipes new` starts a recipe, `hfsyn variants new` a class map of your own images"
_LISTS = "`hfsyn recipes ls` lists the recipes; variants, strategies, captioners and generators have an `ls` too"
_TRAIN = "`hfsyn train` trains a classifier"
_TEST = "`hfsyn evaluate MODEL DATASET` tests a classifier"
_CAPTION = "`hfsyn build` captions and generates; `hfsyn caption RUN` only captions"
_DRAW = "`hfsyn build` makes images; `hfsyn strategies show NAME` shows what prompts look like"
_HINTS = {
    _PUBLISH: "upload push push-to-hub release deploy commit",
    _LOAD: "download pull load clone get fetch",
    _LISTS: "ls list search models datasets",
    _BUILD: "run make create start launch resume continue process",
    _NEW: "new init config configure",
    _TRAIN: "fit",
    "`hfsyn tune RECIPE` tunes the generator, `hfsyn train` trains a classifier": "finetune fine-tune lora dreambooth",
    _TEST: "test eval validate predict",
    _CAPTION: "caption-images captions annotate label describe",
    _DRAW: "sample draw text2image txt2img synthesize synthesise",
    "`hf auth login` logs in": "login logout auth whoami",
    "`hfsyn variants info`, `hfsyn recipes show` and `hfsyn status` show one thing": "info show inspect",
    "`hfsyn diff` compares two versions, `hfsyn fidelity` and `hfsyn bench` sets of images": "compare benchmark",
    "`hfsyn verify RUN` checks a run or a version, `hfsyn doctor` this machine": "check validate-run lint",
    "`hfsyn --version` prints it, `hfsyn env` the versions of the libraries too": "version",
    "`hfsyn --help` lists the commands": "help",
}
"""What hfsyn has for the commands of other tools."""


class Menu(click.Group):
    """A group whose help cuts no description, and which knows what the commands of other tools are called here."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; an unknown command ends in a hint."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            known = [one for one in self.list_commands(ctx) if not self.commands[one].hidden]
            hint = f" There are: {', '.join(known)}."
            if ctx.parent is None:
                hint = did_you_mean(name, known)
                hint = next((f" {text}." for text, names in _HINTS.items() if name.lower() in names.split()), hint)
            ctx.fail(f"{ctx.command_path} has no command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the first sentence of its help, those of the root by section."""
        visible = {name: command for name, command in self.commands.items() if not command.hidden}
        sections: Mapping[str, Iterable[str]] = {"Commands": visible}
        if ctx.parent is None:
            sections = {title: names.split() for title, names in SECTIONS.items()}
            sections = {**sections, "Others": visible.keys() - {name for names in sections.values() for name in names}}
        for title, names in sections.items():
            if rows := [(name, visible[name].get_short_help_str(1000)) for name in names if name in visible]:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say where there is more."""
        if ctx.parent is None:
            with formatter.section("Learn more"):
                formatter.write_text("`hfsyn COMMAND --help` explains a command; README.md shows the way.")
                formatter.write_text(f"The method: {_PAPER}")


def menu(name: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Menu]:
    """As `click.group`, for a `Menu`."""
    return click.group(name, cls=Menu, **options)
