import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrefuse.metrics.statistics import (
    bootstrap,
    cohens_kappa,
    decides,
    mcnemar,
    needed,
    share,
    share_of,
)

Z = 1.6448536269514722  # of a one-sided 95 % bound


@pytest.mark.parametrize(
    ("k", "n", "low"),
    [
        (59, 59, 0.05 ** (1 / 59)),  # the rule of three's exact form: 0.9505
        (10, 10, 0.7411),  # table of one-sided Clopper-Pearson bounds: 0.05^(1/10)
        (9, 10, 0.6058),
        (1, 2, 1 - 0.95**0.5),  # P(X >= 1) = 1 - (1 - p)^2
        (0, 5, 0.0),
    ],
)
def test_exact_intervals(k, n, low):
    for found, wanted in ((share_of(k, n).low, low), (share_of(n - k, n).high, 1 - low)):
        assert found == pytest.approx(wanted, abs=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_each_end_is_where_the_binomial_tail_is_five_percent(marks):
    found, n, k = share(marks), len(marks), sum(marks)
    assert (found.value, found.n, found.count) == (k / n, n, k)
    assert 0 <= found.low <= found.value <= found.high <= 1

    def tail(p, counts):
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in counts)

    assert found.low == 0 if k == 0 else tail(found.low, range(k, n + 1)) == pytest.approx(0.05)
    assert found.high == 1 if k == n else tail(found.high, range(k + 1)) == pytest.approx(0.05)


def test_the_share_of_an_empty_set_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        share([])
    for few in (0, 1):
        with pytest.raises(ValueError, match="two prompts"):
            bootstrap([np.ones(few)], np.mean)


def test_the_bootstrap_interval_of_a_mean_is_that_of_the_normal():
    rows = np.random.default_rng(1).normal(5, 2, size=400)
    estimate = bootstrap([rows], np.mean)
    half = Z * rows.std() / 400**0.5
    assert estimate.value == pytest.approx(rows.mean())
    assert estimate.low == pytest.approx(rows.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(rows.mean() + half, abs=0.02)
    assert estimate == bootstrap([rows], np.mean)
    assert estimate != bootstrap([rows], np.mean, seed=1)


def test_columns_are_resampled_together():
    rows = np.random.default_rng(1).normal(size=100)
    estimate = bootstrap([rows, 3 - rows], lambda a, b, axis: (a + b).mean(axis))
    assert (estimate.low, estimate.high) == pytest.approx((3, 3))


@pytest.mark.filterwarnings("error")
def test_what_no_resample_changes_has_an_interval_without_width():
    estimate = bootstrap([np.full(16, 0.25)], np.mean)
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def binomial(n, p):
    """Probabilities of 0..n, exact."""
    p = Fraction(p).limit_denominator(10_000)
    return [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)]


@pytest.mark.parametrize("floor", [0.8, 0.95])
@pytest.mark.parametrize("n", [1, 16, 59, 80])
def test_a_wrong_decision_has_a_chance_of_at_most_five_percent(n, floor):
    """At a true share of the floor itself, the worst case, both errors are counted exactly."""
    chances = binomial(n, floor)
    found = [decides(share_of(k, n), floor) for k in range(n + 1)]
    for wrong in ("above", "below"):
        assert sum(c for c, f in zip(chances, found, strict=True) if f == wrong) <= 0.05
    assert n < 59 or {"above", "below"} <= set(found)  # that some decide, too


def test_decisions():
    assert decides(share_of(59, 59), 0.95) == "above"
    assert decides(share_of(58, 58), 0.95) == "undecided"  # 0.95^58 = 0.051
    assert decides(share_of(76, 78), 0.95) == "undecided"
    assert decides(share_of(60, 78), 0.95) == "below"
    assert decides(share_of(9, 10), 1.0) == "below"
    assert decides(share_of(10, 10), 1.0) == "undecided"


@pytest.mark.parametrize("floor", [0.8, 0.95])
@pytest.mark.parametrize("expected", [0.7, 0.78, 0.87, 0.99, 1.0])
def test_so_many_as_needed_decide_and_no_fewer(floor, expected):
    n = needed(floor, expected)
    assert 1 < n < 5000
    side = "above" if expected > floor else "below"
    toward = math.floor if expected > floor else math.ceil
    slack = 1e-9 if expected > floor else -1e-9
    for many, decision in ((n, side), (n - 1, "undecided")):
        assert decides(share_of(toward(expected * many + slack), many), floor) == decision


def test_needed_of_a_share_that_nothing_decides():
    assert needed(0.95, 1.0) == 59
    assert needed(0.95, 0.95) is None
    assert needed(0.95, 0.9500001) is None
    assert needed(1.0, 1.0) is None


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_two_sided_binomial_test(lost, gained):
    n, fewer = lost + gained, min(lost, gained)
    wanted = min(1, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)
    assert mcnemar(lost, gained) == pytest.approx(wanted, rel=1e-9)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_mcnemar_of_known_values():
    assert mcnemar(0, 5) == pytest.approx(0.0625)
    assert mcnemar(1, 9) == pytest.approx(0.021484375)
    assert mcnemar(0, 0) == 1


@given(st.lists(st.tuples(st.sampled_from("rpab"), st.sampled_from("rpab")), min_size=1))
def test_kappa_is_that_of_the_confusion_matrix(pairs):
    table = np.array([[pairs.count((a, b)) for b in "rpab"] for a in "rpab"], dtype=float)
    expected = np.outer(table.sum(1), table.sum(0)) / len(pairs)
    weights = 1 - np.eye(4)  # kappa as one less the ratio of observed to expected disagreement
    kappa = cohens_kappa(*zip(*pairs, strict=True))
    if (weights * expected).sum() == 0:
        assert kappa is None
    else:
        assert kappa == pytest.approx(1 - (weights * table).sum() / (weights * expected).sum())


def test_kappa_of_a_known_table():
    """Cohen's worked form: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no gives 0.4."""
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="empty"):
        cohens_kappa([], [])
