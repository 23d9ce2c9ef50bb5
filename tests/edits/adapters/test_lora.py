import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors import safe_open

from tests import pico
from tests.edits.plans import IDS, KINDS, one_direction, selective
from unrefuse.edits.adapters.lora import (
    ADAPTER,
    checkpoint_adapter,
    load_factors,
    lora_factors,
    save_adapter,
    share_along,
)
from unrefuse.edits.disk import stored
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import MatrixEdit
from unrefuse.errors import UnrefuseError


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "granite"])
@pytest.mark.parametrize("make", KINDS)
def test_an_adapter_from_disk_gives_the_hooked_logits(tmp_path, model_type, make):
    network = pico.network(model_type)
    network.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    plan = make(network)
    with hooked(network, plan):
        wanted = network(IDS).logits
    save_adapter(checkpoint_adapter(tmp_path / "m", plan), tmp_path / "lora")
    got = PeftModel.from_pretrained(pico.network(model_type), tmp_path / "lora")(IDS).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", KINDS)
def test_only_the_planned_tensors_are_read(tmp_path, monkeypatch, make):
    network = pico.network()
    network.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    plan = make(network)
    read = []
    real = stored.read_tensor
    monkeypatch.setattr(
        "unrefuse.edits.adapters.lora.read_tensor",
        lambda file, name: read.append(name) or real(file, name),
    )
    checkpoint_adapter(tmp_path / "m", plan)
    assert read == [f"{edit.module}.weight" for edit in plan]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans(), st.booleans())
def test_factors_have_the_rank_of_the_edit_and_lose_nothing(seed, k, of_output, transposed):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    w, write, read = random(12, 7), random(12, k), random(k, 12 if of_output else 7)
    stored_as = w.T if transposed else w
    a, b = lora_factors(stored_as, MatrixEdit("m", write, read, of_output, transposed=transposed))
    assert a.shape == (k, 7)
    assert b.shape == (12, k)
    wanted = -write.double() @ (read.double() @ w.double() if of_output else read.double())
    torch.testing.assert_close((b @ a).double(), wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_share_along_is_the_inner_product_of_a_weight_and_what_is_added(seed, k):
    generator = torch.Generator().manual_seed(seed)
    w, a, b = (torch.randn(*s, generator=generator) for s in ((12, 7), (k, 7), (12, k)))
    wanted = float((w.double() * (b.double() @ a.double())).sum())
    assert share_along(w, a, b) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("make", KINDS)
def test_the_adapter_is_of_one_rank_scaled_by_1_and_comes_back_from_disk(tmp_path, make):
    network = pico.network()
    network.save_pretrained(tmp_path / "m")
    adapter = checkpoint_adapter(tmp_path / "m", make(network))
    factors = adapter.factors
    assert adapter.rank == 1
    assert {a.shape[0] for a, _ in factors.values()} == {1}
    for module, (a, b) in factors.items():
        weight = network.get_submodule(module).weight
        assert adapter.along[module] == pytest.approx(float((weight * (b @ a)).sum()), rel=1e-3)
    save_adapter(adapter, tmp_path / "lora", "the/base")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    # What vLLM's PEFTHelper reads or refuses: one rank, alpha / r = 1, no patterns, no bias.
    assert (config["r"], config["lora_alpha"], config["bias"]) == (1, 1, "none")
    assert not config["use_rslora"]
    assert not config["use_dora"]
    assert not config["rank_pattern"]
    assert not config["modules_to_save"]
    assert sorted(config["target_modules"]) == sorted(factors)
    assert config["base_model_name_or_path"] == "the/base"
    with safe_open(tmp_path / "lora" / ADAPTER, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            assert name.startswith("base_model.model.model.layers.")
            assert file.get_tensor(name).dtype == torch.float32
    again = load_factors(tmp_path / "lora")
    assert again.keys() == factors.keys()
    assert all(torch.equal(again[m][i], factors[m][i]) for m in factors for i in (0, 1))


def biased(network):
    network.model.layers[1].mlp.down_proj.bias = torch.nn.Parameter(torch.ones(32))
    return network


def test_a_bias_is_edited_in_peft_and_refused_elsewhere(tmp_path):
    network = biased(pico.network())
    network.save_pretrained(tmp_path / "bias")
    plan = one_direction(network)
    with hooked(network, plan):
        wanted = network(IDS).logits
    adapter = checkpoint_adapter(tmp_path / "bias", plan)
    save_adapter(adapter, tmp_path / "lora")
    got = PeftModel.from_pretrained(biased(pico.network()), tmp_path / "lora")(IDS).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(UnrefuseError, match="has a bias, which a GGUF adapter cannot edit"):
        adapter.check_linear("a GGUF adapter")
    with pytest.raises(UnrefuseError, match="edits biases or experts"):
        load_factors(tmp_path / "lora")


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_experts_stored_one_by_one_are_edited_in_peft_and_refused_elsewhere(tmp_path, model_type):
    network = pico.network(model_type)
    network.save_pretrained(tmp_path / "m")
    plan = one_direction(network)
    with hooked(network, plan):
        wanted = network(IDS).logits
    adapter = checkpoint_adapter(tmp_path / "m", plan)
    save_adapter(adapter, tmp_path / "lora")
    got = PeftModel.from_pretrained(pico.network(model_type), tmp_path / "lora")(IDS).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(UnrefuseError, match="a GGUF adapter cannot edit experts"):
        adapter.check_linear("a GGUF adapter")
    with pytest.raises(UnrefuseError, match="edits biases or experts"):
        load_factors(tmp_path / "lora")


@pytest.mark.parametrize("model_type", ["gpt_oss", "falcon_h1", "mixtral", "qwen3_next"])
def test_the_selective_edit_is_of_linear_modules_without_biases_in_every_model(
    tmp_path, model_type
):
    """So it has each form: attention's bias stays, and experts and state spaces are not edited."""
    network = pico.network(model_type)
    network.save_pretrained(tmp_path / "m")
    plan = selective(network)
    adapter = checkpoint_adapter(tmp_path / "m", plan)
    adapter.check_linear("a GGUF adapter")
    save_adapter(adapter, tmp_path / "lora")
    factors = load_factors(tmp_path / "lora")
    assert factors.keys() == adapter.along.keys() == {edit.module for edit in plan}
    assert not any("expert" in name or "mamba" in name for name in factors)


def test_quantised_weights_are_refused(tmp_path):
    network = pico.network()
    plan = one_direction(network)
    linear = network.model.layers[1].mlp.down_proj
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    network.save_pretrained(tmp_path / "float8")
    with pytest.raises(UnrefuseError, match=r"F8_E4M3.* needs full weights"):
        checkpoint_adapter(tmp_path / "float8", plan)


def test_a_plan_of_another_model_is_refused(tmp_path):
    network = pico.network()
    network.save_pretrained(tmp_path / "m")
    plan = one_direction(network)
    longer = tuple(replace(edit, write=torch.ones(33, 1)) for edit in plan)
    with pytest.raises(UnrefuseError, match="for another model: it writes 33"):
        checkpoint_adapter(tmp_path / "m", longer)
    wider = tuple(replace(edit, read=torch.ones(1, 33)) for edit in selective(network))
    with pytest.raises(UnrefuseError, match="for another model: it reads 33"):
        checkpoint_adapter(tmp_path / "m", wider)
    deeper = (*plan, replace(plan[0], module="model.layers.9.mlp.down_proj"))
    with pytest.raises(UnrefuseError, match=r"no tensor model\.layers\.9"):
        checkpoint_adapter(tmp_path / "m", deeper)
