import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrefuse.evaluate.statistics import (
    Z95,
    bootstrap,
    cohens_kappa,
    decides,
    lower_bound,
    mcnemar,
    needed,
    share,
)


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


def counted(k, n):
    return share([True] * k + [False] * (n - k))


def binomial(n, p):
    """Probabilities of 0..n, exact."""
    p = Fraction(p).limit_denominator(10_000)
    return [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)]


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
def test_exact_lower_bounds(k, n, low):
    assert lower_bound(k, n) == pytest.approx(low, abs=1e-4)


@given(st.integers(1, 60), st.data())
def test_the_lower_bound_is_where_the_binomial_tail_is_five_percent(n, data):
    k = data.draw(st.integers(1, n))
    bound = lower_bound(k, n)
    tail = sum(math.comb(n, i) * bound**i * (1 - bound) ** (n - i) for i in range(k, n + 1))
    assert tail == pytest.approx(0.05, abs=1e-9)


@given(st.integers(1, 80), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_a_wrong_decision_has_a_chance_of_at_most_five_percent(n, floor):
    """At a true share of the floor itself, the worst case, both errors are counted exactly."""
    chances = binomial(n, floor)
    for wrong in ("above", "below"):
        hits = [decides(counted(k, n), floor) == wrong for k in range(n + 1)]
        assert sum(c for c, hit in zip(chances, hits, strict=True) if hit) <= 0.05


def test_decisions():
    assert decides(counted(59, 59), 0.95) == "above"
    assert decides(counted(58, 58), 0.95) == "undecided"  # 0.95^58 = 0.051
    assert decides(counted(76, 78), 0.95) == "undecided"
    assert decides(counted(60, 78), 0.95) == "below"
    assert decides(counted(9, 10), 1.0) == "below"
    assert decides(counted(10, 10), 1.0) == "undecided"


@settings(deadline=None)  # beside other work an example of many prompts takes its time
@given(st.sampled_from([0.8, 0.9, 0.95]), st.floats(0.7, 1.0))
def test_so_many_as_needed_decide_and_no_fewer(floor, expected):
    n = needed(floor, expected)
    if n is None or n > 3000:
        assert abs(expected - floor) < 0.02
        return
    side = "above" if expected > floor else "below"
    toward = math.floor if expected > floor else math.ceil
    slack = 1e-9 if expected > floor else -1e-9
    assert decides(counted(toward(expected * n + slack), n), floor) == side
    if n > 1:
        assert decides(counted(toward(expected * (n - 1) + slack), n - 1), floor) == "undecided"


def test_needed_of_a_share_that_nothing_decides():
    assert needed(0.95, 1.0) == 59
    assert needed(0.95, 0.95) is None
    assert needed(0.95, 0.9500001) is None
    assert needed(1.0, 1.0) is None


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
