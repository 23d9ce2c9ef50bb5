"""Plain text for the terminal: bars by layer, and untrusted text made safe to print."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import rich.table
from rich.box import SIMPLE_HEAD
from rich.text import Text

DEPTHS = ((0.25, "shallow"), (0.75, "middle"), (1.01, "deep"))


class Table(rich.table.Table):
    """A table as all of ours look: a line under the head, no frame, the title on the left."""

    def __init__(self, *headers: str, **options: Any) -> None:
        look: dict[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "pad_edge": False}
        super().__init__(*headers, **(look | options))


def depth_third(layer: int, layers: int) -> str:
    """Shallow to 25 % of the depth, middle to 75 %, deep from there."""
    position = layer / (layers - 1) if layers > 1 else 0.0
    return next(name for end, name in DEPTHS if position < end)


def layer_bars(columns: Mapping[str, Sequence[float]], digits: int = 4) -> Table:
    """One row a layer, one column of bars per series, each scaled to its own maximum."""
    table = Table(box=None)
    width = max(4, 36 // len(columns) - 2)
    table.add_column("layer", justify="right")
    table.add_column("depth")
    for name in columns:
        table.add_column(Text(name), no_wrap=True)
    layers = len(next(iter(columns.values())))
    tops = {name: max([1e-12, *filter(math.isfinite, values)]) for name, values in columns.items()}
    for layer in range(layers):
        cells = []
        for name, values in columns.items():
            value = values[layer]
            bar = round(width * max(0.0, value) / tops[name]) if math.isfinite(value) else 0
            cells.append(f"{number(value, f'7.{digits}f')} {'█' * bar}")
        table.add_row(str(layer), depth_third(layer, layers), *cells)
    return table


def number(value: float | None, form: str) -> str:
    """A figure for a table: a dash where there is none, words where it is no finite number."""
    if value is None:
        return "–"
    return format(value, form) if math.isfinite(value) else "not finite"


def plain(text: str, length: int = 10_000) -> str:
    """Untrusted text on one line: white space folded, control characters gone, cut at `length`."""
    folded = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return folded if len(folded) <= length else folded[: length - 1] + "…"


def duration(seconds: float) -> str:
    """A time, as exact as a reader needs it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
