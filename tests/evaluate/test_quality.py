import math

import numpy as np
import pytest
import torch

from tests import pico
from unrefuse.edit.hooks import hooked
from unrefuse.edit.plan import make_plan
from unrefuse.evaluate.generate import reply_to
from unrefuse.evaluate.quality import divergences, kl_and_quality, make_reference
from unrefuse.prompts.chat import encode

PROMPTS = ["Hi", "What is a volcano?", "Tell me about chess.", "x" * 40, "ok then"]


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "granite"])
def test_divergence_is_the_kl_of_the_full_logits(model_type):
    model = pico.loaded(model_type, batch_size=2)
    replies = reply_to(model, PROMPTS, 8)
    reference = make_reference(model, PROMPTS, replies)
    assert divergences(model, reference)[:, 0] == pytest.approx(0, abs=1e-5)

    directions = torch.nn.functional.normalize(torch.randn(3, 32).double(), dim=-1)
    plan = make_plan(model.network, directions, (1.0, 1.0, 1.0))
    with hooked(model.network, plan):
        got = divergences(model, reference)
    for i, ids in enumerate(encode(model.tokenizer, PROMPTS)):
        answer = list(replies[i].tokens)
        whole, n = torch.tensor([ids + answer]), len(answer)
        before = model.network(whole).logits[0, -n - 1 : -1].double().log_softmax(-1)
        with hooked(model.network, plan):
            after = model.network(whole).logits[0, -n - 1 : -1].double().log_softmax(-1)
        wanted = torch.nn.functional.kl_div(after, before, log_target=True, reduction="sum")
        assert got[i] == pytest.approx([float(wanted), n], rel=1e-3, abs=1e-5)
        assert wanted > 1e-4


def test_quality_is_its_formula():
    divergence = np.array([[3.0, 10.0], [1.0, 10.0], [0.0, 20.0], [4.0, 40.0]])
    kl, quality = kl_and_quality(divergence, [False, True, False, False])
    assert kl.value == pytest.approx(8 / 80)
    assert quality.value == pytest.approx(math.exp(-0.1) * 0.75)
    for estimate in (kl, quality):
        assert estimate.low <= estimate.value <= estimate.high
    _, perfect = kl_and_quality(divergence * [0, 1], [False] * 4)
    assert (perfect.value, perfect.low, perfect.high) == (1, 1, 1)
