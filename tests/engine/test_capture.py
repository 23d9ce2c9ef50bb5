import pytest
import torch

from tests import pico
from unrefuse.engine.capture import group_means, recorded, residuals
from unrefuse.engine.moments import RunningMean
from unrefuse.models.writers import blocks
from unrefuse.prompts.chat import encode

PROMPTS = ["Hi", "What is a volcano?", "x" * 60, "Tell me about chess.", "ok then"]


def collect(model):
    result = {}
    for batch, streams in residuals(model, PROMPTS):
        result |= dict(zip(batch, streams, strict=True))
    return torch.stack([result[i] for i in range(len(PROMPTS))])


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen2"])
def test_residuals_are_the_block_outputs_at_the_last_prompt_token(model_type):
    model = pico.loaded(model_type, batch_size=2)
    got = collect(model)
    for i, ids in enumerate(encode(model.tokenizer, PROMPTS)):
        output = model.network(torch.tensor([ids]), output_hidden_states=True)
        for layer in range(2):
            wanted = output.hidden_states[layer + 1][0, -1]
            torch.testing.assert_close(got[i, layer], wanted, rtol=1e-4, atol=1e-4)
        # The last of transformers' hidden states has been through the final norm; ours has not.
        last = output.hidden_states[-1][0, -1]
        normed = model.network.get_decoder().norm(got[i, -1])
        torch.testing.assert_close(normed, last, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(got[i, -1], last, atol=1e-2)


def test_the_batch_size_makes_no_difference():
    one, four = (collect(pico.loaded(batch_size=size)) for size in (1, 4))
    torch.testing.assert_close(one, four, rtol=1e-4, atol=1e-4)


def test_group_means_are_means():
    model = pico.loaded()
    groups = ["a", "b", "a", "b", "a"]
    means = group_means(model, PROMPTS, groups)
    streams = collect(model).double()
    for name, rows in (("a", [0, 2, 4]), ("b", [1, 3])):
        assert means[name].dtype == torch.float64
        torch.testing.assert_close(means[name], streams[rows].mean(0), rtol=1e-4, atol=1e-4)


def test_no_hook_outlives_an_error():
    model = pico.loaded()
    with pytest.raises(RuntimeError), recorded(model, [0]):
        raise RuntimeError
    assert all(not block._forward_hooks for block in blocks(model.network))


def test_the_mean_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no activations"):
        _ = RunningMean().mean


def test_a_running_mean_is_exact_in_float64():
    running = RunningMean()
    for value in (1e8, 1.0, -1e8):
        running.update(torch.full((1, 1, 1), value))
    assert float(running.mean) == pytest.approx(1 / 3)
