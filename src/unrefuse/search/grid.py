"""Tuning by a grid of kernels: 25 Gaussians, each judged by forward passes."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from unrefuse.config import RunConfig
from unrefuse.edit.plan import Plan, make_plan
from unrefuse.kernel import Kernel, gaussian
from unrefuse.models.load import Model

PEAKS = (0.45, 0.50, 0.55, 0.60, 0.65)
WIDTHS = (0.10, 0.12, 0.15, 0.18, 0.20)


def grid(model: Model, directions: Tensor, config: RunConfig) -> Iterator[tuple[Any, Kernel, Plan]]:
    """Parameters, kernel and plan of each trial; all at `config.strength`, or 1."""
    strength = config.strength or 1.0
    for peak in PEAKS:
        for width in WIDTHS:
            found = gaussian(model.layers, peak, width, config.kernel.threshold, "grid")
            parameters = {"peak": peak, "width": width, "strength": strength}
            yield parameters, found, make_plan(model.network, directions, found.weights, strength)
