"""Progress on stderr: a bar that goes away on a terminal, nothing elsewhere."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track as rich_track

from unrefuse.errors import one_line

T = TypeVar("T")


class _Log(Console):
    """Lines as they are: names and replies are no markup. A log that can't be written, on a full
    disk or to a reader that has gone, ends no run."""

    def print(self, *objects: Any, **options: Any) -> None:
        lines = all(isinstance(each, str) for each in objects)
        objects = tuple(_harmless(each) if isinstance(each, str) else each for each in objects)
        with contextlib.suppress(OSError):
            super().print(*objects, **{"soft_wrap": lines} | options)

    def on_broken_pipe(self) -> None:
        self.quiet = True


def _harmless(text: str) -> str:
    return "\n".join(map(one_line, text.split("\n")))


stderr = _Log(stderr=True, markup=False, highlight=False, emoji=False)


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, with a bar that counts them."""
    yield from rich_track(
        items,
        description=what,
        total=total,
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
