"""Progress on stderr: a bar that goes away on a terminal, nothing elsewhere."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")
stderr = Console(stderr=True, markup=False, highlight=False, emoji=False)  # names are no markup


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
