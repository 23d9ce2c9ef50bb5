"""The arithmetic of the edit on weights, against the formula in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrefuse.edits.columns import COLUMNS
from unrefuse.edits.plan import MatrixEdit
from unrefuse.edits.weights import edit_tensor


def edit_of(d_model, k, strength=1.0):
    """An ablation of k orthonormal directions."""
    basis = torch.linalg.qr(torch.randn(d_model, k))[0]
    return MatrixEdit("m", strength * basis, basis.T, of_output=True)


def reading(d_model, d_in, k):
    return MatrixEdit("m", torch.randn(d_model, k), torch.randn(k, d_in))


def formula(w, edit):
    """Of a `(d_model, n)` matrix, in float64."""
    write, read = edit.write.double(), edit.read.double()
    return w.double() - write @ (read @ w.double() if edit.of_output else read)


def close(got, right):
    torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=1e-5)


SHAPES = st.tuples(
    st.integers(4, 40),
    st.sampled_from([1, 7, COLUMNS - 1, COLUMNS, 2 * COLUMNS + 3]),
    st.integers(1, 3),
)


@settings(deadline=None, max_examples=25)
@given(SHAPES, st.floats(0.1, 2.0), st.integers(0, 99))
def test_every_layout_follows_the_formula(shape, strength, seed):
    torch.manual_seed(seed)
    d_model, n, k = shape
    edit = edit_of(d_model, k, strength)
    w, experts = torch.randn(d_model, n), torch.randn(2, d_model, n)
    wanted = [formula(e, edit) for e in experts]
    close(edit_tensor(w, edit), formula(w, edit))
    close(edit_tensor(w.T, edit, 1), formula(w, edit).T)
    close(edit_tensor(w[:, 0], edit), formula(w, edit)[:, 0])
    close(edit_tensor(experts, edit, 1), torch.stack(wanted))
    close(edit_tensor(experts.mT, edit, 2), torch.stack(wanted).mT)
    close(edit_tensor(experts[..., 0], edit, 1), torch.stack(wanted)[..., 0])


@settings(deadline=None, max_examples=25)
@given(SHAPES, st.integers(0, 99))
def test_an_edit_of_what_is_read_follows_the_formula_both_ways_round(shape, seed):
    torch.manual_seed(seed)
    d_model, n, k = shape
    edit, w = reading(d_model, n, k), torch.randn(d_model, n)
    close(edit_tensor(w, edit), formula(w, edit))
    close(edit_tensor(w.T, edit, 1), formula(w, edit).T)
    # As the hook has it: the edited matrix gives y - D A x.
    x = torch.randn(n, 3).double()
    y = w.double() @ x - edit.write.double() @ (edit.read.double() @ x)
    torch.testing.assert_close(formula(w, edit) @ x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_keep_their_length_and_nothing_is_written_along_the_direction(dtype):
    torch.manual_seed(0)
    edit = edit_of(64, 1)
    # Rows of very unequal length, where the form that edits unit rows would leave a part.
    w = (torch.randn(64, 600) * torch.rand(64, 1).exp2()).to(dtype)
    kept = edit_tensor(w, edit, preserve_norm=True)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(kept.double().norm(dim=1), w.double().norm(dim=1), rtol=eps, atol=0)
    direction = edit.read.squeeze(0).double()
    assert (direction @ kept.double()).norm() < 0.1 * (direction @ w.double()).norm()
    assert not torch.equal(kept, edit_tensor(w, edit))


def test_rows_keep_their_length_where_the_edit_reads_the_input():
    torch.manual_seed(0)
    edit, w = reading(16, 600, 1), torch.randn(16, 600)
    edited, kept = edit_tensor(w, edit), edit_tensor(w, edit, preserve_norm=True)
    torch.testing.assert_close(kept.norm(dim=1), w.norm(dim=1))
    scale = (w.norm(dim=1) / edited.norm(dim=1)).unsqueeze(1)
    torch.testing.assert_close(kept, edited * scale)
    assert not torch.equal(kept, edited)


def test_rows_of_each_expert_keep_their_length_in_both_layouts():
    edit = edit_of(16, 2)
    experts = torch.randn(3, 16, 10) * torch.tensor([1.0, 5.0, 25.0]).view(3, 1, 1)
    kept = edit_tensor(experts, edit, 1, preserve_norm=True)
    torch.testing.assert_close(kept.norm(dim=2), experts.norm(dim=2))
    turned = edit_tensor(experts.mT, edit, 2, preserve_norm=True)
    torch.testing.assert_close(turned.mT, kept)


def test_a_row_that_the_edit_empties_stays_empty():
    edit = MatrixEdit("m", torch.eye(4)[:, :1], torch.eye(4)[:1], of_output=True)
    kept = edit_tensor(torch.randn(4, 5), edit, preserve_norm=True)
    assert torch.equal(kept[0], torch.zeros(5))


@pytest.mark.parametrize("edit", [edit_of(896, 20), reading(896, 700, 20)])
def test_the_bytes_do_not_depend_on_the_number_of_threads(edit):
    w = torch.randn(896, 700)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(edit_tensor(w, edit))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
