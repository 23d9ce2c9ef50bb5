"""What prompts share runs once, and changes nothing."""

import pytest
import torch

from tests import pico
from unrefuse.engine.forward import common_prefix, one_pass, row_ends, shared_prefix
from unrefuse.models.writers import is_stateful
from unrefuse.prompts.chat import encode


@pytest.mark.parametrize("model_type", pico.MODELS)
@pytest.mark.parametrize("prefix", [0, 5])
def test_a_shared_prefix_gives_the_states_of_the_whole_sequences(model_type, prefix):
    model = pico.loaded(model_type, layers=6)
    start = encode(model.tokenizer, ["Hello"])[0][:5]
    sequences = [start + rest for rest in ([7, 8, 9, 10], [20], [30, 31, 32, 33, 34, 35, 36])]
    lengths = [3, 1, 2]
    assert shared_prefix(model, sequences) == (0 if is_stateful(model.network) else 5)
    prefix = min(prefix, shared_prefix(model, sequences))

    def read(batch, rest, run):
        assert [len(row) for row in rest] == [len(sequences[i]) - prefix for i in batch]
        return row_ends(run(), rest, [lengths[i] for i in batch])

    with torch.no_grad():
        ((batch, found),) = one_pass(model, sequences, prefix, read, "states")
        for states, i in zip(found, batch, strict=True):
            whole = model.network.get_decoder()(torch.tensor([sequences[i]])).last_hidden_state
            torch.testing.assert_close(states, whole[0, -lengths[i] :], rtol=1e-4, atol=1e-4)


def test_the_common_prefix_leaves_each_sequence_a_token():
    assert common_prefix([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_prefix([[1, 2, 3], [1, 2]]) == 1
    assert common_prefix([[1], [1]]) == 0
    assert common_prefix([[7, 8, 9]]) == 2
