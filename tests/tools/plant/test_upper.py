"""The upper part of a model gives what the whole gives, and what is learned can flow through it."""

import pytest
import torch

from tests import pico
from tools.plant.upper import Upper
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import ablation_plan
from unrefuse.models.writers import blocks, is_stateful
from unrefuse.prompts.chat import encode

pytestmark = pytest.mark.slow

LAYERS = 5


@pytest.mark.parametrize("model_type", pico.MODELS)
@pytest.mark.parametrize("first", [0, 2, 4])
def test_the_upper_part_gives_the_states_of_the_whole_model(model_type, first):
    model = pico.loaded(model_type, layers=LAYERS, batch_size=2)
    start = encode(model.tokenizer, ["Hello"])[0][:5]
    sequences = [start + rest for rest in ([7, 8, 9, 10], [20], [30, 31, 32, 33, 34, 35, 36])]
    lengths = [3, 1, 2]
    directions = torch.nn.functional.normalize(torch.randn(LAYERS, 32).double(), dim=-1)
    weights = [0.0] * first + [0.7] * (LAYERS - first)
    upper = Upper(model, first, sequences)
    assert len(upper.prefix) == (0 if is_stateful(model.network) else 5)
    entering = upper.enter(sequences)
    with torch.no_grad(), hooked(model.network, ablation_plan(model.network, directions, weights)):
        found = upper.states(entering, lengths)
        for states, sequence, length in zip(found, sequences, lengths, strict=True):
            whole = model.network.get_decoder()(torch.tensor([sequence])).last_hidden_state
            torch.testing.assert_close(states, whole[0, -length:], rtol=1e-4, atol=1e-4)
    assert all("forward" not in vars(block) for block in blocks(model.network))


def test_what_is_below_runs_once_for_all():
    model = pico.loaded(layers=LAYERS, batch_size=2)
    sequences = [[5, 6, 7, *rest] for rest in ([8, 9], [10], [11, 12, 13])]
    runs = []
    handle = blocks(model.network)[1].mlp.register_forward_hook(lambda *args: runs.append(1))
    upper = Upper(model, 2, sequences)
    entering = upper.enter(sequences)
    runs.clear()
    upper.states(entering, [1, 1, 1])
    upper.enter(sequences)
    assert len(runs) == 2  # one for each batch
    handle.remove()


def test_sequences_that_share_nothing_and_one_alone_run_too():
    model = pico.loaded(layers=LAYERS)
    for sequences in ([[5, 6], [7, 8, 9]], [[5, 6, 7]]):
        upper = Upper(model, 2, sequences)
        states = upper.states(upper.enter(sequences), [1] * len(sequences))
        for row, sequence in zip(states, sequences, strict=True):
            whole = model.network.get_decoder()(torch.tensor([sequence])).last_hidden_state
            torch.testing.assert_close(row, whole[0, -1:], rtol=1e-4, atol=1e-4)
