"""The reader against formulas of its own, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrefuse.edits.readers import fit_reader


def data(seed, n, d):
    """Inputs of unlike spread with a mean, as what a matrix reads; targets; weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d)) + 0.3 * rng.normal(size=d)
    return x, rng.normal(size=n), rng.uniform(0.2, 3.0, n)


def penalty(x, weights, ridge):
    """rho, and the standard deviations S."""
    s = np.maximum(x.std(axis=0), 0.1 * np.sqrt((x**2).mean(axis=0)))
    return ridge * x.shape[1] * weights.mean(), s


def lstsq(x, wanted, weights, ridge):
    """Ridge regression as plain least squares with one more row per input, of 0 wanted."""
    rho, s = penalty(x, weights, ridge)
    rows = np.concatenate([np.sqrt(weights)[:, None] * x, np.sqrt(rho) * np.diag(s)])
    goal = np.concatenate([np.sqrt(weights) * wanted, np.zeros(x.shape[1])])
    return np.linalg.lstsq(rows, goal, rcond=None)[0]


def fit(x, wanted, weights, ridge):
    found = fit_reader(*(torch.from_numpy(v) for v in (x, wanted, weights)), ridge)
    assert found.shape == (x.shape[1],)
    return found.double().numpy()


def cost(a, x, wanted, weights, ridge):
    rho, s = penalty(x, weights, ridge)
    return (weights * (x @ a - wanted) ** 2).sum() + rho * ((s * a) ** 2).sum()


# Either form: fewer rows than numbers, as many, and more.
SHAPES = st.sampled_from([(4, 20), (12, 12), (30, 5), (40, 39), (19, 20)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), SHAPES, st.floats(1e-2, 10))
def test_it_is_least_squares_with_a_row_more_per_input(seed, shape, ridge):
    x, wanted, weights = data(seed, *shape)
    found, right = fit(x, wanted, weights, ridge), lstsq(x, wanted, weights, ridge)
    assert np.linalg.norm(found - right) < 1e-3 * np.linalg.norm(right)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), SHAPES)
def test_no_other_reader_costs_less(seed, shape):
    x, wanted, weights = data(seed, *shape)
    found = fit(x, wanted, weights, 0.1)
    least = cost(found, x, wanted, weights, 0.1)
    assert least < cost(np.zeros(shape[1]), x, wanted, weights, 0.1)
    for step in np.random.default_rng(seed).normal(size=(20, shape[1])):
        other = found + 0.05 * np.linalg.norm(found) * step
        assert least < cost(other, x, wanted, weights, 0.1)


@pytest.mark.parametrize("shape", [(6, 20), (40, 8)])
def test_a_row_of_weight_2_counts_as_two_rows_would(shape):
    x, wanted, weights = data(0, *shape)
    weights[0] *= 50
    heavy = fit(x, wanted, weights, 0.1)
    weights[0] /= 50
    even = fit(x, wanted, weights, 0.1)
    assert abs(heavy @ x[0] - wanted[0]) < abs(even @ x[0] - wanted[0])
    # And a row of weight 0 has no say in what is read, only in the spread.
    weights[0] = 0
    changed = wanted.copy()
    changed[0] += 100
    assert np.allclose(fit(x, wanted, weights, 0.1), fit(x, changed, weights, 0.1), atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 20), (40, 8)])
def test_only_the_weights_proportions_count(shape):
    x, wanted, weights = data(1, *shape)
    one, thousand = (fit(x, wanted, scale * weights, 0.1) for scale in (1, 1000))
    np.testing.assert_allclose(one, thousand, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 20), (40, 8)])
def test_the_unit_of_an_input_does_not_matter(shape):
    """The penalty is in units of each input's spread: a number of small spread is not passed by."""
    x, wanted, weights = data(2, *shape)
    units = np.logspace(-2, 2, shape[1])
    read = fit(x, wanted, weights, 0.1) @ x.T
    np.testing.assert_allclose(
        fit(x * units, wanted, weights, 0.1) @ (x * units).T, read, atol=1e-3
    )


@pytest.mark.parametrize("shape", [(6, 20), (40, 8)])
def test_a_larger_ridge_reads_less_and_a_small_one_what_was_wanted(shape):
    x, _, weights = data(3, *shape)
    wanted = x @ np.random.default_rng(3).normal(size=shape[1])
    sizes = [np.linalg.norm(fit(x, wanted, weights, ridge) @ x.T) for ridge in (0.01, 0.1, 1, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.1 * np.linalg.norm(wanted)
    close = fit(x, wanted, weights, 1e-5) @ x.T
    assert np.linalg.norm(close - wanted) < 0.01 * np.linalg.norm(wanted)


def test_there_is_no_intercept():
    """Of inputs that are 0 it reads 0, though 1 was wanted of all."""
    x, _, weights = data(4, 30, 6)
    x[:10] = 0
    assert np.abs(fit(x, np.ones(30), weights, 0.1) @ x[:10].T).max() == 0


def test_inputs_that_are_always_the_same_do_not_break_it():
    x, wanted, weights = data(5, 40, 6)
    x[:, 2], x[:, 3] = 0.0, 1.5
    found = fit(x, wanted, weights, 0.1)
    assert np.isfinite(found).all()
    assert found[2] == 0


@pytest.mark.parametrize("shape", [(6, 20), (40, 8)])
def test_inputs_of_16_bits_are_computed_in_32(shape):
    x, wanted, weights = (torch.from_numpy(v) for v in data(6, *shape))
    found = fit_reader(x.bfloat16(), wanted, weights, 0.1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, fit_reader(x.bfloat16().double(), wanted, weights, 0.1))
