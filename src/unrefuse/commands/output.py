"""What commands print: tables and text on stdout, or one JSON object, and lines on stderr.

A finished run must not fail for what it prints: not for a character that the terminal lacks, and
not for a reader that has gone (`| head`).
"""

import codecs
import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

from unrefuse.errors import UnrefuseError, one_line
from unrefuse.jsontext import json_text

verbose = False  # whether all tables are wanted, and where an error comes from
LOOKALIKES = {"→": "->", "█": "#", "…": "...", "≥": ">=", "×": "x", "±": "+-", "–": "-"}


def adapt_streams() -> None:
    """From here on, what a stream's encoding lacks is printed as its like or its escape."""
    codecs.register_error("unrefuse", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="unrefuse")


def print_out(text: str, end: str = "\n") -> None:
    """Text on stdout. Raises UnrefuseError where that can't be written, as on a full disk."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        # Python would try, and complain, once more at its end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise UnrefuseError(f"cannot print: {error.strerror}") from None


def show(*items: Any, **options: Any) -> None:
    """Tables and other renderables of rich on stdout, printed with rich's `options`. What is
    untrusted in them is no markup."""
    from rich.console import Console

    page = _Page()
    screen = Console(file=page, markup=False, highlight=False, emoji=False)
    for item in items:
        screen.print(item, **options)
    print_out(page.getvalue(), end="")


class _Page(io.StringIO):
    """What rich takes for stdout, so that one function alone prints."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return _encoding()

    def isatty(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()


def _encoding() -> str:
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower()


def print_json(value: dict[str, Any]) -> None:
    """One object on stdout."""
    print_out(json_text(value, ascii_only=not _encoding().startswith("utf")))


def print_err(line: str) -> None:
    """One line on stderr, where there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(one_line(line), file=sys.stderr)


def warn_scaled(run: Path, scale: float) -> None:
    """That less than the measured strength was written."""
    print_err(f"the figures of {run} hold for scale 1: scale {scale:g} was not measured")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    known = (LOOKALIKES.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(known), error.end
