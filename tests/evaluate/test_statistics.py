import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unrefuse.evaluate.statistics import Z95, bootstrap, share


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (15, 30, 0.3315, 0.6685),
    ],
)
def test_wilson_intervals(k, n, low, high):
    estimate = share([True] * k + [False] * (n - k))
    assert (estimate.value, estimate.n) == (k / n, n)
    assert (estimate.low, estimate.high) == (
        pytest.approx(low, abs=1e-4),
        pytest.approx(high, abs=1e-4),
    )


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_the_ends_solve_wilsons_equation(marks):
    estimate = share(marks)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    for end in (estimate.low, estimate.high):
        if 0 < end < 1:
            spread = (end * (1 - end) / len(marks)) ** 0.5
            assert abs(estimate.value - end) == pytest.approx(Z95 * spread, abs=1e-9)


def test_the_share_of_an_empty_set_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        share([])
    with pytest.raises(ValueError, match="empty"):
        bootstrap(np.empty((0, 1)), lambda rows: 0.0)


def test_the_bootstrap_interval_of_a_mean_is_that_of_the_normal():
    rows = np.random.default_rng(1).normal(5, 2, size=(400, 1))
    estimate = bootstrap(rows, lambda sample: float(sample.mean()))
    half = Z95 * rows.std() / 400**0.5
    assert estimate.low == pytest.approx(rows.mean() - half, abs=0.05)
    assert estimate.high == pytest.approx(rows.mean() + half, abs=0.05)
    assert estimate == bootstrap(rows, lambda sample: float(sample.mean()))
