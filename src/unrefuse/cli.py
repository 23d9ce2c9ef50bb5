"""The command line: every command is in `commands/`, and this is where it gets its name."""

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from unrefuse.commands import (
    analyze,
    apply,
    diff,
    doctor,
    edit,
    evaluate,
    export,
    output,
    prompts,
    verify,
)
from unrefuse.commands.options import Command
from unrefuse.errors import UnrefuseError

DEFECT, INTERRUPTED = 70, 130

app = typer.Typer(name="unrefuse", no_args_is_help=True, pretty_exceptions_enable=False)
for command in (
    *(edit.edit, edit.tune, evaluate.evaluate, analyze.analyze, analyze.kernel),
    *(apply.apply, export.export, export.revert, diff.diff, verify.verify, doctor.doctor),
):
    app.command(cls=Command)(command)
app.add_typer(prompts.app, name="prompts")


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        output.tell(f"unrefuse {version('unrefuse')}")
        raise typer.Exit


@app.callback()
def unrefuse(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Edit an open chat model so that it stops false refusals and keeps true ones."""


def main(words: Sequence[str] | None = None) -> None:
    """The entry point: one line and status 2 for a mistake, 130 for Ctrl-C. Status 1 is a command's
    own, for a goal that is not met: what nobody foresaw has another, 70."""
    output.adapt_streams()
    try:
        status = app(args=words, prog_name="unrefuse", standalone_mode=False)
    except (UnrefuseError, typer.TyperException) as error:
        if output.verbose:
            traceback.print_exc()
        if line := _line(error):
            output.say(f"unrefuse: {line}")
        sys.exit(2)
    except typer.Abort:
        sys.exit(1)
    except Exception:
        traceback.print_exc()
        output.say("unrefuse: the lines above show a defect of unrefuse: please report them")
        sys.exit(DEFECT)
    if status == INTERRUPTED:
        output.say("unrefuse: interrupted, nothing was saved")
    sys.exit(status or 0)


def _line(error: Exception) -> str:
    """What is wrong; of a mistake in the options, where they are explained. Nothing where the help
    itself was printed."""
    message = str(error)
    if isinstance(error, typer.TyperException):
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        if message and (context := getattr(error, "ctx", None)):
            message += f" (see `{context.command_path} --help`)"
    return message
