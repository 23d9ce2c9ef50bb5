"""A plan on disk: it comes back as it was, and a file that is none is said to be none."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import pico
from tests.edits.plans import KINDS, one_direction, selective
from unrefuse.edits.adapters.lora import checkpoint_adapter
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import load_plan, reshaped, save_plan, scaled
from unrefuse.errors import UnrefuseError


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("model_type", ["gpt_oss", "qwen2"])
def test_a_plan_comes_back_as_it_was(tmp_path, model_type, make):
    plan = make(pico.network(model_type))
    save_plan(plan, tmp_path / "p", {"model": "some/model"})
    again, metadata = load_plan(tmp_path / "p")
    assert metadata == {"model": "some/model"}
    assert len(again) == len(plan)
    for old, new in zip(plan, again, strict=True):
        assert torch.equal(old.write, new.write)
        assert torch.equal(old.read, new.read)
        for name in ("module", "of_output", "parameter", "transposed"):
            assert getattr(old, name) == getattr(new, name)


@pytest.mark.parametrize("make", KINDS)
def test_half_a_plan_writes_half_as_much(make):
    plan = make(pico.network())
    for whole, half in zip(plan, scaled(plan, 0.5), strict=True):
        assert torch.equal(half.write, whole.write / 2)
        assert torch.equal(half.read, whole.read)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("model_type", ["gpt_oss", "qwen2"])
def test_a_plan_under_another_kernel_is_what_that_kernel_would_have_made(model_type, make):
    network, before, after = pico.network(model_type), (0.0, 0.7, 1.3), (0.0, 1.1, 0.2)
    wanted = make(network, after)
    for edit, own in zip(reshaped(make(network, before), before, after), wanted, strict=True):
        assert edit.module == own.module
        torch.testing.assert_close(edit.write, own.write)
        assert torch.equal(edit.read, own.read)
    # A layer without a direction gets none, and one of weight 0 is left alone.
    (only,) = {edit.module.split(".")[2] for edit in reshaped(wanted, after, (5.0, 0.0, 0.5))}
    assert only == "2"


def test_a_kernel_that_is_not_the_plans_is_refused():
    plan = selective(pico.network(), (0.0, 0.7, 1.3))
    for before, after, says in [
        ((0.0, 0.7, 1.3), (1.0, 0.0, 0.0), "no layer that the plan edits"),
        ((0.0, 0.7, 1.3), (1.0, 1.0), "has 2 weights"),
        ((1.0, 0.7, 0.0), (1.0, 1.0, 1.0), "made with another kernel"),
        ((0.0, 0.7), (1.0, 1.0), "made with another kernel"),
    ]:
        with pytest.raises(UnrefuseError, match=says):
            reshaped(plan, before, after)


def spoiled(tensors, matrices, how):
    """A plan's tensors, and what its metadata say of the matrices, with one thing wrong."""
    if how == "a tensor lacks":
        tensors.popitem()
    elif how == "no metadata":
        return tensors, None
    elif how == "metadata that is no JSON":
        return tensors, "{"
    elif how == "metadata of another form":
        return tensors, json.dumps(list(matrices))
    elif how == "more settings than there are":
        matrices = {name: [*own, 1, 2, 3] for name, own in matrices.items()}
    return tensors, json.dumps(matrices)


@pytest.mark.parametrize(
    "how",
    [
        "a tensor lacks",
        "no metadata",
        "metadata that is no JSON",
        "metadata of another form",
        "more settings than there are",
    ],
)
def test_what_is_no_plan_is_one_line(tmp_path, how):
    file, plan = tmp_path / "p", one_direction(pico.network())
    save_plan(plan, file, {})
    matrices = {e.module: [e.of_output, e.parameter, e.transposed] for e in plan}
    tensors, told = spoiled(load_file(file), matrices, how)
    save_file(tensors, file, metadata={"matrices": told} if told else None)
    with pytest.raises(UnrefuseError, match="cannot read the plan") as caught:
        load_plan(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_a_file_of_other_bytes_is_no_plan(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(UnrefuseError, match="cannot read the plan"):
        load_plan(tmp_path / "p")


def test_a_plan_of_the_form_before_is_no_plan(tmp_path):
    """It held `basis` and `core`, and nothing in its metadata where all were plain weights."""
    tensors = {"model.layers.0.mlp.down_proj.basis": torch.ones(32, 1)}
    tensors["model.layers.0.mlp.down_proj.core"] = torch.ones(1, 1)
    save_file(tensors, tmp_path / "p", metadata={"matrices": "{}", "model": "m"})
    with pytest.raises(UnrefuseError, match="cannot read the plan"):
        load_plan(tmp_path / "p")


@pytest.mark.parametrize("make", KINDS)
def test_a_stored_plan_edits_as_the_one_that_was_saved(tmp_path, make):
    model = pico.network("gpt_oss")
    save_plan(make(model), tmp_path / "p", {})
    ids = torch.arange(1, 9).unsqueeze(0)
    with hooked(model, load_plan(tmp_path / "p")[0]):
        again = model(ids).logits
    with hooked(model, make(model)):
        assert torch.equal(model(ids).logits, again)


@pytest.mark.parametrize(
    ("make", "change", "says"),
    [
        (one_direction, {"hidden_size": 48}, r"writes 32 numbers, and .* writes 48"),
        (selective, {"hidden_size": 48}, r"writes 32 numbers, and .* writes 48"),
        (selective, {"head_dim": 16}, r"reads 32 numbers, and .* the shape \(32, 64\)"),
    ],
)
def test_a_plan_of_another_model_is_refused_by_shape(tmp_path, make, change, says):
    """Another stream shows in what is written, wider heads in what attention reads."""
    model = pico.network()
    other = type(model)(type(model.config)(**(model.config.to_dict() | change)))
    source, out = tmp_path / "m", tmp_path / "out"
    other.save_pretrained(source)
    out.mkdir()
    with pytest.raises(UnrefuseError, match=f"the plan is for another model: it {says}"):
        write_checkpoint(source, make(model), out)
    assert list(out.iterdir()) == []
    with pytest.raises(UnrefuseError, match=f"the plan is for another model: it {says}"):
        checkpoint_adapter(source, make(model))


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float64, torch.int32, torch.complex64, torch.float8_e4m3fn]
)
def test_a_plan_of_another_dtype_is_damaged(tmp_path, dtype):
    (edit, *_) = selective(pico.network())
    other = replace(edit, write=edit.write.to(dtype), read=edit.read.to(dtype))
    save_plan((other,), tmp_path / "p", {})
    with pytest.raises(UnrefuseError, match=f"p is damaged at {edit.module}"):
        load_plan(tmp_path / "p")


@pytest.mark.parametrize("how", ["[" * 100_000, "[]", "{}", '{"x": 5}', '{"x": [1, 2, 3, 4]}'])
def test_a_plan_whose_matrices_are_not_told_is_one_line(tmp_path, how):
    save_plan(selective(pico.network()), tmp_path / "p", {})
    tensors = load_file(tmp_path / "p")
    save_file(tensors, tmp_path / "p", metadata={"matrices": how})
    with pytest.raises(UnrefuseError, match="cannot read the plan"):
        load_plan(tmp_path / "p")


@pytest.mark.parametrize("told", [[1, "weight", False], [False, 5, False], "abc"])
def test_a_plan_whose_matrices_are_told_otherwise_is_damaged(tmp_path, told):
    (edit, *_) = selective(pico.network())
    save_plan((edit,), tmp_path / "p", {})
    tensors = load_file(tmp_path / "p")
    save_file(tensors, tmp_path / "p", metadata={"matrices": json.dumps({edit.module: told})})
    with pytest.raises(UnrefuseError, match=f"p is damaged at {edit.module}"):
        load_plan(tmp_path / "p")
