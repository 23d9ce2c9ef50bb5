"""The error that is told to the user in one line, and what becomes one."""

from collections.abc import Iterator
from contextlib import contextmanager

_NEEDS_CODE = "trust_remote_code=True"  # what transformers tells to set


class UnrefuseError(Exception):
    """A mistake in usage or input, told to the user in one line; exit status 2."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for a message of one line; two where it ends in ":"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, KeyError):  # it says the key, and not what is the matter with it
        return f"KeyError: {lines[0]}"
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def one_line(text: str) -> str:
    """Untrusted text with escapes for what is not printable: line ends, what acts on a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextmanager
def raised_as(what: str) -> Iterator[None]:
    """Around a library's call that reads a folder of unknown origin, and around no code of ours:
    whatever it raises becomes the UnrefuseError "`what`: the first line"."""
    try:
        yield
    except UnrefuseError:
        raise
    except BaseException as error:
        if not is_error(error):
            raise
        code = (
            "; if you trust its code, add --trust-remote-code" if _NEEDS_CODE in str(error) else ""
        )
        raise UnrefuseError(f"{what}: {first_line(error)}{code}") from error


def is_error(error: BaseException) -> bool:
    """Whether it says what went wrong, and not that the process is to end (Ctrl-C)."""
    # A panic of a Rust library is no Exception.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
