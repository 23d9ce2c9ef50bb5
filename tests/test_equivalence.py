"""The forms of one plan, hook, edited weights and LoRA, give the same logits."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from tests import pico
from unrefuse.edit.hooks import hooked
from unrefuse.edit.lora import lora_factors, save_lora
from unrefuse.edit.plan import MatrixEdit, load_plan, make_plan, plan_of_cores, save_plan
from unrefuse.edit.shards import write_checkpoint
from unrefuse.edit.weights import edit_model, edit_tensor, planned_tensors
from unrefuse.errors import UsageError
from unrefuse.models.writers import blocks, norm_gain, writers

IDS = torch.arange(1, 41).reshape(4, 10)
WEIGHTS = (0.0, 0.7, 1.3)
NO_LORA = {"falcon_h1": "a state space", "gpt_oss": "biases of experts"}


def directions(layers: int = 3, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.nn.functional.normalize(
        torch.randn(layers, size, dtype=torch.float64, generator=generator), dim=-1
    )


def streams(model: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of a forward over IDS what enters and what leaves each block."""
    seen = []

    def record(module, args, options, output):
        entered = args[0] if args else options["hidden_states"]
        seen.append((entered, output[0] if isinstance(output, tuple) else output))

    handles = [b.register_forward_hook(record, with_kwargs=True) for b in blocks(model)]
    model(IDS)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("model_type", pico.MODELS)
def test_hook_weights_disk_and_lora_give_equal_logits(model_type, tmp_path):
    model = pico.network(model_type)
    plan = make_plan(model, directions(), WEIGHTS, mlp_weights=(0.4, 0.9, 0.0))
    original = model(IDS).logits
    with hooked(model, plan):
        hook = model(IDS).logits
    assert torch.equal(model(IDS).logits, original)  # hooks are gone
    assert (hook - original).abs().max() > 1e-2  # the edit does something

    # On disk experts are stored one by one, and names differ in vision-language models.
    source, out, adapter = (tmp_path / name for name in ("source", "out", "adapter"))
    model.save_pretrained(source, max_shard_size="40KB")
    out.mkdir()
    write_checkpoint(source, plan, out)
    disk = type(model).from_pretrained(out, attn_implementation="eager")(IDS).logits
    torch.testing.assert_close(disk, hook, rtol=1e-4, atol=1e-4)

    if model_type in NO_LORA:
        with pytest.raises(UsageError, match=NO_LORA[model_type]):
            save_lora(model, plan, adapter)
        assert not adapter.exists()
    else:
        save_lora(model, plan, adapter)
        lora = PeftModel.from_pretrained(pico.network(model_type), adapter)(IDS).logits
        torch.testing.assert_close(lora, hook, rtol=1e-4, atol=1e-4)
    edit_model(model, plan)
    torch.testing.assert_close(model(IDS).logits, hook, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", pico.MODELS)
def test_strength_1_leaves_the_stream_along_the_direction_as_it_is(model_type):
    """So nothing was written along it: by no expert, and by no matrix that the table forgets."""
    model = pico.network(model_type)
    r = directions()[1].float()
    plan = make_plan(model, directions(), (0.0, 1.0, 0.0))

    def written():
        entered, left = streams(model)[1]
        return ((left - entered) @ r).abs().max()

    before = written()
    with hooked(model, plan):
        assert written() < 1e-4 * before
    edit_model(model, plan)
    assert written() < 1e-4 * before


@pytest.mark.parametrize("model_type", ["gpt_oss", "mixtral", "qwen3_moe", "qwen3_next"])
def test_the_hook_and_the_weights_route_alike_and_the_edited_experts_router_not_otherwise(
    model_type,
):
    model = pico.network(model_type)
    routers = [m for n, m in model.named_modules() if n.endswith(("mlp.gate", "mlp.router"))]
    routed = []
    for router in routers:
        router.register_forward_hook(lambda module, args, output: routed.append(output[-1]))

    def routes():
        routed.clear()
        model(IDS)
        return list(routed)

    # The edit of the experts alone: in their own layer the router has read the stream before.
    plan = make_plan(model, directions(), (0.0, 0.0, 0.0), mlp_weights=(0.0, 1.0, 0.0))
    original = routes()
    with hooked(model, plan):
        hook = routes()
    edit_model(model, plan)
    assert len(original) == len(routers) > 1
    first = len(routers) - 2  # that of layer 1, behind a dense first layer or not
    assert torch.equal(hook[first], original[first])
    for by_hook, by_weights in zip(hook, routes(), strict=True):
        assert torch.equal(by_hook, by_weights)


@pytest.mark.parametrize("model_type", pico.MODELS)
def test_names_on_disk_are_those_that_transformers_loads(model_type, tmp_path):
    model = pico.network(model_type)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    parameters = dict(model.named_parameters())
    plan = make_plan(model, directions(), (1.0, 1.0, 1.0))
    found = planned_tensors(plan, stored)
    wanted = planned_tensors(plan, parameters)
    reached = set()
    for name, tensor in stored.items():
        loaded, _ = rename_source_key(
            name, renamings, converters, model.base_model_prefix, model.state_dict()
        )
        assert (name in found) == (loaded in wanted), name
        if name in found:
            reached.add(loaded)
            assert found[name][0] is wanted[loaded][0]
            assert tensor.shape[found[name][1]] == 32
            assert parameters[loaded].shape[wanted[loaded][1]] == 32
    assert reached == set(wanted)


@pytest.mark.parametrize("model_type", ["glm4", "mixtral", "olmo2", "qwen3_next"])
def test_a_plan_of_several_directions_acts_on_the_stream_as_its_cores_say(model_type, tmp_path):
    model = pico.network(model_type)
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(3, 32, 3, generator=generator))[0]
    core = torch.randn(3, 3, generator=generator)
    matrix = next(w for w in writers(model) if w.layer == 1 and w.component == "mlp")
    plan = plan_of_cores(model, basis, {matrix.name: core})
    save_plan(plan, tmp_path / "plan.safetensors", {"a": "b"})
    stored, metadata = load_plan(tmp_path / "plan.safetensors")
    assert metadata == {"a": "b"}
    assert [replace(e, basis=0, core=0) for e in stored] == [
        replace(e, basis=0, core=0) for e in plan
    ]
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
    for model_type in ("exaone4", "gemma2", "gemma3_text", "glm4", "olmo2"):
        model = pico.network(model_type)
        norm = model.get_submodule(writers(model)[0].norm)
        plain = x / (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
        torch.testing.assert_close(norm(x), plain * norm_gain(norm), rtol=1e-4, atol=1e-5)


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


def test_biases_are_edited_too(tmp_path):
    def biased():
        model = pico.network("llama")
        generator = torch.Generator().manual_seed(3)
        bias = torch.randn(32, generator=generator)
        model.model.layers[1].mlp.down_proj.bias = torch.nn.Parameter(bias)
        return model

    model = biased()
    plan = make_plan(model, directions(), (0.0, 1.0, 0.0))
    with hooked(model, plan):
        hook = model(IDS).logits
    save_lora(model, plan, tmp_path)
    lora = PeftModel.from_pretrained(biased(), tmp_path)(IDS).logits
    torch.testing.assert_close(lora, hook, rtol=1e-4, atol=1e-4)
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
