"""Memory runs out in a batch: it is halved, and the results are those of a run with enough."""

import pytest
import torch

from tests import pico
from tests.edits.plans import one_direction
from unrefuse.edits.adapters.control import control_vectors
from unrefuse.engine.capture import group_means
from unrefuse.engine.forward import halve
from unrefuse.engine.generate import reply_to
from unrefuse.engine.inputs import Tokens, capture
from unrefuse.errors import UnrefuseError

PROMPTS = [f"prompt {'x' * (i % 7)} {i}" for i in range(20)]


def small(rows, batch_size=8, error=torch.OutOfMemoryError):
    """A model with memory for so many rows at once."""
    model = pico.loaded(batch_size=batch_size)

    def full(module, args, output):
        if len(output[0] if isinstance(output, tuple) else output) > rows:
            raise error("CUDA out of memory. Tried to allocate 20.00 MiB.")

    model.network.get_decoder().layers[1].register_forward_hook(full)
    return model


def replies(model):
    return reply_to(model, PROMPTS, 8)


def means(model):
    return group_means(model, PROMPTS, [i % 2 for i in range(20)])


def captured(model):
    ids = model.encode(PROMPTS)
    found = capture(model, [Tokens(row, (len(row) - 1,), i % 2) for i, row in enumerate(ids)])
    return found.rows | found.means | found.sizes


def vectors(model):
    return control_vectors(model, one_direction(model.network, (1.0, 1.0, 1.0), 1.0), PROMPTS)


@pytest.mark.parametrize("job", [replies, means, captured, vectors])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_batch_is_halved_once_and_nothing_else_changes(capsys, job, error):
    wanted = job(pico.loaded(batch_size=8))
    model = small(3, error=error)
    found = job(model)
    assert model.batch_size == 2
    if job is replies:
        assert found == wanted
    else:
        torch.testing.assert_close(found, wanted)
    told = capsys.readouterr().err
    assert told.count("out of memory") == 2  # 8 to 4, 4 to 2: each is said once
    assert "going on with batches of 2" in told


def test_one_prompt_that_does_not_fit_is_one_line():
    with pytest.raises(UnrefuseError, match=r"one prompt at a time: .*--stream"):
        replies(small(0))


def test_another_error_is_not_taken_for_it():
    with pytest.raises(RuntimeError, match="something else"):
        replies_of_a_broken_model()
    assert not halve(pico.loaded(), RuntimeError("something else"))


def replies_of_a_broken_model():
    model = pico.loaded()

    def fail(module, args, output):
        raise RuntimeError("something else")

    model.network.get_decoder().layers[0].register_forward_hook(fail)
    return replies(model)
