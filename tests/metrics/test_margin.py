import pytest
import torch

from tests import pico
from unrefuse.edits.directions import find_directions
from unrefuse.edits.hooks import hooked
from unrefuse.edits.plan import ablation_plan
from unrefuse.engine.generate import reply_to
from unrefuse.metrics.margin import OPENING_TOKENS, make_openings, margins, token_margins

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


def test_the_refusal_margin_is_the_least_of_the_margins_of_an_openings_tokens():
    model = pico.loaded()
    replies = reply_to(model, PROMPTS[:2], 12)
    openings = make_openings(model, PROMPTS[:2], [r.tokens for r in replies])
    for prompt, reply, least in zip(PROMPTS[:2], replies, margins(model, openings), strict=True):
        by_token = token_margins(model, prompt, reply.tokens)
        assert len(by_token) == len(reply.tokens)
        assert float(by_token[:OPENING_TOKENS].min()) == pytest.approx(float(least), rel=1e-4)
        assert by_token[2:].tolist() == pytest.approx(
            token_margins(model, prompt, reply.tokens, 2).tolist(), rel=1e-4
        )
