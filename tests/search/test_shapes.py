"""The kernel's shapes: by the formula of the kernel, differentiable, and 0 in the shallow part."""

import math

import pytest
import torch

from unrefuse.kernel import Kernel, gaussian
from unrefuse.search.shapes import (
    first_deep,
    kernel_of,
    readable,
    roughness,
    start_numbers,
    strengths,
)

LAYERS = 24
KERNEL = gaussian(LAYERS, 0.6, 0.15, threshold=0.0)


@pytest.mark.parametrize("shape", ["gaussian", "asymmetric", "free"])
def test_a_shape_starts_as_the_kernel_times_the_multiplier(shape):
    found = strengths(start_numbers(shape, KERNEL, 0.5), LAYERS)
    for row in found.tolist():
        assert row[:6] == [0.0] * 6
        assert row[6:] == pytest.approx([0.5 * w for w in KERNEL.weights[6:]], abs=1e-6)


@pytest.mark.parametrize(("layers", "first"), [(1, 0), (2, 1), (5, 1), (24, 6), (30, 8), (32, 8)])
def test_the_shallow_quarter_ends_where_position_reaches_it(layers, first):
    assert first_deep(layers) == first
    positions = [i / max(1, layers - 1) for i in range(layers)]
    assert all(p < 0.25 for p in positions[:first])
    assert layers == 1 or positions[first] >= 0.25


def test_asymmetric_widths_hold_on_their_own_side():
    numbers = {
        "peak": torch.tensor([[0.5], [0.5]]),
        "log_width": torch.tensor([[0.1, 0.3], [0.2, 0.2]]).log(),
        "strength": torch.tensor([[1.0], [2.0]]),
    }
    found = strengths(numbers, 21)
    assert float(found[0, 8]) == pytest.approx(math.exp(-(0.1**2) / (2 * 0.1**2)), rel=1e-4)
    assert float(found[0, 12]) == pytest.approx(math.exp(-(0.1**2) / (2 * 0.3**2)), rel=1e-4)
    assert float(found[1, 10]) == pytest.approx(2.0)


@pytest.mark.parametrize("shape", ["gaussian", "asymmetric", "free"])
def test_every_number_has_a_gradient(shape):
    numbers = start_numbers(shape, KERNEL, 0.5)
    weights = torch.arange(LAYERS).float()
    (strengths(numbers, LAYERS) * weights).sum().backward()
    for tensor in numbers.values():
        assert tensor.grad is not None
        assert bool(torch.isfinite(tensor.grad).all())
        assert float(tensor.grad.abs().sum()) > 0


def test_roughness_is_nought_for_a_straight_line_and_for_the_smooth_shapes():
    line = {"weight": torch.linspace(0, 1, LAYERS).expand(2, -1)}
    bent = {"weight": torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])}
    assert float(roughness(line)) == pytest.approx(0, abs=1e-10)
    assert float(roughness(bent)) == pytest.approx(0.1 * 4)
    assert float(roughness(start_numbers("gaussian", KERNEL, 1.0))) == 0


def test_a_kernel_of_strengths_leaves_weak_layers_alone():
    kernel = kernel_of(torch.tensor([[0.05, 1.0], [0.5, 0.2]]), "x", threshold=0.1)
    assert kernel.weights == (0.0, 1.0)
    assert kernel.mlp_weights == pytest.approx((0.5, 0.2))
    assert kernel.layer_weights == pytest.approx((0.5, 1.0))
    assert list(kernel.curves("k")) == ["k, attention", "k, MLP"]


def test_a_kernel_without_a_peak_starts_from_the_default_profile():
    numbers = readable(start_numbers("gaussian", Kernel("file", (0.0, 1.0), "file"), 0.5))
    assert numbers["peak"] == [[pytest.approx(0.6)], [pytest.approx(0.6)]]
    assert numbers["width"] == [[pytest.approx(0.15)], [pytest.approx(0.15)]]
