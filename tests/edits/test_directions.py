import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unrefuse.edits.directions import find_directions
from unrefuse.errors import UnrefuseError


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
    with pytest.raises(UnrefuseError, match="no direction"):
        find_directions(baseline + 2 * (keep - baseline), baseline, keep)
