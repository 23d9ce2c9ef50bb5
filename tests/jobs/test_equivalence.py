"""The forms of one plan, hook, edited weights, disk, stream and LoRA, give the same logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from tests import pico
from tests.edits.plans import (
    IDS,
    KINDS,
    directions,
    edit_model,
    one_direction,
    save_lora,
    selective,
    streams,
)
from unrefuse.edits.adapters.lora import lora_factors
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import MatrixEdit, ablation_plan
from unrefuse.edits.weights import edit_tensor, planned_tensors
from unrefuse.errors import UnrefuseError
from unrefuse.models.load import auto_class
from unrefuse.models.stream import stream_network
from unrefuse.models.writers import blocks, norm_gain, writers

# Of ablation, which edits these too. The selective edit goes through attention alone.
NO_LORA = {"falcon_h1": "a state space", "gpt_oss": "biases of experts"}


def streamed(folder, model):
    files = sorted(folder.glob("*.safetensors"))
    config, device = model.config, torch.device("cpu")
    network, _ = stream_network(files, auto_class(config), config, torch.float32, device)
    return network.eval()


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("model_type", pico.MODELS)
def test_hook_weights_disk_stream_and_lora_give_equal_logits(model_type, make, tmp_path):
    model = pico.network(model_type)
    plan = make(model)
    original = model(IDS).logits
    with hooked(model, plan):
        hook = model(IDS).logits
    assert torch.equal(model(IDS).logits, original)  # hooks are gone
    assert (hook - original).abs().max() > 1e-2  # the edit does something

    def same(logits):
        torch.testing.assert_close(logits, hook, rtol=1e-4, atol=1e-4)

    # On disk experts are stored one by one, and names differ in vision-language models.
    source, out, adapter = (tmp_path / name for name in ("source", "out", "adapter"))
    model.save_pretrained(source, max_shard_size="40KB")
    out.mkdir()
    write_checkpoint(source, plan, out)
    same(type(model).from_pretrained(out, attn_implementation="eager")(IDS).logits)
    network = streamed(source, model)
    with hooked(network, plan), torch.no_grad():
        same(network(IDS).logits)

    if make is one_direction and model_type in NO_LORA:
        with pytest.raises(UnrefuseError, match=NO_LORA[model_type]):
            save_lora(model, plan, adapter)
        assert not adapter.exists()
    else:
        save_lora(model, plan, adapter)
        same(PeftModel.from_pretrained(pico.network(model_type), adapter)(IDS).logits)
    edit_model(model, plan)
    same(model(IDS).logits)


@pytest.mark.parametrize("model_type", pico.MODELS)
def test_strength_1_leaves_the_stream_along_the_direction_as_it_is(model_type):
    """So nothing was written along it: by no expert, and by no matrix that the table forgets."""
    model = pico.network(model_type)
    r = directions()[1].float()
    plan = one_direction(model, (0.0, 2.0, 0.0), multiplier=0.5)

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
    plan = one_direction(model, (0.0, 1.0, 0.0))
    plan = tuple(edit for edit in plan if ".mlp." in edit.module)
    original = routes()
    with hooked(model, plan):
        hook = routes()
    edit_model(model, plan)
    assert len(original) == len(routers) > 1
    first = len(routers) - 2  # that of layer 1, behind a dense first layer or not
    assert torch.equal(hook[first], original[first])
    for by_hook, by_weights in zip(hook, routes(), strict=True):
        assert torch.equal(by_hook, by_weights)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("model_type", pico.MODELS)
def test_names_on_disk_are_those_that_transformers_loads(model_type, make, tmp_path):
    model = pico.network(model_type)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    parameters = dict(model.named_parameters())
    plan = make(model, (1.0, 1.0, 1.0))
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


def test_the_gain_of_a_norm_is_what_the_norm_multiplies_by():
    x = torch.randn(5, 32)
    for model_type in ("exaone4", "gemma2", "gemma3_text", "glm4", "olmo2"):
        model = pico.network(model_type)
        norm = model.get_submodule(writers(model)[0].norm)
        plain = x / (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
        torch.testing.assert_close(norm(x), plain * norm_gain(norm), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "paths"),
    [(one_direction, ("self_attn.o_proj", "mlp.down_proj")), (selective, ("self_attn.o_proj",))],
)
def test_layers_of_weight_0_and_the_rest_of_the_model_are_untouched(make, paths):
    model, original = pico.network("qwen2"), pico.network("qwen2").state_dict()
    edit_model(model, make(model))
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, original[n])}
    assert changed == {f"model.layers.{layer}.{path}.weight" for layer in (1, 2) for path in paths}
    assert len(blocks(model)) == 3


@pytest.mark.parametrize("make", KINDS)
def test_a_bias_is_ablated_too_and_left_alone_by_the_selective_edit(make, tmp_path):
    def biased():
        model = pico.network("llama")
        generator = torch.Generator().manual_seed(3)
        for module in (model.model.layers[1].mlp.down_proj, model.model.layers[1].self_attn.o_proj):
            module.bias = torch.nn.Parameter(torch.randn(32, generator=generator))
        return model

    model, original = biased(), biased().state_dict()
    plan = make(model, (0.0, 1.0, 0.0))
    with hooked(model, plan):
        hook = model(IDS).logits
    save_lora(model, plan, tmp_path)
    lora = PeftModel.from_pretrained(biased(), tmp_path)(IDS).logits
    torch.testing.assert_close(lora, hook, rtol=1e-4, atol=1e-4)
    edit_model(model, plan)
    torch.testing.assert_close(model(IDS).logits, hook, rtol=1e-4, atol=1e-4)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, original[n])}
    assert sum(name.endswith("bias") for name in changed) == (2 if make is one_direction else 0)


def test_another_number_of_layers_is_refused():
    model = pico.network("llama", layers=2)
    for make in (
        lambda: one_direction(model),
        lambda: selective(model),
        lambda: ablation_plan(model, directions(2), (1.0, 1.0, 1.0)),
    ):
        with pytest.raises(UnrefuseError, match="the model has 2 layers, and the edit is for 3"):
            make()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 2), st.floats(0, 2))
def test_properties_of_the_projection(seed, s, t):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(12, 7, generator=generator)
    r = torch.nn.functional.normalize(torch.randn(12, generator=generator), dim=0)

    def ablation(s):
        return MatrixEdit("m", s * r[:, None], r[None], of_output=True)

    def edit(w, s):
        return edit_tensor(w, ablation(s))

    # An independent formula: the projection matrix, in float64.
    p = torch.eye(12, dtype=torch.float64) - s * torch.outer(r.double(), r.double())
    torch.testing.assert_close(edit(w, s), (p @ w.double()).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(r @ edit(w, s), (1 - s) * (r @ w), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(edit(edit(w, s), t), edit(w, s + t - s * t), rtol=1e-4, atol=1e-4)
    a, b = lora_factors(w, ablation(s))
    torch.testing.assert_close(w + b @ a, edit(w, s), rtol=1e-4, atol=1e-5)
    assert edit(w.bfloat16(), s).dtype == torch.bfloat16
