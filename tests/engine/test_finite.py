"""float16 ends at 65504: what goes beyond is said, and never graded, scored or written."""

import math

import pytest
import torch

from tests import pico
from tests.edits.plans import edit_model, one_direction
from unrefuse.engine.generate import Reply, last_logits, reply_to
from unrefuse.errors import UnrefuseError
from unrefuse.metrics import perplexity as perplexities
from unrefuse.metrics.layers import layer_strengths
from unrefuse.metrics.margin import make_openings, margins
from unrefuse.metrics.perplexity import perplexity
from unrefuse.metrics.quality import divergences, make_reference

PROMPTS = ["Hi", "What is a volcano?", "ok then"]
REPLIES = [Reply("a", (97, 98), "answered")] * len(PROMPTS)
SAYS = "not all finite in float16: .*--dtype bfloat16 or float32"


def overflowing(dtype):
    """Finite weights, whose activations go beyond float16 in the second block."""
    model = pico.loaded()
    mlp = model.network.model.layers[1].mlp
    mlp.down_proj.weight.data *= 3e3
    mlp.up_proj.weight.data *= 3e3
    model.network.to(dtype)
    return model


MEASURES = {
    "replies": lambda m: reply_to(m, PROMPTS, 4),
    "logits": lambda m: last_logits(m, PROMPTS),
    "divergence": lambda m: divergences(m, make_reference(m, PROMPTS, REPLIES)),
    "margins": lambda m: margins(m, make_openings(m, PROMPTS, [r.tokens for r in REPLIES])),
    "perplexity": lambda m: perplexity(m, "A text that is long enough."),
    "layers": lambda m: layer_strengths(
        m, torch.eye(3, 32, dtype=torch.float64), PROMPTS, ["a", "a", ""], REPLIES, PROMPTS
    ),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_an_overflow_is_said_with_what_to_do(measure):
    with pytest.raises(UnrefuseError, match=SAYS):
        MEASURES[measure](overflowing(torch.float16))
    MEASURES[measure](overflowing(torch.bfloat16))


def test_other_precisions_blame_the_model():
    model = pico.loaded()
    model.network.lm_head.weight.data[5, 5] = math.nan
    with pytest.raises(UnrefuseError, match=r"in float32: .* are damaged"):
        reply_to(model, PROMPTS, 4)


def test_a_perplexity_beyond_any_float_is_infinite(monkeypatch):
    monkeypatch.setattr(perplexities, "HIGHEST", 0.0)
    assert perplexity(pico.loaded(), "A text that is long enough.")[0] == math.inf


def test_edited_weights_beyond_float16_are_not_written():
    network = pico.network().half()
    plan = one_direction(network)
    huge = [edit.write.mul_(1e9) for edit in plan]
    assert huge
    with pytest.raises(UnrefuseError, match="beyond float16"):
        edit_model(network, plan)
    edit_model(pico.network().bfloat16(), plan)
