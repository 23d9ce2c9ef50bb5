import pytest
import torch

from tests import pico
from tests.edits.plans import PLAIN, streams
from unrefuse.models.writers import block_name, blocks, logits_of, mixers, text_config, writers

IDS = torch.arange(1, 21).reshape(2, 10)


@pytest.mark.parametrize("model_type", pico.MODELS)
def test_logits_of_final_hidden_states_are_the_models(model_type):
    model = pico.network(model_type)
    for name in ("final_logit_softcapping", "logits_scaling"):
        # The forward of a vision-language Gemma 3 passes over its cap, which is None as shipped.
        if hasattr(text_config(model), name) and model_type != "gemma3":
            setattr(text_config(model), name, 3.0)
    hidden = model.get_decoder()(IDS).last_hidden_state
    torch.testing.assert_close(logits_of(model, hidden), model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", pico.MODELS)
def test_every_block_has_writers_of_both_components(model_type):
    model = pico.network(model_type)
    found = writers(model)
    for layer in range(3):
        components = {w.component for w in found if w.layer == layer}
        assert components == {"attention", "mlp"}
    for writer in found:
        parameter = model.get_submodule(writer.name).get_parameter(writer.parameter)
        assert parameter.shape[-1 if writer.transposed else -2] == 32
        assert writer.name.startswith(f"{block_name(model, writer.layer)}.")
    assert len(blocks(model)) == 3
    assert {w.layer for w in found} == {0, 1, 2}


@pytest.mark.parametrize("model_type", pico.MODELS)
def test_each_layer_has_one_mixer_and_that_is_attention_where_there_is_any(model_type):
    model = pico.network(model_type)
    found = mixers(model)
    assert [writer.layer for writer in found] == [0, 1, 2]
    for writer, block in zip(found, blocks(model), strict=True):
        own = "self_attn.o_proj" if hasattr(block, "self_attn") else "linear_attn.out_proj"
        assert writer.name == f"{block_name(model, writer.layer)}.{own}"
    linear = [writer.layer for writer in found if "linear_attn" in writer.name]
    assert linear == ([0, 2] if model_type == "qwen3_next" else [])


@pytest.mark.parametrize("model_type", PLAIN)
def test_the_scale_is_what_stands_between_a_mixing_matrix_and_the_stream(model_type):
    """Nothing else is written: so the block adds the matrix's output times its scale."""
    model = pico.network(model_type)
    here = [w for w in writers(model) if w.layer == 1]
    given = torch.randn(2, 10, 32)
    scales = []
    for writer in (w for w in here if w.component == "attention"):
        handles = [
            model.get_submodule(other.name).register_forward_hook(
                lambda m, args, output, y=given * (other == writer): y.view(output.shape)
            )
            for other in here
        ]
        entered, left = streams(model, IDS)[1]
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(left - entered, writer.scale * given, rtol=1e-4, atol=1e-5)
        scales.append(writer.scale)
    special = {"falcon_h1": [0.7, 0.5], "granite": [0.3]}
    assert scales == special.get(model_type, [1.0])
