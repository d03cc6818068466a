"""The commands. Each is a thin shell over one public function; heavy imports happen inside the command that needs them.

Data goes to stdout, everything else to stderr; the last line of stdout is the useful one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from builders.errors import one_line, plural
from builders.files import disk_error
from hfsyn import __version__
from hfsyn.commands.catalogue import CATALOGUE
from hfsyn.commands.completion import completion_options
from hfsyn.commands.hub import HUB_COMMANDS
from hfsyn.commands.judging import EXHIBITS
from hfsyn.commands.look import look_command
from hfsyn.commands.menu import menu
from hfsyn.commands.options import chosen_recipe, quiet_option, recipe_options, stage_options, strict
from hfsyn.commands.outlook import LOOKING, left_out
from hfsyn.commands.training import evaluate_command, train_command
from hfsyn.errors import ExitCode, HfsynError, leave_at_once

_MOST_SAID = 500  # letters of an error: a value may be long


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0 ok, 2 usage, 3 preflight, 4 done in part, 130 interrupted,
    143 terminated.
    """
    run_command(cli, "hfsyn", arguments)


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a click command as `main` runs `hfsyn`; for scripts that are commands themselves."""
    from hfsyn.launching import Terminated, heeding_termination, join_launcher, say_terminated, tell
    from hfsyn.workers import is_child

    try:
        join_launcher()
        with heeding_termination():
            # Outside its standalone mode click returns the exit code that a command asked for, or the command's value.
            words = None if arguments is None else list(arguments)
            ended = command.main(args=words, prog_name=name, standalone_mode=False)
        code = int(ended or ExitCode.OK)
    except click.ClickException as error:
        code = error.exit_code
        if isinstance(error, click.UsageError) and not isinstance(error, click.exceptions.NoArgsIsHelpError):
            # One line, like every other error: what was wrong, and where to read what is allowed.
            where = error.ctx.command_path if error.ctx else name
            said = error.format_message()
            said = said if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID]}..."
            click.echo(f"Error: {one_line(said)} See `{where} --help`.", err=True)
        else:
            error.show()
    except HfsynError as error:
        code = tell(str(error), int(error.code))
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nInterrupted. The work so far is kept; the same command continues it.", err=True)
        leave_at_once(ExitCode.INTERRUPTED)
    except Terminated:
        say_terminated()
        leave_at_once(ExitCode.OK if is_child() else ExitCode.TERMINATED)
    except BrokenPipeError:
        # The reader of our output (head, less) has ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = int(ExitCode.OK)
    except Exception as error:
        # A full, forbidden or vanished disk, too many open files: for the user to fix, without a traceback.
        refused = disk_error(error)
        if refused is None:
            raise
        what = f"{refused.filename or 'the disk'}: {refused.strerror}. What is finished is kept."
        code = tell(one_line(what), ExitCode.PREFLIGHT)
    sys.exit(code)


@menu(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "auto_envvar_prefix": "HFSYN"})
@click.version_option(__version__, prog_name="hfsyn")
@completion_options
def cli() -> None:
    """Caption real images, generate synthetic ones from the captions, publish and judge the result.

    \b
    hfsyn demo                                          the whole path, offline, in minutes
    hfsyn build imagenette-cip --out runs/cip           a synthetic ImageNette
    hfsyn build tiny-imagenet-cip --set source.path=DIR --limit 20 --out runs/mine
    """


_captions = click.option(
    "--captions",
    metavar="RUN|REPO_ID[@REVISION]",
    help="Take these captions instead of making them: of the same images, by the same captioner.",
)


@cli.command(short_help="Make the dataset of RECIPE: caption, generate, finish.")
@click.argument("recipe")
@click.option("--out", required=True, metavar="RUN", help="The run folder; made, or continued where it was left.")
@recipe_options
@click.option("--overwrite", is_flag=True, help="Delete the run that RUN holds first.")
@_captions
@click.option("--publish-to", metavar="REPO_ID", help="Send finished shards to this dataset on the Hub meanwhile.")
@click.option("--version", metavar="X.Y.Z", help="With --publish-to: the version of the finished dataset.")
@stage_options
@quiet_option
def build(recipe: str, out: str, **given: Any) -> None:
    """Carry out RECIPE in a run folder: caption, generate, finish. Running it again continues.

    RECIPE is a shipped recipe's name, a YAML file, or hf://datasets/REPO_ID@REVISION. Prints the run folder.

    \b
    hfsyn build shapes-cip --limit 20 --out runs/shapes
    hfsyn build imagenette-cip --out runs/cip --num-processes 8
    accelerate launch --num_processes 8 -m hfsyn build imagenette-cip --out runs/cip
    """
    from hfsyn.building import build as run_build
    from hfsyn.workers import current_worker

    chosen, given = chosen_recipe(recipe, given)
    run = run_build(chosen, out, **given)
    if current_worker().is_main:
        _summary(run, given["quiet"])


def _summary(run: Any, quiet: bool) -> None:
    from builders.published import RunFolder
    from builders.runs import layout

    manifest = RunFolder(run.folder).manifest().raw
    if not quiet:
        count = f"{plural(manifest['rows'], 'image')} of {plural(len(manifest['classes']), 'class')}"
        lines = [f"{count}, fingerprint {manifest['fingerprint'][:12]}"]
        aside = manifest["rejected"].items()
        lines += [f"set aside: {count} ({reason}); see {run.folder / layout.REJECTED}" for reason, count in aside]
        lines += left_out(manifest["left_out"], manifest["unreadable_classes"])
        lines += [f"flagged: {plural(count, 'row')} {flag}" for flag, count in manifest["flags"].items()]
        click.echo("\n".join(lines), err=True)
    click.echo(run.folder)


@cli.command()
@click.argument("run")
@_captions
@stage_options
@quiet_option
def caption(run: str, **work: Any) -> None:
    """Read and caption the real images of a prepared RUN folder. Prints the folder."""
    _stage(("caption",), run, **work)
    click.echo(run)


@cli.command()
@click.argument("run")
@stage_options
@quiet_option
def generate(run: str, **work: Any) -> None:
    """Make the images of a RUN folder whose captions are finished. Prints the folder.

    \b
    hfsyn generate runs/cip --shards 0:50        one half here ...
    hfsyn generate runs/cip --shards 50:100      ... and the other on another machine with the same folder
    """
    _stage(("generate",), run, **work)
    click.echo(run)


def _stage(stages: tuple[str, ...], run: str, **given: Any) -> None:
    from hfsyn.building import work
    from hfsyn.runs.options import WorkOptions
    from hfsyn.runs.run import load_run
    from hfsyn.workers import leave_group

    work(load_run(run), stages, WorkOptions(**given))
    leave_group()


@cli.command("work-on", hidden=True)
@click.argument("run")
@click.option("--stages", required=True)
@_captions
@stage_options
@quiet_option
def work_on(run: str, stages: str, **work: Any) -> None:
    """What `--num-processes` starts in each process; prints nothing."""
    _stage(tuple(stages.split(",")), run, **(work | {"num_processes": 1}))


@cli.command(short_help="Check the shards of a RUN, then write its card and manifest.")
@click.argument("run")
@quiet_option
def finish(run: str, quiet: bool) -> None:
    """Check all shards of a RUN folder, then write rejected.jsonl, the card and the manifest. Prints the folder."""
    from hfsyn.runs.finish import finish as run_finish

    _summary(run_finish(run), quiet)


for _group in (*LOOKING, *CATALOGUE, train_command, evaluate_command, look_command, *EXHIBITS, *HUB_COMMANDS):
    cli.add_command(_group)
strict(cli)
