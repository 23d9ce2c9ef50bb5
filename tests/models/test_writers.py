import pytest
import torch

from tests import pico
from unrefuse.models.writers import block_name, blocks, logits_of, text_config, writers

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
