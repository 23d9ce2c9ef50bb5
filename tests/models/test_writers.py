import pytest
import torch

from tests import pico
from unrefuse.models.writers import ARCHITECTURES, blocks, logits_of, writers

IDS = torch.arange(1, 21).reshape(2, 10)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_logits_of_final_hidden_states_are_the_models(model_type):
    model = pico.network(model_type)
    for name in ("final_logit_softcapping", "logits_scaling"):
        if hasattr(model.config, name):
            setattr(model.config, name, 3.0)
    hidden = model.get_decoder()(IDS).last_hidden_state
    torch.testing.assert_close(logits_of(model, hidden), model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_two_matrices_a_layer_write_into_the_stream(model_type):
    model = pico.network(model_type)
    found = writers(model)
    assert [(w.layer, w.component) for w in found] == [
        (layer, component) for layer in range(3) for component in ("attention", "mlp")
    ]
    for writer in found:
        assert model.get_submodule(writer.name).weight.shape[0] == 32
        assert writer.name.startswith(f"model.layers.{writer.layer}.")
    assert len(blocks(model)) == 3
