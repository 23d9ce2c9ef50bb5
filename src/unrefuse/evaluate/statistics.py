"""Figures with their n and 95 % interval: shares by Wilson, means by the bootstrap.

Beside them what decides: the non-inferiority test of retention, and agreement of two graders.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
ALPHA = 0.05  # of a one-sided decision
MOST = 1_000_000  # prompts beyond which no number is named

Decision = Literal["above", "below", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A figure, the number of prompts behind it, and its 95 % interval."""

    value: float
    n: int
    low: float
    high: float

    @property
    def count(self) -> int:
        """Of a share: how many of the `n` it is."""
        return round(self.value * self.n)

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


def at_least(k: int, n: int, p: float) -> float:
    """P(X >= k) of a binomial X of `n` trials at `p`."""
    if k <= 0:
        return 1.0
    if p <= 0 or p >= 1:
        return float(p >= 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    x = np.arange(k, n + 1)
    log_terms = log_factorial[n] - log_factorial[x] - log_factorial[n - x]
    log_terms += x * math.log(p) + (n - x) * math.log1p(-p)
    return min(1.0, float(np.exp(log_terms).sum()))


def lower_bound(k: int, n: int) -> float:
    """The one-sided 95 % lower confidence bound of a share of `k` in `n`, exact: Clopper and
    Pearson 1934. It is the share at which `k` or more would be seen 5 % of the time.

    Exact, not Wilson: near 1 Wilson's bound covers less than it says (Agresti and Coull 1998).
    Raises ValueError for an empty set.
    """
    if n == 0:
        raise ValueError("a share of an empty set")
    low, high = 0.0, k / n
    for _ in range(60):
        middle = (low + high) / 2
        if at_least(k, n, middle) < ALPHA:
            low = middle
        else:
            high = middle
    return low


def decides(estimate: Estimate, floor: float) -> Decision:
    """What a share says of a floor: non-inferiority is shown where its exact one-sided 95 % lower
    bound is at the floor or above, the opposite where its upper bound is under it.

    Each wrong decision has a chance of at most 5 % at any true share.
    """
    n, k = estimate.n, estimate.count
    if at_least(k, n, floor) <= ALPHA:
        return "above"
    return "below" if at_least(n - k, n, 1 - floor) <= ALPHA else "undecided"


def needed(floor: float, expected: float) -> int | None:
    """About how many prompts decide on which side of `floor` a share lies, if it comes out as
    `expected`. None where no number does: the two are equal, or it is over a million."""

    def decided(n: int) -> bool:
        # Whole prompts, rounded towards the floor.
        k = math.floor(expected * n + 1e-9) if expected > floor else math.ceil(expected * n - 1e-9)
        return decides(Estimate(k / n, n, 0, 1), floor) == wanted

    wanted = "above" if expected > floor else "below"
    if expected == floor:
        return None
    high = 1
    while not decided(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p of `lost` against `gained` among pairs that changed (McNemar 1947;
    binomial at one half). 1 where none changed."""
    n = lost + gained
    return min(1.0, 2 * at_least(max(lost, gained), n, 0.5))


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Agreement of two graders beyond chance (Cohen 1960): `(p_o - p_e) / (1 - p_e)`.

    None where it is undefined: both gave one and the same grade throughout. Raises ValueError for
    no grades or for two lengths.
    """
    n = len(first)
    if n == 0:
        raise ValueError("agreement of an empty set")
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    a, b = Counter(first), Counter(second)
    chance = sum(a[grade] * b[grade] for grade in a) / n**2
    return None if chance == 1 else (observed - chance) / (1 - chance)
