"""Figures with their n and their interval: exact for shares, by the bootstrap for the others.

A figure has one interval. Each of its ends is a one-sided 95 % bound, so that between them lie
90 %. The end that is printed is the one that decides of a floor.

By scipy, which takes a second to import: so where it is used. (It has no kappa of Cohen's; to have
that one fraction from statsmodels would take five more packages.)
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.90  # of an interval: 0.95 of each of its ends
INTERVAL = "90 % interval"
MOST = 1_000_000  # prompts beyond which no number is named
BATCH = 500  # resamples at once, by what a large set takes of memory

Decision = Literal["above", "below", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A figure, the number of prompts behind it, and the ends of its interval."""

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
    """The share of True. Raises ValueError for an empty set: it has no share."""
    marks = list(hits)
    return share_of(sum(marks), len(marks))


def share_of(k: int, n: int) -> Estimate:
    """The share of `k` in `n`, with its exact interval (Clopper and Pearson 1934).

    Exact, not Wilson's: near 1, where retention lies, Wilson's covers less than it says (Agresti
    and Coull 1998). Raises ValueError for an empty set.
    """
    from scipy.stats import binomtest

    if n == 0:
        raise ValueError("a share of an empty set")
    ends = binomtest(k, n).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(k / n, n, float(ends.low), float(ends.high))


def bootstrap(
    columns: Sequence[NDArray[np.float64]], figure: Callable[..., Any], seed: int = 0
) -> Estimate:
    """`figure(*columns, axis)` of columns `(n,)`, resampled together, one row a prompt.

    Bias-corrected and accelerated (Efron 1987). The percentile interval of a quality begins too
    high more often than it says: near its floor, at 16 prompts, in 10 % and not 5 %. It is taken
    where the other is undefined, since no resample differs. Raises ValueError for fewer than two
    rows, which have no interval.
    """
    from scipy.stats import bootstrap as resampled

    n = len(columns[0])
    if n < 2:
        raise ValueError("an interval takes two prompts")
    options = {"paired": True, "vectorized": True, "confidence_level": CONFIDENCE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no interval: it is told by its ends
        found = resampled(columns, figure, batch=BATCH, rng=seed, method="BCa", **options)
        if not np.isfinite(found.confidence_interval).all():
            found = resampled(columns, figure, n_resamples=0, bootstrap_result=found,
                              method="percentile", **options)  # fmt: skip
    value, ends = float(figure(*columns, axis=-1)), found.confidence_interval
    return Estimate(value, n, min(value, float(ends.low)), max(value, float(ends.high)))


def decides(estimate: Estimate, floor: float) -> Decision:
    """What an estimate says of a floor: non-inferiority is shown where its interval begins at the
    floor or above, the opposite where it ends under it.

    Of a share each wrong decision has a chance of at most 5 % at any true share.
    """
    if estimate.low >= floor:
        return "above"
    return "below" if estimate.high < floor else "undecided"


def needed(floor: float, expected: float) -> int | None:
    """About how many prompts decide on which side of `floor` a share lies, if it comes out as
    `expected`. None where no number does: the two are equal, or it is over a million."""

    def decided(n: int) -> bool:
        # Whole prompts, rounded towards the floor.
        k = math.floor(expected * n + 1e-9) if expected > floor else math.ceil(expected * n - 1e-9)
        return decides(share_of(k, n), floor) == wanted

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
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


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
