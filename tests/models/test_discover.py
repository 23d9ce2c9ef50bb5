"""An unknown architecture: what writes into the stream is found by experiment, or refused."""

import json
import re
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests import pico
from tests.edits.plans import IDS, KINDS, directions, edit_model, one_direction, save_lora, streams
from unrefuse.edits.disk.shards import write_checkpoint
from unrefuse.edits.hooks import hooked
from unrefuse.errors import UnrefuseError
from unrefuse.models.discover import describe, discover
from unrefuse.models.load import load_model
from unrefuse.models.writers import DISCOVERED, is_known, mixers, writers

UNKNOWN = ["gpt2", "gpt_neox", "flex_olmo"]


def in_order(found):
    """Without their scale, which the table lists for attention alone."""
    return sorted((replace(w, scale=1.0) for w in found), key=lambda w: (w.layer, w.name))


@pytest.mark.parametrize("model_type", pico.MODELS)
def test_the_experiment_finds_what_the_table_says(model_type):
    model = pico.network(model_type)
    table, read = writers(model), mixers(model)
    assert in_order(discover(model)) == in_order(table)
    found = mixers(model)
    assert in_order(found) == in_order(read)
    assert [w.scale for w in found] == pytest.approx([w.scale for w in read], rel=1e-3)


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_the_experiment_sees_through_the_rounding_of_bfloat16_and_leaves_weights_as_they_were(
    model_type,
):
    model = pico.network(model_type).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = writers(model)
    assert in_order(discover(model)) == in_order(table)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("model_type", UNKNOWN)
def test_an_edit_of_what_was_found_is_the_same_in_every_form(model_type, make, tmp_path):
    """GPT-2's matrices lie the other way round, GPT-NeoX's blocks are parallel, Flex OLMo has a
    norm after its experts; all have other names than the table's."""
    folder = pico.save(tmp_path / "m", model_type)
    model = load_model(pico.run_config(str(folder), discover=True)).network
    assert not is_known(model)
    plan = make(model, (0.0, 1.0, 0.0))
    assert len(plan) == (2 if make is one_direction else 1)
    original = model(IDS).logits
    before = streams(model)[1]
    with hooked(model, plan):
        hook = model(IDS).logits
        after = streams(model)[1]
    save_lora(model, plan, tmp_path / "lora")
    original_again = AutoModelForCausalLM.from_pretrained(folder)
    lora = PeftModel.from_pretrained(original_again, tmp_path / "lora")(IDS).logits
    torch.testing.assert_close(lora, hook, rtol=1e-4, atol=1e-4)
    (tmp_path / "out").mkdir()
    write_checkpoint(folder, plan, tmp_path / "out")
    edit_model(model, plan)
    torch.testing.assert_close(model(IDS).logits, hook, rtol=1e-4, atol=1e-4)
    assert (hook - original).abs().max() > 1e-2
    disk = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(disk, hook, rtol=1e-4, atol=1e-4)
    if make is one_direction:  # nothing is written along the direction
        r = directions()[1].float()
        was, now = (((left - entered) @ r).abs().max() for entered, left in (before, after))
        assert now < 1e-4 * was


def test_without_discover_what_was_found_is_shown_and_loading_ends(tmp_path):
    folder = pico.save(tmp_path / "m", "gpt2")
    with pytest.raises(UnrefuseError) as caught:
        load_model(pico.run_config(str(folder)))
    said = str(caught.value)
    assert "'gpt2' is not in unrefuse's table" in said
    assert "attn.c_proj (attention) in 3 of 3 blocks; mlp.c_proj (mlp) in 3 of 3 blocks" in said
    assert said.endswith("--discover")
    assert "\n" not in said


def test_with_discover_what_was_found_is_shown(tmp_path, capsys):
    folder = pico.save(tmp_path / "m", "gpt2")
    model = load_model(pico.run_config(str(folder), discover=True)).network
    shown = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert describe(model, DISCOVERED[model]) in shown


class WithSquares(LlamaForCausalLM):
    """A class of one's own, under the name of a known one: its q_proj is square as its o_proj, and
    its MLP's output passes through one more matrix."""

    def __init__(self, config):
        super().__init__(config)
        for block in self.model.layers:
            block.mlp = nn.Sequential(block.mlp, nn.Linear(32, 32))


def own(kind):
    model = pico.network("llama")
    copy = kind(model.config).eval().requires_grad_(False)
    for parameter in copy.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return copy


def test_a_class_that_is_not_that_of_transformers_is_not_believed_by_its_name():
    model = own(WithSquares)
    assert not is_known(model)
    with pytest.raises(UnrefuseError, match="not discovered"):
        writers(model)
    found = discover(model)
    assert {w.name.split(".", 3)[3] for w in found} == {"self_attn.o_proj", "mlp.1"}
    assert writers(model) == found


class WithNormAfter(LlamaForCausalLM):
    """The stream itself is normed: no matrix alone decides what is written."""

    def __init__(self, config):
        super().__init__(config)
        for block in self.model.layers:
            block.register_forward_hook(lambda m, a, output: nn.functional.rms_norm(output, (32,)))


class WithParameter(LlamaForCausalLM):
    """Something is added to the stream that is no module's output."""

    def __init__(self, config):
        super().__init__(config)
        for block in self.model.layers:
            block.extra = nn.Parameter(torch.randn(32))
            forward = block.forward
            block.forward = lambda *a, f=forward, b=block, **k: f(*a, **k) + b.extra


@pytest.mark.parametrize(
    ("kind", "says"),
    [(WithNormAfter, "is no matrix|adds more"), (WithParameter, "block 0 adds more")],
)
def test_what_cannot_be_told_is_refused_in_one_line(kind, says):
    with pytest.raises(UnrefuseError, match=says) as caught:
        discover(own(kind))
    assert "\n" not in str(caught.value)


def test_a_model_with_an_encoder_is_refused_before_it_is_loaded(tmp_path):
    folder = pico.save(tmp_path / "m")
    config = AutoConfig.for_model("t5").to_dict()
    (folder / "config.json").write_text(json.dumps(config | {"is_encoder_decoder": True}))
    with pytest.raises(UnrefuseError, match="edits decoder-only models"):
        load_model(pico.run_config(str(folder)))


def test_a_state_space_without_an_mlp_is_refused():
    with pytest.raises(UnrefuseError, match="no attention or no MLP"):
        discover(pico.network("mamba"))


def test_a_table_that_lacks_a_blocks_matrix_says_so():
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, hidden_size=32, vocab_size=9))
    model.model.layers[0].mlp = nn.Identity()
    with pytest.raises(UnrefuseError, match="block 0 of this llama"):
        writers(model)
