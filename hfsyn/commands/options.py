"""What commands share: checked option values, the options of recipes and of costly stages, and printed results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.types import IntParamType, StringParamType

from builders.yaml import NOT_TEXT
from hfsyn.commands.completion import Source, completed, source_of
from hfsyn.runs.options import shard_bounds

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])
MOST = 10**9  # the most that a number of an option may be, where it has no limit of its own
_MOST_LETTERS = 20_000


class Word(click.ParamType):  # type: ignore[type-arg]  # which it takes from click 8.2 on
    """A text for a file name, a field or a tokenizer; a message never repeats it, since it may be a token.

    Args:
        empty: whether it may be empty.
        sources: what completes it in a shell, as `source_of` says.
    """

    name = "text"

    def __init__(self, *, empty: bool = False, sources: tuple[Source, ...] | None = None) -> None:
        self.empty, self.sources = empty, sources

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The words that it may be, and files."""
        return [] if self.sources is None else completed(self.sources, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text, or click's complaint."""
        text = str(value)
        if not text.strip() and not self.empty:
            self.fail("it is empty: leave it out, or name something.", param, ctx)
        if found := NOT_TEXT.search(text):
            self.fail(f"it contains the character {ord(found[0]):#04x}, which cannot be part of a text.", param, ctx)
        if len(text) > _MOST_LETTERS:
            self.fail(f"it has {len(text):,} letters, and at most {_MOST_LETTERS:,} are read.", param, ctx)
        return value


class Whole(click.IntRange):
    """A whole number in a range that always has an upper limit."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or click's complaint."""
        found = super().convert(value, param, ctx)
        if self.max is None and abs(found) > MOST:
            self.fail(f"{str(value)[:40]} is too large: at most {MOST:,}.", param, ctx)
        return found

    def _describe_range(self) -> str:
        # What a help says after the option: a limit that nobody meets is left out.
        if self.max is not None and self.max > MOST:
            return f"x>={self.min}"
        return super()._describe_range()


class Finite(click.FloatRange):
    """A number in a range; ``nan`` and ``inf`` are refused, although Python reads them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or click's complaint."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{str(value)[:40]!r} is not a finite number.", param, ctx)
        return found


def strict(command: click.Command, words: str = "") -> click.Command:
    """The command and those below it, their plain texts and whole numbers checked as `Word` and `Whole` do.

    `words` are those of the command, without ``hfsyn``.
    """
    for param in command.params:
        kind = param.type
        if isinstance(kind, StringParamType | click.Path):
            param.type = Word(sources=source_of(words, param.name or ""))
        elif isinstance(kind, IntParamType) and not isinstance(kind, Whole):
            bounds = (kind.min, kind.max) if isinstance(kind, click.IntRange) else (None, None)
            param.type = Whole(*bounds)
    for name, below in getattr(command, "commands", {}).items():
        strict(below, f"{words} {name}".strip())
    return command


def number(*names: str, least: int = 1, most: int | None = None, metavar: str = "N", **how: Any) -> Callable[[F], F]:
    """An option that takes a whole number from `least` to `most`."""
    return click.option(*names, type=click.IntRange(least, most), metavar=metavar, **how)


def processes_option(meaning: str) -> Callable[[F], F]:
    """The option --num-processes."""
    return number("--num-processes", most=1024, help=meaning)


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order of the help."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quiet_option = click.option(
    "-q", "--quiet", is_flag=True, help="No progress, no remarks; of a result one line, of a list the names."
)
answer_options = together(as_json_option, quiet_option)
"""Of every command."""


# --- recipes ----------------------------------------------------------------------------------------------------------

recipe_options = together(
    click.option("--captioner", metavar="NAME", help="Caption with this model of `hfsyn captioners ls`, or a file."),
    click.option("--generator", metavar="NAME", help="Generate with this model of `hfsyn generators ls`, or a file."),
    click.option("--strategy", metavar="NAME", help="Write prompts with this one of `hfsyn strategies ls`."),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a field: generate.steps=20."),
    click.option("--name", metavar="NAME", help="Title of the run and its card.  [default: VARIANT-STRATEGY]"),
    number("--limit", help="At most N real images per class."),
    number("--seed", least=0, most=2**63 - 1, help="The recipe's seed."),
)
"""How the recipe of a command differs from the one that it names."""


# --- costly stages ----------------------------------------------------------------------------------------------------


def _shards(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """``A:B`` with A below B; either may be left out."""
    if value is None:
        return None
    try:
        first, last = shard_bounds(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a range. It looks like 0:5 (shards 0 to 4), 5: or :5.") from None
    if last is not None and first >= last:
        raise click.BadParameter(f"{value!r} selects none: 0:5 is shards 0 to 4.")
    return value


def _batch_size(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A number of at least 1, or ``auto``."""
    if value is None or value == "auto" or (value.isascii() and value.isdigit() and 0 < int(value[:10]) <= MOST):
        return value
    raise click.BadParameter(f"{value!r} is neither a number from 1 to 1,000,000,000 nor auto.")


captions_option = click.option(
    "--captions",
    metavar="RUN|REPO_ID[@REVISION]",
    help="Take these captions instead of making them: of the same images, by the same captioner.",
)


def _channels(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Three numbers with commas between."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not three numbers with commas between, such as .5,.5,.5.") from None


pickle_option = click.option(
    "--allow-pickle-weights",
    is_flag=True,
    help="Read models that have no safetensors too. A pickle can run code: only for models that you trust.",
)
weights_options = together(
    click.option("--checkpoint", metavar="FILE", help="Weights for the network MODEL: .safetensors, .pth, .pt."),
    click.option("--classes", metavar="VARIANT|FILE", help="What its outputs mean, in their order: a wnid a line."),
    click.option(
        "--templates", metavar="TEXT|FILE", help="Of a zero-shot MODEL: 'a photo of a {c}'.  [default: imagenet's 80]"
    ),
    pickle_option,
)
"""Of a command that opens a classifier."""

preparation_options = together(
    number("--image-size", least=8, most=4096, metavar="PIXELS", help="Input of the network.  [default: its own]"),
    click.option("--crop-pct", type=Finite(0, 1, min_open=True), metavar="SHARE", help="Of the resized image."),
    click.option("--crop-mode", type=click.Choice(["center", "squash", "border"]), help="[default: the weights' own]"),
    click.option(
        "--mean", metavar="R,G,B", callback=_channels, help="[default: the weights' own; of values of 0 to 1]"
    ),
    click.option("--std", metavar="R,G,B", callback=_channels, help="[default: the weights' own]"),
)
"""How images are prepared for a network."""

speed_options = together(
    click.option("--device", metavar="DEVICE", help="cpu, cuda, mps. Default: each process's own GPU, or the CPU."),
    pickle_option,
    click.option(
        "--batch-size",
        metavar="N|auto",
        callback=_batch_size,
        help="Images that the generator draws at once; auto: as many as fit. Default: the recipe's number. "
        "Another changes the last bits of an image, and sidecars record it.",
    ),
    click.option(
        "--compile",
        is_flag=True,
        help="Compile the generator first: minutes, then faster. Worth it from some thousand images on.",
    ),
    click.option(
        "--channels-last", type=click.Choice(["on", "off"]), help="Memory format of UNets.  [default: on for GPUs]"
    ),
    click.option(
        "--attention",
        type=click.Choice(["auto", "cudnn", "flash", "efficient", "math"]),
        help="Kernel of attention, where it fits a layer.  [default: auto]",
    ),
)
"""Of a command that tries the stages out."""

stage_options = together(
    processes_option(
        "Processes on this machine, started by accelerate. Default: one per GPU or CPU core, no more than shards."
    ),
    click.option("--shards", metavar="A:B", callback=_shards, help="Only shards A up to but not including B."),
    speed_options,
    click.option(
        "--budget-hours",
        type=Finite(min=0, min_open=True, max=1e6),
        metavar="H",
        help="Begin no shard that would end after this many hours. Exit code 4 when some are left.",
    ),
)
"""Of the commands that carry out the costly stages; those of `WorkOptions` among them."""


# --- results ----------------------------------------------------------------------------------------------------------


def echo_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def echo(value: Any, text: str, *, as_json: bool, quiet: bool) -> None:
    """Print a result: the value as JSON, or the text, of which `quiet` keeps the last line."""
    if as_json:
        echo_json(value)
    else:
        click.echo(text.rpartition("\n")[2] if quiet else text)


def echo_path(name: str, path: Any, as_json: bool) -> None:
    """Print the path of what a command made."""
    echo({name: str(path)}, str(path), as_json=as_json, quiet=False)


def echo_table(rows: Sequence[Mapping[str, Any]], *, as_json: bool, quiet: bool) -> None:
    """Print rows as an aligned table with a heading, as a JSON list of objects, or of each row only the first cell."""
    if as_json:
        echo_json(list(rows))
    elif quiet:
        click.echo("\n".join(str(next(iter(row.values()))) for row in rows))
    else:
        click.echo(table_text(rows))


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an aligned table with a heading."""
    lines = [[*rows[0]], *(["-" if cell is None else str(cell) for cell in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in cells)
