"""The three forms of one plan, hook, edited weight and LoRA, give the same logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from tests import pico
from unrefuse.edit.hooks import hooked
from unrefuse.edit.lora import lora_factors, save_lora
from unrefuse.edit.plan import MatrixEdit, make_plan, plan_of_cores
from unrefuse.edit.weights import edit_model, edit_tensor
from unrefuse.models.writers import ARCHITECTURES, blocks, norm_gain, writers

IDS = torch.arange(1, 41).reshape(4, 10)
WEIGHTS = (0.0, 0.7, 1.3)


def directions(layers: int = 3, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.nn.functional.normalize(
        torch.randn(layers, size, dtype=torch.float64, generator=generator), dim=-1
    )


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_hook_weights_and_lora_give_equal_logits(model_type, tmp_path):
    model = pico.network(model_type)
    plan = make_plan(model, directions(), WEIGHTS)
    original = model(IDS).logits
    with hooked(model, plan):
        hook = model(IDS).logits
    assert torch.equal(model(IDS).logits, original)  # hooks are gone
    assert (hook - original).abs().max() > 1e-2  # the edit does something

    save_lora(model, plan, tmp_path)
    lora = PeftModel.from_pretrained(pico.network(model_type), tmp_path)(IDS).logits
    edit_model(model, plan)
    torch.testing.assert_close(model(IDS).logits, hook, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lora, hook, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_strength_1_writes_nothing_along_the_direction_into_the_stream(model_type):
    model = pico.network(model_type)
    r = directions()[1].float()
    writes = {}

    def record(name):
        return lambda module, args, output: writes.__setitem__(name, output.detach())

    for writer in writers(model):
        if writer.layer == 1:
            end = model.get_submodule(writer.norm or writer.name)
            end.register_forward_hook(record(writer.component))
    model(IDS)
    before = {name: (output @ r).abs().max() for name, output in writes.items()}
    edit_model(model, make_plan(model, directions(), (0.0, 1.0, 0.0)))
    model(IDS)
    assert set(writes) == {"attention", "mlp"}
    for name, output in writes.items():
        assert (output @ r).abs().max() < 1e-4 * before[name]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_plan_of_several_directions_acts_on_the_stream_as_its_cores_say(model_type, tmp_path):
    model = pico.network(model_type)
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(3, 32, 3, generator=generator))[0]
    core = torch.randn(3, 3, generator=generator)
    matrix = next(w for w in writers(model) if w.layer == 1 and w.component == "mlp")
    plan = plan_of_cores(model, basis, {matrix.name: core})
    gain = norm_gain(model.get_submodule(matrix.norm)) if matrix.norm else torch.ones(32)
    y, edit = torch.randn(5, 32, generator=generator), plan[0]
    edited = y - y @ edit.basis @ edit.core.T @ edit.basis.T
    before, after = (gain * y) @ basis[1], (gain * edited) @ basis[1]
    torch.testing.assert_close(after, before - before @ core.T, rtol=1e-3, atol=1e-3)
    with hooked(model, plan):
        hook = model(IDS).logits
    save_lora(model, plan, tmp_path)
    lora = PeftModel.from_pretrained(pico.network(model_type), tmp_path)(IDS).logits
    edit_model(model, plan)
    torch.testing.assert_close(model(IDS).logits, hook, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lora, hook, rtol=1e-4, atol=1e-4)


def test_the_gain_of_a_norm_is_what_the_norm_multiplies_by():
    x = torch.randn(5, 32)
    for model_type in ("gemma2", "gemma3_text", "olmo2"):
        model = pico.network(model_type)
        norm = model.get_submodule(writers(model)[0].norm)
        plain = x / (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
        torch.testing.assert_close(norm(x), plain * norm_gain(norm))


def test_layers_of_weight_0_and_the_rest_of_the_model_are_untouched():
    model, original = pico.network("qwen2"), pico.network("qwen2").state_dict()
    plan = make_plan(model, directions(), WEIGHTS)
    edit_model(model, plan)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, original[n])}
    assert changed == {
        f"model.layers.{layer}.{path}.weight"
        for layer in (1, 2)
        for path in ("self_attn.o_proj", "mlp.down_proj")
    }
    assert len(blocks(model)) == 3


def test_biases_are_edited_too():
    model = pico.network("llama")
    linear = model.model.layers[1].mlp.down_proj
    linear.bias = torch.nn.Parameter(torch.randn(32))
    plan = make_plan(model, directions(), (0.0, 1.0, 0.0))
    with hooked(model, plan):
        hook = model(IDS).logits
    edit_model(model, plan)
    torch.testing.assert_close(model(IDS).logits, hook, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 2), st.floats(0, 2))
def test_properties_of_the_projection(seed, s, t):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(12, 7, generator=generator)
    r = torch.nn.functional.normalize(torch.randn(12, generator=generator), dim=0)

    def edit(w, s):
        return edit_tensor(w, MatrixEdit("m", r[:, None], torch.tensor([[s]])))

    # An independent formula: the projection matrix, in float64.
    p = torch.eye(12, dtype=torch.float64) - s * torch.outer(r.double(), r.double())
    torch.testing.assert_close(edit(w, s), (p @ w.double()).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(r @ edit(w, s), (1 - s) * (r @ w), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(edit(edit(w, s), t), edit(w, s + t - s * t), rtol=1e-4, atol=1e-4)
    a, b = lora_factors(w, MatrixEdit("m", r[:, None], torch.tensor([[s]])))
    torch.testing.assert_close(w + b @ a, edit(w, s), rtol=1e-4, atol=1e-5)
    assert edit(w.bfloat16(), s).dtype == torch.bfloat16
