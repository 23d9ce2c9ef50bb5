import pytest
import torch

from tests import pico
from unrefuse.edits.directions import find_directions
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import ablation_plan
from unrefuse.engine.generate import reply_to
from unrefuse.metrics.margin import OPENING_TOKENS, make_openings, margins

PROMPTS = ["Hi", "What is a volcano?", "x" * 30, "Tell me about chess.", "ok", "And now?"]


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_margin_tells_whether_greedy_decoding_gives_the_opening_again(model_type):
    model = pico.loaded(model_type)
    replies = reply_to(model, PROMPTS, OPENING_TOKENS)
    openings = make_openings(model, PROMPTS, [r.tokens for r in replies])
    assert bool((margins(model, openings) > 0).all())
    means = torch.randn(3, 3, 32, generator=torch.Generator().manual_seed(0)).double()
    plan = ablation_plan(model.network, find_directions(*means), (0.5, 0.5, 0.5))
    with hooked(model.network, plan):
        after = margins(model, openings)
        again = reply_to(model, PROMPTS, OPENING_TOKENS)
    same = [a.tokens == b.tokens for a, b in zip(replies, again, strict=True)]
    assert (after > 0).tolist() == same
    assert len(set(same)) == 2  # the edit changes some openings and leaves others


def test_the_margin_is_the_least_lead_of_an_opening_token():
    model = pico.loaded()
    replies = reply_to(model, PROMPTS[:1], OPENING_TOKENS)
    openings = make_openings(model, PROMPTS[:1], [replies[0].tokens])
    opening, ids = openings.openings[0], openings.sequences[0]
    logits = model.network(torch.tensor([ids])).logits[0, -len(opening) :]
    leads = []
    for row, token in zip(logits, opening, strict=True):
        others = torch.cat([row[:token], row[token + 1 :]])
        leads.append(float(row[token] - others.max()))
    assert float(margins(model, openings)[0]) == pytest.approx(min(leads), rel=1e-4)
