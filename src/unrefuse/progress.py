"""Progress on stderr: a bar that goes away on a terminal, nothing elsewhere. A page can hear it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track as rich_track

from unrefuse.errors import one_line

T = TypeVar("T")
Hearer = Callable[[str, int, int], None]
_hearers: list[Hearer] = []


@contextlib.contextmanager
def heard_by(hearer: Hearer) -> Iterator[None]:
    """Within the block, whatever thread works, `hearer` is given every line that is told, and
    every step of what is counted: its name, how many are done, and of how many (a line: 0 of 0).

    What it raises ends the work, as Ctrl-C does.
    """
    _hearers.append(hearer)
    try:
        yield
    finally:
        _hearers.remove(hearer)


class _Log(Console):
    """Lines as they are: names and replies are no markup. A log that can't be written, on a full
    disk or to a reader that has gone, ends no run."""

    def print(self, *objects: Any, **options: Any) -> None:
        lines = all(isinstance(each, str) for each in objects)
        objects = tuple(_harmless(each) if isinstance(each, str) else each for each in objects)
        with contextlib.suppress(OSError):
            super().print(*objects, **{"soft_wrap": lines} | options)
        for hear in _hearers if lines else ():
            hear(" ".join(objects), 0, 0)

    def on_broken_pipe(self) -> None:
        self.quiet = True


def _harmless(text: str) -> str:
    return "\n".join(map(one_line, text.split("\n")))


stderr = _Log(stderr=True, markup=False, highlight=False, emoji=False)


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, with a bar that counts them."""
    shown = rich_track(
        items,
        description=what,
        total=total,
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
    for done, item in enumerate(shown, start=1):
        yield item
        for hear in _hearers:
            hear(what, done, total)
