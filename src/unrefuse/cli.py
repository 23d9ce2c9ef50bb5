"""The command line: every command is in `commands/`, and this is where it gets its name."""

import sys
import traceback

import typer

from unrefuse.commands import (
    analyze,
    apply,
    diagnose,
    diff,
    doctor,
    edit,
    evaluate,
    export,
    prompts,
    publish,
    reproduce,
    verify,
)
from unrefuse.commands.output import adapt_streams, say

DEFECT, INTERRUPTED = 70, 130

app = typer.Typer(
    name="unrefuse",
    help="Edit an open chat model so that it stops false refusals and goes on with true ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(edit.edit, edit.tune, evaluate.evaluate, analyze.analyze, analyze.kernel),
    *(diagnose.diagnose, apply.apply, export.export, export.revert, diff.diff, verify.verify),
    *(doctor.doctor, publish.publish, reproduce.reproduce),
):
    app.command()(command)
app.add_typer(prompts.app, name="prompts")


def main() -> None:
    """The entry point: one line and status 2 for a mistake, 130 for Ctrl-C. Status 1 is a command's
    own, for a goal that is not met: what nobody foresaw has another, 70."""
    from unrefuse.errors import UnrefuseError

    adapt_streams()
    try:
        app()
    except UnrefuseError as error:
        say(f"unrefuse: {error}")
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say("unrefuse: interrupted, nothing was saved")
        raise
    except Exception:
        traceback.print_exc()
        say("unrefuse: the lines above show a defect of unrefuse: please report them")
        sys.exit(DEFECT)
