import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unrefuse.directions import find_directions, find_spans
from unrefuse.errors import UsageError


def means(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 16, dtype=torch.float64, generator=generator) for _ in range(3)]


@given(st.integers(0, 10**6))
def test_a_protected_direction_is_a_unit_vector_orthogonal_to_keep(seed):
    target, baseline, keep = means(seed)
    found = find_directions(target, baseline, keep)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4, dtype=torch.float64))
    assert ((found * (keep - baseline)).sum(-1).abs() < 1e-9).all()
    # Independently: what least squares leaves of d after k.
    for layer in range(4):
        k, d = (keep - baseline)[layer, :, None], (target - baseline)[layer, :, None]
        rest = (d - k @ torch.linalg.lstsq(k, d).solution).squeeze()
        torch.testing.assert_close(found[layer], rest / rest.norm())


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_only_differences_count(seed, protect):
    target, baseline, keep = means(seed)
    offset = means(seed + 1)[0]
    torch.testing.assert_close(
        find_directions(target, baseline, keep, protect),
        find_directions(target + offset, baseline + offset, keep + offset, protect),
    )


def test_unprotected_it_is_the_difference_of_means():
    target, baseline, keep = means(0)
    difference = target - baseline
    torch.testing.assert_close(
        find_directions(target, baseline, keep, protect=0.0),
        difference / difference.norm(dim=-1, keepdim=True),
    )


def test_nothing_left_to_take_out():
    _, baseline, keep = means(0)
    with pytest.raises(UsageError, match="no direction"):
        find_directions(baseline + 2 * (keep - baseline), baseline, keep)


@pytest.mark.parametrize("prompts", [2, 20])
def test_a_span_is_orthonormal_begins_with_the_direction_and_holds_what_was_measured(prompts):
    generator = torch.Generator().manual_seed(0)
    target, baseline, keep = torch.randn(3, prompts, 4, 16, generator=generator)
    directions = find_directions(*(x.double().mean(0) for x in (target, baseline, keep)))
    basis = find_spans(directions, target, baseline, keep, components=3)
    # Two prompts differ along one line only.
    assert basis.shape == (4, 16, 3 + 2 * min(3, prompts - 1))
    identity = torch.eye(basis.shape[-1], dtype=torch.float64).expand(4, -1, -1)
    torch.testing.assert_close(basis.mT @ basis, identity)
    torch.testing.assert_close((basis[..., 0] * directions).sum(-1).abs(), torch.ones(4).double())
    for measured in (baseline.mean(0), keep.mean(0) - baseline.mean(0)):
        inside = basis @ (basis.mT @ measured.double().unsqueeze(-1))
        torch.testing.assert_close(inside.squeeze(-1), measured.double(), rtol=1e-5, atol=1e-6)
