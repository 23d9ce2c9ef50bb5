"""Tuning by a grid of kernels: 25 Gaussians, each scored by forward passes."""

from collections.abc import Iterator
from typing import Any

from unrefuse.config import RunConfig

PEAKS = (0.45, 0.50, 0.55, 0.60, 0.65)
WIDTHS = (0.10, 0.12, 0.15, 0.18, 0.20)


def grid(config: RunConfig) -> Iterator[dict[str, Any]]:
    """The parameters of each trial; all at multiplier `config.strength`, or 1."""
    for peak in PEAKS:
        for width in WIDTHS:
            yield {"peak": peak, "width": width, "multiplier": config.strength or 1.0}
