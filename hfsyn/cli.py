"""The commands. Each is a thin shell over one public function; heavy imports happen inside the command that needs them.

Data goes to stdout, everything else to stderr; the last line of stdout is the useful one.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from hfsyn import __version__
from hfsyn.commands.catalogue import CATALOGUE, as_json_option
from hfsyn.commands.exhibits import EXHIBITS
from hfsyn.commands.hub import HUB_COMMANDS
from hfsyn.commands.recipe_options import chosen_recipe, recipe_options
from hfsyn.commands.training import evaluate_command, train_command
from hfsyn.errors import ExitCode, HfsynError

# What a full or forbidden disk says: the user's to mend, not a fault of ours.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
F = TypeVar("F", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0 ok, 2 usage, 3 preflight, 4 done in part, 130 interrupted,
    143 terminated.
    """
    run_command(cli, "hfsyn", arguments)


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a click command as `main` does `hfsyn`; for the scripts that are commands of their own."""
    from builders.errors import DataError
    from hfsyn.workers import Terminated, heeding_termination, is_child, join_launcher

    try:
        join_launcher()
        with heeding_termination():
            # Without its standalone mode click returns the code of a command that asked to exit, and else its value.
            words = None if arguments is None else list(arguments)
            ended = command.main(args=words, prog_name=name, standalone_mode=False)
        code = int(ended or ExitCode.OK)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.UsageError as error:
        # One line, like every other error: what was wrong, and where to read what is allowed.
        where = error.ctx.command_path if error.ctx else name
        click.echo(f"Error: {error.format_message()} See `{where} --help`.", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (HfsynError, DataError) as error:
        click.echo(f"Error: {error}", err=True)
        # The parent of `--num-processes` sees what is missing; a child's own code makes the launcher print more.
        code = int(ExitCode.OK) if is_child() else int(getattr(error, "code", ExitCode.USAGE))
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nInterrupted. The work so far is kept; the same command continues it.", err=True)
        code = int(ExitCode.INTERRUPTED)
    except Terminated:
        if os.environ.get("RANK", "0") == "0" and not is_child():
            click.echo("Terminated. The work so far is kept; the same command continues it.", err=True)
        code = int(ExitCode.OK if is_child() else ExitCode.TERMINATED)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = int(ExitCode.OK)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        click.echo(f"Error: {error.filename or 'the disk'}: {error.strerror}. What is finished is kept.", err=True)
        code = int(ExitCode.OK if is_child() else ExitCode.PREFLIGHT)
    sys.exit(code)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "auto_envvar_prefix": "HFSYN"}
)
@click.version_option(__version__, prog_name="hfsyn")
def cli() -> None:
    """Caption real images, generate synthetic ones from the captions, publish and judge the result.

    \b
    hfsyn demo                                          the whole path, offline, in minutes
    hfsyn build imagenette-cip --out runs/cip           a synthetic ImageNette
    hfsyn build tiny-imagenet-cip --set source.path=DIR --limit 20 --out runs/mine
    """


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in reading order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _batch_size(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A number of at least 1, or ``auto``."""
    if value is None or value == "auto" or (value.isdigit() and int(value) > 0):
        return value
    raise click.BadParameter(f"{value!r} is neither a number of at least 1 nor auto.")


_quiet = click.option("-q", "--quiet", is_flag=True, help="No progress; only the last line.")
_work = _options(
    click.option(
        "--num-processes", type=click.IntRange(min=1), metavar="N",
        help="Processes on this machine, started by accelerate. Default: one a GPU, or one a CPU core.",
    ),
    click.option("--device", metavar="DEVICE", help="cpu, cuda, mps. Default: each process's own GPU, or the CPU."),
)  # fmt: skip
_stage_work = _options(
    _work,
    click.option("--shards", metavar="A:B", help="Only shards A up to but not including B."),
    click.option(
        "--allow-pickle-weights", "allow_pickle", is_flag=True,
        help="Read models that have no safetensors too. A pickle can run code: only for models that you trust.",
    ),
    click.option(
        "--batch-size", metavar="N|auto", callback=_batch_size,
        help="Images that the generator draws at once; auto: as many as fit. Default: the recipe's number. "
        "Another changes the last bits of an image, and sidecars record it.",
    ),
    click.option(
        "--compile", "compile", is_flag=True,
        help="Compile the generator first: minutes, then faster. Worth it from some thousand images on.",
    ),
    click.option(
        "--channels-last", type=click.Choice(["on", "off"]), help="Memory format of UNets.  [default: on for GPUs]"
    ),
    click.option(
        "--attention", type=click.Choice(["auto", "cudnn", "flash", "efficient", "math"]),
        help="Kernel of attention.  [default: auto]",
    ),
    click.option(
        "--budget-hours", type=click.FloatRange(min=0, min_open=True), metavar="H",
        help="Begin no shard that would end after so many hours. Exit code 4 when some are left.",
    ),
)  # fmt: skip
_captions = click.option(
    "--captions", metavar="RUN|REPO_ID[@REVISION]",
    help="Take these captions instead of making them: of the same images, by the same captioner.",
)  # fmt: skip


def _say(text: str) -> None:
    click.echo(text, err=True)


@cli.command()
@click.argument("recipe")
@click.option("--out", required=True, metavar="RUN", help="The run folder; made, or continued where it was left.")
@recipe_options
@click.option("--overwrite", is_flag=True, help="Delete the run that RUN holds first.")
@_captions
@click.option("--publish-to", metavar="REPO_ID", help="Send finished shards to this dataset on the Hub meanwhile.")
@click.option("--version", metavar="X.Y.Z", help="With --publish-to: the version of the finished dataset.")
@_stage_work
@_quiet
def build(recipe: str, out: str, quiet: bool, **given: Any) -> None:
    """Carry out RECIPE in a run folder: caption, generate, finish. Running it again continues.

    RECIPE is a shipped recipe's name, a YAML file, or hf://datasets/REPO_ID@REVISION. Prints the run folder.

    \b
    hfsyn build shapes-cip --limit 20 --out runs/shapes
    hfsyn build imagenette-cip --out runs/cip --num-processes 8
    accelerate launch --num_processes 8 -m hfsyn build imagenette-cip --out runs/cip
    """
    from hfsyn.making.building import build as run_build
    from hfsyn.making.options import WorkOptions
    from hfsyn.workers import current_worker

    chosen, given = chosen_recipe(recipe, given)
    options, work = WorkOptions.taken_from(given)
    run = run_build(chosen, out, quiet=quiet, options=options, **work)
    if current_worker().is_main:
        _summary(run, quiet)


def _summary(run: Any, quiet: bool) -> None:
    from builders import layout

    manifest = json.loads((run.folder / layout.MANIFEST).read_text(encoding="utf-8"))
    if not quiet:
        _say(
            f"{manifest['rows']} images of {len(manifest['classes'])} classes, "
            f"fingerprint {manifest['fingerprint'][:12]}"
        )
        for reason, count in manifest["rejected"].items():
            _say(f"set aside: {count} ({reason}); see {run.folder / layout.REJECTED}")
        for flag, count in manifest["flags"].items():
            _say(f"flagged: {count} rows {flag}")
    click.echo(run.folder)


@cli.command()
@click.argument("run")
@_captions
@_stage_work
@_quiet
def caption(run: str, **work: Any) -> None:
    """Read and caption the real images of a prepared RUN folder. Prints the folder."""
    _stage(("caption",), run, **work)
    click.echo(run)


@cli.command()
@click.argument("run")
@_stage_work
@_quiet
def generate(run: str, **work: Any) -> None:
    """Make the images of a RUN folder whose captions are finished. Prints the folder.

    \b
    hfsyn generate runs/cip --shards 0:50        one half here ...
    hfsyn generate runs/cip --shards 50:100      ... and the other on another machine with the same folder
    """
    _stage(("generate",), run, **work)
    click.echo(run)


def _stage(stages: tuple[str, ...], run: str, **given: Any) -> None:
    from hfsyn.making.building import work
    from hfsyn.making.options import WorkOptions
    from hfsyn.making.runs import load_run
    from hfsyn.workers import leave_group

    options, given = WorkOptions.taken_from(given)
    work(load_run(run), stages, options=options, **given)
    leave_group()


@cli.command("work-on", hidden=True)
@click.argument("run")
@click.option("--stages", required=True)
@_captions
@_stage_work
@_quiet
def work_on(run: str, stages: str, **work: Any) -> None:
    """What `--num-processes` starts in each process; prints nothing."""
    _stage(tuple(stages.split(",")), run, **(work | {"num_processes": 1}))


@cli.command()
@click.argument("run")
@_quiet
def finish(run: str, quiet: bool) -> None:
    """Check all shards of a RUN folder, then write rejected.jsonl, the card and the manifest. Prints the folder."""
    from hfsyn.making.manifest import finish as run_finish

    _summary(run_finish(run), quiet)


@cli.command()
@click.argument("run")
@as_json_option
def status(run: str, as_json: bool) -> None:
    """How far a RUN folder is, read from the folder alone. Prints `finished` or `unfinished`."""
    from dataclasses import asdict

    from hfsyn.making.runs import status as run_status

    found = run_status(run)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    click.echo(f"{found.name}  {found.fingerprint[:12]}  {found.source_rows} real images")
    for stage in found.stages:
        shards = "?" if stage.shards is None else stage.shards
        aside = f", {stage.rejected} set aside" if stage.rejected else ""
        rate = f", {stage.rows / stage.seconds:.1f} images/s a process" if stage.seconds else ""
        click.echo(f"{stage.stage:9} {stage.shards_done}/{shards} shards, {stage.rows} rows{aside}{rate}")
    click.echo("finished" if found.finished else "unfinished")


@cli.command()
@click.argument("recipe")
@recipe_options
@click.option("--out", metavar="RUN", help="Use the captions of this run folder, if it has them.")
@as_json_option
def plan(recipe: str, out: str | None, as_json: bool, **given: Any) -> None:
    """What RECIPE would make: counts, first prompts, truncations, shards, disk, time. Loads no model."""
    from hfsyn.making.forecast import forecast

    found = forecast(chosen_recipe(recipe, given)[0], out)
    click.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else found.text())


for _group in (*CATALOGUE, train_command, evaluate_command, *EXHIBITS, *HUB_COMMANDS):
    cli.add_command(_group)
