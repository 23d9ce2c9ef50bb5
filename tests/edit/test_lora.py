import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors import safe_open

from tests import pico
from unrefuse.edit import stored
from unrefuse.edit.hooks import hooked
from unrefuse.edit.lora import (
    ADAPTER,
    checkpoint_adapter,
    load_factors,
    lora_factors,
    save_adapter,
)
from unrefuse.edit.plan import MatrixEdit, make_plan, plan_of_cores
from unrefuse.errors import UsageError
from unrefuse.models.writers import writers

IDS = torch.arange(1, 41).reshape(4, 10)


def one_direction(network, weights=(0.0, 0.7, 1.3)):
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(3, 32, dtype=torch.float64, generator=generator)
    return make_plan(network, torch.nn.functional.normalize(directions, dim=-1), weights)


def tuned(network, k=4, ranks=(1, 2, 3)):
    """A plan of k directions whose cores have different ranks, one per layer's MLP."""
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(3, 32, k, generator=generator))[0]
    mlps = [w.name for w in writers(network) if w.component == "mlp"]
    cores = {
        name: torch.randn(k, rank, generator=generator) @ torch.randn(rank, k, generator=generator)
        for name, rank in zip(mlps, ranks, strict=True)
    }
    return plan_of_cores(network, basis, cores)


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "granite"])
@pytest.mark.parametrize("make", [one_direction, tuned])
def test_an_adapter_from_disk_gives_the_hooked_logits(tmp_path, model_type, make):
    network = pico.network(model_type)
    network.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    plan = make(network)
    with hooked(network, plan):
        wanted = network(IDS).logits
    save_adapter(checkpoint_adapter(tmp_path / "m", plan), tmp_path / "lora")
    got = PeftModel.from_pretrained(pico.network(model_type), tmp_path / "lora")(IDS).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_only_the_planned_tensors_are_read(tmp_path, monkeypatch):
    network = pico.network()
    network.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    plan = one_direction(network)
    read = []
    real = stored.read_tensor
    monkeypatch.setattr(
        "unrefuse.edit.lora.read_tensor", lambda file, name: read.append(name) or real(file, name)
    )
    checkpoint_adapter(tmp_path / "m", plan)
    assert read == [f"{edit.module}.weight" for edit in plan]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 6), rank=st.integers(0, 6))
def test_factors_have_the_rank_of_the_core_and_lose_nothing(seed, k, rank):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    rank = min(rank, k)
    u = torch.linalg.qr(random(12, k))[0]
    core = random(k, rank) @ random(rank, k)
    w = random(12, 7)
    a, b = lora_factors(w, MatrixEdit("m", u, core))
    assert a.shape == (rank, 7)
    assert b.shape == (12, rank)
    wanted = -u.double() @ core.double() @ u.double().T @ w.double()
    torch.testing.assert_close((b @ a).double(), wanted, rtol=1e-4, atol=1e-4)


def test_cores_of_several_ranks_share_the_largest_and_are_scaled_by_1(tmp_path):
    network = pico.network()
    network.save_pretrained(tmp_path / "m")
    adapter = checkpoint_adapter(tmp_path / "m", tuned(network))
    factors = adapter.factors
    assert adapter.rank == 3  # not 4, the number of directions
    assert {a.shape[0] for a, _ in factors.values()} == {3}
    save_adapter(adapter, tmp_path / "lora", "the/base")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    # What vLLM's PEFTHelper reads or refuses: one rank, alpha / r = 1, no patterns, no bias.
    assert (config["r"], config["lora_alpha"], config["bias"]) == (3, 3, "none")
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
    with pytest.raises(UsageError, match="has a bias, which a GGUF adapter cannot edit"):
        adapter.check_linear("a GGUF adapter")
    with pytest.raises(UsageError, match="edits biases or experts"):
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
    with pytest.raises(UsageError, match="a GGUF adapter cannot edit experts"):
        adapter.check_linear("a GGUF adapter")
    with pytest.raises(UsageError, match="edits biases or experts"):
        load_factors(tmp_path / "lora")


def test_quantised_weights_are_refused(tmp_path):
    network = pico.network()
    plan = one_direction(network)
    linear = network.model.layers[1].mlp.down_proj
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    network.save_pretrained(tmp_path / "float8")
    with pytest.raises(UsageError, match=r"float8_e4m3fn: name the full weights"):
        checkpoint_adapter(tmp_path / "float8", plan)


def test_a_plan_of_another_model_is_refused(tmp_path):
    network = pico.network()
    network.save_pretrained(tmp_path / "m")
    plan = one_direction(network)
    longer = tuple(replace(edit, basis=torch.ones(33, 1)) for edit in plan)
    with pytest.raises(UsageError, match="of another model: its directions have 33"):
        checkpoint_adapter(tmp_path / "m", longer)
    deeper = (*plan, replace(plan[0], module="model.layers.9.mlp.down_proj"))
    with pytest.raises(UsageError, match=r"no tensor model\.layers\.9"):
        checkpoint_adapter(tmp_path / "m", deeper)
