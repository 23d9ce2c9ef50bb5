from dataclasses import replace

import pytest
import torch

from tests import pico
from unrefuse.engine.capture import residuals
from unrefuse.engine.generate import reply_to
from unrefuse.metrics.layers import centre_and_spread, layer_strengths
from unrefuse.models.writers import blocks
from unrefuse.prompts.chat import encode

TARGETS = ["Hi", "What is a volcano?", "x" * 30, "Tell me about chess."]
TOPICS = ["a", "b", "a", "c"]
BASELINES = ["ok then", "yes", "What now?"]


def strengths(model, directions, thoughts):
    refusals = [replace(r, thoughts=thoughts) for r in reply_to(model, TARGETS, 6)]
    return refusals, layer_strengths(model, directions, TARGETS, TOPICS, refusals, BASELINES)


@pytest.mark.parametrize("thoughts", [0, 2])
def test_strengths_by_layer_are_what_their_definitions_say(thoughts):
    model = pico.loaded()
    directions = torch.nn.functional.normalize(torch.randn(3, 32).double(), dim=-1)
    refusals, found = strengths(model, directions, thoughts)
    assert set(found) == {"", "a"}  # a topic of one prompt says nothing
    assert (found[""].n, found["a"].n) == (4, 2)

    def along(prompts):
        rows = {}
        for batch, streams in residuals(model, prompts):
            rows |= dict(zip(batch, streams.double(), strict=True))
        return torch.stack([rows[i][1] @ directions[1] for i in range(len(prompts))])

    a, b = along(TARGETS), along(BASELINES)
    wanted = (a.mean() - b.mean()) / ((a.var() + b.var()) / 2).sqrt()
    assert found[""].separation[1] == pytest.approx(float(wanted), rel=1e-4)

    def log_odds(ids, opening):
        logits = model.network(torch.tensor([ids + opening])).logits[0].double().log_softmax(-1)
        p = sum(logits[len(ids) - 1 + i, t] for i, t in enumerate(opening)).exp()
        return torch.log(p / (1 - p))

    r, falls = directions[1].float(), []
    for ids, refusal in zip(encode(model.tokenizer, TARGETS), refusals, strict=True):
        ids, opening = ids + list(refusal.tokens[:thoughts]), list(refusal.tokens[thoughts:][:4])
        whole = log_odds(ids, opening)

        def project(module, args, output):
            return output - (output @ r).unsqueeze(-1) * r

        handle = blocks(model.network)[1].register_forward_hook(project)
        falls.append(whole - log_odds(ids, opening))
        handle.remove()
    wanted_effect = float(torch.stack(falls).mean())
    assert found[""].effect[1] == pytest.approx(wanted_effect, rel=1e-3, abs=1e-4)
    assert all(not block._forward_hooks for block in blocks(model.network))


@pytest.mark.parametrize(
    ("weights", "peak", "width"),
    [
        ((0, 0, 0, 5, 0), 0.75, 0.08),
        ((1, 1, 1, 1, 1), 0.5, 0.25),
        ((0, 0, 1, 2, 1), 0.75, 0.177),
        ((0, 0, 2, 4, 2), 0.75, 0.177),  # of their size alone nothing depends
        ((1,), 0.0, 0.08),
    ],
)
def test_the_centre_and_the_spread_over_the_depth(weights, peak, width):
    assert centre_and_spread(weights) == (peak, width)
