"""The command line: every command is in `commands/`, and this is where it gets its name."""

import errno
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from unrefuse.commands import (
    analyze,
    apply,
    chat,
    diagnose,
    diff,
    doctor,
    edit,
    evaluate,
    export,
    output,
    prompts,
    publish,
    reproduce,
    verify,
)
from unrefuse.commands.app import app as page
from unrefuse.commands.options import Command
from unrefuse.errors import UnrefuseError, one_line

DEFECT, INTERRUPTED = 70, 130
STOPPED = "unrefuse: interrupted, nothing was saved"
# What `kill`, a container that is stopped, a queue and a terminal that is closed send.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
# What the system says of a path that a user named, wherever it is first looked at.
OF_A_NAME = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP)

app = typer.Typer(name="unrefuse", no_args_is_help=True, pretty_exceptions_enable=False)
for command in (
    *(edit.edit, edit.tune, chat.chat, page, evaluate.evaluate, analyze.analyze, analyze.kernel),
    *(apply.apply, export.export, export.revert, diff.diff, verify.verify, doctor.doctor),
    *(diagnose.diagnose, reproduce.reproduce, publish.publish),
):
    app.command(cls=Command)(command)
app.add_typer(prompts.app, name="prompts")


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        output.print_out(f"unrefuse {version('unrefuse')}")
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
        with _ended_by_signals():
            status = app(args=words, prog_name="unrefuse", standalone_mode=False)
    except (UnrefuseError, typer.TyperException) as error:
        if output.verbose:
            traceback.print_exc()
        if line := _line(error):
            output.print_err(f"unrefuse: {line}")
        sys.exit(2)
    except typer.Abort:
        sys.exit(1)
    except SystemExit as end:
        if end.code in (INTERRUPTED, *(128 + number for number in ENDING)):
            output.print_err(STOPPED)
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_A_NAME:
            output.print_err(f"unrefuse: {error.strerror}: {one_line(str(error.filename)[:200])}")
            sys.exit(2)
        traceback.print_exc()
        output.print_err("unrefuse: the lines above show a defect of unrefuse: please report them")
        sys.exit(DEFECT)
    if status == INTERRUPTED:
        output.print_err(STOPPED)
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


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within the block these signals are an exception, as Ctrl-C is, so that what is half written
    is taken away. One that is ignored (nohup) stays so."""
    before = {number: signal.getsignal(number) for number in ENDING}

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    for number, handler in before.items():
        if handler == signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
