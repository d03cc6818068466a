"""The commands. Each is a thin shell over one public function; heavy imports happen inside the command that needs them.

Data goes to stdout, everything else to stderr; the last line of stdout is the useful one.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence

import click

from builders.errors import one_line
from builders.files import disk_error
from hfsyn import __version__
from hfsyn.commands.catalogue import CATALOGUE
from hfsyn.commands.completion import completion_options
from hfsyn.commands.hub import HUB_COMMANDS
from hfsyn.commands.judging import EXHIBITS
from hfsyn.commands.look import look_command
from hfsyn.commands.making import MAKING
from hfsyn.commands.menu import menu
from hfsyn.commands.options import strict
from hfsyn.commands.outlook import LOOKING
from hfsyn.commands.scoring import SCORING
from hfsyn.commands.training import evaluate_command, train_command
from hfsyn.errors import ExitCode, HfsynError, begin_command, leave_at_once

_MOST_SAID = 500  # letters of an error: a value may be long


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0 ok, 2 usage, 3 preflight, 4 done in part, 130 interrupted,
    143 terminated.
    """
    run_command(cli, "hfsyn", arguments)


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a click command as `main` runs `hfsyn`; for scripts that are commands themselves. Without `arguments` this
    process is the command, and ends with it.
    """
    from hfsyn.launching import Terminated, heeding_termination, join_launcher, say_terminated, tell
    from hfsyn.workers import is_child

    code: int | None = None
    if arguments is None:
        begin_command()
        # Registered first, so that it is called last, when threads have ended and libraries have closed what they must.
        # Taking apart half a million objects of theirs one by one would take a second.
        atexit.register(lambda: None if code is None else leave_at_once(code))
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


_TRAINING = (train_command, evaluate_command)
for _group in (*MAKING, *LOOKING, *CATALOGUE, *_TRAINING, look_command, *SCORING, *EXHIBITS, *HUB_COMMANDS):
    cli.add_command(_group)
strict(cli)
