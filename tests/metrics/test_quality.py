import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import pico
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import ablation_plan
from unrefuse.engine.generate import reply_to
from unrefuse.metrics.quality import (
    check_logits,
    divergences,
    head_of,
    kl_and_quality,
    make_reference,
)
from unrefuse.prompts.chat import encode

PROMPTS = ["Hi", "What is a volcano?", "Tell me about chess.", "x" * 40, "ok then"]


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "granite"])
def test_divergence_is_the_kl_of_the_full_logits(model_type):
    model = pico.loaded(model_type, batch_size=2)
    replies = reply_to(model, PROMPTS, 8)
    reference = make_reference(model, PROMPTS, replies)
    assert divergences(model, reference)[:, 0] == pytest.approx(0, abs=1e-5)

    directions = torch.nn.functional.normalize(torch.randn(3, 32).double(), dim=-1)
    plan = ablation_plan(model.network, directions, (1.0, 1.0, 1.0))
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


@pytest.mark.parametrize(("tokens", "wanted"), [(None, 5), (2, 2)])
def test_thoughts_are_read_and_not_measured(tokens, wanted):
    model = pico.loaded(batch_size=2)
    replies = [replace(r, tokens=(r.tokens * 8)[:8]) for r in reply_to(model, PROMPTS, 8)]
    thought = [replace(r, thoughts=3) for r in replies]
    whole = make_reference(model, PROMPTS, replies)
    rest = make_reference(model, PROMPTS, thought, tokens)
    for one, other in zip(whole.hidden, rest.hidden, strict=True):
        assert len(other) == wanted
        torch.testing.assert_close(one[3 : 3 + wanted], other, rtol=1e-4, atol=1e-4)


def test_the_original_is_read_through_its_own_head():
    """An edited model may have another head, and rows of padding in it."""
    original, edited = pico.loaded("granite"), pico.loaded("granite")
    replies = reply_to(original, PROMPTS, 8)
    reference = make_reference(original, PROMPTS, replies)
    assert reference.head is None
    reference = replace(reference, head=head_of(original))
    edited.network.resize_token_embeddings(288)
    assert divergences(edited, reference)[:, 0] == pytest.approx(0, abs=1e-5)
    edited.network.get_output_embeddings().weight.data *= 1.5
    got = divergences(edited, reference)
    ids, answer = encode(original.tokenizer, PROMPTS)[0], list(replies[0].tokens)
    whole, n = torch.tensor([ids + answer]), len(answer)
    logits = original.network(whole).logits[0, -n - 1 : -1].double()
    before, after = logits.log_softmax(-1), (1.5 * logits).log_softmax(-1)
    assert got[0, 0] == pytest.approx(float((before.exp() * (before - after)).sum()), rel=1e-3)


def test_quality_is_its_formula():
    divergence = np.array([[3.0, 10.0], [1.0, 10.0], [0.0, 20.0], [4.0, 40.0]])
    kl, quality = kl_and_quality(divergence, [False, True, False, False])
    assert kl.value == pytest.approx(8 / 80)
    assert quality.value == pytest.approx(math.exp(-0.1) * 0.75)
    for estimate in (kl, quality):
        assert estimate.low <= estimate.value <= estimate.high
    _, perfect = kl_and_quality(divergence * [0, 1], [False] * 4)
    assert (perfect.value, perfect.low, perfect.high) == (1, 1, 1)


def test_logits_of_another_model_are_told_from_rounding():
    wanted = torch.randn(4, 100)
    assert check_logits(wanted, wanted + 1e-5, torch.float32) < 1e-3
    with pytest.raises(RuntimeError, match="nothing was saved"):
        check_logits(wanted, torch.randn(4, 100), torch.bfloat16)
