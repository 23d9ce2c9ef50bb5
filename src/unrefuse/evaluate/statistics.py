"""Figures with their n and 95 % interval: shares by Wilson, means by the bootstrap."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A figure, the number of prompts behind it, and its 95 % interval."""

    value: float
    n: int
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def share(hits: Iterable[bool]) -> Estimate:
    """The share of True, with its Wilson interval (Wilson 1927; Agresti and Coull 1998, eq. 2).

    Raises ValueError for an empty set: it has no share.
    """
    marks = list(hits)
    n, k = len(marks), sum(marks)
    if n == 0:
        raise ValueError("a share of an empty set")
    p = k / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    # Rounding may leave the ends a hair inside of the exact 0 and 1.
    return Estimate(p, n, 0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def bootstrap(
    rows: NDArray[np.float64],
    figure: Callable[[NDArray[np.float64]], float],
    seed: int = 0,
    rounds: int = 1000,
) -> Estimate:
    """`figure` of `rows` `(n, columns)`, with the percentile interval over resampled rows.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    Raises ValueError for no rows.
    """
    n = len(rows)
    if n == 0:
        raise ValueError("a figure of an empty set")
    picks = np.random.default_rng(seed).integers(0, n, size=(rounds, n))
    values = [figure(rows[pick]) for pick in picks]
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(figure(rows)), n, float(low), float(high))
