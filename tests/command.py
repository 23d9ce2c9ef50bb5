"""The command line in this process: a new one imports torch for seconds."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from unrefuse import cli


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def unrefuse(*words: object) -> Done:
    """What `unrefuse WORDS` prints, and its exit status."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main([*map(str, words)])
        except SystemExit as end:
            return Done(int(end.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("the command line always ends with a status")
