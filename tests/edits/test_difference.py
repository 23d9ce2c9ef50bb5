import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests import pico
from tests.edits.plans import KINDS
from unrefuse.edits.difference import MAX_RANK, difference, numerical_rank, rounding_noise
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.edits.plan import MatrixEdit
from unrefuse.errors import UnrefuseError


def checkpoint(folder, **tensors):
    folder.mkdir()
    save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", KINDS)
def test_an_edit_shows_its_tensors_ranks_and_directions(tmp_path, dtype, make):
    network = pico.network().to(dtype)
    network.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    plan = make(network)
    (tmp_path / "out").mkdir()
    write_checkpoint(tmp_path / "m", plan, tmp_path / "out")
    found = difference(tmp_path / "m", tmp_path / "out", plan)
    assert {c.name for c in found.changed} == {f"{edit.module}.weight" for edit in plan}
    assert found.same + len(found.changed) == len(network.state_dict())
    assert all(c.rank == 1 for c in found.changed)
    assert all(c.along > 0.97 for c in found.changed)
    assert 0.97 < found.along <= 1 + 1e-5
    for change in found.changed:
        edit = next(e for e in plan if change.name == f"{e.module}.weight")
        w = network.get_submodule(edit.module).weight.double()
        read = edit.read.double() @ w if edit.of_output else edit.read.double()
        taken = edit.write.double() @ read
        assert change.relative == pytest.approx(float(taken.norm() / w.norm()), rel=0.02)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rank=st.integers(0, 5),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    spread=st.floats(0, 2),
)
def test_rounding_is_not_taken_for_rank(seed, rank, dtype, spread):
    """A change of known rank above the rounding of the stored sum; rows of unlike sizes too."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(spread * torch.randn(96, 1, generator=generator))
    w = sizes * torch.randn(96, 160, generator=generator)
    left = torch.linalg.qr(torch.randn(96, max(rank, 1), generator=generator))[0][:, :rank]
    change = float(sizes.max()) * left @ torch.randn(rank, 160, generator=generator)
    edited = (w + change).to(dtype)
    assert numerical_rank(edited.float() - w, rounding_noise(edited)) == rank


def test_noise_is_just_above_the_rounding_that_is_measured():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 300, generator=generator) * torch.logspace(0, 1, 400)[:, None]
    x[0] = 0
    for dtype in (torch.bfloat16, torch.float16):
        error = torch.linalg.matrix_norm(x.to(dtype).float() - x, 2)
        assert error < rounding_noise(x.to(dtype)) < 3 * error
    assert rounding_noise(torch.zeros(3, 3)) == 0


def test_a_whole_other_matrix_has_the_largest_rank_told_and_no_share(tmp_path):
    a = checkpoint(tmp_path / "a", w=torch.randn(100, 90), v=torch.randn(7), e=torch.randn(2, 3, 4))
    b = checkpoint(tmp_path / "b", w=torch.randn(100, 90), v=torch.randn(7), e=torch.randn(2, 3, 4))
    found = {c.name: c for c in difference(a, b).changed}
    assert found["w"].rank == MAX_RANK
    assert found["v"].rank is None
    assert found["e"].rank is None
    assert found["w"].along is None
    assert difference(a, b).along is None


@pytest.mark.parametrize("of_output", [True, False])
def test_along_is_the_share_of_energy_in_the_span(tmp_path, of_output):
    w = torch.randn(32, 48)
    r = torch.nn.functional.normalize(torch.randn(32, 1), dim=0)
    across = torch.nn.functional.normalize(torch.randn(32, 1), dim=0)
    across = torch.nn.functional.normalize(across - r @ (r.T @ across), dim=0)
    row = torch.randn(1, 48)
    # However long what it writes is.
    plan = MatrixEdit("m", 7 * r, r.T if of_output else row, of_output)
    name = "m.weight"
    a = checkpoint(tmp_path / "a", **{name: w, "other.weight": w})
    b = checkpoint(tmp_path / "b", **{name: w + 3 * r @ row + 4 * across @ row, "other.weight": w})
    (change,) = difference(a, b, (plan,)).changed
    assert change.along == pytest.approx(9 / 25, rel=1e-4)
    assert change.rank == 1  # both along the same row


def test_a_plan_of_another_model_is_refused(tmp_path):
    a = checkpoint(tmp_path / "a", **{"m.weight": torch.zeros(32, 48)})
    b = checkpoint(tmp_path / "b", **{"m.weight": torch.ones(32, 48)})
    for edit, says in (
        (MatrixEdit("m", torch.ones(33, 1), torch.ones(1, 33), of_output=True), "it writes 33"),
        (MatrixEdit("m", torch.ones(32, 1), torch.ones(1, 32)), "it reads 32"),
        (MatrixEdit("n", torch.ones(32, 1), torch.ones(1, 48)), "no tensor n.weight"),
    ):
        with pytest.raises(UnrefuseError, match=says):
            difference(a, b, (edit,))


def test_other_names_shapes_and_dtypes_are_told_apart(tmp_path):
    x = torch.randn(4, 6).bfloat16()
    a = checkpoint(tmp_path / "a", same=x, cast=x, shape=x, mine=x)
    b = checkpoint(tmp_path / "b", same=x, cast=x.float(), shape=x.T.contiguous(), yours=x)
    found = difference(a, b)
    assert found.same == 2  # another dtype with the same values is no change
    assert found.changed == ()
    assert found.only_a == ("mine",)
    assert found.only_b == ("yours",)
    assert found.other_shape == ("shape",)


def test_layer_2_comes_before_layer_10(tmp_path):
    names = [f"layers.{layer}.w" for layer in (2, 9, 10, 11)]
    a = checkpoint(tmp_path / "a", **{name: torch.zeros(2, 2) for name in names})
    b = checkpoint(tmp_path / "b", **{name: torch.ones(2, 2) for name in names})
    assert [c.name for c in difference(a, b).changed] == names


def test_values_that_are_not_numbers_do_not_break_it(tmp_path):
    a = checkpoint(tmp_path / "a", w=torch.randn(4, 6))
    b = checkpoint(tmp_path / "b", w=torch.full((4, 6), torch.nan))
    (change,) = difference(a, b).changed
    assert change.rank is None


def test_bad_folders_are_told(tmp_path):
    good = checkpoint(tmp_path / "a", w=torch.randn(4, 6))
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "not there", good / "model.safetensors"):
        with pytest.raises(UnrefuseError, match="no weights"):
            difference(good, folder)
    pickle = tmp_path / "pickle"
    pickle.mkdir()
    torch.save({"w": torch.ones(1)}, pickle / "pytorch_model.bin")
    with pytest.raises(UnrefuseError, match="is a pickle"):
        difference(good, pickle)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UnrefuseError, match="truncated or damaged"):
        difference(good, broken)


def test_tensors_of_zeros_and_of_nan(tmp_path):
    one, nan = torch.ones(3, 4), torch.full((3, 4), torch.nan)
    tensors = {"zero": 0 * one, "tiny": 1e-30 * one, "nan": nan, "scalar": torch.tensor(torch.nan)}
    a = checkpoint(tmp_path / "a", **tensors)
    assert difference(a, a).same == 4  # though a NaN is not equal to itself
    b = checkpoint(tmp_path / "b", **tensors | {"zero": one, "tiny": 2e-30 * one, "nan": one})
    changed = {c.name: c for c in difference(a, b).changed}
    assert changed["zero"].relative is None
    assert changed["zero"].rank == changed["tiny"].rank == 1
    assert changed["tiny"].relative == pytest.approx(1)
    assert changed["nan"].rank is None
    assert changed["nan"].relative != changed["nan"].relative
