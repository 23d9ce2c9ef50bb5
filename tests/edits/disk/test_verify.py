"""The check of what was written, and what is lost in rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests import pico
from tests.edits.plans import KINDS, one_direction, selective
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.edits.disk.verify import check_written
from unrefuse.edits.plan import MatrixEdit, scaled
from unrefuse.edits.weights import edit_tensor
from unrefuse.errors import UnrefuseError

GENTLE = 1e-3  # of a plan: in bfloat16 most of its entries round away, in float32 none does


def written(tmp_path, dtype=torch.bfloat16, make=one_direction, strength=1.0, keep=False):
    network = pico.network().to(dtype)
    source, out = tmp_path / "m", tmp_path / "out"
    network.save_pretrained(source, max_shard_size="20KB")
    pico.tokenizer().save_pretrained(source)
    out.mkdir()
    plan = scaled(make(network), strength)
    write_checkpoint(source, plan, out, keep)
    return source, out, plan


def tensor_at(folder, name):
    return next(f for f in folder.glob("*.safetensors") if name in load_file(f))


def change(folder, name, how):
    file = tensor_at(folder, name)
    tensors = load_file(file)
    tensors[name] = how(tensors[name])
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", KINDS)
def test_what_was_written_is_the_edit(tmp_path, make, dtype, keep):
    source, out, plan = written(tmp_path, dtype, make, keep=keep)
    assert check_written(source, out, plan, keep) == []
    assert check_written(source, out, plan, keep, whole=False) == []


@pytest.mark.parametrize("strength", [1.0, 0.02])
@pytest.mark.parametrize("make", KINDS)
def test_an_edit_that_was_not_written_is_found_however_gentle(tmp_path, make, strength):
    source, out, plan = written(tmp_path, make=make, strength=strength)
    name = f"{plan[-1].module}.weight"
    original = load_file(tensor_at(source, name))[name]
    change(out, name, lambda tensor: original)
    with pytest.raises(UnrefuseError, match=f"not the edited model: {name}"):
        check_written(source, out, plan)
    for edit in plan:
        name = f"{edit.module}.weight"
        original = load_file(tensor_at(source, name))[name]
        change(out, name, lambda tensor, original=original: original)
    with pytest.raises(UnrefuseError, match="these do not change"):
        check_written(source, out, plan, whole=False)


def flip(tensor):
    """One bit of one entry."""
    bits = tensor.view(torch.int16).clone()
    bits.view(-1)[7] ^= 1
    return bits.view(tensor.dtype)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.weight"]
)
def test_one_wrong_bit_is_found(tmp_path, name):
    source, out, plan = written(tmp_path)
    change(out, name, flip)
    with pytest.raises(UnrefuseError, match=f"not the edited model: {name}"):
        check_written(source, out, plan)


def test_numbers_that_are_none_and_zeros_of_both_signs_are_bytes_like_any(tmp_path):
    source, out, plan = written(tmp_path)
    name = "model.norm.weight"
    odd = torch.full((32,), float("nan"), dtype=torch.bfloat16)
    odd[:4] = torch.tensor([0.0, -0.0, float("inf"), -float("inf")])
    for folder in (source, out):
        change(folder, name, lambda tensor: odd)
    assert check_written(source, out, plan) == []
    change(out, name, lambda tensor: odd.abs())
    with pytest.raises(UnrefuseError, match="not the edited model"):
        check_written(source, out, plan)


def test_a_tensor_too_many_or_too_few_is_found(tmp_path):
    source, out, plan = written(tmp_path)
    file = tensor_at(out, "model.norm.weight")
    tensors = load_file(file)
    (out / "model.safetensors.index.json").unlink()
    rest = {n: t for f in out.glob("*.safetensors") for n, t in load_file(f).items()}
    save_file(rest | {"extra": tensors["model.norm.weight"]}, out / "model.safetensors")
    with pytest.raises(UnrefuseError, match="extra is in only one of"):
        check_written(source, out, plan)


def test_what_rounds_to_nothing_is_named(tmp_path, capsys):
    network = pico.network().to(torch.bfloat16)
    source, out = tmp_path / "m", tmp_path / "out"
    network.save_pretrained(source)
    out.mkdir()
    first, *rest = selective(network)
    tiny = scaled((first,), 1e-6)
    write_checkpoint(source, (*tiny, *rest), out)
    assert check_written(source, out, (*tiny, *rest)) == [f"{first.module}.weight"]
    assert "too small for bfloat16 in " in capsys.readouterr().err


@pytest.mark.parametrize("whole", [True, False])
def test_an_edit_of_which_nothing_is_left_is_refused(tmp_path, whole):
    source, out, plan = written(tmp_path, make=selective, strength=1e-6)
    with pytest.raises(UnrefuseError, match=r"bfloat16 in 2 of the 2 .*a stronger edit"):
        check_written(source, out, plan, whole=whole)
    (tmp_path / "fine").mkdir()
    source, out, plan = written(tmp_path / "fine", torch.float32, selective, 1e-4)
    assert check_written(source, out, plan, whole=whole) == []


def test_a_tensor_of_zeros_that_stays_so_is_not_lost(tmp_path):
    network = pico.network()
    plan = one_direction(network)
    name = f"{plan[0].module}.weight"
    network.get_parameter(name).zero_()
    source, out = tmp_path / "m", tmp_path / "out"
    network.save_pretrained(source)
    out.mkdir()
    write_checkpoint(source, plan, out)
    assert check_written(source, out, plan) == []


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(DTYPES), st.floats(-8, 1), st.booleans(), st.integers(0, 99))
def test_an_edit_rounds_once_to_the_nearest(dtype, power, of_output, seed):
    """Of any size: each entry is within half a unit in the last place, and float32's own error, of
    the formula in float64. So what is lost is what is smaller, and nothing else."""
    rng = np.random.default_rng(seed)
    w = torch.from_numpy(rng.standard_normal((24, 40))).to(dtype)
    write = torch.from_numpy(10.0**power * rng.standard_normal((24, 2))).float()
    read = torch.from_numpy(rng.standard_normal((2, 24 if of_output else 40))).float()
    got = edit_tensor(w, MatrixEdit("m", write, read, of_output)).double().numpy()
    old, d, a = (t.double().numpy() for t in (w, write, read))
    change = d @ (a @ old if of_output else a)
    right = old - change
    _, exponent = np.frexp(right)
    unit = np.exp2(exponent - 1.0) * torch.finfo(dtype).eps
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    sums = np.abs(d) @ (np.abs(a) @ np.abs(old) if of_output else np.abs(a))
    slack = 64 * np.finfo(np.float32).eps * (np.abs(old) + sums)
    assert (np.abs(got - right) <= np.maximum(unit, smallest) / 2 + slack).all()
    kept = np.abs(change) > np.maximum(unit, smallest) + 2 * slack
    assert (got != old)[kept].all()
