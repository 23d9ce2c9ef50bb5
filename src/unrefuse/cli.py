"""The command line: every command is in `commands/`, and this is where it gets its name."""

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from unrefuse.commands import analyze, apply, diff, doctor, edit, evaluate, export, prompts, verify
from unrefuse.commands.output import adapt_streams, say

DEFECT, INTERRUPTED = 70, 130
# What `kill`, a container that is stopped, a queue and a terminal that is closed send.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

app = typer.Typer(
    name="unrefuse",
    help="Edit an open chat model so that it stops false refusals and goes on with true ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(edit.edit, edit.tune, evaluate.evaluate, analyze.analyze, analyze.kernel),
    *(apply.apply, export.export, export.revert, diff.diff, verify.verify, doctor.doctor),
):
    app.command()(command)
app.add_typer(prompts.app, name="prompts")


def main() -> None:
    """The entry point: one line and status 2 for a mistake, 130 for Ctrl-C. Status 1 is a command's
    own, for a goal that is not met: what nobody foresaw has another, 70."""
    from unrefuse.errors import UnrefuseError

    adapt_streams()
    try:
        with _ended_by_signals():
            app()
    except UnrefuseError as error:
        say(f"unrefuse: {error}")
        sys.exit(2)
    except SystemExit as end:
        if end.code in (INTERRUPTED, *(128 + number for number in ENDING)):
            say("unrefuse: interrupted, nothing was saved")
        raise
    except Exception:
        traceback.print_exc()
        say("unrefuse: the lines above show a defect of unrefuse: please report them")
        sys.exit(DEFECT)


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
