"""The error that is told to the user in one line."""


class UsageError(Exception):
    """A mistake in usage or input, told to the user in one line; exit status 2."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
